"""Market-1501 and OSNet for real: the published score, and the attack on 300 queries."""

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


def test_300_queries_at_eps_4(shared_data: Path, tmp_path: Path) -> None:
    victim, data = specs(shared_data)
    plan = Plan(victim=victim, data=data, queries=300, seed=1, eps=(4,))
    rows = {row["attack"]: row for row in run(plan, tmp_path / "run", progress=False)}
    print(json.dumps({name: row["recall@1"] for name, row in rows.items()}))
    assert rows["clean"]["recall@1"] >= 0.9
    assert rows["odfa"]["recall@1"] <= 0.06
    for name in ("fast", "basic", "least_likely"):
        assert rows["odfa"]["recall@1"] < rows[name]["recall@1"] < rows["clean"]["recall@1"]
    images = tmp_path / "run" / "images"
    scored = list(images.glob("*/eps4/*.png"))
    assert len(scored) == 4 * 300
    for path in scored:
        clean = decode(images / "clean" / path.name).astype(int)
        assert np.abs(decode(path) - clean).max() <= 4
