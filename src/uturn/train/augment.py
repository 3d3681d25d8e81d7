"""Augmentations of a batch of uint8 images ``(B, 3, H, W)``, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn import specs
from uturn.errors import ArgumentError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Images and randomness → images, uint8 both."""


def shift() -> Augmentation:
    """Move all by up to a sixteenth of each side; what leaves comes back on the other side."""

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        reach = [max(1, side // 16) for side in images.shape[-2:]]
        by = [int(torch.randint(-r, r + 1, (), generator=rng)) for r in reach]
        return images.roll(by, (2, 3))

    return change


def flip() -> Augmentation:
    """Mirror half of the pictures left to right."""

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        mirrored = torch.rand(len(images), generator=rng) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

    return change


def recolour() -> Augmentation:
    """Permute the colour channels, and invert them half of the time."""

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        images = images[:, torch.randperm(3, generator=rng)]
        return 255 - images if torch.rand((), generator=rng) < 0.5 else images

    return change


def crop(pad: float = 0.08) -> Augmentation:
    """Move each picture by up to ``pad`` of its shorter side; what it leaves is black.

    Re-identification pads 256×128 by 10, CIFAR 32×32 by 4 (``pad=0.125``), and crops.
    """
    _share("crop", pad)

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        reach = max(1, round(pad * min(height, width)))
        padded = F.pad(images, (reach,) * 4)
        top, left = torch.randint(0, 2 * reach + 1, (2, count, 1), generator=rng)
        rows, columns = top + torch.arange(height), left + torch.arange(width)  # (B, H), (B, W)
        each = torch.arange(count)[:, None, None]
        moved = padded[each, :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, 3)
        return moved.permute(0, 3, 1, 2)

    return change


def erase(share: float = 0.5) -> Augmentation:
    """Fill a rectangle of a ``share`` of the pictures with the picture's mean colour.

    2 to 40 % of the area, 0.3 to 3.3 times as high as wide (Zhong et al., "Random Erasing Data
    Augmentation", AAAI 2020).
    """
    _share("erase", share)

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        chance, area, ratio, y, x = torch.rand(5, count, generator=rng)
        area = (0.02 + 0.38 * area) * height * width
        ratio = torch.exp(torch.log(torch.tensor(0.3)) * (1 - 2 * ratio))  # 0.3 … 1 / 0.3
        tall = (area * ratio).sqrt().round().clamp(1, height)
        wide = (area / ratio).sqrt().round().clamp(1, width)
        top, left = (y * (height - tall + 1)).floor(), (x * (width - wide + 1)).floor()
        rows, columns = torch.arange(height), torch.arange(width)
        inside = (rows >= top[:, None]) & (rows < (top + tall)[:, None])  # (B, H)
        across = (columns >= left[:, None]) & (columns < (left + wide)[:, None])  # (B, W)
        hole = inside[:, :, None] & across[:, None, :] & (chance < share)[:, None, None]
        mean = images.float().mean((2, 3), keepdim=True).round().to(images.dtype)
        return torch.where(hole[:, None], mean, images)

    return change


def jitter(reach: float = 0.2) -> Augmentation:
    """Brightness, contrast and saturation, each times 1 ± ``reach`` per picture."""
    _share("jitter", reach)

    def change(images: Tensor, rng: torch.Generator) -> Tensor:
        factors = 1 + reach * (2 * torch.rand(3, len(images), 1, 1, 1, generator=rng) - 1)
        pixels = images.float() * factors[0]
        grey = pixels.mean(1, keepdim=True)
        pixels = grey + factors[2] * (pixels - grey)
        mean = grey.mean((2, 3), keepdim=True)
        return (mean + factors[1] * (pixels - mean)).round().clamp(0, 255).to(images.dtype)

    return change


def _share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ArgumentError(f"{name} takes a share above 0 and up to 1, got {value}")


AUGMENTATIONS: dict[str, Callable[..., Augmentation]] = {
    f.__name__: f for f in (shift, flip, recolour, crop, erase, jitter)
}


def load_augmentation(spec: str) -> Augmentation:
    """An augmentation from a spec such as ``erase:share=0.5``.

    Raises:
        SpecError: unknown name or option. ArgumentError: a value out of range.
    """
    parsed = specs.Spec.parse(spec)
    factory = AUGMENTATIONS[specs.choose("augmentation", parsed.name, AUGMENTATIONS)]
    augmentation: Augmentation = specs.call("augmentation", factory, parsed)
    return augmentation
