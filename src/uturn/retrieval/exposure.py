"""What queries find of some gallery items: how often these intrude, and whether they are found.

An item that is relevant to nobody who finds it is an intruder: among the first k it pushes
somebody else out. Sources: the share of queries with an intruder among the first k is the attack
success rate of Zhong et al., "Poisoning Retrieval Corpora by Injecting Adversarial Passages", EMNLP
2023; how many queries find one item among their first k is its k-occurrence, Radovanović et al.,
"Hubs in Space", JMLR 11, 2010; the normalised rank of changed items is what Zhou et al.,
"Adversarial Ranking Attack and Defense", ECCV 2020, report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.retrieval import metrics
from uturn.retrieval.index import DEPTH
from uturn.retrieval.judge import Exclusion, Judge, Judgement, Labels
from uturn.retrieval.ranking import Ranking, rank, rank_answer
from uturn.retrieval.system import RetrievalSystem

FIRST = 10
"""Places that are looked through for an item's k-occurrence."""


@final
@dataclass(frozen=True)
class Among:
    """Looks for ``items`` ``(N,)`` in place of what another judge looks for.

    For those that it finds ``relevant``, or for those that it does not. What it ignores is ignored.
    """

    judge: Judge
    items: Tensor
    relevant: bool

    def __call__(self, query: Labels, gallery: Labels) -> Judgement:
        told = self.judge(query, gallery)
        listed = torch.zeros(len(gallery), dtype=torch.bool, device=told.junk.device)
        listed[self.items.to(listed.device)] = True
        listed[told.junk] = False
        wanted = told.relevant.where(listed[told.relevant.columns])
        if not self.relevant:
            places = listed.nonzero()[:, 0]
            mask = torch.ones(len(query), len(places), dtype=torch.bool, device=listed.device)
            number = listed.cumsum(0) - 1  # of a listed item
            for rows, columns in (wanted, told.ignored.where(listed[told.ignored.columns])):
                mask[rows, number[columns]] = False
            rows, columns = mask.nonzero(as_tuple=True)
            wanted = type(wanted)(rows, places[columns])
        return Judgement(len(query), len(gallery), wanted, told.ignored, told.junk)

    def exclusions(self, query: Labels) -> list[Exclusion]:
        return self.judge.exclusions(query)


@final
@dataclass(frozen=True, eq=False)
class Exposure:
    """What Q queries find, and where N items stand in it."""

    ranking: Ranking
    """Of the relevant items, changed or not."""
    intruder: Tensor
    """``(Q,)`` float64: the place of the first of the N items that is irrelevant; infinite where
    it lies below all that was seen (`DEPTH` places, or as many as the index answers with)."""
    own: Tensor
    """``(Q,)`` int64: to how many of the N items a query is relevant."""
    intrusions: Tensor
    """``(N,)`` int64: k-occurrence of each item, among the first `FIRST` of queries that it is
    irrelevant to."""
    finds: Tensor
    """``(N,)`` int64: the same of queries that it is relevant to."""
    rank_of_intruders: Tensor
    """``(Q,)``: mean normalised rank of the irrelevant of the N items; NaN if the index does not
    rank the whole gallery."""
    rank_of_own: Tensor
    """``(Q,)``: the same of the relevant."""


def exposure(system: RetrievalSystem, features: Tensor, labels: Labels, items: Tensor) -> Exposure:
    """What query ``features`` ``(Q, D)`` find through the index of ``system``.

    An index that answers with its first items is searched once.
    """
    depth = system.depth
    answer = system.first(features, labels, DEPTH if depth is None else depth)
    items = items.to(answer.items.device)
    judgement = system.judge(labels, system.gallery)
    ranking = system.rank(features, labels) if depth is None else rank_answer(answer, judgement)
    held = torch.full((len(system.gallery) + 1,), -1, device=items.device)  # the last: nobody
    held[items] = torch.arange(len(items), device=items.device)
    number = held[answer.items]  # (Q, k): which of the items stands there; -1 if none
    own = Among(system.judge, items, relevant=True)(labels, system.gallery)
    pairs = own.relevant.rows * len(items) + held[own.relevant.columns]
    rows = torch.arange(len(labels), device=items.device)[:, None] * len(items)
    right = torch.isin(rows + number, pairs) & (number >= 0)
    wrong = (number >= 0) & ~right
    place = torch.arange(1, number.shape[1] + 1, device=items.device, dtype=torch.float64)
    nowhere = torch.full_like(place, torch.inf)

    def occurrence(where: Tensor) -> Tensor:
        return torch.bincount(number[:, :FIRST][where[:, :FIRST]], minlength=len(items))

    def normalised(relevant: bool) -> Tensor:
        if depth is not None:
            return torch.full((len(labels),), torch.nan, dtype=torch.float64)
        judge = Among(system.judge, items, relevant)
        return metrics.normalised_rank(rank(system.whole, features, labels, system.gallery, judge))

    return Exposure(
        ranking=ranking,
        intruder=torch.where(wrong, place, nowhere).amin(1),
        own=own.matches,
        intrusions=occurrence(wrong),
        finds=occurrence(right),
        rank_of_intruders=normalised(relevant=False),
        rank_of_own=normalised(relevant=True),
    )
