"""Rankings: at which positions a query's relevant items stand. The pivot between index and metrics.

Positions are found by counting the items ahead, without sorting the gallery.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

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

    def __len__(self) -> int:
        return len(self.matches)


def rank(index: Index, queries: Tensor, query: Labels, gallery: Labels, judge: Judge) -> Ranking:
    """Rank the gallery for query features ``(Q, D)`` in chunks of bounded memory.

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
    parts = []
    for begin in range(0, len(queries), size):
        part = slice(begin, begin + size)
        relevant, ignored = judge(query[part], gallery)
        parts.append(rank_scores(index.scores(queries[part]), relevant, ignored))
    if not parts:
        none = torch.zeros(0, dtype=torch.int64, device=queries.device)
        return Ranking(none[:, None], none, none.bool())
    width = max(part.positions.shape[1] for part in parts)
    return Ranking(
        torch.cat([F.pad(p.positions, (0, width - p.positions.shape[1])) for p in parts]),
        torch.cat([p.matches for p in parts]),
        torch.cat([p.tied for p in parts]),
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
    return Ranking(positions, matches, tied)
