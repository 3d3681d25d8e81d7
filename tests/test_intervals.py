"""Intervals: their coverage where the truth is known, and no false certainty at 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest

from uturn.retrieval.intervals import identity_bootstrap


def test_interval_covers_the_truth_when_queries_of_an_identity_agree() -> None:
    """Ten copies of each identity carry no more information than one."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        per_identity = (rng.random(80) < 0.3).astype(float)
        values, identities = np.repeat(per_identity, 10), np.repeat(np.arange(80), 10)
        low, high = identity_bootstrap(values, identities, seed=trial)
        covered += low <= 0.3 <= high
    assert 0.89 <= covered / 200 <= 1.0


def test_unanimity_is_not_certainty() -> None:
    """50 failures of 50: the exact binomial bound, where resampling would give [0, 0]."""
    bound = 1 - 0.025 ** (1 / 50)
    lost = identity_bootstrap(np.zeros(50), np.arange(50), seed=0)
    found = identity_bootstrap(np.ones(50), np.arange(50), seed=0)
    assert lost == pytest.approx((0, bound))
    assert found == pytest.approx((1 - bound, 1))


def test_queries_without_a_match_are_left_out() -> None:
    values = np.array([0.2, 0.6, 0.4, np.nan])
    with_nan = identity_bootstrap(values, np.arange(4), seed=0)
    assert with_nan == identity_bootstrap(values[:3], np.arange(3), seed=0)


def test_one_identity_gives_no_interval() -> None:
    assert identity_bootstrap(np.array([0.2, 0.6, np.nan]), np.array([1, 1, 2]), seed=0) is None
