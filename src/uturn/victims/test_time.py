"""What a victim makes of one picture at test time: mirrored, cropped and scaled looks, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError

Average = Literal["unit", "raw"]
"""Of several looks: the mean of unit features, or of features as they come."""


@final
@dataclass(frozen=True, kw_only=True)
class TestTime:
    """Which looks are taken at a picture, and how their features become one.

    Every scale × crop × (as it is, mirrored) is a look; all of it is differentiable.

    Raises:
        ArgumentError: a scale or power out of range.
    """

    __test__ = False  # pytest takes the name for a test's

    scales: tuple[float, ...] = (1.0,)
    """Input sizes relative to the preprocessing's."""
    flip: bool = False
    """Whether the mirrored picture is looked at too."""
    crops: tuple[int, int] | None = None
    """(H, W) of five crops, four corners and the centre; with ``flip`` it is the ten-crop."""
    average: Average = "unit"
    power: float = 1.0
    """p of the power mean over looks, ``(mean fᵖ)^(1/p)``; other than 1 only for features that
    are never negative, as GeM's (Radenović et al., TPAMI 2019, multi-scale)."""

    def __post_init__(self) -> None:
        if not self.scales or not all(1 / 16 <= scale <= 4 for scale in self.scales):
            raise ArgumentError(
                f"scales must lie between 1/16 and 4 and be at least one, got {self.scales}"
            )
        if self.average not in get_args(Average):
            raise ArgumentError(f"average must be unit or raw, got {self.average!r}")
        if not 0 < self.power <= 100:
            raise ArgumentError(f"power must lie within 0 … 100, got {self.power}")

    @property
    def count(self) -> int:
        """How many looks there are."""
        return len(self.scales) * (1 + self.flip) * (1 if self.crops is None else 5)

    def looks(self, pixels: Tensor) -> Iterator[Tensor]:
        """The looks at pixels ``(B, 3, H, W)`` on the victim's grid.

        Raises:
            ArgumentError: a crop is larger than the picture at some scale.
        """
        for scale in self.scales:
            at_scale = pixels
            if scale != 1:
                size = [max(1, round(side * scale)) for side in pixels.shape[-2:]]
                at_scale = F.interpolate(
                    pixels, size, mode="bilinear", align_corners=False, antialias=True
                )
            for crop in self._crops(at_scale):
                yield crop
                if self.flip:
                    yield crop.flip(3)

    def _crops(self, pixels: Tensor) -> Iterator[Tensor]:
        if self.crops is None:
            yield pixels
            return
        (h, w), (height, width) = self.crops, pixels.shape[-2:]
        if h > height or w > width:
            raise ArgumentError(
                f"crops of {h}×{w} do not fit pictures of {height}×{width}; choose smaller crops, "
                "or a larger size"
            )
        middle = round((height - h) / 2), round((width - w) / 2)
        corners = (0, 0), (0, width - w), (height - h, 0), (height - h, width - w)
        for top, left in (*corners, middle):
            yield pixels[..., top : top + h, left : left + w]

    def combine(self, seen: list[Tensor]) -> Tensor:
        """Features by parts ``(B, P, D)`` of every look → of the picture."""
        if len(seen) == 1:
            return seen[0]
        looks = torch.stack(seen)
        if self.average == "unit":
            looks = F.normalize(looks, dim=3)
        if self.power == 1:
            return looks.mean(0)
        if bool((looks < 0).any()):
            raise ArgumentError(
                f"power={self.power:g} needs features that are never negative, and this victim's "
                "are; leave power away"
            )
        # The root of zero has no slope.
        return looks.clamp(min=1e-6).pow(self.power).mean(0).pow(1 / self.power)
