"""Metrics: per-query values of a ranking, and one reduction at the edge.

A query without a relevant item has no score: its values are NaN, means leave it out, and the
number of such queries is reported. (Others score it 0 or drop it silently.)

Throughout, r_1 < … < r_P are the positions of a query's P relevant items among its N ranked
ones, 1 = best; ignored items are taken out before counting, and ties follow `ranking.TIES`.

Of a ranking that was seen only so deep (`Ranking.depth`) a value is exact or NaN, never a guess at
what lies below.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn import specs
from uturn.errors import ArgumentError
from uturn.retrieval.ranking import Ranking
from uturn.retrieval.single_shot import recall_single_shot

Values = npt.NDArray[np.float64]


def first_match(ranking: Ranking) -> Tensor:
    """Position of the first relevant item, 1 = best: ``(Q,)`` float64.

    Infinite where it lies below all that was seen.
    """
    if not ranking.positions.shape[1]:
        return _masked(ranking, torch.full_like(ranking.matches, torch.inf, dtype=torch.float64))
    first = ranking.positions[:, 0].double()
    return _masked(ranking, first.where(first > 0, torch.inf))


def recall_at(ranking: Ranking, k: int) -> Tensor:
    """1 where a relevant item is among the first ``k``, else 0 (also known as CMC): ``(Q,)``."""
    return _seen(ranking, k, _masked(ranking, (first_match(ranking) <= k).double()))


def ap_plain(ranking: Ranking) -> Tensor:
    """Average precision as the mean of the precisions at the relevant items: ``(Q,)``.

    ``1/P Σ_k k / r_k``. This is what torchreid, fast-reid and scikit-learn compute.
    """
    k, r = _k_and_r(ranking)
    return _seen(ranking, None, _mean_over_matches(ranking, k / r))


def ap_trapezoid(ranking: Ranking) -> Tensor:
    """Average precision as the area under the precision-recall polygon: ``(Q,)``.

    ``1/P Σ_k ((k−1)/(r_k−1) + k/r_k) / 2``, where the first term is 1 for r_k = 1. This is
    what the Oxford buildings, the original Market-1501 and the revisited Oxford and Paris
    evaluations (Radenović et al., CVPR 2018) compute. The latter's easy, medium and hard differ
    only in what is relevant and what is ignored, which is the judge's business: easy takes the
    easy items and ignores the hard, hard takes the hard and ignores the easy, medium takes both.
    """
    k, r = _k_and_r(ranking)
    before = torch.where(r > 1, (k - 1) / (r - 1), 1.0)
    return _seen(ranking, None, _mean_over_matches(ranking, (before + k / r) / 2))


def ap_at_r(ranking: Ranking) -> Tensor:
    """Average precision at R, which credits only the first R = P positions: ``(Q,)``.

    ``1/P Σ_{k: r_k ≤ P} k / r_k``, known as MAP@R.

    Source: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.
    """
    k, r = _k_and_r(ranking)
    within = (k / r).where(r <= ranking.matches[:, None], 0.0)
    return _seen(ranking, ranking.matches, _mean_over_matches(ranking, within))


def ap_within(ranking: Ranking, k: int) -> Tensor:
    """Average precision among the first ``k`` only: ``(Q,)``.

    ``1/min(P, k) Σ_{i: r_i ≤ k} i / r_i``, known as mAP@k: what an answer of k items can give.

    Source: Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, which takes k = 100.
    """
    i, r = _k_and_r(ranking)
    total = (i / r).where((r > 0) & (r <= k), 0.0).sum(1)
    return _seen(ranking, k, _masked(ranking, total / ranking.matches.clamp(max=k)))


def r_precision(ranking: Ranking) -> Tensor:
    """Share of relevant items among the first R = P positions: ``(Q,)``."""
    _, r = _k_and_r(ranking)
    within = (r <= ranking.matches[:, None]).double()
    return _seen(ranking, ranking.matches, _mean_over_matches(ranking, within))


def precision_at(ranking: Ranking, k: int) -> Tensor:
    """Precision among the first ``k``, or up to the last match if that comes sooner: ``(Q,)``.

    ``#{r ≤ κ} / κ`` with κ = min(k, r_P), so that few relevant items are no handicap: the mP@k
    of the revisited Oxford and Paris evaluations.

    Source: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018; κ is in its code.
    """
    r = ranking.positions
    # A match that was not seen lies beyond k, or the value is not given.
    whole = (r > 0).sum(1) == ranking.matches
    depth = _last_match(ranking).where(whole, k).clamp(max=k)
    found = ((r > 0) & (r <= depth[:, None])).sum(1)
    return _seen(ranking, k, _masked(ranking, found.double() / depth))


def inp(ranking: Ranking) -> Tensor:
    """Inverse negative penalty, 1 if nothing stands ahead of the last match: ``(Q,)``.

    ``P / r_P``; its mean is mINP.

    Source: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook" (AGW),
    TPAMI 2022.
    """
    found = ranking.matches.double() / _last_match(ranking)
    return _seen(ranking, None, _masked(ranking, found))


def normalised_rank(ranking: Ranking) -> Tensor:
    """Mean position of the matches, 0 perfect, 0.5 chance, 1 − P/N worst: ``(Q,)``.

    ``(Σ_k r_k − P(P+1)/2) / (P·N)``. Chance is exactly (1 − P/N)/2.

    Source: Müller et al., "Performance evaluation in content-based image retrieval: overview and
    proposals", Pattern Recognition Letters 22, 2001.
    """
    k, r = _k_and_r(ranking)
    found = _mean_over_matches(ranking, (r - k) / ranking.items[:, None])
    return _seen(ranking, None, found)


def accepted(ranking: Ranking, threshold: float) -> Tensor:
    """Share of a query's relevant items that score above a fixed ``threshold``: ``(Q,)``.

    With the threshold of clean pairs (`verification.Impostors`) this is TPR@FPR; with the same
    threshold on attacked features, what verification still lets through. NaN throughout if the
    threshold is NaN, as nothing then tells genuine from impostor.
    """
    values = (ranking.scores > threshold).double()
    found = _mean_over_matches(ranking, values + math.nan if math.isnan(threshold) else values)
    return _seen(ranking, None, found)


def attack_success(clean: Tensor, attacked: Tensor) -> Tensor:
    """1 where an attack took the right first place, NaN where there was none to take: ``(Q,)``.

    Of the queries whose ``clean`` first match is at position 1, the mean is the share that
    lost it; both are `first_match` of the same queries.

    Raises:
        ArgumentError: they are not of the same number of queries.
    """
    if clean.shape != attacked.shape:
        raise ArgumentError(
            f"{len(clean)} clean and {len(attacked)} attacked queries; compare the same queries"
        )
    return (attacked != 1).double().where(clean == 1, torch.nan)


CONVENTIONS: dict[str, Callable[[Ranking], Tensor]] = {
    "plain": ap_plain,
    "trapezoid": ap_trapezoid,
    "map@r": ap_at_r,
}
"""The ways to average precision; every number names its own."""

RECALLS = (1, 5, 10)
"""The k of Recall@k that every result row reports."""

FPR = 0.001
"""The false positive rate on clean pairs at which success at a fixed threshold is reported."""

METRICS: dict[str, Callable[..., Tensor]] = {
    "recall@k": recall_at,
    "mean_first_match": first_match,
    **CONVENTIONS,
    "r_precision": r_precision,
    "map@k": ap_within,
    "precision@k": precision_at,
    "minp": inp,
    "normalised_rank": normalised_rank,
    "tpr@fpr": accepted,
    "single-shot": recall_single_shot,
    "success": attack_success,
}


def average_precision(ranking: Ranking, convention: str) -> Tensor:
    """Average precision ``(Q,)`` by a named convention: ``plain``, ``trapezoid`` or ``map@r``."""
    return CONVENTIONS[specs.choose("convention", convention, CONVENTIONS)](ranking)


def known(values: Values, matches: Values) -> Values:
    """``values`` ``(Q,)``, or NaN throughout if one of a query with relevant items is NaN.

    The mean of what is known would be one of other queries.
    """
    lacking = bool((np.isnan(values) & (matches > 0)).any())
    return np.full_like(values, np.nan) if lacking else values


def _seen(ranking: Ranking, depth: int | Tensor | None, values: Tensor) -> Tensor:
    """``values``, NaN where their first ``depth`` places were not seen; None: they need all."""
    if ranking.depth is None:
        return values
    if depth is None:
        return torch.full_like(values, torch.nan)
    short = torch.as_tensor(depth, device=values.device) > ranking.depth
    return values.masked_fill(short, torch.nan)


def _k_and_r(ranking: Ranking) -> tuple[Tensor, Tensor]:
    r = ranking.positions.double()  # (Q, P), 0 = padding
    k = torch.arange(1, r.shape[1] + 1, dtype=torch.float64, device=r.device).expand_as(r)
    return k, r


def _last_match(ranking: Ranking) -> Tensor:
    return ranking.positions.amax(1) if ranking.positions.shape[1] else ranking.matches


def _mean_over_matches(ranking: Ranking, values: Tensor) -> Tensor:
    total = values.where(ranking.positions > 0, 0.0).sum(1)
    return _masked(ranking, total / ranking.matches)


def _masked(ranking: Ranking, values: Tensor) -> Tensor:
    return values.where(ranking.matches > 0, torch.nan)
