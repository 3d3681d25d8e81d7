"""Every convention against independent implementations, on 200 random problems.

The problems have junk, ties, negative scores, and queries without a relevant item. Libraries break
ties as their sort happens to; our policy (an irrelevant item tied with a relevant one goes first)
is put into what they are given, by a bonus smaller than any difference of scores.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import shim
from uturn.errors import ArgumentError
from uturn.retrieval import metrics, single_shot
from uturn.retrieval.judge import CrossCamera, Judgement, Labels
from uturn.retrieval.ranking import Chunk, Ranking, join, rank_chunk
from uturn.retrieval.single_shot import recall_single_shot
from uturn.retrieval.verification import Impostors

PROBLEMS = range(200)
CLOSE = {"rtol": 0, "atol": 1e-6}
BONUS = 1e-3  # scores differ by 1/4 or not at all


def chunk_of(scores: torch.Tensor, relevant: torch.Tensor, ignored: torch.Tensor) -> Chunk:
    return Chunk.of(scores.clone(), Judgement.of(relevant, ignored))


@dataclass(frozen=True)
class Problem:
    """Re-identification in small: labels, scores in quarters of either sign, and our answers."""

    scores: np.ndarray
    query: Labels
    gallery: Labels

    @classmethod
    def draw(cls, seed: int, queries: int = 6, items: int = 40, people: int = 9) -> Problem:
        rng = np.random.default_rng(seed)

        def labels(n: int, lowest: int) -> Labels:
            identities = torch.from_numpy(rng.integers(lowest, people + 1, n))
            return Labels(identities, torch.from_numpy(rng.integers(0, 3, n)), torch.arange(n))

        # Identity -1 is junk, 0 a distractor, and the last has no picture in the gallery.
        query, gallery = labels(queries, 1), labels(items, -1)
        gallery.identities[gallery.identities == people] = 1
        scores = rng.integers(-5, 6, (queries, items)) / 4
        return cls(scores, query, gallery)

    @cached_property
    def judgement(self) -> Judgement:
        return CrossCamera()(self.query, self.gallery)

    @cached_property
    def chunk(self) -> Chunk:
        return Chunk.of(torch.from_numpy(self.scores).float(), self.judgement)

    @cached_property
    def ranking(self) -> Ranking:
        return rank_chunk(self.chunk)

    @cached_property
    def relevant(self) -> np.ndarray:
        return self.judgement.masks()[0].numpy()

    @cached_property
    def kept(self) -> np.ndarray:
        return ~self.judgement.masks()[1].numpy()

    @cached_property
    def untied(self) -> np.ndarray:
        """Scores that no sort can order against the tie policy."""
        return self.scores - BONUS * self.relevant - BONUS**2 * np.arange(self.scores.shape[1])

    def lists(self) -> Iterator[list[bool]]:
        """Per query what a reader of the list would note: relevant or not, best first."""
        for scores, relevant, kept in zip(self.scores, self.relevant, self.kept, strict=True):
            items = sorted(zip(-scores[kept], relevant[kept], strict=True))  # False < True
            yield [bool(hit) for _, hit in items]


def test_the_problems_are_hard_enough() -> None:
    drawn = [Problem.draw(seed) for seed in PROBLEMS]
    assert sum(bool((p.ranking.matches == 0).any()) for p in drawn) > 100
    assert sum(bool(p.ranking.tied.any()) for p in drawn) > 100
    assert sum(bool((p.gallery.identities == -1).any()) for p in drawn) > 100
    assert all((p.scores < 0).any() and (~p.kept).any() for p in drawn)


def agree(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected).double(), equal_nan=True, **CLOSE)


# -- from the definitions ------------------------------------------------------------------------


def precision(hits: list[bool], depth: int) -> float:
    return sum(hits[:depth]) / depth


def polygon(hits: list[bool]) -> float:
    """The area under the precision-recall points of all depths, joined by straight lines."""
    points = [(sum(hits[:n]) / sum(hits), precision(hits, n)) for n in range(1, len(hits) + 1)]
    points.insert(0, (0.0, 1.0))
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))


def until_all_found(hits: list[bool]) -> int:
    return next(n for n in range(1, len(hits) + 1) if sum(hits[:n]) == sum(hits))


def mean_precision(hits: list[bool], depth: int) -> float:
    """Precision at each hit within ``depth``, over all hits."""
    return sum(precision(hits, n) for n in range(1, depth + 1) if hits[n - 1]) / sum(hits)


def mean_rank(hits: list[bool]) -> float:
    """Müller et al.: the sum of ranks less its least, over N·N_rel."""
    relevant, ranks = sum(hits), [n for n, hit in enumerate(hits, start=1) if hit]
    return (sum(ranks) - relevant * (relevant + 1) / 2) / (len(hits) * relevant)


def revisited_precision(hits: list[bool], k: int) -> float:
    return precision(hits, min(until_all_found(hits), k))


DEFINITIONS: dict[str, tuple[Callable[[Ranking], torch.Tensor], Callable[[list[bool]], float]]] = {
    "first match": (metrics.first_match, lambda hits: hits.index(True) + 1),
    "recall@1": (lambda r: metrics.recall_at(r, 1), lambda hits: any(hits[:1])),
    "recall@5": (lambda r: metrics.recall_at(r, 5), lambda hits: any(hits[:5])),
    "plain": (metrics.ap_plain, lambda hits: mean_precision(hits, len(hits))),
    "trapezoid": (metrics.ap_trapezoid, polygon),
    "map@r": (metrics.ap_at_r, lambda hits: mean_precision(hits, sum(hits))),
    "r-precision": (metrics.r_precision, lambda hits: precision(hits, sum(hits))),
    "minp": (metrics.inp, lambda hits: precision(hits, until_all_found(hits))),
    "normalised rank": (metrics.normalised_rank, mean_rank),
    **{
        f"precision@{k}": (
            lambda r, k=k: metrics.precision_at(r, k),
            lambda hits, k=k: revisited_precision(hits, k),
        )
        for k in metrics.RECALLS
    },
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_metric_is_what_its_definition_says(name: str) -> None:
    metric, definition = DEFINITIONS[name]
    for seed in PROBLEMS:
        problem = Problem.draw(seed)
        agree(
            metric(problem.ranking),
            [definition(hits) if any(hits) else math.nan for hits in problem.lists()],
        )


def test_positions_count_what_is_ranked() -> None:
    for seed in PROBLEMS:
        found = Problem.draw(seed).ranking
        assert found.items.tolist() == [len(hits) for hits in Problem.draw(seed).lists()]
        placed = found.positions > 0
        assert torch.equal(placed, found.scores > -torch.inf)
        assert torch.equal(found.scores, found.scores.sort(1, descending=True).values)
        assert bool((found.positions <= found.items[:, None]).all())


def test_normalised_rank_goes_from_nought_to_chance_to_worst() -> None:
    def value(relevant: list[int]) -> float:
        mask = torch.zeros(1, 100, dtype=torch.bool)
        mask[0, relevant] = True
        scores = -torch.arange(100.0)[None]
        return float(metrics.normalised_rank(rank_chunk(chunk_of(scores, mask, mask & False))))

    assert value([0, 1, 2]) == 0
    assert value([97, 98, 99]) == pytest.approx(0.97)
    by_chance = [value([place]) for place in range(100)]
    assert np.mean(by_chance) == pytest.approx(0.99 / 2)


# -- other libraries -----------------------------------------------------------------------------


def test_plain_ap_is_scikit_learns() -> None:
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in PROBLEMS:
        p = Problem.draw(seed)
        expected = [
            reference.average_precision_score(right[kept], scores[kept])
            if right.any()
            else math.nan
            for scores, right, kept in zip(p.untied, p.relevant, p.kept, strict=True)
        ]
        agree(metrics.ap_plain(p.ranking), expected)


def test_metric_learning_conventions_are_pytorch_metric_learnings() -> None:
    shim.declare()
    library = pytest.importorskip(
        "pytorch_metric_learning.utils.accuracy_calculator",
        reason="pytorch-metric-learning is not installed",
    )

    def search(
        query: torch.Tensor, k: int, reference: torch.Tensor, with_query: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert not with_query
        order = (query @ reference.T).topk(k, dim=1)
        return order.values, order.indices

    ours = {
        "precision_at_1": lambda r: metrics.recall_at(r, 1),
        "r_precision": metrics.r_precision,
        "mean_average_precision_at_r": metrics.ap_at_r,
        "mean_average_precision": metrics.ap_plain,
    }
    theirs = library.AccuracyCalculator(
        include=tuple(ours), device=torch.device("cpu"), knn_func=search, kmeans_func=search
    )
    for seed in PROBLEMS:
        p = Problem.draw(seed)
        found = {name: metric(p.ranking) for name, metric in ours.items()}
        for q in range(len(p.query)):
            if not p.relevant[q].any():
                continue
            expected = theirs.get_accuracy(
                np.ones((1, 1)),
                np.ones(1),
                p.untied[q, p.kept[q], None],
                p.relevant[q, p.kept[q]].astype(int),
            )
            for name, value in expected.items():
                assert float(found[name][q]) == pytest.approx(value, rel=0, abs=1e-6)


@pytest.fixture(scope="module")
def torchreid_rank() -> ModuleType:
    shim.declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its Cython is not compiled
        return pytest.importorskip(
            "torchreid.reid.metrics.rank", reason="torchreid is not installed", exc_type=ImportError
        )


def torchreid(
    library: ModuleType, p: Problem, depth: int, cuhk03: bool
) -> tuple[np.ndarray, float]:
    """CMC and mAP by its own loop, of a gallery without junk, as its data sets have it."""
    real = (p.gallery.identities != -1).numpy()
    labels = [p.query.identities, p.gallery.identities[real], p.query.cameras]
    arrays = [part.numpy() for part in (*labels, p.gallery.cameras[real])]
    found: tuple[np.ndarray, float] = library.evaluate_rank(
        -p.untied[:, real], *arrays, depth, use_metric_cuhk03=cuhk03, use_cython=False
    )
    return found


def test_cmc_and_plain_map_are_torchreids(torchreid_rank: ModuleType) -> None:
    for seed in PROBLEMS:
        p = Problem.draw(seed)
        if not p.relevant.any():
            continue
        cmc, mean_ap = torchreid(torchreid_rank, p, 10, cuhk03=False)  # leaves out what we call NaN
        for k in range(1, 11):
            assert float(metrics.recall_at(p.ranking, k).nanmean()) == pytest.approx(
                float(cmc[k - 1]), rel=0, abs=1e-6
            )
        assert float(metrics.ap_plain(p.ranking).nanmean()) == pytest.approx(mean_ap, abs=1e-6)


# -- the revisited Oxford and Paris protocol -----------------------------------------------------


def revisited(order: list[int], good: set[int], junk: set[int], k: int) -> tuple[float, float]:
    """AP and precision@k of one query, from the whole list of items that was returned.

    Junk is skipped when ranks (from 0) are counted; each good item adds a trapezoid of width
    1/#good between the precision before it and at it.
    """
    ranks, skipped = [], 0
    for place, item in enumerate(order):
        skipped += item in junk
        if item in good:
            ranks.append(place - skipped)
    area = 0.0
    for found, r in enumerate(ranks):
        before = found / r if r else 1.0
        area += (before + (found + 1) / (r + 1)) / (2 * len(good))
    depth = min(ranks[-1] + 1, k)
    return area, sum(r < depth for r in ranks) / depth


@pytest.mark.parametrize(
    ("protocol", "good", "junk"),
    [("easy", "E", "HJ"), ("medium", "EH", "J"), ("hard", "H", "EJ")],
)
def test_trapezoid_and_precision_are_the_revisited_protocols(
    protocol: str, good: str, junk: str
) -> None:
    empty = 0
    for seed in PROBLEMS:
        rng = np.random.default_rng([seed, len(protocol)])
        scores = rng.integers(-5, 6, (4, 40)) / 4
        kinds = rng.choice(list("EHJ-"), (4, 40), p=[0.05, 0.05, 0.1, 0.8])
        relevant, ignored = np.isin(kinds, list(good)), np.isin(kinds, list(junk))
        found = rank_chunk(chunk_of(*map(torch.from_numpy, (scores, relevant, ignored))))
        values = []
        for q in range(4):
            order = np.argsort(BONUS * relevant[q] - scores[q]).tolist()
            lists = [set(np.flatnonzero(mask[q]).tolist()) for mask in (relevant, ignored)]
            values.append(revisited(order, *lists, 10) if lists[0] else (math.nan, math.nan))
        agree(metrics.ap_trapezoid(found), [area for area, _ in values])
        agree(metrics.precision_at(found, 10), [share for _, share in values])
        empty += sum(math.isnan(area) for area, _ in values)
    assert empty > 0  # the protocol leaves such queries out


# -- single gallery shot -------------------------------------------------------------------------


def single_shot_recalls(p: Problem, ks: tuple[int, ...]) -> torch.Tensor:
    return recall_single_shot(p.chunk, p.gallery.identities, ks)


def test_single_shot_recall_is_the_mean_over_all_draws() -> None:
    scored = 0
    for seed in PROBLEMS:
        p = Problem.draw(seed, queries=2, items=9, people=4)
        identities = p.gallery.identities.numpy()
        expected = []
        for q in range(len(p.query)):
            kept = np.flatnonzero(p.kept[q])
            people = [
                [i for i in kept if identities[i] == person] for person in set(identities[kept])
            ]
            outcomes = []
            for gallery in itertools.product(*people):
                order = sorted(gallery, key=lambda item: -p.untied[q, item])
                hits = [bool(p.relevant[q, item]) for item in order]
                outcomes.append([any(hits[:k]) if any(hits) else math.nan for k in (1, 2, 3)])
            expected.append(np.mean(outcomes, axis=0).tolist())
            scored += bool(p.relevant[q].any())
        agree(single_shot_recalls(p, (1, 2, 3)), expected)
    assert scored > 100


def test_single_shot_recall_is_what_torchreid_draws_at_random(torchreid_rank: ModuleType) -> None:
    for seed in (0, 1, 2):
        p = Problem.draw(seed, queries=12, items=70, people=14)
        expected = single_shot_recalls(p, metrics.RECALLS).nanmean(0).numpy()
        np.random.seed(seed)  # what it draws from
        draws = np.stack([torchreid(torchreid_rank, p, 10, cuhk03=True)[0] for _ in range(60)])
        mean = draws[:, [k - 1 for k in metrics.RECALLS]].mean(0)
        error = draws[:, [k - 1 for k in metrics.RECALLS]].std(0, ddof=1) / math.sqrt(len(draws))
        assert (error < 0.01).all()
        assert (np.abs(mean - expected) < 4 * error + 1e-6).all()


def test_with_one_picture_each_single_shot_recall_is_recall() -> None:
    rng = torch.Generator().manual_seed(0)
    scores, relevant = torch.randn(20, 30, generator=rng), torch.eye(20, 30, dtype=torch.bool)
    chunk = chunk_of(scores, relevant, torch.zeros_like(relevant))
    found = rank_chunk(chunk)
    shots = recall_single_shot(chunk, torch.arange(30), (1, 5, 10, 40))
    for column, k in enumerate((1, 5, 10, 40)):
        torch.testing.assert_close(shots[:, column], metrics.recall_at(found, k))


def test_blocks_do_not_change_single_shot_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem.draw(3, queries=8, items=80)
    whole = single_shot_recalls(p, (1, 5))
    monkeypatch.setattr(single_shot, "_CELLS", 1)
    torch.testing.assert_close(single_shot_recalls(p, (1, 5)), whole, equal_nan=True)


def test_many_identities_lose_no_precision() -> None:
    """1,000 rivals, each ahead with probability 1/500: Poisson-binomial with a known tail."""
    scores = torch.zeros(1, 500_001)
    scores[0, ::500] = 1.0
    scores[0, -1] = 0.5
    relevant = torch.arange(500_001)[None] == 500_000
    chunk = chunk_of(scores, relevant, torch.zeros_like(relevant))
    found = recall_single_shot(chunk, torch.arange(500_001) // 500, (1, 10))
    ahead = [math.comb(1000, j) * 0.002**j * 0.998 ** (1000 - j) for j in range(10)]
    assert found[0].tolist() == pytest.approx([ahead[0], sum(ahead)], rel=1e-12)


# -- verification and success --------------------------------------------------------------------


def fixed(p: Problem, fpr: float) -> float:
    """The threshold of a problem that is seen in three chunks."""
    impostors = Impostors(fpr, p.scores.size)
    for part in itertools.starmap(slice, [(0, 1), (1, 4), (4, None)]):
        impostors = impostors.see(Chunk(*(values[part] for values in p.chunk)))
        assert impostors.highest is not None
        assert len(impostors.highest) <= 2 * (fpr * p.scores.size + 2)
    return impostors.threshold()


@pytest.mark.parametrize("fpr", [0.0, 0.01, 0.1, 1 / 3, 0.7, 1.0])
def test_tpr_at_a_fixed_fpr_is_scikit_learns(fpr: float) -> None:
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    for seed in PROBLEMS:
        p = Problem.draw(seed)
        if not p.relevant.any():
            continue
        rates, hits, _ = reference.roc_curve(
            p.relevant[p.kept], p.scores[p.kept], drop_intermediate=False
        )
        share = metrics.accepted(p.ranking, fixed(p, fpr))
        pooled = float((share * p.ranking.matches).nansum() / p.ranking.matches.sum())
        assert pooled == pytest.approx(hits[rates <= fpr].max(), rel=0, abs=1e-9)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=60),
    st.integers(0, 60),
    st.sampled_from([0.0, 1e-3, 0.1, 0.29, 0.7, 1.0]),
)
@settings(max_examples=300, deadline=None)
def test_a_threshold_lets_as_many_impostors_pass_as_it_may(
    scores: list[int], position: int, fpr: float
) -> None:
    if position and position <= len(scores):  # a rate that is met exactly
        fpr = position / len(scores)
    values = torch.tensor(scores).float()[None]
    none = torch.zeros_like(values, dtype=torch.bool)
    threshold = Impostors(fpr, len(scores)).see(chunk_of(values, none, none)).threshold()
    above = sum(score > threshold for score in scores)
    at_least = sum(score >= threshold for score in scores)
    assert above / len(scores) <= fpr
    assert at_least / len(scores) > fpr or threshold == -math.inf


@pytest.mark.parametrize("pairs", [10, 49, 98, 100])
def test_a_rate_that_floats_cannot_hold_is_met_exactly(pairs: int) -> None:
    """In floats 1/49 · 49 is less than 1."""
    scores = torch.arange(float(pairs))[None]
    none = torch.zeros_like(scores, dtype=torch.bool)
    for passing in range(pairs + 1):
        impostors = Impostors(passing / pairs, pairs).see(chunk_of(scores, none, none))
        assert int((scores > impostors.threshold()).sum()) == passing


def test_attacked_pairs_meet_the_threshold_of_clean_ones() -> None:
    p = Problem.draw(0)
    threshold = fixed(p, 0.3)
    harmless = metrics.accepted(p.ranking, threshold)
    weaker = rank_chunk(Chunk.of(torch.from_numpy(p.scores).float() - 10, p.judgement))
    assert float(harmless.nansum()) > 0
    assert float(metrics.accepted(weaker, threshold).nansum()) == 0  # although no rank has moved
    assert torch.equal(weaker.positions, p.ranking.positions)


def test_without_impostors_there_is_no_threshold() -> None:
    p = Problem.draw(0)
    none = torch.zeros(6, 40, dtype=torch.bool)
    chunk = chunk_of(torch.from_numpy(p.scores), ~none, none)
    threshold = Impostors(0.1, 100).see(chunk).threshold()
    assert math.isnan(threshold)
    assert bool(metrics.accepted(p.ranking, threshold).isnan().all())
    with pytest.raises(ArgumentError, match="within 0 and 1"):
        Impostors(1.5, 100)


def test_attack_success_is_counted_among_the_right_queries() -> None:
    clean = torch.tensor([1.0, 1.0, 2.0, math.nan, 1.0])
    attacked = torch.tensor([1.0, 7.0, 9.0, math.nan, 2.0])
    success = metrics.attack_success(clean, attacked)
    assert success.nan_to_num(-1).tolist() == [0, 1, -1, -1, 1]
    assert float(success.nanmean()) == pytest.approx(2 / 3)
    with pytest.raises(ArgumentError, match="5 clean and 4 attacked"):
        metrics.attack_success(clean, attacked[:4])


def test_a_ranking_is_the_sum_of_its_parts() -> None:
    p = Problem.draw(1)
    parts = [
        rank_chunk(Chunk(*(values[part] for values in p.chunk)))
        for part in (slice(0, 2), slice(2, 6))
    ]
    joined = join(parts)
    for metric, _ in DEFINITIONS.values():
        torch.testing.assert_close(metric(joined), metric(p.ranking), equal_nan=True)
    assert torch.equal(joined.items, p.ranking.items)
    assert torch.equal(joined.scores, p.ranking.scores)


def test_no_queries_have_no_values() -> None:
    p = Problem.draw(1)
    empty = replace(p, scores=p.scores[:0], query=p.query[:0])
    for metric, _ in DEFINITIONS.values():
        assert len(metric(empty.ranking)) == 0
    assert single_shot_recalls(empty, metrics.RECALLS).shape == (0, 3)
