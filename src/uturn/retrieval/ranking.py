"""Rankings: at which positions a query's relevant items stand. The pivot between index and metrics.

Positions are found by counting the items ahead, without sorting the gallery.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.retrieval.index import Index, require_finite
from uturn.retrieval.judge import Judge, Labels

_CHUNK = 4_000_000
"""Scores held at a time: 16 MB, and some 100 MB of masks and counts made from them."""

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

    def __len__(self) -> int:
        return len(self.matches)


class Chunk(NamedTuple):
    """Some queries against the whole gallery: scores and the judge's two masks, ``(q, G)``."""

    scores: Tensor
    relevant: Tensor
    ignored: Tensor


def scored(
    index: Index, queries: Tensor, query: Labels, gallery: Labels, judge: Judge
) -> Iterator[Chunk]:
    """Score and judge query features ``(Q, D)`` in their order, in chunks of bounded memory.

    There is always one chunk, which is empty if there are no queries.

    Raises:
        ArgumentError: sizes do not fit, or a feature is not finite.
    """
    if len(queries) != len(query) or len(index) != len(gallery):
        raise ArgumentError(
            f"{len(queries)} query features for {len(query)} labels, "
            f"{len(index)} gallery features for {len(gallery)} labels: one label per picture"
        )
    require_finite(queries, "query")
    size = max(1, _CHUNK // max(1, len(gallery)))
    for begin in range(0, max(1, len(queries)), size):
        part = slice(begin, begin + size)
        yield Chunk(index.scores(queries[part]), *judge(query[part], gallery))


def rank(index: Index, queries: Tensor, query: Labels, gallery: Labels, judge: Judge) -> Ranking:
    """Rank the gallery for query features ``(Q, D)``; raises as `scored` does."""
    return join([rank_scores(*chunk) for chunk in scored(index, queries, query, gallery, judge)])


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
    )


def rank_scores(scores: Tensor, relevant: Tensor, ignored: Tensor) -> Ranking:
    """Rank by ``scores`` ``(Q, G)`` (larger = closer, any sign) under two masks ``(Q, G)``.

    The k-th best relevant item stands at k + #{irrelevant items that score at least as much}.
    """
    queries = len(scores)
    matches = relevant.sum(1)  # (Q,)
    width = int(matches.max()) if queries else 0
    # The relevant items' scores, ascending, behind a padding of +inf that nothing reaches.
    thresholds = scores.new_full((queries, width), torch.inf)
    row, column = relevant.nonzero(as_tuple=True)
    starts = matches.cumsum(0) - matches
    slot = torch.arange(len(row), device=scores.device) - starts[row]
    thresholds[row, slot] = scores[row, column]
    thresholds = thresholds.sort(1).values  # (Q, P)

    # How many thresholds an irrelevant item reaches, counted per query and per number.
    reached = torch.searchsorted(thresholds, scores.contiguous(), right=True)  # (Q, G)
    counted = ~(relevant | ignored)
    offset = torch.arange(queries, device=scores.device)[:, None] * (width + 1)
    histogram = torch.bincount((reached + offset)[counted], minlength=queries * (width + 1)).view(
        queries, width + 1
    )
    at_least = histogram.flip(1).cumsum(1).flip(1)[:, 1:]  # (Q, P): items ≥ threshold j

    order = matches[:, None] - torch.arange(width, device=scores.device)  # k of threshold j
    positions = torch.where(order > 0, order + at_least, torch.iinfo(torch.int64).max)
    positions = positions.sort(1).values  # best match first
    positions[positions == torch.iinfo(torch.int64).max] = 0

    best = thresholds.gather(1, (matches - 1).clamp(min=0)[:, None]) if width else thresholds
    tied = ((scores == best) & counted).any(1) & (matches > 0) if width else matches.bool()
    # Positions ascend as scores descend.
    ladder = torch.where(order > 0, thresholds, -torch.inf).sort(1, descending=True).values
    return Ranking(positions, matches, tied, items=(~ignored).sum(1), scores=ladder)
