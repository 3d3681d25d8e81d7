"""Market-1501 and OSNet for real: the published score, 300 attacked queries, a black box."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from uturn import load_data, load_victim
from uturn.data.pictures import decode
from uturn.retrieval.evaluate import evaluate
from uturn.sweep import Plan, run

pytestmark = pytest.mark.slow


def specs(shared_data: Path) -> tuple[str, str]:
    weights = shared_data / "osnet_x0_25_market1501.pth"
    return f"osnet_x0_25:weights={weights}", f"market1501:{shared_data / 'market1501'}"


def test_osnet_reaches_its_published_score(shared_data: Path) -> None:
    victim, data = specs(shared_data)
    values = evaluate(load_victim(victim), load_data(data), progress=False)
    assert values["queries"] == 3368
    assert values["gallery"] == 19732
    assert values["no-match queries"] == 0
    assert values["index"] == "exact:euclidean"
    assert values["recall@1"] == pytest.approx(0.9118, abs=0.0005)
    assert values["map (plain)"] == pytest.approx(0.7494, abs=0.0005)
    print(json.dumps(values))


def test_300_queries(shared_data: Path, tmp_path: Path) -> None:
    """The baselines' order, and the aims that were set for `uturn`."""
    victim, data = specs(shared_data)
    attacks = ("fast", "basic", "least_likely", "odfa", "uturn", "uturn:steps=20")
    plan = Plan(victim=victim, data=data, attacks=attacks, queries=300, seed=1, eps=(2, 4))
    found = run(plan, tmp_path / "run", progress=False)
    recall = {(row["attack"], row["eps"]): row["recall@1"] for row in found}
    print(json.dumps({f"{name} {eps}": value for (name, eps), value in recall.items()}))
    assert recall["clean", 0] >= 0.9
    assert recall["odfa", 4] <= 0.06
    for name in ("fast", "basic", "least_likely"):
        assert recall["odfa", 4] < recall[name, 4] < recall["clean", 0]
    assert recall["uturn", 4] <= 0.005  # 5 gradients
    assert recall["uturn:steps=20", 2] <= 0.0201  # 6 of 300
    images = tmp_path / "run" / "images"
    for eps in (2, 4):
        scored = list(images.glob(f"*/eps{eps}/*.png"))
        assert len(scored) == 6 * 300
        for path in scored:
            clean = decode(images / "clean" / path.name).astype(int)
            assert np.abs(decode(path) - clean).max() <= eps


def test_targets_and_candidates_move(shared_data: Path, tmp_path: Path) -> None:
    victim, data = specs(shared_data)
    attacks = ("tma", "qa_plus", "qa_minus", "ca_plus", "ca_minus")
    plan = Plan(victim=victim, data=data, attacks=attacks, queries=20, seed=1, eps=(8,))
    goals = {row["attack"]: row["goal"] for row in run(plan, tmp_path / "run", progress=False)}
    print(json.dumps(goals))
    assert goals["tma"]["first"] >= 0.9
    for name in ("qa_plus", "ca_plus"):
        assert goals[name]["attacked"] < 0.2 < 0.3 < goals[name]["clean"]
    for name in ("qa_minus", "ca_minus"):
        assert goals[name]["clean"] < 0.01 < 0.5 < goals[name]["attacked"]


def test_a_black_box_halves_recall(shared_data: Path, tmp_path: Path) -> None:
    """Ids of the first ten only, no network of one's own, no gradient."""
    victim, data = specs(shared_data)
    attacks = ("noise", "square:max_queries=50", "square:max_queries=200")
    plan = Plan(victim=victim, data=data, attacks=attacks, queries=50, seed=1, eps=(8,))
    rows = {row["attack"]: row for row in run(plan, tmp_path / "run", progress=False)}
    print(json.dumps({name: (row["recall@1"], row["asked"]) for name, row in rows.items()}))
    assert rows["square:max_queries=200"]["recall@1"] <= rows["square:max_queries=50"]["recall@1"]
    assert rows["square:max_queries=50"]["recall@1"] < 0.5 * rows["noise"]["recall@1"]
    assert rows["square:max_queries=50"]["asked"] <= 50
    assert all(row["gradients"] == 0 for row in rows.values())
