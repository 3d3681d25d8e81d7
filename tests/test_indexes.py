"""Indexes that answer with their closest items: what is made of an answer, and who answers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import normal
from uturn.data.catalog import load_data
from uturn.data.split import Listing, Split
from uturn.errors import ArgumentError, BackendError, SpecError
from uturn.explorer.studio import Studio
from uturn.report import html
from uturn.report.card import Card
from uturn.report.folder import Run
from uturn.report.text import answered, table
from uturn.retrieval import faiss, index, metrics, milvus
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.fidelity import recall_of_exact
from uturn.retrieval.index import ExactIndex, ExactSpec, Top, TopIndex, build_index, read_index, top
from uturn.retrieval.judge import (
    CrossCamera,
    Exclusion,
    Judge,
    Judgement,
    Labels,
    Listed,
    SameIdentity,
    _ids,
)
from uturn.retrieval.milvus import MilvusIndex, MilvusSpec, filter_of
from uturn.retrieval.ranking import Chunk, rank, rank_answer, rank_chunk
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep import Plan, run
from uturn.sweep.compare import compare
from uturn.types import Similarity
from uturn.victims.victim import Victim

RELEVANT, IGNORED, OTHER = 0, 1, 2
FAR = 10**6


def needs(name: str) -> None:
    """Skip where the package of a backend is not installed."""
    if name.startswith("faiss"):
        pytest.importorskip("faiss", reason="faiss is not installed; pip install 'uturn[faiss]'")
    if name.startswith("milvus"):
        why = "Milvus Lite is not installed; pip install 'uturn[milvus]'"
        if not (find_spec("pymilvus") and find_spec("milvus_lite")):
            pytest.skip(why)


def cut(scores: Tensor, ignored: Tensor, k: int) -> Top:
    """The answer of an index that knows all scores."""
    found = top(scores, ignored, k)
    out = found.scores == -torch.inf
    room = (0, k - out.shape[1])
    return Top(
        torch.nn.functional.pad(found.items.masked_fill(out, -1), room, value=-1),
        torch.nn.functional.pad(found.scores, room, value=-torch.inf),
    )


# -- what an answer says of the ranking -------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Scores with ties, what each item is, and how deep the answer is."""
    queries, items = draw(st.integers(1, 4)), draw(st.integers(1, 25))
    few = st.lists(st.integers(-3, 3), min_size=items, max_size=items)
    scores = draw(st.lists(few | st.permutations(range(items)), min_size=queries, max_size=queries))
    kinds = st.lists(st.sampled_from((RELEVANT, IGNORED, OTHER)), min_size=items, max_size=items)
    drawn = draw(st.lists(kinds, min_size=queries, max_size=queries))
    return torch.tensor(scores).float(), torch.tensor(drawn), draw(st.integers(1, 30))


def clear_cuts(scores: Tensor, ignored: Tensor, k: int) -> list[bool]:
    """Whether the last item of an answer and the first behind it differ in score."""
    order = scores.masked_fill(ignored, -torch.inf).sort(1, descending=True).values
    if k >= order.shape[1]:
        return [True] * len(order)
    return ((order[:, k - 1] != order[:, k]) | (order[:, k] == -torch.inf)).tolist()


@given(problem=problems())
@settings(max_examples=300, deadline=None)
def test_an_answer_is_the_whole_ranking_cut(problem: tuple[Tensor, Tensor, int]) -> None:
    scores, kinds, depth = problem
    judgement = Judgement.of(kinds == RELEVANT, kinds == IGNORED)
    full = rank_chunk(Chunk.of(scores.clone(), judgement))
    found = rank_answer(cut(scores, kinds == IGNORED, depth), judgement)
    assert found.depth == depth
    assert torch.equal(found.matches, full.matches)
    assert torch.equal(found.items, full.items)
    clear = clear_cuts(scores, kinds == IGNORED, depth)
    for q, known in enumerate(clear):
        whole = [p for p in full.positions[q].tolist() if p]
        seen = [p for p in found.positions[q].tolist() if p]
        assert len(seen) == len(set(seen)) <= depth
        if not known:  # equal scores on both sides of the cut: the index chose among them
            continue
        assert seen == [p for p in whole if p <= depth]
        own = full.scores[q][: len(seen)].tolist()
        assert found.scores[q].tolist() == own + [-math.inf] * (found.scores.shape[1] - len(own))
        if seen:
            assert bool(found.tied[q]) == bool(full.tied[q])
        first = float(metrics.first_match(found)[q])
        if not whole:
            assert math.isnan(first)
        else:
            assert first == (whole[0] if whole[0] <= depth else math.inf)
        for k in {1, min(5, depth), depth}:
            for metric in (metrics.recall_at, metrics.precision_at, metrics.ap_within):
                same(metric(found, k)[q], metric(full, k)[q])
        for metric in (metrics.r_precision, metrics.ap_at_r):
            if len(whole) <= depth:
                same(metric(found)[q], metric(full)[q])
            else:
                assert metric(found)[q].isnan()
    for values in (
        metrics.ap_plain(found),
        metrics.ap_trapezoid(found),
        metrics.inp(found),
        metrics.normalised_rank(found),
        metrics.accepted(found, 0.0),
        metrics.recall_at(found, depth + 1),
        metrics.ap_within(found, depth + 1),
    ):
        assert bool(values.isnan().all())


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12, equal_nan=True)


@given(problem=problems())
@settings(max_examples=150, deadline=None)
def test_average_precision_within_k_equals_brute_force(
    problem: tuple[Tensor, Tensor, int],
) -> None:
    scores, kinds, k = problem
    full = rank_chunk(Chunk.of(scores.clone(), Judgement.of(kinds == RELEVANT, kinds == IGNORED)))
    found = metrics.ap_within(full, k)
    for q, row in enumerate(full.positions.tolist()):
        places = {p for p in row if p}
        if not places:
            assert found[q].isnan()
            continue
        hits = [place in places for place in range(1, k + 1)]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        assert float(found[q]) == pytest.approx(sum(precisions) / min(len(places), k))


def test_a_mean_over_the_known_alone_is_not_given() -> None:
    values, matches = np.array([0.5, np.nan, np.nan]), np.array([2.0, 3.0, 0.0])
    assert np.isnan(metrics.known(values, matches)).all()
    np.testing.assert_array_equal(metrics.known(values, np.array([2.0, 0.0, 0.0])), values)


# -- who is ignored ----------------------------------------------------------------------------


def people(count: int, seed: int, *, junk: float = 0.1) -> Labels:
    rng = np.random.default_rng(seed)
    identities = rng.integers(0, 6, count)
    identities[rng.random(count) < junk] = -1
    columns = (identities, rng.integers(1, 4, count), np.arange(count) + seed * FAR)
    return Labels(*(torch.from_numpy(column.astype(np.int64)) for column in columns))


def listed(queries: int, gallery: int) -> tuple[Judge, Labels]:
    rng, names = np.random.default_rng(5), [f"query {n}" for n in range(queries)]
    listings = {name: Listing(rng.choice(gallery, 6), rng.choice(gallery, 9)) for name in names}
    ids = torch.tensor(_ids(names))
    return Listed(listings), Labels(torch.zeros_like(ids), torch.zeros_like(ids), ids)


def fits(exclusion: Exclusion, gallery: Labels) -> Tensor:
    """What an exclusion says, item by item."""
    out = (gallery.identities == -1) & exclusion.junk
    if exclusion.seen:
        identity, camera = exclusion.seen
        out |= (gallery.identities == identity) & (gallery.cameras == camera)
    if exclusion.id is not None:
        out |= gallery.ids == exclusion.id
    out[list(exclusion.items)] = True
    return out


def protocols() -> list[tuple[Judge, Labels, Labels]]:
    gallery = people(80, 1)
    twins = replace(people(12, 2), ids=gallery.ids[:12])
    judge, asked = listed(12, 80)
    return [
        (CrossCamera(), people(12, 2), gallery),
        (SameIdentity(), twins, gallery),
        (judge, asked, gallery),
    ]


@pytest.mark.parametrize("which", range(3))
def test_an_exclusion_is_what_the_judgement_ignores(which: int) -> None:
    judge, asked, gallery = protocols()[which]
    _, ignored = judge(asked, gallery).masks()
    found = torch.stack([fits(exclusion, gallery) for exclusion in judge.exclusions(asked)])
    assert torch.equal(found, ignored)
    assert bool(ignored.any())


# -- the backends answer as the exact index ----------------------------------------------------

BACKENDS = ("faiss:Flat", "milvus")


def made(
    backend: str, folder: Path, options: str, features: Tensor, gallery: Labels, judge: Judge
) -> TopIndex:
    needs(backend)
    spec = f"milvus:{folder / 'gallery.db'},{options}" if backend == "milvus" else backend
    spec = spec if backend == "milvus" else f"{backend},{options}"
    found = read_index(spec, "cosine").build(features, gallery, judge)
    assert isinstance(found, TopIndex)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("which", range(3))
def test_a_flat_index_answers_as_the_exact_one(
    backend: str, similarity: Similarity, which: int, tmp_path: Path
) -> None:
    judge, asked, gallery = protocols()[which]
    features, queries = 3 * normal(80, 7, seed=3), 2 * normal(12, 7, seed=4)
    exact = ExactIndex(features, similarity)
    options = f"similarity={similarity},depth=20"
    built = made(backend, tmp_path, options, features, gallery, judge)
    assert (built.depth, built.similarity, len(built)) == (20, similarity, 80)
    assert f"similarity={similarity}" in str(built)
    _, ignored = judge(asked, gallery).masks()
    for k in (1, 20, 90):  # beyond the gallery: what there is, padded
        expected, found = cut(exact.scores(queries), ignored, k), built.search(queries, asked, k)
        assert torch.equal(found.items, expected.items)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)
    whole = rank(exact, queries, asked, gallery, judge)
    seen = rank(built, queries, asked, gallery, judge)
    for row, all_of_them in zip(seen.positions.tolist(), whole.positions.tolist(), strict=True):
        assert [p for p in row if p] == [p for p in all_of_them if 0 < p <= 20]
    system = RetrievalSystem(built, gallery, judge)
    reference = RetrievalSystem(exact, gallery, judge)
    for ours, theirs in zip(
        system.ask(queries, asked, 5), reference.ask(queries, asked, 5), strict=True
    ):
        assert [(hit.item, hit.relevant) for hit in ours] == [
            (hit.item, hit.relevant) for hit in theirs
        ]
    assert recall_of_exact(system, features, queries, asked) == 1
    assert math.isnan(system.threshold(queries, asked, 0.01))


@pytest.mark.parametrize(
    "factory",
    ["IVF8,Flat,nprobe=8", "HNSW16,efSearch=64", "PCA5,Flat", "IVF4,PQ7x4,nprobe=4", "PQ7x4,RFlat"],
)
def test_approximate_indexes_answer_and_say_how_well(factory: str) -> None:
    needs("faiss")
    gallery, asked, judge = people(400, 1), people(30, 2), CrossCamera()
    features, queries = normal(400, 7, seed=3), normal(30, 7, seed=4)
    built = read_index(f"faiss:{factory}", "cosine").build(features, gallery, judge)
    again = read_index(f"faiss:{factory}", "cosine").build(features, gallery, judge)
    assert isinstance(built, TopIndex)
    assert isinstance(again, TopIndex)
    found = built.search(queries, asked, 10)
    assert torch.equal(found.items, again.search(queries, asked, 10).items)  # the same each time
    _, ignored = judge(asked, gallery).masks()
    assert not bool((ignored.gather(1, found.items.clamp(min=0)) & (found.items >= 0)).any())
    assert bool((found.scores[:, :-1] >= found.scores[:, 1:]).all())
    share = recall_of_exact(RetrievalSystem(built, gallery, judge), features, queries, asked)
    due = top(ExactIndex(features).scores(queries), ignored, 10).items
    hits = [len({*a} & {*b}) for a, b in zip(found.items.tolist(), due.tolist(), strict=True)]
    assert share == pytest.approx(sum(hits) / 300)
    assert share == 1 if factory.startswith(("IVF8", "HNSW")) else share > 0.2


def test_a_seed_draws_what_is_learned_from() -> None:
    needs("faiss")
    gallery, judge = people(600, 1), CrossCamera()
    features, queries, asked = normal(600, 7), normal(9, 7, seed=1), people(9, 2)

    def answers(options: str) -> Tensor:
        spec = read_index(f"faiss:IVF8,Flat,{options}", "cosine")
        built = spec.build(features, gallery, judge)
        assert isinstance(built, TopIndex)
        return built.search(queries, asked, 10).items

    assert torch.equal(answers("train=320,seed=1"), answers("train=320,seed=1"))
    assert not torch.equal(answers("train=320,seed=1"), answers("train=320,seed=2"))


def test_ties_with_the_last_exact_item_are_no_mistake() -> None:
    """A gallery of equal pairs: either of a pair will do."""
    half = normal(40, 6, seed=1)
    features, gallery = torch.cat([half, half]), people(80, 1, junk=0)
    judge, queries, asked = CrossCamera(), normal(9, 6, seed=2), people(9, 2)

    @final
    @dataclass(frozen=True)
    class Other:
        """Answers exactly, but prefers the second half where items tie."""

        similarity: Similarity = "cosine"
        depth: int = 10

        def __len__(self) -> int:
            return 80

        def search(self, queries: Tensor, asked: Labels | None, k: int) -> Top:
            assert asked is not None
            _, ignored = judge(asked, gallery).masks()
            scores = ExactIndex(features).scores(queries).flip(1)
            found = cut(scores, ignored.flip(1), k)
            return Top((79 - found.items).where(found.items >= 0, -1), found.scores)

    assert isinstance(Other(), TopIndex)
    system = RetrievalSystem(Other(), gallery, judge)
    assert recall_of_exact(system, features, queries, asked) == 1


# -- Milvus -------------------------------------------------------------------------------------

FORK = """
import os, sys, time, torch
from uturn.retrieval.index import read_index
from uturn.retrieval.judge import CrossCamera, Labels

one = torch.arange(9)
index = read_index("milvus:" + sys.argv[1], "cosine").build(
    torch.randn(9, 7), Labels(one, one % 3, one), CrossCamera()
)
for _ in range(5):
    if not os.fork():
        time.sleep(0.2)
        print(len(os.listdir("/proc/self/task")), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_a_fork_beside_milvus_has_one_thread(tmp_path: Path) -> None:
    """gRPC would start its own there, and abort what closes its files before it execs: Ray."""
    needs("milvus")
    words = [sys.executable, "-W", "ignore", "-c", FORK, str(tmp_path / "gallery.db")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"] * 5


INGEST = """
import sys, torch
from uturn.retrieval import milvus
from uturn.retrieval.index import read_index
from uturn.retrieval.judge import CrossCamera, Labels

milvus._BYTES = 4 * 7 * 50  # 50 vectors at a time
rows = milvus.MilvusSpec._rows
def told(self, part, *rest):
    print(part.start, flush=True)
    return rows(self, part, *rest)
milvus.MilvusSpec._rows = told
features = torch.randn(1000, 7, generator=torch.Generator().manual_seed(3))
one = torch.arange(1000) % 6
read_index("milvus:" + sys.argv[1], "cosine").build(
    features, Labels(one, one % 3, torch.arange(1000)), CrossCamera()
)
print("done", flush=True)
"""


def ingest(file: Path, *, until: int) -> list[str]:
    """Run the ingest in a process of its own; kill it at the ``until``-th batch."""
    child = subprocess.Popen(
        [sys.executable, "-c", INGEST, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    said = list[str]()
    for line in child.stdout:
        said.append(line.strip())
        if len(said) == until:
            os.killpg(child.pid, signal.SIGKILL)
            break
    child.wait(60)
    child.stdout.close()
    return said


def test_a_killed_ingest_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("milvus")
    killed = ingest(tmp_path / "gallery.db", until=8)
    assert "done" not in killed
    sent, rows = list[int](), MilvusSpec._rows

    def counted(self: MilvusSpec, part: slice, features: Tensor, gallery: Labels) -> Any:
        sent.append(part.start)
        return rows(self, part, features, gallery)

    monkeypatch.setattr(milvus, "_BYTES", 4 * 7 * 50)
    monkeypatch.setattr(MilvusSpec, "_rows", counted)
    features, one = normal(1000, 7, seed=3), torch.arange(1000) % 6
    gallery, judge = Labels(one, one % 3, torch.arange(1000)), CrossCamera()
    spec = read_index(f"milvus:{tmp_path / 'gallery.db'}", "cosine")
    built = spec.build(features, gallery, judge)
    assert isinstance(built, MilvusIndex)
    assert sent[0] >= int(killed[-2])  # what is there was not sent again
    assert sent == list(range(sent[0], 1000, 50))
    sent.clear()
    spec.build(features, gallery, judge)
    assert not sent
    queries, asked = normal(9, 7, seed=4), people(9, 2)
    _, ignored = judge(asked, gallery).masks()
    expected = cut(ExactIndex(features).scores(queries), ignored, 100)
    assert torch.equal(built.search(queries, asked, 100).items, expected.items)
    everything = built.client.query(
        built.collection, filter="place >= 0", output_fields=["place"], limit=2000
    )
    assert sorted(row["place"] for row in everything) == list(range(1000))


def test_another_gallery_is_never_asked(tmp_path: Path) -> None:
    needs("milvus")
    gallery, judge, features = people(30, 1), CrossCamera(), normal(30, 7)
    spec = read_index(f"milvus:{tmp_path / 'a.db'},collection=mine", "cosine")
    names = []
    for shift in (0, 1, 0):  # a collection for each
        built = spec.build(features + shift, gallery, judge)
        assert isinstance(built, MilvusIndex)
        names.append(built.collection)
        best = built.search(features + shift, people(30, 9, junk=0), 1).items[:, 0]
        assert bool((gallery.identities[best] != -1).all())
    assert names[0] == names[2] != names[1]
    others = spec.build(features, people(30, 4), judge)
    assert isinstance(others, MilvusIndex)
    assert others.collection not in names
    assert all(name.startswith("mine_") for name in names)


def test_filters_are_the_rules_in_milvus_words() -> None:
    assert filter_of(Exclusion(junk=False)) == ""
    assert filter_of(Exclusion(id=-5)) == "identity != -1 and name != -5"
    assert filter_of(Exclusion(junk=False, items=(3, 4))) == "place not in [3, 4]"


# -- sweeps, evaluation and reports --------------------------------------------------------------


def few_glyphs(**changes: Any) -> Split:
    split, part = load_data("glyphs"), np.arange(0, 400, 2)
    split = replace(split, query=split.query.subset(part[:60]), gallery=split.gallery.subset(part))
    return replace(split, **changes)


class CutSpec:
    """An index that knows everything and says its first ``depth``; needs no package."""

    depth = 10
    alone = False

    def rehearse(self, features: Tensor) -> None:
        pass

    def build(
        self, features: Tensor, gallery: Labels, judge: Judge, *, progress: bool = False
    ) -> TopIndex:
        @final
        @dataclass(frozen=True)
        class Known:
            depth: int = 10
            similarity: Similarity = "cosine"

            def __len__(self) -> int:
                return len(features)

            def __str__(self) -> str:
                return "cut:depth=10"

            def search(self, queries: Tensor, asked: Labels | None, k: int) -> Top:
                assert asked is not None
                _, ignored = judge(asked, gallery).masks()
                return cut(ExactIndex(features).scores(queries), ignored, k)

        return Known()


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """``faiss:…`` is an exact index that answers with its first ten, whatever is installed."""
    monkeypatch.setattr(faiss, "reader", lambda published: lambda factory: CutSpec())


def plan(**changes: Any) -> Plan:
    given = {
        "victim": "glyph_net",
        "data": "glyphs",
        "attacks": ("odfa",),
        "eps": (4, 16),
        "queries": 12,
        "batch_size": 12,
        "seed": 3,
    }
    return Plan(**given | changes)


@pytest.fixture(scope="module")
def exact_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exact") / "run"
    run(plan(survive=("jpeg75",)), out, progress=False)
    return out


@pytest.mark.usefixtures("shallow")
def test_a_sweep_by_an_answer_has_what_the_answer_gives(exact_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = run(plan(survive=("jpeg75",), index="faiss:any"), out, progress=False)
    exact = json.loads((exact_run / "results.json").read_bytes())["rows"]
    deep = False
    for ours, theirs in zip(found, exact, strict=True):
        for name in ("recall@1", "recall@5", "recall@10"):
            assert ours[name] == theirs[name]
            assert [*ours["ci95"][name]] == theirs["ci95"][name]
        assert ours["metrics"]["success"] == theirs["metrics"]["success"]
        assert ours["map"] is None
        assert "map@10" not in theirs
        assert 0 <= ours["map@10"] <= 1
        assert ours["ci95"]["map@10"][0] <= ours["map@10"]
        assert ours["convention"] == "map@10"
        assert ours["survive"]["jpeg75"]["recall@1"] == theirs["survive"]["jpeg75"]["recall@1"]
        for name in ("minp", "normalised_rank", "tpr@fpr=0.001"):
            assert ours["metrics"][name] is None
            assert theirs["metrics"][name] is not None
        mean = ours["metrics"]["mean_first_match"]
        assert mean in (None, theirs["metrics"]["mean_first_match"])
        deep |= mean is None
    assert deep  # some first match lies below the tenth place, or this test says little
    header = json.loads((out / "run.json").read_bytes())
    assert header["index"] == {"depth": 10, "recall@10": 1.0}
    assert header["threshold"] is None
    text = table(found)
    assert "mAP@10" in text
    assert "0.0000" not in text.split("clean")[1].split("\n")[0]
    assert "first 10 items (recall@10 1.0000 of the exact answer" in answered(header)

    page = html.write(out).read_text(encoding="utf-8")
    assert "mAP@10" in page
    assert "answers with its first 10 items" in page
    assert "deeper" in page
    card = Card.of(Run.read(out))
    assert "mAP@10 (95 %)" in card.head
    assert "first 10 items" in card.markdown()

    told = compare([exact_run, out])
    assert told.metrics == ("recall@1", "recall@5", "recall@10")
    assert "map@10" in told.notes[0]
    again = tmp_path / "again"
    run(plan(survive=("jpeg75",), index="faiss:other"), again, progress=False)
    assert compare([out, again]).metrics == ("recall@1", "recall@5", "recall@10", "map@10")


@pytest.mark.usefixtures("shallow")
def test_the_worst_and_monotone_need_no_whole_ranking(tmp_path: Path) -> None:
    attacks = ("worst",)
    worst = run(
        plan(attacks=attacks, eps=(8,), queries=3, index="faiss:any"),
        tmp_path / "a",
        progress=False,
    )
    *members, least = worst[1:]
    for name in ("recall@1", "recall@10", "map@10"):
        assert least[name] <= min(row[name] for row in members)
    fixed = plan(index="faiss:any", monotone=True)
    assert run(fixed, tmp_path / "b", progress=False)[-1]["recall@1"] <= 0.2


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("changes", "who"),
    [
        ({"attacks": ("qa_plus",)}, "the goal of qa_plus"),
        ({"attacks": ("tma",)}, "the goal of tma"),
        ({"rerank": "aqe"}, "the stage aqe"),
    ],
)
def test_what_needs_the_whole_ranking_names_the_way_out(
    changes: dict[str, Any], who: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=f"{who} needs the whole ranking.*--index exact"):
        run(plan(index="faiss:any", **changes), tmp_path / "run", progress=False)


@pytest.mark.usefixtures("shallow")
def test_a_whole_ranking_is_refused_where_it_is_not_there(glyph_victim: Victim) -> None:
    with pytest.raises(ArgumentError, match="map@10 and not trapezoid; use --index exact"):
        plan(index="faiss:any", convention="trapezoid")
    with pytest.raises(SpecError, match="needs the whole ranking"):
        build_index("faiss:any", normal(3, 2), "cosine")
    with pytest.raises(SpecError, match="the stage aqe needs the whole ranking"):
        evaluate(glyph_victim, few_glyphs(), "faiss:any", rerank="aqe", progress=False)
    with pytest.raises(SpecError, match="the explorer needs the whole ranking"):
        Studio.open("glyph_net", "glyphs", few_glyphs(), index="faiss:any")
    split = few_glyphs()
    gallery = Labels.of(split.gallery, torch.device("cpu"))
    built = CutSpec().build(normal(200, 4), gallery, CrossCamera())
    with pytest.raises(ArgumentError, match="cut:depth=10 answers with its first 10 only"):
        RetrievalSystem(built, gallery, CrossCamera()).whole  # noqa: B018


@pytest.mark.usefixtures("shallow")
def test_evaluate_by_an_answer(glyph_victim: Victim) -> None:
    split = few_glyphs()
    ours = evaluate(glyph_victim, split, "faiss:any", progress=False)
    theirs = evaluate(glyph_victim, split, progress=False)
    assert ours["index recall@10"] == 1
    assert "index recall@10" not in theirs
    for name in ("recall@1", "recall@5", "recall@10", "gallery", "no-match queries"):
        assert ours[name] == theirs[name]
    for name in ("map (plain)", "map (trapezoid)", "minp", "normalised_rank", "tpr@fpr=0.001"):
        assert ours[name] is None
        assert ours["ci95"][name] is None
    assert not [name for name in ours if "single-shot" in name]
    assert 0 < ours["map@10"] <= 1
    json.loads(json.dumps(ours, allow_nan=False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sweep_differs_only_in_index(
    backend: str, exact_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(backend)
    monkeypatch.chdir(tmp_path)
    found = run(plan(survive=("jpeg75",), index=backend), tmp_path / "run", progress=False)
    exact = json.loads((exact_run / "results.json").read_bytes())["rows"]
    for ours, theirs in zip(found, exact, strict=True):
        assert [ours[f"recall@{k}"] for k in (1, 5, 10)] == [
            theirs[f"recall@{k}"] for k in (1, 5, 10)
        ]
        assert ours["map"] is None
        assert ours["map@100"] >= theirs["map"] - 0.05
    header = json.loads((tmp_path / "run" / "run.json").read_bytes())
    assert header["index"]["recall@10"] == 1
    mine, own = (
        json.loads((folder / "ranklists.json").read_bytes())["queries"]
        for folder in (tmp_path / "run", exact_run)
    )
    for one, other in zip(mine, own, strict=True):
        assert [item["name"] for item in one["items"]] == [item["name"] for item in other["items"]]


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("annoy", SpecError, "known: exact, faiss, milvus"),
        ("faiss:Flat,nprobes=3", SpecError, "valid options: factory, similarity, depth, nprobe"),
        ("faiss:Flat,depth=9", ArgumentError, "Recall@10 is in every result row"),
        ("faiss:IVF8,Flat,nprobe=0", ArgumentError, "nprobe of a faiss index is 0"),
        ("faiss:Flat,similarity=dot", SpecError, "cosine, euclidean"),
        ("milvus:gallery.sqlite", SpecError, "whose name ends with .db"),
        ("milvus:a.db,depth=20000", ArgumentError, "16384 items at the most"),
        ("milvus:a.db,ef=0", ArgumentError, "ef of a milvus index is 0"),
        ("milvus:a.db,consistency=None", SpecError, "Strong, Bounded"),
        ("milvus:http://me:secret@host:19530", SpecError, "MILVUS_TOKEN"),
    ],
)
def test_a_wrong_spec_is_one_sentence(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_index(spec, "cosine")


@pytest.mark.parametrize(
    ("factory", "error", "says"),
    [
        ("Bogus7", SpecError, "FAISS cannot make 'Bogus7' of 6 dimensions"),
        ("Flat,nprobe=4", SpecError, "nprobe says nothing to 'Flat'; leave it out"),
        ("HNSW16,nprobe=4", SpecError, "nprobe says nothing"),
    ],
)
def test_what_faiss_refuses_is_refused_before_long_work(
    factory: str, error: type[Exception], says: str
) -> None:
    needs("faiss")
    with pytest.raises(error, match=says):
        read_index(f"faiss:{factory}", "cosine").rehearse(normal(1, 6))


def test_too_few_to_learn_from() -> None:
    needs("faiss")
    spec = read_index("faiss:IVF64,Flat", "cosine")
    spec.rehearse(normal(1, 6))
    with pytest.raises(ArgumentError, match=r"cannot learn from .* vectors .*fewer lists"):
        spec.build(normal(40, 6), people(40, 1), CrossCamera())


@pytest.mark.parametrize("backend", BACKENDS)
def test_features_that_are_not_finite_are_refused(backend: str, tmp_path: Path) -> None:
    features = normal(80, 7)
    features[3, 2] = torch.nan
    with pytest.raises(ArgumentError, match="1 of 80 gallery features are not finite"):
        made(backend, tmp_path, "depth=10", features, people(80, 1), CrossCamera())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_package_says_what_to_install(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("faiss", "pymilvus", "milvus_lite"):
        monkeypatch.setitem(sys.modules, package, None)
    extra = backend.partition(":")[0]
    with pytest.raises(SpecError, match=rf"pip install 'uturn\[{extra}\]'"):
        read_index(backend, "cosine").rehearse(normal(1, 6))


def test_nobody_answers() -> None:
    needs("milvus")
    with pytest.raises(BackendError, match=r"Milvus at http://127\.0\.0\.1:9 fails"):
        read_index("milvus:http://127.0.0.1:9", "cosine").rehearse(normal(1, 6))


LOCK = """
import sys, time
from pymilvus import MilvusClient
MilvusClient(sys.argv[1])
print("open", flush=True)
time.sleep(60)
"""


def test_a_file_that_another_program_has_open_is_named(tmp_path: Path) -> None:
    needs("milvus")
    file = tmp_path / "gallery.db"
    other = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(file)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BackendError, match=r"gallery\.db fails .*another program"):
            read_index(f"milvus:{file}", "cosine").rehearse(normal(1, 6))
    finally:
        other.kill()
        other.wait()
        other.stdout.close()


def test_an_exact_spec_is_what_it_was() -> None:
    features = normal(5, 3)
    for text, similarity in (("exact", "euclidean"), ("exact:cosine", "cosine")):
        spec = read_index(text, "euclidean")
        assert isinstance(spec, ExactSpec)
        assert spec.depth is None
        built = spec.build(features, people(5, 1), CrossCamera())
        assert str(built) == f"exact:{similarity}"
    assert index.DEPTH == 100
