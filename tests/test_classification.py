"""A closed set: where the true class stands among the logits, in `uturn eval` and in sweeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from tests.conftest import Linear, linear_victim, normal
from uturn.attacks import load_attack
from uturn.attacks.objectives import OppositeLogits
from uturn.data.cifar10 import CLASSES, cifar10
from uturn.data.pictures import decode, encode
from uturn.report import html
from uturn.report.text import table
from uturn.retrieval.classification import classifies, label_ranks
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.intervals import query_bootstrap
from uturn.sweep import Plan, run
from uturn.types import Scene
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim, to_pixels

VICTIM = "tests.test_classification:ten_classes"
RAW = Preprocessing(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)


def ten_classes(logits: int = 10) -> Victim:
    """A linear network on 32×32 with a classifier; it knows nothing."""
    body = Linear(normal(16, 3, 32, 32) / 50, torch.zeros(16))
    head = nn.Linear(16, logits, bias=False)
    head.weight = nn.Parameter(normal(logits, 16, seed=1))
    return Victim(name="ten", network=body, preprocessing=RAW, classifier=head)


def miniature(root: Path) -> Path:
    """CIFAR-10 as folders, four noisy pictures of each class."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(4):
            picture = rng.integers(60, 196, (32, 32, 3), dtype=np.uint8)
            encode(root / "test" / name / f"{number}.png", picture)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory.mktemp("cifar"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classes") / "run"
    run(
        Plan(
            victim=VICTIM,
            data=f"cifar10:{data}",
            attacks=("basic", "odfa:target=logits"),
            eps=(4,),
            batch_size=16,
            transfer_to=(f"{VICTIM},logits=9",),
        ),
        out,
        progress=False,
    )
    return out


# -- the rank ------------------------------------------------------------------------------------


def test_the_rank_counts_ties_against_the_victim() -> None:
    """Brute force over logits with ties, of pictures of two shapes."""

    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 255).mean((2, 3)).round()[:, :1]

    rows = torch.tensor([[3.0, 1, 3, 0], [0, 0, 0, 0], [9, 8, 7, 6], [1, 2, 2, float("nan")]])

    class Table(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rows[x[:, 0].long()]

    plain = Preprocessing(size=(8, 8), fit="within", mean=(0.0,) * 3, std=(1.0,) * 3)
    victim = Victim(name="t", network=Fixed(), preprocessing=plain, classifier=Table())
    pictures, classes, expected = [], [], []
    for number, row in enumerate(rows.tolist()):
        for true in range(4):
            pictures.append(np.full((8, 4 + 4 * (number % 2), 3), number, dtype=np.uint8))
            classes.append(true)
            others = [row[c] for c in range(4) if c != true]
            expected.append(1 + sum(not (other < row[true]) for other in others))
    assert label_ranks(victim, pictures, classes) == expected
    assert expected[:4] == [2, 3, 2, 4]
    assert expected[4:8] == [4, 4, 4, 4]  # all alike: nobody is first
    assert expected[15] == 4  # a logit that is no number is the last


def test_only_a_classifier_of_these_very_classes_classifies(data: Path) -> None:
    split = cifar10(str(data))
    assert split.classes == CLASSES
    assert classifies(ten_classes(), split)
    assert not classifies(ten_classes(9), split)
    assert not classifies(replace(ten_classes(), classifier=None), split)
    assert not classifies(ten_classes(), replace(split, classes=None))


def test_the_interval_is_a_bootstrap_over_queries() -> None:
    """Against drawing queries one by one; all or nothing keeps an open end."""
    hits = (np.arange(80) % 4 == 0).astype(np.float64)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(hits, len(hits)).mean() for _ in range(4000)]
    found = query_bootstrap(hits, 0)
    assert found == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), abs=0.02)
    low, high = query_bootstrap(np.zeros(80), 0) or (1, 1)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 80)))
    assert query_bootstrap(np.ones(1), 0) is None


# -- in eval and in sweeps -----------------------------------------------------------------------


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_bytes())["rows"]
    return found


def test_eval_and_the_clean_row_agree_with_the_logits(data: Path, finished: Path) -> None:
    split, victim = cifar10(str(data)), ten_classes()
    pictures = [split.query.read(i) for i in range(len(split.query))]
    logits = victim.logits(to_pixels(victim.grid(pictures)))
    true = torch.from_numpy(split.query.identities)
    best = logits.topk(5, dim=1).indices
    expected = {
        f"top{k}": float((best[:, :k] == true[:, None]).any(1).double().mean()) for k in (1, 5)
    }
    values = evaluate(victim, split, progress=False)
    clean = rows(finished)[0]
    for name, value in expected.items():
        assert values[name] == clean["metrics"][name] == pytest.approx(value)
        low, high = values["ci95"][name]
        assert low <= value <= high
        assert clean["ci95"][name] == [low, high]


def test_ranks_are_those_of_the_saved_pictures(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    victim, seen = ten_classes(), 0
    for row in rows(finished):
        own = [q for q in queries if (q["victim"], q["attack"]) == (row["victim"], row["attack"])]
        assert len(own) == 40
        if row["victim"] != VICTIM:  # nine logits for ten classes
            assert "top1" not in row["metrics"]
            assert own[0]["label_rank"] is None
            continue
        for k in (1, 5):
            share = np.mean([q["label_rank"] <= k for q in own])
            assert row["metrics"][f"top{k}"] == pytest.approx(share)
        folder = "clean" if row["eps"] == 0 else f"{row['attack'].replace(':', '_')}/eps4"
        pictures = [decode(finished / "images" / folder / f"{q['query']}.png") for q in own]
        found = label_ranks(victim, pictures, [q["identity"] for q in own])
        assert found == [q["label_rank"] for q in own]
        seen += 1
    assert seen == 3


def test_the_table_and_the_page_have_columns_for_classes_where_there_are(finished: Path) -> None:
    blocks = table(rows(finished)).split("\n\n")
    assert "top-1" in blocks[0]
    assert "top-5 95 %" in blocks[0]
    assert "top-1" not in blocks[1]
    page = html.write(finished).read_text(encoding="utf-8")
    assert page.count(">top-5</button>") == 1


# -- the U-turn of the logits ----------------------------------------------------------------------


def test_opposite_logits_in_closed_form() -> None:
    """On a linear victim the loss is −‖l(x') + l(x)‖², and its slope at x is −4 Wᵀ l."""
    weight = normal(6, 3, 8, 4)
    head = nn.Linear(6, 6, bias=False)
    head.weight = nn.Parameter(torch.eye(6))
    victim = linear_victim(weight, torch.zeros(6), head)
    clean = torch.rand(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    logits = (clean[:, None] * weight).sum((2, 3, 4))
    loss = OppositeLogits().bind(victim, clean, Scene())
    pixels = clean.clone().requires_grad_()
    value = loss(pixels)
    torch.testing.assert_close(value, -(2 * logits).square().sum(1))
    (slope,) = torch.autograd.grad(value.sum(), pixels)
    torch.testing.assert_close(slope, -4 * torch.einsum("bd,dchw->bchw", logits, weight))


def test_turned_logits_turn_the_order_of_the_classes(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    ranks = {
        attack: [q["label_rank"] for q in queries if (q["victim"], q["attack"]) == (VICTIM, attack)]
        for attack in ("clean", "odfa:target=logits")
    }
    assert np.corrcoef(list(ranks.values()))[0, 1] < -0.7
    assert load_attack("odfa:target=logits", eps=4).objective == OppositeLogits()
