"""Confidence intervals that respect that the queries of one identity are not independent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from uturn.rng import generator

RESAMPLES = 2000


def weighted_mean(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None
) -> float | None:
    """Mean of per-query ``values`` ``(Q,)`` that are not NaN; None if there are none."""
    kept = ~np.isnan(values)
    if not kept.any():
        return None
    return float(np.average(values[kept], weights=None if weights is None else weights[kept]))


def identity_bootstrap(
    values: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    seed: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> tuple[float, float] | None:
    """95 % interval of the mean of per-query ``values`` ``(Q,)``; NaN are left out.

    With ``weights`` ``(Q,)`` it is that of the weighted mean.

    Percentile bootstrap over identities: whole identities are drawn with replacement. Where
    every value is 0 (or every value is 1) resampling would claim certainty; there the open
    end is the exact binomial bound for as many trials as there are identities. None for
    fewer than two identities, which say nothing about a third.
    """
    kept = ~np.isnan(values)
    counted = np.ones_like(values) if weights is None else weights
    values, identities, counted = values[kept], identities[kept], counted[kept]
    if len(np.unique(identities)) < 2:
        return None
    _, group = np.unique(identities, return_inverse=True)
    groups = int(group.max()) + 1
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return _open_end(float(values[0]), groups)
    sums = np.bincount(group, weights=values * counted)
    counts = np.bincount(group, weights=counted)
    draw = generator(seed, "identity bootstrap")
    drawn = draw.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)  # (R, I)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return float(low), float(high)


def query_bootstrap(hits: npt.NDArray[np.float64], seed: int) -> tuple[float, float] | None:
    """95 % interval of the mean of per-query ``hits`` ``(Q,)``, 0 or 1 each; NaN are left out.

    Percentile bootstrap over queries, which for hits is a binomial draw. For a classifier on a
    closed set: its identities are the classes, all of which are there, so that drawing other
    identities asks a question that nobody has. All 0 and all 1 as in `identity_bootstrap`.
    """
    kept = hits[~np.isnan(hits)]
    if len(kept) < 2:
        return None
    share = float(kept.mean())
    if share in (0.0, 1.0):
        return _open_end(share, len(kept))
    drawn = generator(seed, "query bootstrap").binomial(len(kept), share, RESAMPLES) / len(kept)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _open_end(share: float, trials: int) -> tuple[float, float]:
    """The exact binomial interval where all of ``trials`` are 0, or all are 1."""
    slack = 1 - 0.025 ** (1 / trials)
    return (0.0, slack) if share == 0 else (1 - slack, 1.0)
