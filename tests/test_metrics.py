"""Rankings and metrics against brute force and scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from uturn.data.catalog import load_data
from uturn.data.folder import replace_queries
from uturn.data.pictures import encode
from uturn.data.split import Split
from uturn.errors import ArgumentError, DataError, SpecError
from uturn.retrieval import counting, metrics, ranking
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.extract import extract_all
from uturn.retrieval.index import ExactIndex, build_index, top
from uturn.retrieval.judge import CrossCamera, Judgement, Labels
from uturn.retrieval.ranking import Chunk, Ranking, rank, rank_chunk
from uturn.retrieval.system import RetrievalSystem
from uturn.victims.victim import Victim

RELEVANT, IGNORED, OTHER = 0, 1, 2


def ranked(scores: torch.Tensor, relevant: torch.Tensor, ignored: torch.Tensor) -> Ranking:
    return rank_chunk(Chunk.of(scores.clone(), Judgement.of(relevant, ignored)))


def brute_force(scores: list[float], kinds: list[int]) -> list[int]:
    """1-based positions of the relevant items; at a tie the irrelevant item goes first."""
    kept = [
        (-s, kind == RELEVANT) for s, kind in zip(scores, kinds, strict=True) if kind != IGNORED
    ]
    return [i for i, (_, relevant) in enumerate(sorted(kept), start=1) if relevant]


def trapezoid_as_published(positions: list[int]) -> float:
    """compute_AP of the original Market-1501 code, with its 0-based loop."""
    area, previous_recall = 0.0, 0.0
    for found, position in enumerate(positions, start=1):
        recall, precision = found / len(positions), found / position
        previous_precision = (found - 1) / (position - 1) if position > 1 else 1.0
        area += (recall - previous_recall) * (previous_precision + precision) / 2
        previous_recall = recall
    return area


problems = st.integers(1, 6).flatmap(
    lambda queries: st.integers(1, 25).flatmap(
        lambda items: st.tuples(
            # Few distinct values, negative ones among them: ties are the rule.
            st.lists(
                st.lists(st.integers(-3, 3), min_size=items, max_size=items),
                min_size=queries,
                max_size=queries,
            ),
            st.lists(
                st.lists(
                    st.sampled_from((RELEVANT, IGNORED, OTHER)), min_size=items, max_size=items
                ),
                min_size=queries,
                max_size=queries,
            ),
        )
    )
)


@pytest.fixture(params=["as it is", "in strips", "looked up"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way to count, as a large gallery or many matches would take it."""
    if request.param == "in strips":
        monkeypatch.setattr(counting, "_FEW", 30)
        monkeypatch.setattr(counting, "_CACHED", 30)
    elif request.param == "looked up":
        monkeypatch.setattr(counting, "_FEW", 0)
        monkeypatch.setattr(counting, "_CACHED", 60)


@pytest.mark.usefixtures("way")
@given(problem=problems)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_positions_and_metrics_equal_brute_force(problem) -> None:
    scores, kinds = problem
    kind = torch.tensor(kinds)
    found = ranked(torch.tensor(scores).float() / 3, kind == RELEVANT, kind == IGNORED)
    for q, (row, labels) in enumerate(zip(scores, kinds, strict=True)):
        expected = brute_force(row, labels)
        assert [p for p in found.positions[q].tolist() if p] == expected
        assert int(found.matches[q]) == len(expected)
        assert int(found.items[q]) == len(labels) - labels.count(IGNORED)
        own = [s / 3 for s, k in zip(row, labels, strict=True) if k == RELEVANT]
        padding = [-math.inf] * (found.scores.shape[1] - len(own))
        assert found.scores[q].tolist() == pytest.approx(sorted(own, reverse=True) + padding)
        values = [
            float(metrics.first_match(found)[q]),
            float(metrics.recall_at(found, 5)[q]),
            float(metrics.ap_plain(found)[q]),
            float(metrics.ap_trapezoid(found)[q]),
        ]
        if not expected:
            assert all(math.isnan(value) for value in values)
            assert not found.tied[q]
            continue
        assert values[0] == expected[0]
        assert values[1] == (expected[0] <= 5)
        precisions = [k / r for k, r in enumerate(expected, start=1)]
        assert values[2] == pytest.approx(sum(precisions) / len(precisions), abs=1e-12)
        assert values[3] == pytest.approx(trapezoid_as_published(expected), abs=1e-12)
        best = max(s for s, k in zip(row, labels, strict=True) if k == RELEVANT)
        rivals = [s for s, k in zip(row, labels, strict=True) if k == OTHER]
        assert bool(found.tied[q]) == (best in rivals)


def test_plain_ap_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.permutation(40) / 20 - 1  # distinct, negative and positive
        kind = rng.choice([RELEVANT, IGNORED, OTHER], 40, p=[0.2, 0.2, 0.6])
        kind[:2] = RELEVANT, OTHER
        found = ranked(
            torch.tensor(scores)[None].float(),
            torch.tensor(kind == RELEVANT)[None],
            torch.tensor(kind == IGNORED)[None],
        )
        kept = kind != IGNORED
        expected = average_precision_score(kind[kept] == RELEVANT, scores[kept])
        assert float(metrics.ap_plain(found)[0]) == pytest.approx(expected, abs=1e-12)


def test_a_collapsed_embedding_scores_zero_and_says_that_it_ties() -> None:
    same = torch.ones(1, 8)
    found = ranked(same, torch.arange(8)[None] == 3, torch.zeros(1, 8, dtype=torch.bool))
    assert float(metrics.recall_at(found, 1)) == 0
    assert bool(found.tied)


def test_chunks_do_not_change_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(60, 8, generator=rng), dim=1)
    labels = Labels(
        torch.randint(-1, 9, (60,), generator=rng),
        torch.randint(0, 3, (60,), generator=rng),
        torch.arange(60),
    )
    index = ExactIndex(embeddings)
    arguments = (index, embeddings[:20], labels[:20], labels, CrossCamera())
    whole = rank(*arguments)
    assert int((whole.matches == 0).sum()) > 0
    for chunk, rows in ((60 * 3, 1), (0, 7), (60 * 20, 0)):
        monkeypatch.setattr(ranking, "_CHUNK", chunk)
        monkeypatch.setattr(ranking, "_ROWS", rows)
        parts = rank(*arguments)
        for name, value in vars(whole).items():
            torch.testing.assert_close(getattr(parts, name), value)


def test_the_scores_of_a_benchmark_are_never_whole_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    class Watching:
        index = ExactIndex(torch.eye(100))

        def __len__(self) -> int:
            return len(self.index)

        def scores(self, queries: torch.Tensor) -> torch.Tensor:
            seen.append(len(queries))
            return self.index.scores(queries)

    labels = Labels(torch.arange(100), torch.zeros(100, dtype=torch.int64), torch.arange(100))
    arguments = (Watching(), torch.eye(100), labels, labels, CrossCamera())
    for chunk, rows, most, size in (
        (1000, 5, 10**6, 10),  # as many as may be held
        (1000, 40, 10**6, 40),  # a large gallery: as many as a product needs
        (100, 40, 3000, 30),  # a huge one: memory comes first
        (1, 1, 1, 1),
    ):
        monkeypatch.setattr(ranking, "_CHUNK", chunk)
        monkeypatch.setattr(ranking, "_ROWS", rows)
        monkeypatch.setattr(ranking, "_MOST", most)
        seen.clear()
        rank(*arguments)
        assert sum(seen) == 100
        assert max(seen) == size


def test_a_score_beyond_all_floats_still_has_a_place() -> None:
    """Squared distances can overflow: such items are last, and the ignored are not among them."""
    scores = torch.tensor([[-torch.inf, -torch.inf, 1.0, -torch.inf, -torch.inf]])
    relevant = torch.tensor([[True, False, False, False, True]])
    ignored = torch.tensor([[False, True, False, False, False]])
    found = ranked(scores, relevant, ignored)
    assert found.positions.tolist() == [[3, 4]]
    assert found.items.tolist() == [4]
    assert found.tied.tolist() == [True]


def test_an_index_leaves_the_features_as_they_are() -> None:
    features = torch.arange(6.0).view(3, 2)
    for similarity in ("cosine", "euclidean"):
        index = build_index("exact", features, similarity)
        once = index.scores(features)
        again = index.scores(features)
        once.zero_()
        torch.testing.assert_close(index.scores(features), again)
    assert torch.equal(features, torch.arange(6.0).view(3, 2))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_scores_order_as_the_distance_itself(similarity: str) -> None:
    rng = torch.Generator().manual_seed(0)
    gallery, queries = torch.randn(40, 6, generator=rng) * 3, torch.randn(7, 6, generator=rng)
    index = build_index(f"exact:{similarity}", gallery, "cosine")
    if similarity == "cosine":
        expected = torch.nn.functional.cosine_similarity(queries[:, None], gallery[None], dim=2)
    else:
        expected = -torch.cdist(queries.double(), gallery.double()).square().float()
    torch.testing.assert_close(index.scores(queries), expected, rtol=1e-4, atol=1e-4)
    assert str(index) == f"exact:{similarity}"


def test_the_index_compares_as_the_weights_were_published() -> None:
    features = torch.rand(3, 4)
    assert str(build_index("exact", features, "euclidean")) == "exact:euclidean"
    assert str(build_index("exact:cosine", features, "euclidean")) == "exact:cosine"
    with pytest.raises(SpecError, match="cosine, euclidean"):
        build_index("exact:manhattan", features, "cosine")


def test_top_leaves_out_what_is_ignored() -> None:
    scores = torch.tensor([[0.9, 0.8, -0.2, 0.7]])
    ignored = torch.tensor([[True, False, False, False]])
    items, values = top(scores, ignored, 2)
    assert items.tolist() == [[1, 3]]
    assert values.tolist() == [pytest.approx([0.8, 0.7])]


def few_glyphs() -> Split:
    split, part = load_data("glyphs"), np.arange(0, 400, 2)
    return replace(split, query=split.query.subset(part[:60]), gallery=split.gallery.subset(part))


def test_evaluate_reports_every_metric_of_one_ranking(glyph_victim: Victim) -> None:
    split = few_glyphs()
    values = evaluate(glyph_victim, split, progress=False)
    gallery, query = (
        extract_all(glyph_victim, pictures, "pictures", progress=False)
        for pictures in (split.gallery, split.query)
    )
    system = RetrievalSystem.build(glyph_victim, split, gallery)
    found = system.rank(query, Labels.of(split.query, glyph_victim.device))
    first = metrics.first_match(found).numpy()
    expected = {
        **{f"recall@{k}": metrics.recall_at(found, k) for k in metrics.RECALLS},
        **{f"map ({c})": metrics.average_precision(found, c) for c in metrics.CONVENTIONS},
        "r_precision": metrics.r_precision(found),
        "minp": metrics.inp(found),
        "normalised_rank": metrics.normalised_rank(found),
    }
    for name, per_query in expected.items():
        assert values[name] == pytest.approx(float(per_query.nanmean()), abs=1e-6)
    assert values["mean_first_match"] == pytest.approx(np.nanmean(first))
    assert values["median_first_match"] == pytest.approx(np.nanmedian(first))
    assert 0 < values["recall@1"] <= values["recall@5"] <= values["recall@10"] <= 1
    assert values["recall@1 (single-shot)"] <= values["recall@5 (single-shot)"] <= 1
    assert 0 < values["tpr@fpr=0.001"] < 1
    assert "success" not in values


def test_evaluate_holds_attacked_queries_to_the_threshold_of_clean_ones(
    glyph_victim: Victim, tmp_path: Path
) -> None:
    split = few_glyphs()
    for i, name in enumerate(split.query.names[:30]):
        encode(tmp_path / f"{name}.png", split.query.read(i))
    unchanged = replace(split, query=replace_queries(split.query, tmp_path))
    first_half = replace(split, query=split.query.subset(np.arange(30)))
    values = evaluate(glyph_victim, unchanged, clean=split.query, progress=False)
    assert values["success"] == 0
    same = evaluate(glyph_victim, first_half, progress=False)
    assert values["tpr@fpr=0.001"] == pytest.approx(same["tpr@fpr=0.001"])

    for i, name in enumerate(split.query.names[:30]):
        blend = split.query.read(i) * 0.6 + split.query.read(i + 30) * 0.4  # with other letters
        encode(tmp_path / f"{name}.png", blend.astype(np.uint8))
    blended = replace(split, query=replace_queries(split.query, tmp_path))
    harmed = evaluate(glyph_victim, blended, clean=split.query, progress=False)
    alone = evaluate(glyph_victim, blended, progress=False)
    assert 0 < harmed["success"] <= 1
    assert harmed["tpr@fpr=0.001"] < same["tpr@fpr=0.001"]
    assert harmed["map (plain)"] == alone["map (plain)"]
    assert harmed["tpr@fpr=0.001"] != alone["tpr@fpr=0.001"]  # its own pairs set another threshold
    with pytest.raises(ArgumentError, match="is not among the clean queries"):
        evaluate(glyph_victim, blended, clean=split.query.subset(np.arange(5)), progress=False)


def test_single_shot_needs_cameras(glyph_victim: Victim) -> None:
    split = replace(few_glyphs(), protocol="same-identity")
    values = evaluate(glyph_victim, split, progress=False)
    assert not [name for name in values if "single-shot" in name]


def test_evaluate_of_strangers_is_refused(glyph_victim: Victim) -> None:
    split = load_data("glyphs")
    alone = replace(split.query, identities=np.full(len(split.query), 10**6))
    split = replace(
        split, query=alone.subset(np.arange(5)), gallery=split.gallery.subset(np.arange(20))
    )
    with pytest.raises(DataError, match="none of the 5 queries of glyphs has a relevant picture"):
        evaluate(glyph_victim, split, progress=False)


def test_wrong_input_is_named() -> None:
    labels = Labels(torch.arange(2), torch.arange(2), torch.arange(2))
    with pytest.raises(ArgumentError, match="not finite"):
        ExactIndex(torch.tensor([[1.0], [torch.nan]]))
    with pytest.raises(ArgumentError, match="1 of 2 query features are not finite"):
        rank(
            ExactIndex(torch.eye(2)),
            torch.tensor([[1.0, 0.0], [torch.inf, 0.0]]),
            labels,
            labels,
            CrossCamera(),
        )
    with pytest.raises(ArgumentError, match="one label per picture"):
        rank(ExactIndex(torch.eye(2)), torch.eye(2), labels[:1], labels, CrossCamera())
    with pytest.raises(SpecError, match="map@r, plain, trapezoid"):
        metrics.average_precision(
            rank(ExactIndex(torch.eye(2)), torch.eye(2), labels, labels, CrossCamera()), "mean"
        )
