"""Black boxes in a sweep: the curve in one go, the accounts, resume, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from uturn.attacks.blackbox import BlackBox
from uturn.cli import main
from uturn.report.text import table
from uturn.retrieval.oracle import SystemOracle
from uturn.sweep import Plan, run
from uturn.sweep.plan import together
from uturn.sweep.store import RunFolder

SQUARES = ("square:max_queries=40", "square:max_queries=15")


def plan(**changes: Any) -> Plan:
    given = {
        "victim": "glyph_net",
        "data": "glyphs",
        "attacks": ("odfa", *SQUARES, "square:max_queries=15,prior=[glyph_net:flip=yes]"),
        "eps": (8,),
        "queries": 9,
        "batch_size": 3,
        "seed": 3,
    }
    return Plan(**given | changes)


@pytest.fixture(scope="module")
def asked() -> list[int]:
    """Pictures that systems were asked, oracle by oracle."""
    return []


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, asked: list[int]
) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("sweep") / "run"
    plainly = SystemOracle.__call__

    def counting(self: SystemOracle, pictures: Any, k: int) -> Any:
        asked.append(len(pictures))
        return plainly(self, pictures, k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SystemOracle, "__call__", counting)
        rows = run(plan(), out, progress=False)
    return out, rows


def test_budgets_of_one_attack_go_together() -> None:
    groups = [[job.name for job in group] for group in together(plan().jobs())]
    assert [*SQUARES] in groups
    assert len(groups) == 4  # clean, odfa, the squares, and those with a prior


def test_rows_carry_the_accounts(
    finished: tuple[Path, list[dict[str, Any]]], asked: list[int]
) -> None:
    out, rows = finished
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    for row in rows:
        mine = [one["asked"] for one in queries if one["attack"] == row["attack"]]
        assert row["asked"] == pytest.approx(sum(mine) / len(mine))
        most = {"clean": 0, "odfa": 0, SQUARES[0]: 40}.get(row["attack"], 15)
        assert max(mine) <= most
        assert (min(mine) > 1) == (most > 0)
        assert row["gradients"] == (10 if row["attack"] == "odfa" else 0)
        assert (row["prior_gradients"] > 0) == ("prior" in row["attack"])
    # What the smaller budget asked, the larger had asked already.
    wide, few, lent = (
        [one["asked"] for one in queries if one["attack"] == row["attack"]] for row in rows[2:]
    )
    assert sum(asked) == sum(wide) + sum(lent)
    assert all(min(one, 15) == other for one, other in zip(wide, few, strict=True))
    told = table(rows)
    assert "asked" in told
    assert "prior gradients" in told
    assert "asked" not in table(rows[:2])


def test_a_stop_loses_nothing_that_was_committed(
    finished: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, count = RunFolder.add_part, 0

    def stopping(self: RunFolder, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        commit(self, *arguments)

    monkeypatch.setattr(RunFolder, "add_part", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path, progress=False)
    again = run(plan(), tmp_path, progress=False)

    def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert timeless(again) == timeless(finished[1])
    for picture in (finished[0] / "images").rglob("*.png"):
        assert (tmp_path / picture.relative_to(finished[0])).read_bytes() == picture.read_bytes()


def test_max_queries_bounds_whatever_a_spec_says(tmp_path: Path) -> None:
    bounded = plan(max_queries=12)
    attacks = [job.attack for job in bounded.jobs() if isinstance(job.attack, BlackBox)]
    assert [attack.max_queries for attack in attacks] == [12, 12, 12]
    out = tmp_path / "run"
    command = ["sweep", "--victim", "glyph_net", "--data", "glyphs", "--attack", "square,rgf"]
    command += ["--max-queries", "12", "--queries", "4", "--eps", "8", "--out", str(out), "--quiet"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    assert {
        one["attack"]: max(q["asked"] for q in queries if q["attack"] == one["attack"])
        for one in queries
    } == {
        "clean": 0,
        "square": 12,
        "rgf": 12,
    }
    header = json.loads((out / "run.json").read_bytes())
    assert header["configuration"]["max_queries"] == 12
    assert "max_queries=12" in header["configuration"]["jobs"]["square eps=8"]
    assert "asked" in (out / "report.html").read_text(encoding="utf-8")
