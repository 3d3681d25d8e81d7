"""Intervals and tests: coverage where the truth is known, no false certainty, exact p-values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, permutation_test

from uturn.retrieval.intervals import holm, identity_bootstrap, paired_bootstrap, sign_flip

Floats = npt.NDArray[np.float64]


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


# -- few that differ ------------------------------------------------------------------------------


def test_near_nothing_the_interval_is_clopper_and_pearsons() -> None:
    hits = np.zeros(50)
    hits[:3] = 1
    exact = binomtest(3, 50).proportion_ci(method="exact")
    assert identity_bootstrap(hits, np.arange(50), seed=0) == pytest.approx((exact.low, exact.high))
    assert identity_bootstrap(1 - hits, np.arange(50), seed=0) == pytest.approx(
        (1 - exact.high, 1 - exact.low)
    )


def test_a_first_hit_does_not_narrow_what_none_has_left_open() -> None:
    values = np.zeros(80)
    ends = [identity_bootstrap(values, np.repeat(np.arange(20), 4), seed=0)]
    for hit in (0, 4, 8, 12):
        values[hit] = 1
        ends.append(identity_bootstrap(values, np.repeat(np.arange(20), 4), seed=0))
    highs = [end[1] for end in ends if end]
    assert highs == sorted(highs)
    assert len(highs) == 5


def test_a_rare_success_is_covered() -> None:
    """2 % of queries, which agree within an identity by halves: a bootstrap alone covers 84 %."""
    rng, covered = np.random.default_rng(1), 0
    for trial in range(200):
        rate = rng.beta(0.02, 0.98, 40)
        hits = (rng.random((40, 4)) < rate[:, None]).astype(float)
        ends = identity_bootstrap(hits.ravel(), np.repeat(np.arange(40), 4), seed=trial)
        assert ends is not None
        covered += ends[0] <= 0.02 <= ends[1]
    assert covered >= 190


def test_identities_of_unlike_sizes_are_worth_fewer() -> None:
    identities = np.repeat([0, 1, 2], [8, 1, 1])
    worth = 10**2 / (64 + 1 + 1)
    assert identity_bootstrap(np.zeros(10), identities, seed=0) == pytest.approx(
        (0, 1 - 0.025 ** (1 / worth))
    )


# -- seeds ----------------------------------------------------------------------------------------


def test_one_seed_is_none_and_equal_seeds_add_nothing() -> None:
    values, identities = np.random.default_rng(0).random(60), np.repeat(np.arange(20), 3)
    alone = identity_bootstrap(values, identities, seed=4)
    assert identity_bootstrap(values[:, None], identities, seed=4) == alone
    again = identity_bootstrap(np.stack([values] * 3, 1), identities, seed=4)
    assert again == pytest.approx(alone)


def test_spread_over_identities_and_over_seeds_adds_up() -> None:
    """Standard errors of crossed effects, in closed form; seeds as S of them vary, not S − 1."""
    rng = np.random.default_rng(2)
    for count in (2, 3, 8):
        people, seeds = rng.normal(0, 0.05, 200), rng.normal(0, 0.03, count)
        values = np.clip(0.5 + people[:, None] + seeds[None], 0, 1)
        ends = identity_bootstrap(values, np.arange(200), seed=0)
        assert ends is not None
        error = math.sqrt(people.var() / 200 + seeds.var(ddof=1) / count)
        if count == 8:  # of two or three seeds the draws are too few for a normal shape
            assert (ends[1] - ends[0]) / (2 * 1.96) == pytest.approx(error, rel=0.1)
        alone = identity_bootstrap(values.mean(1), np.arange(200), seed=0)
        assert alone is not None
        assert ends[1] - ends[0] > alone[1] - alone[0]


def test_intervals_over_seeds_cover_the_mean_of_all_seeds() -> None:
    rng, covered, of_one = np.random.default_rng(3), 0, 0
    for trial in range(150):
        people, seeds = rng.normal(0, 0.1, 60), rng.normal(0, 0.03, 5)
        values = 0.5 + people[:, None] + seeds[None] + rng.normal(0, 0.05, (60, 5))
        ends = identity_bootstrap(values, np.arange(60), seed=trial)
        only = identity_bootstrap(values[:, 0], np.arange(60), seed=trial)
        assert ends
        assert only
        covered += ends[0] <= 0.5 <= ends[1]
        of_one += only[0] <= 0.5 <= only[1]
    assert covered >= 0.87 * 150
    assert of_one < 0.8 * 150  # what one seed's interval says of other seeds


def test_paired_seeds_may_differ_in_number() -> None:
    rng = np.random.default_rng(4)
    people = rng.random(50)
    before = people[:, None] * 0.5 + rng.normal(0, 0.02, (1, 3)) + 0.2
    after = people[:, None] * 0.5 + rng.normal(0, 0.02, (1, 6)) + 0.3
    ends = paired_bootstrap(before, after, np.arange(50), seed=0)
    assert ends is not None
    assert ends[0] < after.mean() - before.mean() < ends[1]
    # People fall out; what is left is the spread of seeds.
    reach = 2 * 1.96 * math.sqrt(before[0].var(ddof=1) / 3 + after[0].var(ddof=1) / 6)
    assert ends[1] - ends[0] == pytest.approx(reach, rel=0.25)


# -- tests ----------------------------------------------------------------------------------------


def test_sign_flips_are_mcnemar_where_every_query_is_its_own_identity() -> None:
    for gains, losses in ((8, 1), (5, 5), (1, 0), (0, 11), (3, 9)):
        change = np.r_[np.ones(gains), -np.ones(losses), np.zeros(30), np.nan]
        exact = binomtest(gains, gains + losses).pvalue
        assert sign_flip(change, np.arange(len(change))) == pytest.approx(exact)


@given(
    changes=arrays(np.float64, st.integers(1, 12), elements=st.floats(-1, 1, width=16)),
    split=st.integers(1, 4),
)
@settings(max_examples=30, deadline=None)
def test_sign_flips_by_identity_are_counted_one_by_one(changes: Floats, split: int) -> None:
    identities = np.arange(len(changes)) // split
    sums = [changes[identities == one].sum() for one in np.unique(identities)]
    seen = abs(sum(sums))
    reached = [
        abs(sum(s * v for s, v in zip(signs, sums, strict=True))) >= seen - 1e-9
        for signs in itertools.product((-1, 1), repeat=len(sums))
    ]
    assert sign_flip(changes, identities) == pytest.approx(np.mean(reached))


def test_many_sign_flips_are_drawn_and_agree_with_scipy() -> None:
    rng = np.random.default_rng(5)
    change = rng.normal(0.2, 1, 60)
    found = sign_flip(change, np.arange(60))
    scipys = permutation_test(
        (change,), np.mean, permutation_type="samples", n_resamples=20_000, random_state=0
    ).pvalue
    assert found == pytest.approx(scipys, abs=0.015)
    assert sign_flip(np.full(60, 0.5), np.arange(60)) == pytest.approx(1 / 20_001)
    assert sign_flip(np.full(3, np.nan), np.arange(3)) is None


def test_equal_runs_are_called_different_one_time_of_twenty() -> None:
    rng = np.random.default_rng(6)
    ids = np.repeat(np.arange(30), 3)
    found = [
        sign_flip(np.repeat(rng.integers(-1, 2, 30), 3).astype(float), ids) for _ in range(100)
    ]
    assert np.mean([p is not None and p <= 0.05 for p in found]) <= 0.12


def test_holm_by_its_definition() -> None:
    """Reject from the smallest while p ≤ α/(m − k): the adjusted say the same at every α."""
    p_values = [0.012, 0.0004, 0.2, 0.03, 0.011, 1.0]
    adjusted = holm(p_values)
    for alpha in np.linspace(0.001, 0.5, 400):
        rejected, tested = set(), sorted((p, n) for n, p in enumerate(p_values) if p < 1)
        for k, (p, n) in enumerate(tested):
            if p > alpha / (len(tested) - k):
                break
            rejected.add(n)
        assert rejected == {n for n, p in enumerate(adjusted) if p <= alpha}
    assert adjusted[-1] == 1
    assert holm([]) == []
