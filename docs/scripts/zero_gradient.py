"""Draws docs/images/zero_gradient.*: why the U-turn's gradient vanishes at the clean picture.

    .venv/bin/python docs/scripts/zero_gradient.py

Glyphs and the shipped network; nothing is downloaded. Takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

import uturn
from uturn.report import plates
from uturn.types import LEVELS

STEM = Path(__file__).parent.parent / "images" / "zero_gradient"

AWAY = (0.0, 1 / 64, 1 / 16, 1 / 4, 1.0, 4.0)
"""Levels from the clean picture at which gradients are looked at."""

LINE = tuple(np.linspace(-8, 8, 33).tolist())
"""Levels at which the cosine is looked at."""

Feature = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class Found:
    """What was measured of Q queries, on the line through each that changes every value alike."""

    cosine: Tensor
    """Cosine to the clean feature at every place of `LINE`: ``(len(LINE), Q)``."""

    unit: Tensor
    """Length of the gradient of −‖f(x′) + f(x)‖² at every distance of `AWAY`, f the
    unit feature, in float32."""

    raw: Tensor
    """The same of the feature whose length is not taken off."""

    agreement: Tensor
    """Share of values in which the gradient has one sign in float32 and in float64: ½ is chance."""


def measure(victim: uturn.Victim, images: Tensor, seed: int = 0) -> Found:
    """Walk from uint8 ``images`` ``(Q, 3, H, W)`` in a random direction of ±1 per value."""
    draw = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, images.shape, generator=draw) * 2 - 1
    wide = copy.deepcopy(victim.network).double()
    single, double = (_feature(victim, network) for network in (victim.network, wide))

    def at(levels: float) -> Tensor:
        return ((images.double() + levels * signs) / LEVELS).clamp(0, 1)

    with torch.no_grad():
        own = double(at(0))
        cosine = torch.stack([F.cosine_similarity(double(at(t)), own) for t in LINE])
    slopes = [
        {
            "unit": slope(single, at(0).float(), at(t).float(), normal=True),
            "raw": slope(single, at(0).float(), at(t).float(), normal=False),
            "wide": slope(double, at(0), at(t), normal=True),
        }
        for t in AWAY
    ]
    same = [s["unit"].sign() == s["wide"].sign() for s in slopes]
    return Found(
        cosine=cosine,
        unit=torch.stack([s["unit"].flatten(1).norm(dim=1) for s in slopes]),
        raw=torch.stack([s["raw"].flatten(1).norm(dim=1) for s in slopes]),
        agreement=torch.stack([each.flatten(1).double().mean(1) for each in same]),
    )


def slope(feature: Feature, clean: Tensor, pixels: Tensor, *, normal: bool) -> Tensor:
    """The gradient of −‖f(x′) + f(x)‖² at ``pixels``, in their precision: ``(Q, 3, H, W)``."""
    pixels = pixels.clone().requires_grad_()
    own, here = feature(clean).detach(), feature(pixels)
    if normal:
        own, here = F.normalize(own, dim=1), F.normalize(here, dim=1)
    (found,) = torch.autograd.grad(-(here + own).square().sum(), pixels)
    return found


def _feature(victim: uturn.Victim, network: torch.nn.Module) -> Feature:
    """Pixels → raw features ``(Q, D)`` in the precision of ``network``."""

    def feature(pixels: Tensor) -> Tensor:
        found: Tensor = network(victim.preprocessing.normalise(pixels))
        return found

    return feature


def draw(found: Found, stem: Path) -> list[Path]:
    """Three panels: the hill, its slope at the top, and whether anybody agrees on its sign."""
    with plates.drawing():
        sheet = plates.sheet(plates.TEXT, 2.3)
        hill, steep, signs = (sheet.add_subplot(1, 3, number) for number in (1, 2, 3))
        hill.plot(LINE, found.cosine.numpy(), color="#0072b2", alpha=0.12, linewidth=0.7)
        hill.plot(LINE, found.cosine.median(1).values.numpy(), color="#0072b2", linewidth=1.6)
        hill.set_title("The top of a hill", loc="left")
        hill.set_xlabel("levels from the clean picture")
        hill.set_ylabel("cosine to f(x)")
        _spread(steep, found.raw, "#e69f00", "raw feature")
        _spread(steep, found.unit, "#0072b2", "unit feature")
        steep.set_yscale("log")
        steep.set_title("How steep it is", loc="left")
        steep.set_ylabel("length of the gradient")
        steep.legend(frameon=False, loc="lower right")
        _spread(signs, found.agreement, "#0072b2", "")
        signs.axhline(0.5, color="#555555", linestyle=(0, (5, 3)), linewidth=0.8)
        signs.text(len(AWAY) - 1, 0.48, "two coins", ha="right", va="top")
        signs.set_ylim(0, 1.04)
        signs.set_title("float32 and float64 agree", loc="left")
        signs.set_ylabel("share of signs")
        return plates.save(sheet, stem)


def _spread(axes: Axes, values: Tensor, colour: str, label: str) -> None:
    """The median over queries at every distance of `AWAY`, and the middle half of them."""
    low, middle, high = np.quantile(values.numpy(), (0.25, 0.5, 0.75), axis=1)
    places = range(len(AWAY))
    axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(places, middle, color=colour, marker="o", markersize=3.5, label=label)
    axes.set_xticks(places, ["0", "1/64", "1/16", "1/4", "1", "4"])
    axes.set_xlabel("levels from the clean picture")


def main() -> None:
    """Measure 64 queries, draw, and print the numbers that the page quotes."""
    victim, query = uturn.load_victim("glyph_net"), uturn.load_data("glyphs").query
    queries = query.sample(64, 1, "glyphs", "queries")
    found = measure(victim, victim.grid(queries.read(i) for i in range(len(queries))))
    print(*draw(found, STEM), sep="\n")
    for number, levels in enumerate(AWAY):
        unit, raw, same = (
            values[number].median().item() for values in (found.unit, found.raw, found.agreement)
        )
        low, high = np.quantile(found.agreement[number].numpy(), (0.25, 0.75))
        print(
            f"{levels:8.4f} levels: unit {unit:.2e}, raw {raw:.2e}, "
            f"signs {same:.3f} ({low:.3f} to {high:.3f})"
        )


if __name__ == "__main__":
    main()
