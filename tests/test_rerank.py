"""Stages between index and metrics against torchreid, the papers' equations and brute force."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import shim
from uturn.errors import ArgumentError, SpecError
from uturn.retrieval import metrics
from uturn.retrieval.index import ExactIndex, Index
from uturn.retrieval.judge import Labels, SameIdentity
from uturn.retrieval.ranking import rank
from uturn.retrieval.rerank import KReciprocal, KReciprocalTogether, QueryExpansion, build_stages
from uturn.types import Similarity

Array = npt.NDArray[np.float64]
TOGETHER = "k-reciprocal-together"


def clustered(items: int, queries: int, seed: int, spread: float = 0.6) -> tuple[Tensor, Tensor]:
    """Gallery and query features, float64, around a few centres; no two are as near by chance."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(1 + items // 10, 6))
    features = centres[rng.integers(len(centres), size=items + queries)]
    features += spread * rng.normal(size=features.shape)
    return torch.from_numpy(features[:items]), torch.from_numpy(features[items:])


def distances(index: ExactIndex, queries: Tensor) -> Array:
    """Euclidean distances among the gallery and, behind it, the queries."""
    points = torch.cat([index.features, queries])
    if index.similarity == "cosine":
        points = F.normalize(points, dim=1)
    return (points[:, None] - points).norm(dim=2).numpy()


def by_the_equations(
    apart: Array, node: int, items: int, k1: int, k2: int, weight: float, power: float
) -> Array:
    """Final distances of one node by sets and dictionaries, from the paper's equations."""
    everyone = range(len(apart))
    d = apart**power
    d = d / d.max(1, keepdims=True)
    order = [sorted(everyone, key=lambda j, i=i: (j != i, d[i, j])) for i in everyone]

    def nearest(p: int, k: int) -> set[int]:  # N(p, k), and p itself
        return set(order[p][: k + 1])

    def mutual(p: int, k: int) -> set[int]:  # equation 3
        return {g for g in nearest(p, k) if p in nearest(g, k)}

    def encoding(p: int) -> dict[int, float]:  # equations 5 and 7
        mine = mutual(p, k1)
        found = set(mine)
        for q in mine:
            theirs = mutual(q, round(k1 / 2))
            if 3 * len(theirs & mine) > 2 * len(theirs):
                found |= theirs
        weights = {g: np.exp(-d[p, g]) for g in found}
        return {g: value / sum(weights.values()) for g, value in weights.items()}

    encodings = [encoding(p) for p in everyone]

    def expanded(p: int) -> Array:  # equation 11
        mean = np.zeros(len(apart))
        for q in order[p][:k2]:
            for g, value in encodings[q].items():
                mean[g] += value / len(order[p][:k2])
        return mean

    mine, final = expanded(node), np.empty(items)
    for g in range(items):
        theirs = expanded(g)  # equations 10 and 12
        jaccard = 1 - np.minimum(mine, theirs).sum() / np.maximum(mine, theirs).sum()
        final[g] = (1 - weight) * jaccard + weight * d[node, g]
    return final


problems = st.fixed_dictionaries(
    {
        "items": st.integers(1, 40),
        "queries": st.integers(1, 4),
        "seed": st.integers(0, 10_000),
        "k1": st.integers(1, 15),
        "k2": st.integers(1, 20),
        "weight": st.sampled_from((0.0, 0.3, 1.0)),
        "power": st.sampled_from((2.0, 4.0)),
        "similarity": st.sampled_from(("cosine", "euclidean")),
        # Long queries are the farthest of all; short ones are in everyone's list.
        "length": st.sampled_from((0.05, 1.0, 10.0)),
    }
)


@given(problems)
@settings(max_examples=60, deadline=None)
def test_k_reciprocal_equals_the_equations(problem) -> None:
    gallery, queries = clustered(problem["items"], problem["queries"], problem["seed"])
    queries = queries * problem["length"]
    index = ExactIndex(gallery, problem["similarity"])
    options = {key: problem[key] for key in ("k1", "k2", "weight", "power")}
    alone = KReciprocal(index, **options).scores(queries)
    together = KReciprocalTogether(index, queries, **options).scores(queries)
    apart = distances(index, queries)
    items = len(gallery)
    for q in range(len(queries)):
        expected = by_the_equations(apart, items + q, items, **options)
        np.testing.assert_allclose(-together[q].numpy(), expected, rtol=0, atol=1e-9)
        only = [*range(items), items + q]
        expected = by_the_equations(apart[np.ix_(only, only)], items, items, **options)
        np.testing.assert_allclose(-alone[q].numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_k_reciprocal_equals_torchreid(similarity: Similarity) -> None:
    shim.declare()
    library = pytest.importorskip(
        "torchreid.reid.utils.rerank", reason="torchreid is not installed", exc_type=ImportError
    )
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gallery, queries = clustered(int(rng.integers(10, 90)), 3, seed, rng.uniform(0.2, 1))
        index, items, power = ExactIndex(gallery, similarity), len(gallery), 2 + 2 * (seed % 2)
        options = {"k1": int(rng.integers(1, 25)), "k2": int(rng.integers(1, 9)), "weight": 0.3}
        apart = distances(index, queries) ** (power / 2)  # which it squares
        among, to, rest = apart[items:, items:], apart[items:, :items], apart[:items, :items]
        expected = library.re_ranking(to, among, rest, *options.values())
        together = KReciprocalTogether(index, queries, **options, power=power).scores(queries)
        assert np.abs(-together.numpy() - expected).max() <= 1e-6
        alone = KReciprocal(index, **options, power=power).scores(queries)
        for q in range(len(queries)):
            expected = library.re_ranking(to[[q]], among[[q]][:, [q]], rest, *options.values())
            assert np.abs(-alone[q].numpy() - expected).max() <= 1e-6


def test_a_query_stands_behind_its_twin() -> None:
    """Only the query ties here, with what it is a copy of; whole numbers keep the ties exact."""
    gallery = torch.tensor([0, 1, 3, 7, 15, 31, 63]).double()[:, None]
    index = ExactIndex(gallery, "euclidean")
    for twin in gallery:
        apart = distances(index, twin[None])
        for k1, k2 in ((1, 1), (2, 1), (3, 2), (4, 3)):
            found = KReciprocal(index, k1=k1, k2=k2).scores(twin[None])[0].numpy()
            expected = by_the_equations(apart, 7, 7, k1, k2, 0.3, 2)
            np.testing.assert_allclose(-found, expected, rtol=0, atol=1e-9)


def test_a_query_alone_does_not_know_its_batch() -> None:
    gallery, queries = (part.float() for part in clustered(200, 30, seed=1))
    stage = KReciprocal(ExactIndex(gallery))
    whole = stage.scores(queries)
    assert torch.equal(whole, torch.cat([stage.scores(part) for part in queries.split(7)]))
    assert torch.equal(whole.flip(0), stage.scores(queries.flip(0)))
    assert stage.scores(queries[:0]).shape == (0, 200)
    together = KReciprocalTogether(stage.index, queries)
    assert not torch.allclose(whole, together.scores(queries), atol=1e-3)


def test_together_is_asked_in_any_order_and_only_what_it_knows() -> None:
    gallery, queries = clustered(60, 9, seed=2)
    stage = KReciprocalTogether(ExactIndex(gallery), queries)
    order = torch.tensor([4, 4, 0, 8])
    torch.testing.assert_close(stage.scores(queries[order]), stage.scores(queries)[order])
    with pytest.raises(ArgumentError, match="not built with; use k-reciprocal"):
        stage.scores(queries + 0.01)
    with pytest.raises(ArgumentError, match="not finite"):
        KReciprocalTogether(stage.index, queries * torch.nan)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("spec", ["k-reciprocal:k1=3", f"{TOGETHER}:k1=3", "aqe:n=3"])
def test_twins_and_a_collapsed_victim_give_numbers(spec: str, similarity: Similarity) -> None:
    gallery, _ = clustered(20, 0, seed=3)
    for features in (gallery.repeat(2, 1), torch.ones(8, 3), torch.zeros(8, 3)):
        stage = build_stages(spec, ExactIndex(features, similarity), features)
        assert stage.scores(features).isfinite().all()


@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.sampled_from((0.0, 1.0, 3.0)),
    st.sampled_from(("cosine", "euclidean")),
    st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None)
def test_query_expansion_equals_its_formula(
    items: int, n: int, alpha: float, similarity: Similarity, seed: int
) -> None:
    gallery, queries = clustered(items, 3, seed)
    index = ExactIndex(gallery, similarity)
    found = QueryExpansion(index, index, n, alpha).expand(queries)
    unit = similarity == "cosine"
    for query, moved in zip(queries, found, strict=True):
        q = query / query.norm() if unit else query
        points = [g / g.norm() if unit else g for g in gallery]
        cosines = [float(q @ g / (q.norm() * g.norm())) for g in points]
        apart = [float((q - point).norm()) for point in points]
        nearest = sorted(range(items), key=apart.__getitem__)[:n]
        weights = [max(0.0, cosines[i]) ** alpha for i in nearest]
        total = q + sum((w * points[i] for w, i in zip(weights, nearest, strict=True)), 0 * q)
        torch.testing.assert_close(moved, total / (1 + sum(weights)))


def test_query_expansion_takes_all_that_tie() -> None:
    """Whom it takes does not hang on the order of the gallery."""
    index = ExactIndex(torch.tensor([[3.0, 0], [0, 2], [0, -2], [5, 5]]), "euclidean")
    moved = QueryExpansion(index, index, n=1, alpha=0).expand(torch.tensor([[0.0, 0], [2.5, 0]]))
    assert moved.tolist() == [[0, 0], [2.75, 0]]  # both twins at distance 2; the first alone


def average(index: Index, queries: Tensor, labels: Labels, gallery: Labels) -> float:
    ranking = rank(index, queries, labels, gallery, SameIdentity())
    return float(metrics.ap_plain(ranking).nanmean())


def test_every_stage_helps_where_pictures_cluster() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 32, generator=rng)
    who = torch.arange(480) % 40
    features = centres[who] + 1.1 * torch.randn(480, 32, generator=rng)
    labels = Labels(who, torch.zeros_like(who), torch.arange(480))
    index, queries = ExactIndex(features[80:]), features[:80]
    plain = average(index, queries, labels[:80], labels[80:])
    for spec in ("aqe", "aqe:n=5,alpha=0", "k-reciprocal", TOGETHER, "aqe:n=5+k-reciprocal"):
        staged = average(build_stages(spec, index, queries), queries, labels[:80], labels[80:])
        assert staged > plain + 0.03, spec


def test_stages_chain_from_left_to_right() -> None:
    gallery, queries = clustered(50, 4, seed=4)
    index = ExactIndex(gallery)
    first, second = QueryExpansion(index, index, 3, 1.0), QueryExpansion(index, index, 2, 0.0)
    moved = second.expand(first.expand(queries))
    before = "aqe:n=3,alpha=1+aqe:2,alpha=0"
    torch.testing.assert_close(
        build_stages(before, index).scores(queries), index.scores(moved), rtol=0, atol=1e-12
    )
    for last in ("k-reciprocal", TOGETHER):
        torch.testing.assert_close(
            build_stages(f"{before}+{last}:k1=9", index, queries).scores(queries),
            build_stages(f"{last}:k1=9", index, moved).scores(moved),
        )


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("aqe", "aqe:n=10,alpha=3+exact:cosine"),
        ("k-reciprocal:30", "exact:cosine+k-reciprocal:k1=30,k2=6,weight=0.3,power=2"),
        (
            f"aqe:n=5,alpha=0+{TOGETHER}:k2=1",
            f"aqe:n=5,alpha=0+exact:cosine+{TOGETHER}:k1=20,k2=1,weight=0.3,power=2",
        ),
    ],
)
def test_names_tell_the_whole_chain(spec: str, name: str) -> None:
    gallery, queries = clustered(30, 2, seed=5)
    stage = build_stages(spec, ExactIndex(gallery), queries)
    assert str(stage) == name
    assert len(stage) == 30


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("reciprocal", SpecError, "unknown stage 'reciprocal'; known: aqe, k-reciprocal"),
        ("aqe+", SpecError, "has no name"),
        ("k-reciprocal+aqe", SpecError, "not the last stage; write it last"),
        ("k-reciprocal+k-reciprocal", SpecError, "and once"),
        (TOGETHER, SpecError, "one by one; use k-reciprocal"),
        ("k-reciprocal:k3=1", SpecError, "no option 'k3'; valid options: k1, k2, weight, power"),
        ("k-reciprocal:graph=1", SpecError, "no option 'graph'"),
        ("aqe:gallery=1", SpecError, "no option 'gallery'; valid options: n, alpha"),
        ("aqe:n=many", SpecError, "n must be a number"),
        ("aqe:n=0", ArgumentError, "n is 0; it has to be at least 1"),
        ("aqe:alpha=-1", ArgumentError, "alpha is -1.0; it has to be at least 0"),
        ("aqe:alpha=nan", ArgumentError, "alpha is nan"),
        ("k-reciprocal:k1=0", ArgumentError, "k1 is 0"),
        ("k-reciprocal:k2=-6", ArgumentError, "k2 is -6"),
        ("k-reciprocal:weight=1.1", ArgumentError, "weight is 1.1; .* within 0 … 1"),
        ("k-reciprocal:weight=nan", ArgumentError, "weight is nan"),
        ("k-reciprocal:power=0", ArgumentError, "power is 0.0; it has to be positive"),
        ("k-reciprocal:power=inf", ArgumentError, "power is inf"),
    ],
)
def test_bad_options_say_so(spec: str, error: type[Exception], message: str) -> None:
    index = ExactIndex(clustered(10, 1, seed=6)[0])
    with pytest.raises(error, match=message):
        build_stages(spec, index)


def test_stages_need_the_features_themselves() -> None:
    index = build_stages("aqe", ExactIndex(clustered(10, 1, seed=6)[0]))
    with pytest.raises(SpecError, match=re.escape("use exact")):
        build_stages("k-reciprocal", index)
