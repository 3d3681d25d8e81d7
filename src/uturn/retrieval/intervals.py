"""Confidence intervals that respect that the queries of one identity are not independent."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from uturn.rng import generator

RESAMPLES = 2000


def weighted_mean(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None
) -> float | None:
    """Mean of per-query ``values`` ``(Q,)`` that are not NaN.

    None if there are none, or if one is infinite: a place below all that was seen.
    """
    kept = ~np.isnan(values)
    if not kept.any():
        return None
    mean = np.average(values[kept], weights=None if weights is None else weights[kept])
    return float(mean) if np.isfinite(mean) else None


def median(values: npt.NDArray[np.float64]) -> float | None:
    """Median of per-query ``values`` ``(Q,)`` that are not NaN; None as in `weighted_mean`."""
    kept = values[~np.isnan(values)]
    found = float(np.median(kept)) if len(kept) else np.inf
    return found if np.isfinite(found) else None


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
    if values.min() == values.max() and values[0] in (0.0, 1.0):
        return _open_end(float(values[0]), len(np.unique(identities)))
    return _resampled(values, identities, counted, seed)


def paired_bootstrap(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of the mean of ``after − before``, ``(Q,)`` each in 0 … 1, query by query.

    Percentile bootstrap over identities, whose queries keep their pairs: what two runs have in
    common, easy queries and hard ones, falls out. Queries of which either is NaN are left out.
    Where all differ alike (mostly: not at all) resampling would claim certainty; there as many
    identities as `identity_bootstrap` concedes may differ as far as they can. None for fewer
    than two identities.
    """
    change = after - before
    kept = ~np.isnan(change)
    change, identities = change[kept], identities[kept]
    groups = len(np.unique(identities))
    if groups < 2:
        return None
    if change.min() == change.max():
        same, slack = float(change[0]), _open_end(0.0, groups)[1]
        return same - slack * (1 + same), same + slack * (1 - same)
    return _resampled(change, identities, np.ones_like(change), seed)


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


def _resampled(
    values: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    seed: int,
) -> tuple[float, float]:
    """Percentiles of the weighted mean when whole identities are drawn with replacement."""
    _, group = np.unique(identities, return_inverse=True)
    groups = int(group.max()) + 1
    sums = np.bincount(group, weights=values * weights)
    counts = np.bincount(group, weights=weights)
    draw = generator(seed, "identity bootstrap")
    drawn = draw.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)  # (R, I)
    low, high = np.percentile((drawn @ sums) / (drawn @ counts), [2.5, 97.5])
    return float(low), float(high)


def _open_end(share: float, trials: int) -> tuple[float, float]:
    """The exact binomial interval where all of ``trials`` are 0, or all are 1."""
    slack = 1 - 0.025 ** (1 / trials)
    return (0.0, slack) if share == 0 else (1 - slack, 1.0)


def auc(attacked: npt.NDArray[np.float64], clean: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve of scores ``(A,)`` and ``(C,)``: P(attacked > clean), ties half.

    >>> auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    one, other = (np.zeros(len(scores), dtype=np.int64) for scores in (attacked, clean))
    return float(_won(attacked, clean, one, other)[0, 0]) / (len(attacked) * len(clean))


def auc_bootstrap(
    attacked: npt.NDArray[np.float64],
    clean: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of `auc` of the same queries, attacked and clean, ``(Q,)`` each.

    Percentile bootstrap over identities, whose attacked and clean queries are drawn together. An
    area of 0 or 1 has the open end of `identity_bootstrap`. None for fewer than two identities.
    """
    _, group = np.unique(identities, return_inverse=True)
    groups = int(group.max()) + 1
    if groups < 2:
        return None
    won = _won(attacked, clean, group, group)
    counts = np.bincount(group).astype(np.float64)
    if (area := won.sum() / counts.sum() ** 2) in (0.0, 1.0):
        return _open_end(float(area), groups)
    draw = generator(seed, "identity bootstrap")
    drawn = draw.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float64)
    areas = ((drawn @ won) * drawn).sum(1) / (drawn @ counts) ** 2
    low, high = np.percentile(areas, [2.5, 97.5])
    return float(low), float(high)


def _won(
    attacked: npt.NDArray[np.float64],
    clean: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """How many pairs the attacked score wins, ties half, by groups of both: ``(I, J)``."""
    above = (attacked[:, None] > clean) + 0.5 * (attacked[:, None] == clean)  # (A, C)
    by_row = np.zeros((int(rows.max()) + 1, len(clean)))
    np.add.at(by_row, rows, above)
    found = np.zeros((len(by_row), int(columns.max()) + 1))
    np.add.at(found.T, columns, by_row.T)
    return found
