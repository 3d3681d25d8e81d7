"""Metrics: per-query values of a ranking, and one reduction at the edge.

A query without a relevant item has no score: its values are NaN, means leave it out, and the
number of such queries is reported. (Others score it 0 or drop it silently.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uturn import specs
from uturn.retrieval.ranking import Ranking


def first_match(ranking: Ranking) -> Tensor:
    """Position of the first relevant item, 1 = best: ``(Q,)`` float64."""
    if not ranking.positions.shape[1]:
        return torch.full_like(ranking.matches, torch.nan, dtype=torch.float64)
    return _masked(ranking, ranking.positions[:, 0].double())


def recall_at(ranking: Ranking, k: int) -> Tensor:
    """1 where a relevant item is among the first ``k``, else 0 (also known as CMC): ``(Q,)``."""
    return _masked(ranking, (first_match(ranking) <= k).double())


def ap_plain(ranking: Ranking) -> Tensor:
    """Average precision as the mean of the precisions at the relevant items: ``(Q,)``.

    ``1/P Σ_k k / r_k`` with r_k the position of the k-th of P relevant items. This is what
    torchreid, fast-reid and scikit-learn compute.
    """
    k, r = _k_and_r(ranking)
    return _mean_over_matches(ranking, k / r)


def ap_trapezoid(ranking: Ranking) -> Tensor:
    """Average precision as the area under the precision-recall polygon: ``(Q,)``.

    ``1/P Σ_k ((k−1)/(r_k−1) + k/r_k) / 2``, where the first term is 1 for r_k = 1. This is
    what the Oxford buildings and the original Market-1501 evaluations compute.
    """
    k, r = _k_and_r(ranking)
    before = torch.where(r > 1, (k - 1) / (r - 1), 1.0)
    return _mean_over_matches(ranking, (before + k / r) / 2)


CONVENTIONS: dict[str, Callable[[Ranking], Tensor]] = {
    "plain": ap_plain,
    "trapezoid": ap_trapezoid,
}


RECALLS = (1, 5, 10)
"""The k of Recall@k that every result row reports."""

METRICS: dict[str, Callable[..., Tensor]] = {
    "recall@k": recall_at,
    "first_match": first_match,
    **CONVENTIONS,
}


def average_precision(ranking: Ranking, convention: str) -> Tensor:
    """Average precision ``(Q,)`` by a named convention: ``plain`` or ``trapezoid``."""
    return CONVENTIONS[specs.choose("convention", convention, CONVENTIONS)](ranking)


def _k_and_r(ranking: Ranking) -> tuple[Tensor, Tensor]:
    r = ranking.positions.double()  # (Q, P), 0 = padding
    k = torch.arange(1, r.shape[1] + 1, dtype=torch.float64, device=r.device).expand_as(r)
    return k, r


def _mean_over_matches(ranking: Ranking, values: Tensor) -> Tensor:
    total = values.where(ranking.positions > 0, 0.0).sum(1)
    return _masked(ranking, total / ranking.matches)


def _masked(ranking: Ranking, values: Tensor) -> Tensor:
    return values.where(ranking.matches > 0, torch.nan)
