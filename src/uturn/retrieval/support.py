"""What a number of queries can support: the smallest difference it shows, and what it leaves open.

Nothing here changes a number. A caveat says which reading of one the queries do not bear out.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from uturn.retrieval.intervals import paired_bootstrap

ENOUGH = 20
"""Fewer identities than these make percentile intervals too narrow; see Cameron, Gelbach and
Miller, "Bootstrap-based improvements for inference with clustered errors", 2008."""

_OUTER, _POWER = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.8)

Interval = tuple[float, float] | None


def resolution(interval: Interval) -> float | None:
    """The smallest difference that such data show four times of five, from a 95 % interval of one.

    Standard errors of 1.96 make half of the interval; a true difference of 1.96 + 0.84 of them is
    told from 0 at 5 % with a power of 80 %. None without an interval.

    >>> round(resolution((-0.0196, 0.0196)), 4)
    0.028
    """
    if interval is None:
        return None
    return (interval[1] - interval[0]) / 2 * (_OUTER + _POWER) / _OUTER


def few(people: int) -> list[str]:
    """``few-identities`` where there are fewer than `ENOUGH`, whose intervals are too narrow."""
    if people >= ENOUGH:
        return []
    return [
        f"few-identities: {people} identities say little of others, and an interval over fewer "
        f"than {ENOUGH} is too narrow"
    ]


def caveats(
    hits: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    interval: Interval,
    seed: int,
    clean: npt.NDArray[np.float64] | None = None,
) -> list[str]:
    """What Recall@1 of these queries does not show, in words that begin with its kind.

    ``hits`` are ``(Q,)`` or ``(Q, S)`` of S seeds, 0 or 1, NaN without a relevant item;
    ``interval`` is their 95 % interval. ``clean`` are the hits before an attack, ``(Q,)``.

    ``few-identities``: as `few`. ``bound``: all or none are found, which says less than it seems.
    ``unresolved``: the difference to ``clean`` may as well be 0; how small a one would show, and
    what as large a one as this would ask for.
    """
    hits = hits if hits.ndim == 2 else hits[:, None]
    kept = ~np.isnan(hits).all(1)
    if not kept.any():
        return []
    people = len(np.unique(identities[kept]))
    found, share = few(people), float(np.nanmean(hits))
    if share in (0, 1) and interval is not None:
        told = f"at most {interval[1]:.3f}" if share == 0 else f"at least {interval[0]:.3f}"
        found.append(
            f"bound: Recall@1 is {share:g} of {int(kept.sum())} queries, which bears out {told}"
        )
    if clean is not None:
        found += _unresolved(clean, hits, identities, seed, people)
    return found


def _unresolved(
    clean: npt.NDArray[np.float64],
    hits: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
    seed: int,
    people: int,
) -> list[str]:
    """Whether a difference to the clean queries may be none."""
    ends = paired_bootstrap(clean, hits, identities, seed)
    smallest = resolution(ends)
    if ends is None or smallest is None or not ends[0] <= 0 <= ends[1]:
        return []
    change = float(np.nanmean(hits.mean(1) - clean))
    asked = ""
    if change:  # standard errors fall with the root of the number
        asked = f"; this one would take about {math.ceil(people * (smallest / change) ** 2):,}"
    return [
        f"unresolved: Recall@1 differs from the clean queries' by {change:+.3f} (95 % "
        f"{ends[0]:+.3f} to {ends[1]:+.3f}), which may be 0; {people} identities show differences "
        f"of {smallest:.3f}{asked}"
    ]
