"""Intervals and tests that respect that the queries of one identity are not independent."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from uturn.rng import generator

RESAMPLES = 2000

FLIPS = 20_000
"""Patterns of signs that a randomisation test looks at."""

FEW = 5
"""Fewer identities than these that are unlike all others leave a bootstrap too narrow: where the
share is near 0 or 1, 95 % intervals held it 84 times of 100 (docs/protocols.md)."""

_AT_ONCE = 2000
_ROUNDING = 1e-12


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
    """95 % interval of the mean of per-query ``values`` in 0 … 1; NaN are left out.

    ``values`` are ``(Q,)``, or ``(Q, S)`` of an attack that was repeated with S seeds. With
    ``weights`` ``(Q,)`` it is that of the weighted mean.

    Percentile bootstrap over identities: whole identities are drawn with replacement. Seeds are
    crossed with them, and drawn beside them: S − 1 of S, whose mean then varies as the mean of S
    does (Rao and Wu, JASA 1988); one seed says nothing of others, and nothing is drawn. Both at
    once is the pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007).

    Where all identities but fewer than `FEW` are 0 (or 1) throughout, resampling would claim too
    much, and for none of them certainty; there it is the exact binomial interval (Clopper and
    Pearson) of as many trials as the identities are worth. None for fewer than two identities,
    which say nothing about a third.
    """
    values = _by_seed(values)
    kept = ~np.isnan(values).all(1)
    weights = np.ones(len(values)) if weights is None else weights
    values, identities, weights = values[kept], identities[kept], weights[kept]
    if len(np.unique(identities)) < 2:
        return None
    sums, counts = _grouped(values, identities, weights)
    share, trials = float(sums.sum() / counts.sum()), _worth(counts.sum(1))
    if min(np.count_nonzero(sums.any(1)), np.count_nonzero((sums != counts).any(1))) < FEW:
        return _binomial(share, trials)
    drawn, turns = _identities(len(sums), seed), _seeds(sums.shape[1], seed, "seed bootstrap")
    above, below = ((drawn @ each * turns).sum(1) for each in (sums, counts))
    return _percentiles(above / below)


def paired_bootstrap(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    seed: int,
) -> tuple[float, float] | None:
    """95 % interval of the mean of ``after − before``, each in 0 … 1, query by query.

    Both are ``(Q,)``, or ``(Q, S)`` with as many seeds as each was repeated with.

    Percentile bootstrap over identities, whose queries keep their pairs: what two runs have in
    common, easy queries and hard ones, falls out. Seeds are drawn as in `identity_bootstrap`, of
    either for itself. Queries of which either is NaN are left out. Where fewer than `FEW`
    identities differ at all, exact binomial bounds of what rises and of what falls take its
    place; where all differ alike, as many identities as such a bound concedes may differ as far
    as they can. None for fewer than two identities.
    """
    before, after = _by_seed(before), _by_seed(after)
    kept = ~np.isnan(before).any(1) & ~np.isnan(after).any(1)
    before, after, identities = before[kept], after[kept], identities[kept]
    if len(np.unique(identities)) < 2:
        return None
    one = np.ones(len(before))
    (less, counts), (more, _) = (_grouped(each, identities, one) for each in (before, after))
    count = counts[:, 0]
    change, trials = after.mean(1) - before.mean(1), _worth(count)
    if change.min() == change.max():
        same, slack = float(change[0]), _binomial(0.0, trials)[1]
        return same - slack * (1 + same), same + slack * (1 - same)
    if len(np.unique(identities[change != 0])) < FEW:
        rise, fall = (
            _binomial(float(np.maximum(sign * change, 0).mean()), trials) for sign in (1, -1)
        )
        return rise[0] - fall[1], rise[1] - fall[0]
    drawn = _identities(len(less), seed)
    mean_before, mean_after = (
        (drawn @ sums * _seeds(sums.shape[1], seed, "seed bootstrap", which)).sum(1)
        for sums, which in ((less, "before"), (more, "after"))
    )
    return _percentiles((mean_after - mean_before) / (drawn @ count))


def query_bootstrap(hits: npt.NDArray[np.float64], seed: int) -> tuple[float, float] | None:
    """95 % interval of the mean of per-query ``hits``, ``(Q,)`` or ``(Q, S)``, 0 or 1 each.

    `identity_bootstrap` with every query for itself. For a classifier on a closed set: its
    identities are the classes, all of which are there, so that drawing other identities asks a
    question that nobody has.
    """
    return identity_bootstrap(hits, np.arange(len(hits)), seed)


def sign_flip(change: npt.NDArray[np.float64], identities: npt.NDArray[np.int64]) -> float | None:
    """Two-sided p-value of the mean of per-query ``change`` ``(Q,)`` being 0; NaN are left out.

    Randomisation test by identity: if two runs were alike, all changes of an identity could as
    well have the other sign. The share of patterns of signs whose mean is as far from 0: of all
    patterns where `FLIPS` are enough for that, else of as many that are drawn, and the one seen.
    With one query per identity and hits for values it is McNemar's exact test. None where no
    query is left.

    Source: Fisher, "The Design of Experiments", 1935; in retrieval, Smucker, Allan and Carterette,
    CIKM 2007.
    """
    kept = ~np.isnan(change)
    if not kept.any():
        return None
    _, group = np.unique(identities[kept], return_inverse=True)
    sums = np.bincount(group, weights=change[kept])
    sums = sums[np.abs(sums) > _ROUNDING]  # who does not differ has no sign
    seen = abs(sums.sum()) - _ROUNDING * max(1.0, float(np.abs(sums).sum()))
    if 2 ** len(sums) <= FLIPS:
        patterns = np.array([*itertools.product((-1.0, 1.0), repeat=len(sums))])  # (2ⁿ, n)
        return float((np.abs(patterns @ sums) >= seen).mean())
    draw, reached = generator(0, "sign flips"), 0
    for size in [_AT_ONCE] * (FLIPS // _AT_ONCE):
        signs = 2.0 * draw.integers(0, 2, (size, len(sums)), dtype=np.int8) - 1
        reached += int((np.abs(signs @ sums) >= seen).sum())
    return (1 + reached) / (1 + FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """``p_values`` as they stand when all are looked at: by Holm (Scand. J. Statistics 1979).

    The chance that any of the true hypotheses has an adjusted one of α or less is at most α,
    however they hang together. Those that are 1 could not be less and do not count.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 1.0])]
    [0.03, 0.06, 0.06, 1.0]
    """
    count, adjusted, highest = sum(p < 1 for p in p_values), [1.0] * len(p_values), 0.0
    for place, which in enumerate(np.argsort(p_values, kind="stable")[:count].tolist()):
        highest = max(highest, min(1.0, (count - place) * p_values[which]))
        adjusted[which] = highest
    return adjusted


def _by_seed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """``(Q,)`` or ``(Q, S)`` as ``(Q, S)``."""
    return values[:, None] if values.ndim == 1 else values


def _grouped(
    values: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weighted sums of ``values`` ``(Q, S)`` and of what is there of them, ``(I, S)`` each."""
    _, group = np.unique(identities, return_inverse=True)
    there = ~np.isnan(values)
    found = np.zeros((2, int(group.max()) + 1, values.shape[1]))
    for place, each in enumerate((np.where(there, values, 0.0), there)):
        np.add.at(found[place], group, each * weights[:, None])
    return found[0], found[1]


def _worth(counts: npt.NDArray[np.float64]) -> float:
    """As how many identities of equal weight those of weights ``counts`` count (Kish 1965)."""
    return float(counts.sum() ** 2 / (counts**2).sum())


def _identities(groups: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each identity is drawn, ``(R, I)``."""
    draw = generator(seed, "identity bootstrap")
    drawn = draw.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)
    return drawn.astype(np.float64)


def _seeds(count: int, seed: int, *key: str) -> npt.NDArray[np.float64]:
    """Which part each of ``count`` seeds has of a draw, ``(R, S)``."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    drawn = generator(seed, *key).multinomial(count - 1, np.full(count, 1 / count), RESAMPLES)
    return drawn / (count - 1)


def _percentiles(drawn: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _binomial(share: float, trials: float) -> tuple[float, float]:
    """The exact 95 % interval of Clopper and Pearson (Biometrika 1934); ``trials`` may be broken.

    Where the share is 0 its end is 1 − 0.025^(1/trials), of which 3.7/trials is an approximation.
    """
    from scipy.special import betaincinv  # a tenth of a second, for the few intervals that ask

    hits = share * trials
    low = 0.0 if share == 0 else float(betaincinv(hits, trials - hits + 1, 0.025))
    high = 1.0 if share == 1 else float(betaincinv(hits + 1, trials - hits, 0.975))
    return low, high


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
    area of 0 or 1 has the binomial end of `identity_bootstrap`. None for fewer than two identities.
    """
    _, group = np.unique(identities, return_inverse=True)
    groups = int(group.max()) + 1
    if groups < 2:
        return None
    won = _won(attacked, clean, group, group)
    counts = np.bincount(group).astype(np.float64)
    if (area := won.sum() / counts.sum() ** 2) in (0.0, 1.0):
        return _binomial(float(area), groups)
    drawn = _identities(groups, seed)
    areas = ((drawn @ won) * drawn).sum(1) / (drawn @ counts) ** 2
    return _percentiles(areas)


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
