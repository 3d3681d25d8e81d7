"""Views: what the attacker averages over. Pixels in, pixels out, differentiable.

A view that draws at random draws from one generator per picture, so that a picture is shown
the same views whatever batch it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, final

import numpy as np
import torch
import torch.nn.functional as F

from uturn.errors import ArgumentError
from uturn.types import LEVELS, Pixels

Draw: TypeAlias = Sequence[np.random.Generator]
"""One generator per picture of the batch."""


class View(Protocol):
    """A frozen value that changes how the pictures are shown to the victim."""

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        """Show ``pixels`` ``(B, 3, H, W)`` in another way; the size may change."""
        ...


def is_random(view: View) -> bool:
    """Whether a view shows the same picture differently each time; one that does not say does."""
    return bool(getattr(view, "random", True))


@final
@dataclass(frozen=True)
class Identity:
    """The picture as it is."""

    random: ClassVar = False

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        return pixels


@final
@dataclass(frozen=True)
class Flip:
    """Mirrored left to right, as re-ID systems show every picture a second time."""

    random: ClassVar = False

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        return pixels.flip(-1)


@final
@dataclass(frozen=True)
class Scale:
    """Both sides multiplied by ``factor``, as a smaller copy of the picture would be shown.

    The victim puts it on its own grid again, so this is a blur. To look at a victim at several
    input sizes, as the paper's multi-scale query does, use `objectives.AtScales`.
    """

    factor: float

    random: ClassVar = False

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        size = [max(1, round(side * self.factor)) for side in pixels.shape[-2:]]
        return F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)


SCALES = (Scale(1.0), Scale(1 / math.sqrt(2)), Scale(0.5))
"""Copies at 1, 1/√2 and 1/2 of the size."""


@final
@dataclass(frozen=True)
class Noise:
    """Gaussian noise of ``sigma`` levels."""

    sigma: float

    random: ClassVar = True

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        shape = tuple(pixels.shape[1:])
        drawn = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in draw])
        return pixels + torch.from_numpy(drawn).to(pixels) * (self.sigma / LEVELS)


@final
@dataclass(frozen=True)
class Neighbour:
    """A random picture no further than ``radius`` levels in any value.

    Source: Wang and He, CVPR 2021, whose radius is 1.5 ε (see `steps.Variance`).
    """

    radius: float

    random: ClassVar = True

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        shape = tuple(pixels.shape[1:])
        drawn = np.stack([2 * rng.random(shape, dtype=np.float32) - 1 for rng in draw])
        return pixels + torch.from_numpy(drawn).to(pixels) * (self.radius / LEVELS)


@final
@dataclass(frozen=True)
class Resample:
    """Shrunk by ``factor`` and enlarged again, bilinearly: what thumbnails do to a picture."""

    factor: float = 0.5

    random: ClassVar = False

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        whole = list(pixels.shape[-2:])
        small = [max(1, int(side * self.factor)) for side in whole]
        for size in (small, whole):
            pixels = F.interpolate(
                pixels, size, mode="bilinear", align_corners=False, antialias=True
            )
        return pixels


@final
@dataclass(frozen=True)
class ResizePad:
    """Shrink by up to ``shrink``, put at a random place on a black ground (input diversity).

    With probability ``1 − chance`` the picture is shown as it is.

    Source: Xie et al., "Improving Transferability of Adversarial Examples with Input
    Diversity", CVPR 2019.
    """

    shrink: float = 0.1
    chance: float = 0.5

    random: ClassVar = True

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        return torch.cat([self._one(p[None], rng) for p, rng in zip(pixels, draw, strict=True)])

    def _one(self, picture: Pixels, rng: np.random.Generator) -> Pixels:
        height, width = picture.shape[-2:]
        chance, factor, y, x = rng.random(4)
        if chance >= self.chance:
            return picture
        scale = 1 - self.shrink * factor
        size = [max(1, round(side * scale)) for side in (height, width)]
        small = F.interpolate(picture, size, mode="bilinear", align_corners=False)
        top, left = int(y * (height - size[0] + 1)), int(x * (width - size[1] + 1))
        return F.pad(small, (left, width - size[1] - left, top, height - size[0] - top))


@final
@dataclass(frozen=True)
class Jpeg:
    """Through a differentiable JPEG of ``quality`` 1 … 100, so that the attack survives it.

    Needs Kornia (``pip install 'uturn[jpeg]'``). Source: Reich et al., "Differentiable JPEG:
    The Devil is in the Details", WACV 2024.
    """

    quality: float

    random: ClassVar = False

    def __call__(self, pixels: Pixels, draw: Draw) -> Pixels:
        try:
            from kornia.enhance import jpeg_codec_differentiable
        except ImportError:
            raise ArgumentError(
                "the Jpeg view needs Kornia; install it with pip install 'uturn[jpeg]'"
            ) from None
        height, width = pixels.shape[-2:]
        # Kornia codes whole blocks of 16; the border is repeated, as encoders do.
        whole = F.pad(pixels, (0, -width % 16, 0, -height % 16), mode="replicate")
        quality = torch.full((len(pixels),), float(self.quality)).to(pixels)
        coded: Pixels = jpeg_codec_differentiable(whole, quality)
        return coded[..., :height, :width]


VIEWS: dict[str, tuple[View, ...]] = {
    "identity": (Identity(),),
    "flip": (Flip(),),
    "scales": SCALES,
    "noise": (Noise(2.0),),
    "pad": (ResizePad(),),
    "resize": (Resample(),),
    "jpeg95": (Jpeg(95),),
    "jpeg75": (Jpeg(75),),
}
"""Views by the name that an attack spec uses: ``odfa:views=identity+jpeg75``."""
