"""Features of pictures: decoded, put on the victim's grid, through the network in batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.data.pictures import Picture, Pictures
from uturn.parallel import behind
from uturn.portions import Portion
from uturn.progress import bar
from uturn.retrieval.cache import Shelf, believed
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_pixels

BATCH = 64
"""Pictures that pass through a victim at a time, at the most."""


@torch.no_grad()
def extract(victim: Victim, images: Tensor) -> Tensor:
    """Raw features ``(N, D)`` of uint8 images ``(N, 3, H, W)``, in batches of bounded memory."""
    parts = list[Tensor]()

    def look(part: range) -> None:
        parts.append(victim.features(to_pixels(images[part.start : part.stop])))

    Portion(BATCH).through(len(images), look)
    return torch.cat(parts)


def extract_decoded(victim: Victim, pictures: Iterable[Picture]) -> Tensor:
    """Raw features ``(N, D)`` of decoded pictures of any sizes, put on the victim's grid."""
    batches = by_shape(victim.preprocessing.on_grid(picture) for picture in pictures)
    order = torch.tensor([i for which, _ in batches for i in which])
    return torch.cat([extract(victim, images) for _, images in batches])[order.argsort()]


def extract_all(victim: Victim, pictures: Pictures, what: str, *, progress: bool) -> Tensor:
    """Raw features ``(N, D)`` of all pictures, with a progress bar that says ``what`` they are.

    The next pictures are decoded while the victim looks at these. What this victim was asked
    before comes from disk (`uturn.retrieval.cache`), once one picture of each chunk was asked anew
    and the victim says what it said then. A stop loses one chunk.
    """
    shelf, parts = Shelf.of(victim), chunks(len(pictures))
    read = _Reading(victim, pictures, shelf)
    found = list[Tensor]()
    title = f"embedding the {what} by {victim.name}"
    with bar(len(pictures), title, "picture", show=progress) as shown, behind() as pool:
        coming = [pool.submit(read, part) for part in parts[:1]]
        for number, part in enumerate(parts):
            stamps, kept, decoded = coming.pop().result()
            coming += [pool.submit(read, each) for each in parts[number + 1 : number + 2]]
            if kept is not None and not believed(kept[:1], extract_decoded(victim, decoded)):
                kept, decoded = None, read.decode(part)
            if kept is None:
                kept = extract_decoded(victim, decoded)
                if shelf is not None:
                    shelf.add(stamps, kept)
            found.append(kept.to(victim.device))
            shown.update(len(part))
    if shelf is not None:
        shelf.tidy()
    return torch.cat(found)


@final
@dataclass(frozen=True, eq=False)
class _Reading:
    """Get a chunk of pictures, or what is known of them."""

    victim: Victim
    pictures: Pictures
    shelf: Shelf | None

    def __call__(self, part: range) -> tuple[list[str], Tensor | None, list[Picture]]:
        """The pictures' stamps, their kept features, and the pictures decoded.

        Where features were kept, only the first picture is decoded.
        """
        if self.shelf is None:
            return [], None, self.decode(part)
        source, names = self.pictures.source, self.pictures.names
        stamps = [source.stamp(names[i]) for i in part]
        kept = self.shelf.find(stamps)
        return stamps, kept, self.decode(part if kept is None else part[:1])

    def decode(self, part: range) -> list[Picture]:
        """On the victim's grid."""
        return [self.victim.preprocessing.on_grid(self.pictures.read(i)) for i in part]


def chunks(total: int, size: int = 256) -> list[range]:
    """``range(total)`` in pieces of ``size``."""
    return [range(begin, min(begin + size, total)) for begin in range(0, total, size)]
