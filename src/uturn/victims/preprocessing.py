"""What a network expects of its input, on the way in from any picture: resize, crop, normalise."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from uturn.data.pictures import Picture
from uturn.errors import ArgumentError
from uturn.types import LEVELS

_LARGEST = 4096

Interpolation = Literal["bilinear", "bicubic"]

Fit = Literal["stretch", "crop", "within"]
"""How a picture of other proportions comes to size.

``stretch``: both sides to size (re-identification). ``crop``: the shorter side to
``crop_from``, then a crop from the centre (ImageNet, CLIP). ``within``: made smaller, never
larger, until it lies within size, proportions kept (landmarks).
"""

Order = Literal["RGB", "BGR"]

Centre = Literal["round", "floor"]
"""Where a crop begins that cannot lie in the very middle: half a pixel is rounded to even
(torchvision, timm), or down (Hugging Face's transformers)."""


ROUNDING = 1.51
"""In levels: one where two resizers round to 8 bits, and half where one of them does not."""


@final
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network expects of its input; it lives with the weights.

    ``size`` is (H, W); ``mean`` and ``std`` are per channel, in pixels of [0, 1], in the
    network's own ``order`` of channels.

    Raises:
        ArgumentError: a value out of range.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    fit: Fit = "stretch"
    crop_from: int | None = None
    """With ``crop``: the shorter side before the crop; None is the longer side of ``size``."""
    order: Order = "RGB"
    centre: Centre = "round"

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            if isinstance(getattr(self, name), list):  # equal values must be equal
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not (
            isinstance(self.size, tuple)
            and len(self.size) == 2
            and all(type(side) is int and 1 <= side <= _LARGEST for side in self.size)
        ):
            raise ArgumentError(f"size must be (H, W) within 1 … {_LARGEST}, got {self.size!r}")
        for three in (self.mean, self.std):
            numbers = isinstance(three, tuple) and all(isinstance(x, (int, float)) for x in three)
            if not (numbers and len(three) == 3 and all(map(math.isfinite, three))):
                raise ArgumentError(
                    f"mean and std must be three numbers, got {self.mean}, {self.std}"
                )
        if min(self.std) <= 0:
            raise ArgumentError(f"std must be positive, got {self.std}")
        for name, known in (
            ("interpolation", Interpolation),
            ("fit", Fit),
            ("order", Order),
            ("centre", Centre),
        ):
            if getattr(self, name) not in get_args(known):
                raise ArgumentError(
                    f"{name} must be one of {', '.join(get_args(known))}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.crop_from is not None and self.fit != "crop":
            raise ArgumentError(f"crop_from needs fit='crop', got fit={self.fit!r}")
        if self.crop_from is not None and not max(self.size) <= self.crop_from <= _LARGEST:
            raise ArgumentError(
                f"crop_from must hold a crop of {self.size} and be at most {_LARGEST}, "
                f"got {self.crop_from}"
            )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) that a picture is resized to, before any crop."""
        if self.fit == "stretch":
            return self.size
        if self.fit == "crop":
            shorter = self.crop_from or max(self.size)
            # The longer side is cut off, not rounded, as torchvision, timm and CLIP do.
            longer = max(shorter, int(shorter * max(height, width) / min(height, width)))
            return (longer, shorter) if height > width else (shorter, longer)
        scale = min(1.0, self.size[0] / height, self.size[1] / width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _corner(self, height: int, width: int) -> tuple[int, int]:
        """Where the crop from the centre begins: top, left."""
        settle = round if self.centre == "round" else math.floor
        return settle((height - self.size[0]) / 2), settle((width - self.size[1]) / 2)

    def resize(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, *)`` at the network's size, differentiably, as Pillow resizes.

        Pixels that have that size already are taken as they are.
        """
        shape = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        if shape == self.size:
            return pixels
        size = self._resized(*shape)
        if size != shape:
            pixels = F.interpolate(
                pixels, size, mode=self.interpolation, align_corners=False, antialias=True
            ).clamp(0, 1)  # bicubic overshoots
        if self.fit != "crop":
            return pixels
        top, left = self._corner(*size)
        return pixels[..., top : top + self.size[0], left : left + self.size[1]]

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(pixels − mean) / std`` per channel."""
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        ordered = pixels if self.order == "RGB" else pixels.flip(1)
        if ordered.ndim == 4 and ordered.is_contiguous(memory_format=torch.channels_last):
            # Row by row, because a loop over three channels fills no register: the same bits in a
            # fifth of the time, there and back.
            last, wide = ordered.permute(0, 2, 3, 1), ordered.shape[3]
            rows = last.flatten(2)  # (B, H, W · 3)
            found = (rows - mean.repeat(wide)).div_(std.repeat(wide))
            return found.view(last.shape).permute(0, 3, 1, 2)
        return (ordered - mean[:, None, None]).div_(std[:, None, None])

    def levels_apart(self, one: Tensor, other: Tensor) -> Tensor:
        """The largest difference of two normalised pictures ``(3, H, W)``, in levels."""
        return ((one - other).abs() * LEVELS * one.new_tensor(self.std)[:, None, None]).max()

    def on_grid(self, picture: Picture) -> Picture:
        """One decoded picture of any size as the network sees it: ``(H, W, 3)`` uint8.

        Resized by Pillow itself, as the published pipelines do: `resize` differs from it by
        rounding, which on Market-1501 moves Recall@1 by 0.001.
        """
        if picture.shape[:2] == self.size:
            return picture
        height, width = self._resized(*picture.shape[:2])
        resized = stretch(picture, height, width, self.interpolation)
        if self.fit != "crop":
            return resized
        top, left = self._corner(height, width)
        return resized[top : top + self.size[0], left : left + self.size[1]]

    def grid(self, pictures: Iterable[Picture]) -> Tensor:
        """Decoded pictures of any sizes on one grid: uint8 ``(B, 3, H, W)``.

        Raises:
            ArgumentError: proportions are kept and the pictures' differ (see `by_shape`).
        """
        fitted = [self.on_grid(picture) for picture in pictures]
        shapes = {picture.shape for picture in fitted}
        if len(shapes) > 1:
            raise ArgumentError(
                f"pictures of {len(shapes)} shapes fit no single batch while their proportions "
                "are kept; take them one by one, or a fit of stretch or crop"
            )
        return to_images(fitted)


def stretch(
    picture: Picture, height: int, width: int, interpolation: Interpolation = "bilinear"
) -> Picture:
    """A decoded picture at (height, width), resized by Pillow."""
    method = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(picture).resize((width, height), method))


def by_shape(pictures: Iterable[Picture]) -> list[tuple[list[int], Tensor]]:
    """Pictures in batches of one shape each: which of them, and uint8 ``(n, 3, H, W)``."""
    listed = list(pictures)
    groups: dict[tuple[int, ...], list[int]] = {}
    for position, picture in enumerate(listed):
        groups.setdefault(picture.shape, []).append(position)
    return [(which, to_images([listed[i] for i in which])) for which in groups.values()]


def to_images(pictures: list[Picture]) -> Tensor:
    """Pictures ``(H, W, 3)`` of one shape → uint8 images ``(B, 3, H, W)``."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
