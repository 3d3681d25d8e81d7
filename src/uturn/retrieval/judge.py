"""Judges: which gallery pictures are relevant to a query, and which are ignored for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn import specs
from uturn.data.pictures import Pictures
from uturn.data.split import JUNK, Listing, Split


class Pairs(NamedTuple):
    """Queries and gallery items, pair by pair: ``(N,)`` int64 each. Rows ascend."""

    rows: Tensor
    columns: Tensor

    def where(self, kept: Tensor) -> Pairs:
        """Those of the pairs where ``kept`` ``(N,)`` is true."""
        return Pairs(self.rows[kept], self.columns[kept])

    def per_row(self, rows: int) -> Tensor:
        """How many pairs each of ``rows`` queries is in: ``(Q,)`` int64."""
        return torch.bincount(self.rows, minlength=rows)


@final
@dataclass(frozen=True, eq=False)
class Lookup:
    """Numbers ``(G,)`` sorted once, so that all who bear one are found without a look at others."""

    numbers: Tensor
    order: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Lookup:
        """The lookup of ``numbers`` ``(G,)`` int64."""
        return cls(*torch.sort(numbers, stable=True))

    def bearers(self, wanted: Tensor) -> Pairs:
        """Who bears each of the ``wanted`` ``(Q,)``, in the order they stand in."""
        first = torch.searchsorted(self.numbers, wanted)
        found = torch.searchsorted(self.numbers, wanted, right=True) - first
        skip = first - (found.cumsum(0) - found)
        rows = torch.repeat_interleave(found)
        places = torch.arange(len(rows), device=wanted.device) + skip[rows]
        return Pairs(rows, self.order[places])


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

    @cached_property
    def by_identity(self) -> Lookup:
        """Who has an identity."""
        return Lookup.of(self.identities)

    @cached_property
    def by_id(self) -> Lookup:
        """Who has a name's number."""
        return Lookup.of(self.ids)

    @cached_property
    def junk(self) -> Tensor:
        """Which pictures are junk: ``(J,)`` int64."""
        return (self.identities == JUNK).nonzero()[:, 0]


def _ids(names: Iterable[str]) -> list[int]:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return [int.from_bytes(digest, "little", signed=True) for digest in digests]


@final
@dataclass(frozen=True, eq=False)
class Judgement:
    """What is relevant and what is ignored for Q queries of a gallery of G items, as lists.

    Of a benchmark's items few are either, so lists are short where masks ``(Q, G)`` are not. No
    item is in two of the lists, nor twice in one.
    """

    queries: int
    gallery: int
    relevant: Pairs
    ignored: Pairs
    """What is ignored for one query."""
    junk: Tensor
    """What is ignored for all of them: ``(J,)`` gallery items."""

    @classmethod
    def of(cls, relevant: Tensor, ignored: Tensor) -> Judgement:
        """The judgement of two boolean masks ``(Q, G)`` that have no item in common."""
        one, other = (Pairs(*mask.nonzero(as_tuple=True)) for mask in (relevant, ignored))
        nothing = torch.empty(0, dtype=torch.int64, device=relevant.device)
        return cls(len(relevant), relevant.shape[1], one, other, junk=nothing)

    @property
    def matches(self) -> Tensor:
        """How many items are relevant to each query: ``(Q,)`` int64."""
        return self.relevant.per_row(self.queries)

    @property
    def items(self) -> Tensor:
        """How many items are not ignored for each query: ``(Q,)`` int64."""
        return self.gallery - len(self.junk) - self.ignored.per_row(self.queries)

    def masks(self) -> tuple[Tensor, Tensor]:
        """Relevant and ignored as boolean masks ``(Q, G)``, for few queries."""
        shape, device = (self.queries, self.gallery), self.junk.device
        relevant, ignored = torch.zeros((2, *shape), dtype=torch.bool, device=device)
        relevant[self.relevant] = True
        ignored[self.ignored] = True
        ignored[:, self.junk] = True
        return relevant, ignored


class Exclusion(NamedTuple):
    """What is ignored for a query, said so that a database can filter by it.

    A gallery item is ignored if any part is true of it.
    """

    junk: bool = True
    """Its identity is `JUNK`."""
    seen: tuple[int, int] | None = None
    """It is of this identity, taken by this camera."""
    id: int | None = None
    """Its name has this number (`Labels.ids`)."""
    items: tuple[int, ...] = ()
    """It stands at one of these places of the gallery."""


class Judge(Protocol):
    """Says what is relevant to queries and what is ignored for them."""

    def __call__(self, query: Labels, gallery: Labels) -> Judgement: ...

    def exclusions(self, query: Labels) -> list[Exclusion]:
        """What is ignored for each query: the same as the judgement says, as a rule."""
        ...


@final
@dataclass(frozen=True)
class CrossCamera:
    """Re-identification: the same identity seen by another camera is relevant.

    Ignored are the same identity in the same camera (near-duplicates that are too easy) and
    junk. Distractors are ordinary gallery items whose identity no query has.

    Source: Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
    """

    def __call__(self, query: Labels, gallery: Labels) -> Judgement:
        same = _same_identity(query, gallery)
        near = query.cameras[same.rows] == gallery.cameras[same.columns]
        relevant, ignored = same.where(~near), same.where(near)
        return Judgement(len(query), len(gallery), relevant, ignored, gallery.junk)

    def exclusions(self, query: Labels) -> list[Exclusion]:
        seen = zip(query.identities.tolist(), query.cameras.tolist(), strict=True)
        return [Exclusion(seen=each) for each in seen]


@final
@dataclass(frozen=True)
class SameIdentity:
    """Open-set retrieval: the same identity is relevant, whoever took the picture.

    Ignored are the query itself where it stands in the gallery (leave one out: CUB-200-2011,
    Food-256, Stanford Online Products) and junk.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR 2016.
    """

    def __call__(self, query: Labels, gallery: Labels) -> Judgement:
        itself = gallery.by_id.bearers(query.ids)
        itself = itself.where(gallery.identities[itself.columns] != JUNK)
        same = _same_identity(query, gallery)
        relevant = same.where(query.ids[same.rows] != gallery.ids[same.columns])
        return Judgement(len(query), len(gallery), relevant, itself, gallery.junk)

    def exclusions(self, query: Labels) -> list[Exclusion]:
        return [Exclusion(id=number) for number in query.ids.tolist()]


def _same_identity(query: Labels, gallery: Labels) -> Pairs:
    same = gallery.by_identity.bearers(query.identities)
    return same.where(query.identities[same.rows] != JUNK)


@final
class Listed:
    """The data set lists, query by query, what is relevant and what is ignored.

    Source: Philbin et al., "Object Retrieval with Large Vocabularies and Fast Spatial
    Matching", CVPR 2007 (good and ok are relevant, junk is ignored).
    """

    def __init__(self, listings: Mapping[str, Listing]) -> None:
        self._by_id = dict(zip(_ids(listings), listings.values(), strict=True))

    def __call__(self, query: Labels, gallery: Labels) -> Judgement:
        listings = [self._by_id[number] for number in query.ids.tolist()]
        device = gallery.identities.device

        def pairs(columns: list[npt.NDArray[np.int64]]) -> Pairs:
            rows = np.repeat(np.arange(len(columns)), [len(part) for part in columns])
            items = np.concatenate([*columns, np.empty(0, np.int64)])
            return Pairs(torch.from_numpy(rows).to(device), torch.from_numpy(items).to(device))

        return Judgement(
            len(query),
            len(gallery),
            pairs([np.setdiff1d(listing.relevant, listing.ignored) for listing in listings]),
            pairs([np.unique(listing.ignored) for listing in listings]),
            junk=torch.empty(0, dtype=torch.int64, device=device),
        )

    def exclusions(self, query: Labels) -> list[Exclusion]:
        listings = [self._by_id[number] for number in query.ids.tolist()]
        return [
            Exclusion(junk=False, items=tuple(np.unique(listing.ignored).tolist()))
            for listing in listings
        ]


def judge_for(split: Split) -> Judge:
    """The judge of a split's protocol."""
    judges: dict[str, Judge] = {
        "cross-camera": CrossCamera(),
        "same-identity": SameIdentity(),
        "listed": Listed(split.listings),
    }
    return judges[specs.choose("protocol", split.protocol, judges)]
