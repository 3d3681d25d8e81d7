"""A victim's preprocessing against its makers' own transform."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uturn.doctor.alternatives import REMEDY
from uturn.doctor.finding import Finding
from uturn.doctor.patient import SHAPES, Patient, built
from uturn.types import LEVELS
from uturn.victims.preprocessing import ROUNDING
from uturn.victims.same import spread
from uturn.victims.victim import Victim, to_pixels


def own_transform(patient: Patient) -> Finding:
    """The network on the victim's grid against the network on its makers' transform."""
    name, victim = "own-transform", patient.victim
    transform = victim.own_transform
    if transform is None:
        says = "the victim brings no transform of its makers (Victim.own_transform)"
        return Finding(name=name, verdict="not checked", says=says)
    pictures = [*built(len(SHAPES)), *patient.pictures[: len(SHAPES)]]
    apart, resized, ours, theirs = (list[Tensor]() for _ in range(4))
    for picture in pictures:
        wanted = transform(Image.fromarray(picture)).float()
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / LEVELS
        grid = victim.preprocessing.normalise(to_pixels(victim.grid([picture])))[0]
        if grid.shape != wanted.shape:
            return Finding(
                name=name,
                verdict="failed",
                says=f"a picture of {picture.shape[0]}×{picture.shape[1]} comes to "
                f"{tuple(grid.shape)}, by its makers' transform to {tuple(wanted.shape)}",
                cause="another size, or another way to fit pictures of other proportions",
                remedy=REMEDY,
            )
        smooth = victim.preprocessing.normalise(victim.preprocessing.resize(pixels))[0]
        apart.append(victim.preprocessing.levels_apart(grid, wanted))
        resized.append(victim.preprocessing.levels_apart(smooth, wanted))
        ours.append(_network(victim, grid))
        theirs.append(_network(victim, wanted))
    a, b = torch.cat(ours), torch.cat(theirs)
    levels = float(torch.stack(apart).max())
    moved = float((a - b).norm(dim=1).max()) / spread(b)
    measured = {
        "pictures": len(pictures),
        "input differs by (levels)": levels,
        "by the differentiable resize (levels)": float(torch.stack(resized).max()),
        "features differ by": float((a - b).abs().max()),
        "least cosine": float(F.cosine_similarity(a, b).min()),
        "moved": moved,
    }
    if levels <= ROUNDING:
        says = f"inputs agree within {levels:.2g} levels"
        return Finding(name=name, verdict="ok", says=says, measured=measured)
    return Finding(
        name=name,
        verdict="warning" if moved <= NEAR else "failed",
        says=f"inputs differ by up to {levels:.0f} levels from the makers' transform, and features "
        f"move by {moved:.0%} of the way to another picture",
        measured=measured,
        cause="mean and std, the order of channels, the resize or the crop are not the makers'",
        remedy=REMEDY,
    )


NEAR = 0.1
"""A feature that moved by less than this part of the way to another picture keeps its place."""


@torch.no_grad()
def _network(victim: Victim, prepared: Tensor) -> Tensor:
    return victim.respond(prepared[None]).flatten(1).cpu()
