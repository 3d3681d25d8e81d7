"""Views: what the attacker averages over. Pixels in, pixels out, differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch.nn.functional as F

from uturn.types import Pixels


class View(Protocol):
    """A frozen value that changes how the picture is shown to the victim."""

    def __call__(self, pixels: Pixels) -> Pixels: ...


@final
@dataclass(frozen=True)
class Identity:
    """The picture as it is."""

    def __call__(self, pixels: Pixels) -> Pixels:
        return pixels


@final
@dataclass(frozen=True)
class Flip:
    """Mirrored left to right, as re-ID systems show every picture a second time."""

    def __call__(self, pixels: Pixels) -> Pixels:
        return pixels.flip(-1)


@final
@dataclass(frozen=True)
class Scale:
    """Both sides multiplied by ``factor``; the victim resizes again if its size is fixed."""

    factor: float

    def __call__(self, pixels: Pixels) -> Pixels:
        size = [max(1, round(side * self.factor)) for side in pixels.shape[-2:]]
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
