"""The retrieval system under test: a victim's features of a gallery, asked under a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.data.split import Split
from uturn.errors import ArgumentError, DataError
from uturn.retrieval.index import Index, build_index, top
from uturn.retrieval.judge import Judge, Labels, judge_for
from uturn.retrieval.ranking import Ranking, rank, scored
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.verification import Impostors
from uturn.victims.victim import Victim


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

    index: Index
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
    ) -> RetrievalSystem:
        """Index the gallery's raw ``features`` ``(G, D)`` as the index spec says.

        ``rerank`` names stages behind it (`uturn.retrieval.rerank`); one that looks at all
        queries together is given their features.
        """
        if rerank:
            require_apart(split)
        built = build_index(index, features.to(victim.device), victim.similarity)
        return cls(
            build_stages(rerank, built, queries) if rerank else built,
            Labels.of(split.gallery, victim.device),
            judge_for(split),
        )

    def rank(self, features: Tensor, query: Labels) -> Ranking:
        """Positions of the relevant items for query features ``(Q, D)``."""
        return rank(self.index, features, query, self.gallery, self.judge)

    def threshold(self, features: Tensor, query: Labels, fpr: float) -> float:
        """The score above which at most ``fpr`` of the impostor pairs of these queries lie."""
        impostors = Impostors(fpr, len(query) * len(self.gallery))
        for chunk in scored(self.index, features, query, self.gallery, self.judge):
            impostors = impostors.see(chunk)
        return impostors.threshold()

    def ask(self, features: Tensor, query: Labels, k: int) -> list[list[Hit]]:
        """Per query the first ``k`` items, best first, as a person would see them.

        What the judge ignores is left out, so a small gallery can give fewer.
        """
        relevant, ignored = self.judge(query, self.gallery).masks()
        items, scores = top(self.index.scores(features), ignored, k)
        right, left_out = relevant.gather(1, items), ignored.gather(1, items)
        columns = (items.tolist(), scores.tolist(), right.tolist(), left_out.tolist())
        return [
            [Hit(i, s, r) for i, s, r, out in zip(*row, strict=True) if not out]
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
