"""Market-1501 and OSNet behind every index: the same answers, or how many of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_indexes import needs
from uturn import load_data, load_victim
from uturn.data.split import Split
from uturn.retrieval import metrics
from uturn.retrieval.extract import extract_all
from uturn.retrieval.fidelity import recall_of_exact
from uturn.retrieval.index import ExactIndex, TopIndex, read_index, top
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep import Plan, run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def market(shared_data: Path) -> tuple[Split, Tensor, Tensor]:
    """The split, and OSNet's features of gallery and queries."""
    victim = load_victim(f"osnet_x0_25:weights={shared_data / 'osnet_x0_25_market1501.pth'}")
    split = load_data(f"market1501:{shared_data / 'market1501'}")
    found = [
        extract_all(victim, part, "pictures", progress=False)
        for part in (split.gallery, split.query)
    ]
    return split, found[0], found[1]


def asked(spec: str, market: tuple[Split, Tensor, Tensor]) -> tuple[RetrievalSystem, TopIndex]:
    split, features, _ = market
    gallery, judge = Labels.of(split.gallery, CPU), judge_for(split)
    built = read_index(spec, "euclidean").build(features, gallery, judge)
    assert isinstance(built, TopIndex)
    return RetrievalSystem(built, gallery, judge), built


@pytest.mark.parametrize("backend", ["faiss:Flat", "milvus"])
@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_flat_indexes_give_the_exact_top_ten(
    backend: str, similarity: str, market: tuple[Split, Tensor, Tensor], tmp_path: Path
) -> None:
    needs(backend)
    spec = f"milvus:{tmp_path / 'market.db'}" if backend == "milvus" else backend
    system, built = asked(f"{spec},similarity={similarity},depth=10", market)
    split, features, queries = market
    labels = Labels.of(split.query, CPU)
    assert len(queries) == 3368
    assert len(features) == 19732
    exact = ExactIndex(features, built.similarity)
    other = 0
    for begin in range(0, len(queries), 64):
        part = slice(begin, begin + 64)
        _, ignored = system.judge(labels[part], system.gallery).masks()
        expected = top(exact.scores(queries[part]), ignored, 10)
        found = built.search(queries[part], labels[part], 10)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-3)
        other += int((found.items != expected.items).sum())
    print(f"{backend} {similarity}: {other} of {queries.shape[0] * 10} places differ by ties")
    assert other <= 40  # equal to the sixth digit: near-duplicate pictures
    assert recall_of_exact(system, features, queries, labels) == 1


@pytest.mark.parametrize(
    ("factory", "least"),
    [
        ("IVF256,Flat,nprobe=16", 0.95),
        ("HNSW32,efSearch=128", 0.97),
    ],
)
def test_approximate_indexes_say_how_well(
    factory: str, least: float, market: tuple[Split, Tensor, Tensor]
) -> None:
    needs("faiss")
    split, features, queries = market
    system, _ = asked(f"faiss:{factory}", market)
    labels = Labels.of(split.query, CPU)
    share = recall_of_exact(system, features, queries, labels)
    recall = float(metrics.recall_at(system.rank(queries, labels), 1).nanmean())
    print(json.dumps({"index": factory, "recall@10 of exact": share, "recall@1": recall}))
    assert share >= least
    assert recall >= 0.85


INGEST = """
import sys, torch
from uturn.retrieval import milvus
from uturn.retrieval.index import read_index
from uturn.retrieval.judge import CrossCamera, Labels

rows = milvus.MilvusSpec._rows
def told(self, part, *rest):
    print(part.start, flush=True)
    return rows(self, part, *rest)
milvus.MilvusSpec._rows = told
features, *columns = torch.load(sys.argv[2])
read_index("milvus:" + sys.argv[1], "euclidean").build(features, Labels(*columns), CrossCamera())
print("done", flush=True)
"""


def test_market_is_ingested_killed_and_resumed(
    market: tuple[Split, Tensor, Tensor], tmp_path: Path
) -> None:
    needs("milvus")
    split, features, _ = market
    gallery = Labels.of(split.gallery, CPU)
    torch.save([features, gallery.identities, gallery.cameras, gallery.ids], tmp_path / "f.pt")
    file = tmp_path / "market.db"

    def ingest(until: int | None) -> list[str]:
        command = [sys.executable, "-c", INGEST, str(file), str(tmp_path / "f.pt")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert child.stdout is not None
        said = list[str]()
        for line in child.stdout:
            said.append(line.strip())
            if len(said) == until:
                os.killpg(child.pid, signal.SIGKILL)
                break
        child.wait(600)
        child.stdout.close()
        return said

    first, last = ingest(3), ingest(None)
    print(f"killed at {first[-1]}, went on at {last[0]}")
    assert last[-1] == "done"
    assert int(last[0]) >= int(first[1])
    assert ingest(None) == ["done"]
    _, built = asked(f"milvus:{file}", market)
    found = list[int]()
    for begin in range(0, len(features), 10_000):
        found += [
            row["place"]
            for row in built.client.query(  # type: ignore[attr-defined]
                built.collection,  # type: ignore[attr-defined]
                filter=f"place >= {begin} and place < {begin + 10_000}",
                output_fields=["place"],
                limit=16_000,
            )
        ]
    assert sorted(found) == list(range(19732))


@pytest.mark.parametrize("backend", ["faiss:Flat", "milvus"])
def test_one_command_differs_only_in_index(backend: str, shared_data: Path, tmp_path: Path) -> None:
    needs(backend)
    weights = shared_data / "osnet_x0_25_market1501.pth"

    def swept(index: str, name: str) -> list[dict[str, float]]:
        plan = Plan(
            victim=f"osnet_x0_25:weights={weights}",
            data=f"market1501:{shared_data / 'market1501'}",
            attacks=("odfa",),
            eps=(8,),
            queries=48,
            index=index,
        )
        return run(plan, tmp_path / name, progress=False)

    spec = f"milvus:{tmp_path / 'market.db'}" if backend == "milvus" else backend
    for ours, theirs in zip(swept(spec, "ours"), swept("exact", "exact"), strict=True):
        for k in (1, 5, 10):
            assert ours[f"recall@{k}"] == theirs[f"recall@{k}"]
