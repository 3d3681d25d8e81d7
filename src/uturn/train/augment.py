"""Augmentations of a batch of uint8 images ``(B, 3, H, W)``, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def shift(images: Tensor, rng: torch.Generator) -> Tensor:
    """Move by up to a sixteenth of each side; what leaves comes back on the other side."""
    reach = [max(1, side // 16) for side in images.shape[-2:]]
    by = [int(torch.randint(-r, r + 1, (), generator=rng)) for r in reach]
    return images.roll(by, (2, 3))


def flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror half of the pictures left to right."""
    mirrored = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def recolour(images: Tensor, rng: torch.Generator) -> Tensor:
    """Permute the colour channels, and invert them half of the time."""
    images = images[:, torch.randperm(3, generator=rng)]
    return 255 - images if torch.rand((), generator=rng) < 0.5 else images


AUGMENTATIONS: dict[str, Augmentation] = {f.__name__: f for f in (shift, flip, recolour)}
