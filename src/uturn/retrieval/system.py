"""The retrieval system under test: a victim's features of a gallery, asked under a judge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.data.split import Split
from uturn.errors import ArgumentError, DataError
from uturn.retrieval.index import AnyIndex, Index, Top, TopIndex, read_index, top
from uturn.retrieval.judge import Judge, Labels, judge_for
from uturn.retrieval.ranking import Ranking, rank, scored
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.verification import Impostors
from uturn.victims.victim import Victim

_ROWS = 64
"""Queries that are asked at a time where answers are cut from whole rankings."""


@final
@dataclass(frozen=True)
class Hit:
    """One place of a rank list: which gallery item, its score, and whether it is relevant."""

    item: int
    score: float
    relevant: bool


@final
@dataclass(frozen=True, eq=False)
class RetrievalSystem:
    """An index over a gallery, the gallery's labels, and the judge."""

    index: AnyIndex
    gallery: Labels
    judge: Judge

    @classmethod
    def build(
        cls,
        victim: Victim,
        split: Split,
        features: Tensor,
        index: str = "exact",
        *,
        rerank: str | None = None,
        queries: Tensor | None = None,
        progress: bool = False,
    ) -> RetrievalSystem:
        """Index the gallery's raw ``features`` ``(G, D)`` as the index spec says.

        ``rerank`` names stages behind it (`uturn.retrieval.rerank`); one that looks at all
        queries together is given their features.
        """
        gallery, judge = Labels.of(split.gallery, victim.device), judge_for(split)
        features = features.to(victim.device)
        wanted = read_index(index, victim.similarity)
        if rerank:
            require_apart(split)
        built = wanted.build(features, gallery, judge, progress=progress)
        return cls(build_stages(rerank, built, queries) if rerank else built, gallery, judge)

    @property
    def depth(self) -> int | None:
        """How many items the index answers with; None if it ranks the whole gallery."""
        return self.index.depth if isinstance(self.index, TopIndex) else None

    @property
    def whole(self) -> Index:
        """The index, which has to rank the whole gallery.

        Raises:
            ArgumentError: it answers with its closest items only.
        """
        if isinstance(self.index, TopIndex):
            raise ArgumentError(
                f"this needs the whole ranking, and {self.index} answers with its first "
                f"{self.index.depth} only; use --index exact"
            )
        return self.index

    def rank(self, features: Tensor, query: Labels) -> Ranking:
        """Positions of the relevant items for query features ``(Q, D)``."""
        return rank(self.index, features, query, self.gallery, self.judge)

    def threshold(self, features: Tensor, query: Labels, fpr: float) -> float:
        """The score above which at most ``fpr`` of the impostor pairs of these queries lie.

        NaN where only the closest items are known.
        """
        if self.depth is not None:
            return math.nan
        impostors = Impostors(fpr, len(query) * len(self.gallery))
        for chunk in scored(self.whole, features, query, self.gallery, self.judge):
            impostors = impostors.see(chunk)
        return impostors.threshold()

    def answer(self, features: Tensor, k: int) -> Top:
        """The ``k`` closest items to features ``(Q, D)`` of somebody of whom nothing is known.

        Junk is left out, as it is for everybody; a small gallery can give fewer.
        """
        if isinstance(self.index, TopIndex):
            return self.index.search(features, None, k)
        scores = self.index.scores(features)
        ignored = torch.zeros_like(scores, dtype=torch.bool)
        ignored[:, self.judge(self.gallery[:0], self.gallery).junk] = True
        return top(scores, ignored, k)

    def first(self, features: Tensor, query: Labels, k: int) -> Top:
        """The first ``k`` items for each query; -1 and -inf where there are fewer.

        What the judge ignores is left out. An index that answers no deeper than its `depth` gives
        that many.
        """
        if isinstance(self.index, TopIndex):
            return self.index.search(features, query, min(k, self.index.depth))
        parts = list[Top]()
        for begin in range(0, max(1, len(query)), _ROWS):
            part = slice(begin, begin + _ROWS)
            _, ignored = self.judge(query[part], self.gallery).masks()
            items, scores = top(self.index.scores(features[part]), ignored, k)
            parts.append(Top(items.masked_fill(ignored.gather(1, items), -1), scores))
        return Top(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def ask(self, features: Tensor, query: Labels, k: int) -> list[list[Hit]]:
        """Per query the first ``k`` items, best first, as a person would see them.

        What the judge ignores is left out, so a small gallery can give fewer.
        """
        relevant, _ = self.judge(query, self.gallery).masks()
        items, scores = self.first(features, query, k)
        right = relevant.gather(1, items.clamp(min=0))
        columns = (items.tolist(), scores.tolist(), right.tolist())
        return [
            [Hit(i, s, r) for i, s, r in zip(*row, strict=True) if i >= 0]
            for row in zip(*columns, strict=True)
        ]


def require_apart(split: Split) -> None:
    """Raise `ArgumentError` if queries stand in the gallery, where re-ranking would see them.

    The clean original of an attacked query would pull the answer back: the victim would look
    more robust than it is.
    """
    if set(split.query.names) & set(split.gallery.names):
        raise ArgumentError(
            f"re-ranking looks at whom the gallery has, and in {split.name} every query is there "
            "itself; leave --rerank out, or split the queries from the gallery"
        )


def require_matches(split: Split) -> None:
    """Raise `DataError` if no query has a relevant item, before anything is embedded."""
    judge, cpu = judge_for(split), torch.device("cpu")
    query, gallery = Labels.of(split.query, cpu), Labels.of(split.gallery, cpu)
    if not any(
        len(judge(query[slice(i, i + 64)], gallery).relevant.rows) for i in range(0, len(query), 64)
    ):
        raise DataError(
            f"none of the {len(query)} queries of {split.name} has a relevant picture in the "
            f"gallery (protocol {split.protocol}); check identities and cameras"
        )
