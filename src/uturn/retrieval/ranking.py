"""Rankings: at which positions a query's relevant items stand. The pivot between index and metrics.

Positions are found by counting the items ahead, without sorting the gallery; where an index answers
with its closest items only, they are read off its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.retrieval.counting import at_least
from uturn.retrieval.index import AnyIndex, Index, Top, TopIndex, require_finite
from uturn.retrieval.judge import Judge, Judgement, Labels

_CHUNK, _ROWS, _MOST = 8_000_000, 64, 64_000_000
"""Scores held at a time: 32 MB, which memory is used again for; of a large gallery those of 64
queries, which a product of matrices needs to be quick, but at most 256 MB."""

_ASKED = 1024
"""Queries that an index which answers with its closest items is asked at a time."""

TIES = "an irrelevant item tied with a relevant one is ranked ahead of it"
"""The tie policy. A victim whose scores all tie (a collapsed embedding) scores 0, not 1;
`Ranking.tied` tells how many queries it concerns."""


@final
@dataclass(frozen=True, eq=False)
class Ranking:
    """Per query, the 1-based positions of its relevant items among those not ignored."""

    positions: Tensor
    """``(Q, P)`` int64, ascending; padded with 0 behind each query's own matches."""

    matches: Tensor
    """``(Q,)`` int64: how many relevant items a query has; 0 if it cannot be scored."""

    tied: Tensor
    """``(Q,)`` bool: the first match ties with an irrelevant item (see `TIES`)."""

    items: Tensor
    """``(Q,)`` int64: how many items were ranked, relevant or not; the ignored are not counted."""

    scores: Tensor
    """``(Q, P)``: the score at each of ``positions``, hence descending; padded with -inf."""

    depth: int | None = None
    """How many places were seen; None if all. Then ``positions`` and ``scores`` are of the relevant
    items among these, while ``matches`` and ``items`` count all there are."""

    def __len__(self) -> int:
        return len(self.matches)


class Chunk(NamedTuple):
    """Some queries' scores against the whole gallery, parted by what the judge says."""

    genuine: Tensor
    """``(q, P)``: the scores of the relevant items, descending; padded with -inf."""

    impostors: Tensor
    """``(q, G)``: the scores of the items that are irrelevant; -inf for all others."""

    matches: Tensor
    """``(q,)`` int64: how many items are relevant."""

    items: Tensor
    """``(q,)`` int64: how many items are not ignored."""

    @classmethod
    def of(cls, scores: Tensor, judgement: Judgement) -> Chunk:
        """Part ``scores`` ``(q, G)`` (larger = closer, any sign), which become the impostors'."""
        matches, (row, column) = judgement.matches, judgement.relevant
        width = int(matches.max()) if len(matches) else 0
        genuine = scores.new_full((len(scores), width), -torch.inf)
        slot = torch.arange(len(row), device=row.device) - (matches.cumsum(0) - matches)[row]
        genuine[row, slot] = scores[row, column]
        scores[row, column] = -torch.inf
        scores[judgement.ignored.rows, judgement.ignored.columns] = -torch.inf
        scores.index_fill_(1, judgement.junk, -torch.inf)
        return cls(genuine.sort(1, descending=True).values, scores, matches, judgement.items)


def scored(
    index: Index, queries: Tensor, query: Labels, gallery: Labels, judge: Judge
) -> Iterator[Chunk]:
    """Score and judge query features ``(Q, D)`` in their order, in chunks of bounded memory.

    There is always one chunk, which is empty if there are no queries.

    Raises:
        ArgumentError: sizes do not fit, or a feature is not finite.
    """
    _require_fit(index, queries, query, gallery)
    items = max(1, len(gallery))
    size = max(1, _CHUNK // items, min(_ROWS, _MOST // items))
    for begin in range(0, max(1, len(queries)), size):
        part = slice(begin, begin + size)
        yield Chunk.of(index.scores(queries[part]), judge(query[part], gallery))


def rank(index: AnyIndex, queries: Tensor, query: Labels, gallery: Labels, judge: Judge) -> Ranking:
    """Rank the gallery for query features ``(Q, D)``, as far as the index says.

    Raises:
        ArgumentError: sizes do not fit, or a feature is not finite.
    """
    if isinstance(index, TopIndex):
        _require_fit(index, queries, query, gallery)
        parts = list[Ranking]()
        for begin in range(0, max(1, len(queries)), _ASKED):
            part = slice(begin, begin + _ASKED)
            answer = index.search(queries[part], query[part], index.depth)
            parts.append(rank_answer(answer, judge(query[part], gallery)))
        return join(parts)
    return join([rank_chunk(chunk) for chunk in scored(index, queries, query, gallery, judge)])


def _require_fit(index: AnyIndex, queries: Tensor, query: Labels, gallery: Labels) -> None:
    if len(queries) != len(query) or len(index) != len(gallery):
        raise ArgumentError(
            f"{len(queries)} query features for {len(query)} labels, "
            f"{len(index)} gallery features for {len(gallery)} labels: one label per picture"
        )
    require_finite(queries, "query")


def join(parts: Sequence[Ranking]) -> Ranking:
    """One ranking of the queries of all ``parts``, of which there is at least one."""
    width = max(part.positions.shape[1] for part in parts)

    def padded(values: Tensor, filler: float) -> Tensor:
        return F.pad(values, (0, width - values.shape[1]), value=filler)

    return Ranking(
        positions=torch.cat([padded(part.positions, 0) for part in parts]),
        matches=torch.cat([part.matches for part in parts]),
        tied=torch.cat([part.tied for part in parts]),
        items=torch.cat([part.items for part in parts]),
        scores=torch.cat([padded(part.scores, -torch.inf) for part in parts]),
        depth=parts[0].depth,
    )


def rank_chunk(chunk: Chunk) -> Ranking:
    """Where the relevant items of a chunk stand.

    The k-th best stands at k + #{irrelevant items that score at least as much}.
    """
    genuine, impostors, matches, items = chunk
    some, k = matches > 0, torch.arange(1, genuine.shape[1] + 1, device=genuine.device)
    higher = genuine[:, :1].nextafter(genuine.new_tensor(torch.inf))  # than the best, just so
    reach = at_least(impostors, torch.cat([higher, genuine], 1), matches + some)
    # No more than there are: where a score itself is -inf, what does not count reaches it.
    ahead = reach.minimum((items - matches)[:, None])  # (q, 1 + P)
    positions = (k + ahead[:, 1:]).where(k <= matches[:, None], 0)
    tied = (ahead[:, :1] < ahead[:, 1:2]).any(1) & some
    return Ranking(positions, matches, tied, items, scores=genuine)


def rank_answer(answer: Top, judgement: Judgement) -> Ranking:
    """Where the relevant items stand among the ``k`` that an index answered with.

    Ties (`TIES`) are seen within the answer; which of equal items it cut off is the index's affair.
    """
    queries, depth = answer.items.shape
    rows = torch.arange(queries, device=answer.items.device)[:, None] * judgement.gallery
    wanted = judgement.relevant.rows * judgement.gallery + judgement.relevant.columns
    right = torch.isin(rows + answer.items, wanted) & (answer.items >= 0)
    # By score, and among equals the irrelevant ahead.
    order = right.long().argsort(dim=1, stable=True)
    again = answer.scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, again)
    right, scores = right.gather(1, order), answer.scores.gather(1, order)
    width = int(right.sum(1).max()) if queries else 0
    places = torch.arange(1, depth + 1, device=right.device).expand_as(right)
    positions = places.where(right, depth + 1).sort(1).values[:, :width]
    genuine = scores.where(right, -torch.inf).sort(1, descending=True).values
    tied = ((scores == genuine[:, :1]) & ~right).any(1) & right.any(1)
    return Ranking(
        positions.where(positions <= depth, 0),
        judgement.matches,
        tied,
        judgement.items,
        genuine[:, :width],
        depth,
    )
