"""Features of pictures: decoded, put on the victim's grid, through the network in batches."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from uturn.data.pictures import Picture, Pictures
from uturn.progress import bar
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_pixels

BATCH = 64
"""Pictures that pass through a victim at a time, at the most."""


@torch.no_grad()
def extract(victim: Victim, images: Tensor) -> Tensor:
    """Raw features ``(N, D)`` of uint8 images ``(N, 3, H, W)``, in batches of bounded memory."""
    parts = [victim.features(to_pixels(part)) for part in torch.split(images, BATCH)]
    return torch.cat(parts)


def extract_decoded(victim: Victim, pictures: Iterable[Picture]) -> Tensor:
    """Raw features ``(N, D)`` of decoded pictures of any sizes, put on the victim's grid."""
    batches = by_shape(victim.preprocessing.on_grid(picture) for picture in pictures)
    order = torch.tensor([i for which, _ in batches for i in which])
    return torch.cat([extract(victim, images) for _, images in batches])[order.argsort()]


def extract_pictures(victim: Victim, pictures: Pictures, part: range) -> Tensor:
    """Raw features ``(n, D)`` of the pictures of ``part``."""
    return extract_decoded(victim, map(pictures.read, part))


def extract_all(victim: Victim, pictures: Pictures, what: str, *, progress: bool) -> Tensor:
    """Raw features ``(N, D)`` of all pictures, with a progress bar that says ``what`` they are."""
    parts = []
    with bar(len(pictures), f"embedding the {what}", "picture", show=progress) as shown:
        for part in chunks(len(pictures)):
            parts.append(extract_pictures(victim, pictures, part))
            shown.update(len(part))
    return torch.cat(parts)


def chunks(total: int, size: int = 256) -> list[range]:
    """``range(total)`` in pieces of ``size``."""
    return [range(begin, min(begin + size, total)) for begin in range(0, total, size)]
