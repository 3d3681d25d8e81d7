"""Judges: which gallery pictures are relevant to a query, and which are ignored for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from uturn import specs
from uturn.data.pictures import Pictures
from uturn.data.split import JUNK


@final
@dataclass(frozen=True, eq=False)
class Labels:
    """Identities and cameras, ``(N,)`` int64 each."""

    identities: Tensor
    cameras: Tensor

    @classmethod
    def of(cls, pictures: Pictures, device: torch.device) -> Labels:
        """The labels of ``pictures`` on ``device``."""
        return cls(
            torch.from_numpy(pictures.identities).to(device),
            torch.from_numpy(pictures.cameras).to(device),
        )

    def __len__(self) -> int:
        return len(self.identities)

    def __getitem__(self, part: slice | Tensor) -> Labels:
        return Labels(self.identities[part], self.cameras[part])


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


_PROTOCOLS: dict[str, Judge] = {"cross-camera": CrossCamera()}


def judge_for(protocol: str) -> Judge:
    """The judge that a split's ``protocol`` names."""
    return _PROTOCOLS[specs.choose("protocol", protocol, _PROTOCOLS)]
