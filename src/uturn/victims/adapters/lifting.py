"""Preprocessing out of other people's code, and the proof that it was read rightly."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from uturn.errors import ArgumentError, SpecError
from uturn.victims.preprocessing import ROUNDING, Centre, Preprocessing
from uturn.victims.victim import Victim, to_pixels

_OWN_WAY = "write package.module:function, which returns a uturn.Victim with the preprocessing"


def of_torchvision(transform: Any, name: str) -> Preprocessing:
    """What a ``Compose`` of torchvision does: Resize, CenterCrop, ToTensor, Normalize, no more.

    Raises:
        SpecError: a step that `Preprocessing` cannot follow.
    """
    steps = {type(step).__name__: step for step in getattr(transform, "transforms", [])}
    edge, crop = _side(steps.get("Resize")), _side(steps.get("CenterCrop"))
    size = crop or edge
    known = len(steps) == len(getattr(transform, "transforms", [])) and steps.keys() <= _STEPS
    if not (known and edge and len(size) == 2 and (len(edge) == 1 or edge == size)):
        raise SpecError(
            f"{name} prepares pictures by {textwrap.shorten(str(transform), 200)}, which uturn "
            f"cannot follow; {_OWN_WAY}"
        )
    norm = steps.get("Normalize")
    return preprocessing(
        name,
        size=size,
        crop_from=edge[0] if len(edge) == 1 else None,
        interpolation=getattr(steps["Resize"].interpolation, "value", None),
        mean=(0, 0, 0) if norm is None else norm.mean,
        std=(1, 1, 1) if norm is None else norm.std,
    )


def _side(step: Any) -> tuple[int, ...]:
    """The size of a Resize or CenterCrop: (H, W), or (shorter side,); empty without a step."""
    size = () if step is None else step.size
    return tuple(size) if isinstance(size, Sequence) else (size,)


_STEPS = {"Resize", "CenterCrop", "ToTensor", "MaybeToTensor", "Normalize", "function"}
"""By class; the function among them turns pictures to RGB, which `Picture` is already."""


def preprocessing(
    name: str,
    *,
    size: Sequence[int],
    crop_from: int | None,
    interpolation: Any,
    mean: Any,
    std: Any,
    centre: Centre = "round",
) -> Preprocessing:
    """`Preprocessing` of numbers as others store them: crop after resizing, or stretch.

    Raises:
        SpecError: a value that `Preprocessing` does not take.
    """
    height, width = map(int, size)
    try:
        return Preprocessing(
            size=(height, width),
            mean=_three(mean),
            std=_three(std),
            interpolation=interpolation,
            fit="stretch" if crop_from is None else "crop",
            crop_from=crop_from,
            centre=centre,
        )
    except ArgumentError as error:
        raise SpecError(f"{name} cannot be prepared for as it asks: {error}; {_OWN_WAY}") from error


def _three(values: Any) -> tuple[float, float, float]:
    if isinstance(values, Tensor):  # float32 has turned 0.485 into 0.48500001430…
        values = [str(number) for number in values.float().numpy()]
    red, green, blue = map(float, values)
    return red, green, blue


def proven(victim: Victim) -> Victim:
    """The victim, if its makers' own transform of two test pictures is what it shows its network.

    Raises:
        SpecError: they differ by more than rounding.
    """
    if victim.own_transform is None:
        return victim
    for height, width in _SHAPES:
        picture = _test_picture(height, width)
        theirs = victim.own_transform(Image.fromarray(picture)).float()
        ours = victim.preprocessing.normalise(to_pixels(victim.grid([picture])))[0]
        same = ours.shape == theirs.shape
        apart = float(victim.preprocessing.levels_apart(ours, theirs)) if same else float("inf")
        if apart > ROUNDING:
            raise SpecError(
                f"{victim.name} has a way of preparing pictures that uturn does not know: what it "
                f"makes of a {height}×{width} picture is {tuple(theirs.shape)} and differs by "
                f"{apart:.0f} levels; {_OWN_WAY}"
            )
    return victim


_SHAPES = ((300, 600), (500, 250))


def _test_picture(height: int, width: int) -> Any:
    """A smooth picture with another ramp in each direction and channel; resizers agree on it."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(5 * x + 2 * y), np.cos(7 * y - 3 * x), np.sin(4 * x * y + 6 * y)]
    return np.uint8(127.5 + 100 * np.stack(waves, 2))
