"""A split: which pictures are asked (query), which are ranked (gallery), which learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, final

import numpy as np

from uturn.data.pictures import IntArray, Pictures
from uturn.errors import DataError

JUNK = -1
"""The identity of gallery pictures that count neither for nor against any query."""

Protocol = Literal["cross-camera", "same-identity", "listed"]
"""Who says what is relevant (`uturn.retrieval.judge`): identities and cameras, identities
alone, or lists that come with the data set."""


@final
@dataclass(frozen=True, eq=False)
class Listing:
    """What a data set says of one query: positions in the gallery, ``(N,)`` int64 each."""

    relevant: IntArray
    ignored: IntArray


@dataclass(frozen=True, kw_only=True)
class Split:
    """A retrieval problem.

    In an open set, no identity of ``query`` occurs in ``train``.

    Raises:
        DataError: a listed protocol lacks the listing of a query.
    """

    name: str
    query: Pictures
    gallery: Pictures
    train: Pictures | None = None
    protocol: Protocol = "cross-camera"
    listings: Mapping[str, Listing] = field(default_factory=dict)
    """For the listed protocol: by the query's name."""
    classes: tuple[str, ...] | None = None
    """The names of a closed set's classes: identity i is a classifier's logit i."""

    def __post_init__(self) -> None:
        unlisted = [name for name in self.query.names if name not in self.listings]
        if self.protocol == "listed" and unlisted:
            raise DataError(
                f"{self.name} lists nothing for query {unlisted[0]} (and {len(unlisted) - 1} "
                "more); its ground truth is incomplete"
            )

    def sample(self, queries: int | None, seed: int) -> Split:
        """The same split with ``queries`` of its queries (None: all), ordered by ``seed``.

        Fewer queries of the same seed are the first of more.

        Raises:
            ArgumentError: more queries than there are, or none.
        """
        return replace(self, query=self.query.sample(queries, seed, self.name, "queries"))

    def without(self, query: Collection[str], gallery: Collection[str]) -> Split:
        """The same split less the pictures of these names; lists are amended."""
        asked, ranked = (
            np.array([name not in left_out for name in pictures.names], dtype=bool)
            for pictures, left_out in ((self.query, query), (self.gallery, gallery))
        )
        place = np.cumsum(ranked) - 1  # (G,)

        def amended(items: IntArray) -> IntArray:
            kept: IntArray = place[items[ranked[items]]]
            return kept

        listings = {
            name: Listing(amended(listing.relevant), amended(listing.ignored))
            for name, listing in self.listings.items()
        }
        return replace(
            self,
            query=self.query.subset(np.flatnonzero(asked)),
            gallery=self.gallery.subset(np.flatnonzero(ranked)),
            listings=listings,
        )

    def fingerprint(self) -> str:
        """A hash over names, labels and content stamps of the queries and the gallery."""
        digest = hashlib.blake2b(digest_size=16)
        for pictures in (self.query, self.gallery):
            for name in pictures.names:
                digest.update(f"{name}\0{pictures.source.stamp(name)}\0".encode())
            digest.update(pictures.identities.tobytes() + pictures.cameras.tobytes())
        for name in self.query.names if self.listings else ():
            listing = self.listings[name]
            digest.update(listing.relevant.tobytes() + b"\0" + listing.ignored.tobytes() + b"\0")
        return digest.hexdigest()
