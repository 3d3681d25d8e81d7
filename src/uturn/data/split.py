"""A split: which pictures are asked (query), which are ranked (gallery), which learned from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from uturn.data.pictures import Pictures

JUNK = -1
"""The identity of gallery pictures that count neither for nor against any query."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A retrieval problem.

    ``protocol`` names the judge that decides what is relevant and what is ignored
    (`uturn.retrieval.judge`). In an open set, no identity of ``query`` occurs in ``train``.
    """

    name: str
    query: Pictures
    gallery: Pictures
    train: Pictures | None = None
    protocol: str = "cross-camera"

    def sample(self, queries: int | None, seed: int) -> Split:
        """The same split with ``queries`` of its queries (None: all), ordered by ``seed``.

        Fewer queries of the same seed are the first of more.

        Raises:
            ArgumentError: more queries than there are, or none.
        """
        return replace(self, query=self.query.sample(queries, seed, self.name, "queries"))

    def fingerprint(self) -> str:
        """A hash over names, labels and content stamps of the queries and the gallery."""
        digest = hashlib.blake2b(digest_size=16)
        for pictures in (self.query, self.gallery):
            for name in pictures.names:
                digest.update(f"{name}\0{pictures.source.stamp(name)}\0".encode())
            digest.update(pictures.identities.tobytes() + pictures.cameras.tobytes())
        return digest.hexdigest()
