"""Judges: which gallery pictures are relevant to a query, and which are ignored for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from uturn import specs
from uturn.data.pictures import Pictures
from uturn.data.split import JUNK, Listing, Split


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """Identities, cameras, and a number that only pictures of one name share: ``(N,)`` int64."""

    identities: Tensor
    cameras: Tensor
    ids: Tensor

    @classmethod
    def of(cls, pictures: Pictures, device: torch.device) -> Labels:
        """The labels of ``pictures`` on ``device``."""
        return cls(
            torch.from_numpy(pictures.identities).to(device),
            torch.from_numpy(pictures.cameras).to(device),
            torch.tensor(_ids(pictures.names), dtype=torch.int64, device=device),
        )

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, part: slice | Tensor) -> Labels:
        return Labels(self.identities[part], self.cameras[part], self.ids[part])


def _ids(names: Iterable[str]) -> list[int]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


class Judge(Protocol):
    """Returns two boolean masks ``(Q, G)``, relevant and ignored; no item is both.

    Called on chunks, so that the masks of a whole benchmark are never in memory.
    """

    def __call__(self, query: Labels, gallery: Labels) -> tuple[Tensor, Tensor]: ...


@final
@dataclass(frozen=True)
class CrossCamera:
    """Re-identification: the same identity seen by another camera is relevant.

    Ignored are the same identity in the same camera (near-duplicates that are too easy) and
    junk. Distractors are ordinary gallery items whose identity no query has.

    Source: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
    """

    def __call__(self, query: Labels, gallery: Labels) -> tuple[Tensor, Tensor]:
        same = query.identities[:, None] == gallery.identities  # (Q, G)
        near = query.cameras[:, None] == gallery.cameras
        junk = gallery.identities == JUNK  # (G,)
        return same & ~near & ~junk, (same & near) | junk


@final
@dataclass(frozen=True)
class SameIdentity:
    """Open-set retrieval: the same identity is relevant, whoever took the picture.

    Ignored are the query itself where it stands in the gallery (leave one out: CUB-200-2011,
    Food-256, Stanford Online Products) and junk.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR 2016.
    """

    def __call__(self, query: Labels, gallery: Labels) -> tuple[Tensor, Tensor]:
        same = query.identities[:, None] == gallery.identities  # (Q, G)
        ignored = (query.ids[:, None] == gallery.ids) | (gallery.identities == JUNK)
        return same & ~ignored, ignored


@final
class Listed:
    """The data set lists, query by query, what is relevant and what is ignored.

    Source: Philbin et al., "Object Retrieval with Large Vocabularies and Fast Spatial
    Matching", CVPR 2007 (good and ok are relevant, junk is ignored).
    """

    def __init__(self, listings: Mapping[str, Listing]) -> None:
        self._by_id = dict(zip(_ids(listings), listings.values(), strict=True))

    def __call__(self, query: Labels, gallery: Labels) -> tuple[Tensor, Tensor]:
        relevant = torch.zeros(len(query), len(gallery), dtype=torch.bool)
        ignored = relevant.clone()
        for row, number in enumerate(query.ids.tolist()):
            listing = self._by_id[number]
            relevant[row, torch.from_numpy(listing.relevant)] = True
            ignored[row, torch.from_numpy(listing.ignored)] = True
        device = gallery.identities.device
        return (relevant & ~ignored).to(device), ignored.to(device)


def judge_for(split: Split) -> Judge:
    """The judge of a split's protocol."""
    judges: dict[str, Judge] = {
        "cross-camera": CrossCamera(),
        "same-identity": SameIdentity(),
        "listed": Listed(split.listings),
    }
    return judges[specs.choose("protocol", split.protocol, judges)]
