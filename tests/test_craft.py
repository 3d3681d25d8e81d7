"""The sweep loop: shared gradients, files behind the crafting, stops inside a group, monotone ε."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import RAW, Tiny
from uturn.attacks.problem import Problem, Slope
from uturn.data.pictures import decode, encode
from uturn.errors import BudgetError, RunFolderError
from uturn.parallel import ahead, behind
from uturn.report import html
from uturn.sweep import Plan, craft, run
from uturn.sweep.plan import Job, together
from uturn.sweep.store import RunFolder
from uturn.victims.victim import Victim

QUERIES = 12


def a_classifier() -> Victim:
    """Ten small pictures in, features out, and logits over five training classes."""
    torch.manual_seed(1)
    preprocessing = dataclasses.replace(RAW, size=(12, 12))
    return Victim(
        name="tiny", network=Tiny(0), preprocessing=preprocessing, classifier=nn.Linear(6, 5)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four classes of three pictures each, every one a query that finds the other two or not."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label in range(4):
        ground = rng.integers(0, 256, (12, 12, 3))
        for number in range(3):
            picture = np.clip(ground + rng.integers(-9, 10, ground.shape), 0, 255).astype(np.uint8)
            encode(folder / f"class{label}" / f"{number}.png", picture)
    return f"folder:{folder}"


@pytest.fixture
def plan(data: str) -> Plan:
    return Plan(victim="tests.test_craft:a_classifier", data=data, batch_size=5, seed=3)


@pytest.fixture
def slopes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures every gradient that was taken was of."""
    taken, slope = list[int](), Problem.slope

    def counted(self: Problem, delta: Tensor, *args: Any, **options: Any) -> Slope:
        taken.append(len(delta))
        return slope(self, delta, *args, **options)

    monkeypatch.setattr(Problem, "slope", counted)
    return taken


def pictures(out: Path) -> dict[str, bytes]:
    root = out / "images"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.png"))}


def tables(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = json.loads((out / "results.json").read_bytes())["rows"]
    for row in rows:
        del row["seconds"]
    return rows, pq.read_table(out / "queries.parquet").to_pylist()


def header(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_bytes())
    return found


# -- shared gradients ------------------------------------------------------------------------------


def test_the_papers_sweep_takes_82_gradients_and_not_161(
    plan: Plan, tmp_path: Path, slopes: list[int]
) -> None:
    out = tmp_path / "run"
    rows = run(plan, out, progress=False)
    assert sum(row["gradients"] for row in rows) == 161
    assert sum(slopes) <= 82 * QUERIES
    assert header(out)["gradients"] == {
        "spent": sum(slopes),
        "saved": 161 * QUERIES - sum(slopes),
    }
    assert "gradients: saved" in html.write(out).read_text(encoding="utf-8")
    assert all(row["seconds"] > 0 for row in rows[1:])


def test_pictures_and_numbers_are_those_of_every_attack_and_eps_alone(
    plan: Plan, tmp_path: Path
) -> None:
    names = ("fast", "basic", "odfa", "momentum", "apgd:steps=6", "tma:steps=4")
    whole = dataclasses.replace(plan, attacks=names, eps=(2, 4))
    run(whole, tmp_path / "whole", progress=False)
    together, by_query = pictures(tmp_path / "whole"), tables(tmp_path / "whole")[1]
    alone = dict[str, bytes]()
    for name in names:
        for eps in whole.eps:
            out = tmp_path / f"{name} {eps}"
            run(dataclasses.replace(plan, attacks=(name,), eps=(eps,)), out, progress=False)
            alone |= pictures(out)
            own = [q for q in by_query if (q["attack"], q["eps"]) == (name, eps)]
            for row, expected in zip(tables(out)[1][QUERIES:], own, strict=True):
                assert row == {key: expected[key] for key in row}
    assert alone == together


class Small(Tiny):
    """A network that has memory for gradients of two pictures, and for the features of three."""

    def forward(self, x: Tensor) -> Tensor:
        found = super().forward(x)
        if len(x) > (2 if x.requires_grad else 3):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return found


def a_large_network() -> Victim:
    """`a_classifier` where memory is short."""
    whole, small = a_classifier(), Small(0)
    small.load_state_dict(whole.network.state_dict())
    return dataclasses.replace(whole, network=small)


def test_a_batch_that_does_not_fit_is_crafted_in_halves(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("fast", "basic", "odfa", "apgd:steps=6", "tma:steps=4")
    whole = dataclasses.replace(plan, attacks=names, eps=(2, 4))
    run(whole, tmp_path / "whole", progress=False)
    capsys.readouterr()
    short = dataclasses.replace(whole, victim="tests.test_craft:a_large_network")
    run(short, tmp_path / "short", progress=False)
    assert pictures(tmp_path / "short") == pictures(tmp_path / "whole")
    rows, expected = (tables(tmp_path / each)[0] for each in ("short", "whole"))
    for row, other in zip(rows, expected, strict=True):
        assert row["recall@1"] == other["recall@1"]
        assert row["map"] == pytest.approx(other["map"])
        assert row["gradients"] == other["gradients"]
    gradients = (header(tmp_path / each)["gradients"]["spent"] for each in ("short", "whole"))
    assert len(set(gradients)) == 1
    said = capsys.readouterr().err
    assert said.count("out of memory with 5 pictures at a time; going on with 2") >= 1


def test_who_has_arrived_before_memory_lacks_is_not_crafted_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("fast", "basic", "odfa")
    whole = dataclasses.replace(plan, attacks=names, eps=(2, 4))
    run(whole, tmp_path / "whole", progress=False)
    slope, sent, send = Problem.slope, list[str](), craft._Crafter._send
    taken = 0

    def failing(self: Problem, delta: Tensor, *args: Any, **options: Any) -> Slope:
        nonlocal taken
        taken += 1
        if len(delta) > 2 and taken > 3:  # `fast` and `basic` at ε = 2 have arrived by then
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return slope(self, delta, *args, **options)

    def counted(self: Any, job: Job, batch: Any, *args: Any) -> None:
        sent.append(f"{job.folder} {batch.number}")
        send(self, job, batch, *args)

    monkeypatch.setattr(Problem, "slope", failing)
    monkeypatch.setattr(craft._Crafter, "_send", counted)
    run(whole, tmp_path / "short", progress=False)
    assert len(sent) == len(set(sent)) == 3 * (1 + 6)  # three batches of clean and six jobs
    assert pictures(tmp_path / "short") == pictures(tmp_path / "whole")


def test_jobs_with_one_trail_go_together(plan: Plan) -> None:
    eps, attacks = (2, 8), ("fast", "apgd", "odfa", "basic", "momentum", "worst")
    groups = together(dataclasses.replace(plan, attacks=attacks, eps=eps).jobs())
    named = [[(job.name, job.eps) for job in group] for group in groups]
    assert named[0] == [("clean", 0)]
    assert named[1] == [(name, e) for name in ("fast", "basic") for e in eps]
    climbing = ("odfa", "momentum", "odfa:steps=20")
    assert [(name, e) for name in climbing for e in eps] in named
    assert [("apgd", 2)] in named
    order = [job for group in named for job in group]
    assert order[-1] == ("worst", 8)
    assert order.index(("worst", 2)) > order.index(("sma:steps=20", 2))


# -- stops -----------------------------------------------------------------------------------------


def stopping(patch: pytest.MonkeyPatch, error: type = KeyboardInterrupt) -> list[int]:
    """How many more batches are committed until ``error`` is raised: to be set, 0 at first."""
    add, left = RunFolder.add_part, [0]

    def counted(self: RunFolder, *part: Any) -> None:
        if not left[0]:
            raise error
        left[0] -= 1
        add(self, *part)

    patch.setattr(RunFolder, "add_part", counted)
    return left


def test_a_stop_inside_a_group_is_resumed_for_the_missing_members_only(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single part once: what was committed stays, the rest comes out the same."""
    short = dataclasses.replace(plan, attacks=("fast", "basic"), eps=(2, 4), batch_size=7)
    run(short, tmp_path / "whole", progress=False)
    left = stopping(monkeypatch)
    out, parts = tmp_path / "stopped", dict[Path, int]()
    for stops in range(20):
        left[0] = 1
        try:
            run(short, out, progress=False)
        except KeyboardInterrupt:
            now = {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("0*.json")}
            assert len(now) == stops + 1
            assert parts.items() <= now.items()
            parts = now
        else:
            break
    assert len(parts) == 2 * 5 - 1  # the last try ends the run
    assert pictures(out) == pictures(tmp_path / "whole")
    assert tables(out) == tables(tmp_path / "whole")


def test_a_part_is_committed_only_when_its_pictures_are_on_disk(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, commit = list[str](), RunFolder.add_part

    def checked(self: RunFolder, job: Job, batch: int, part: dict[str, Any]) -> None:
        rows = part["scores"][0]["rows"]
        for row in rows:
            scored = decode(self.picture(job, row["query"])).astype(int)
            clean = decode(self.picture(Job("clean", 0), row["query"]))
            assert np.abs(scored - clean).max() == row["linf_levels"]
        seen.append(job.folder)
        commit(self, job, batch, part)

    monkeypatch.setattr(RunFolder, "add_part", checked)
    run(dataclasses.replace(plan, eps=(2, 8)), tmp_path / "run", progress=False)
    assert len(seen) == 3 * 9


def test_no_more_than_a_few_batches_are_in_flight(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, settle = list[int](), craft._Crafter.settle

    def counted(self: craft._Crafter, most: int) -> None:
        waiting.append(len(self.pending))
        settle(self, most)
        assert len(self.pending) <= most

    monkeypatch.setattr(craft._Crafter, "settle", counted)
    run(dataclasses.replace(plan, eps=(2, 4, 8)), tmp_path / "run", progress=False)
    assert max(waiting) <= craft.IN_FLIGHT + 5  # of one turn all members of a group may be done


def test_what_fails_behind_is_raised_with_its_name(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, picture: object) -> None:
        if "eps8" in path.parts:
            raise OSError(28, "No space left on device")
        encode(path, picture)  # type: ignore[arg-type]

    monkeypatch.setattr("uturn.sweep.store.encode", full)
    with pytest.raises(RunFolderError, match=r"eps8/.*png: .*No space left on device.* resume"):
        run(plan, tmp_path / "full", progress=False)
    monkeypatch.undo()

    def wrong(path: Path) -> Any:
        found = decode(path)
        return 255 - found if "eps2" in path.parts else found

    monkeypatch.setattr(craft, "decode", wrong)
    with pytest.raises(BudgetError, match=r"eps2/.*\.png differs"):
        run(plan, tmp_path / "wrong", progress=False)


def test_work_behind_goes_in_order_and_what_has_not_begun_is_dropped() -> None:
    done = list[int]()
    with behind() as pool:
        results = [pool.submit(done.append, number) for number in range(9)]
        assert [result.result() for result in results] == [None] * 9
    assert done == list(range(9))
    with behind() as pool:
        assert [*ahead(pool, str, range(3))] == ["0", "1", "2"]
        assert [*ahead(pool, str, ())] == []
    with pytest.raises(ZeroDivisionError), behind() as pool:
        pool.submit(lambda: 1 // 0).result()


# -- monotone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["basic", "qa_plus:steps=3", "noise"])
def test_monotone_keeps_the_picture_that_lost(
    plan: Plan, tmp_path: Path, slopes: list[int], attack: str
) -> None:
    """A query that is lost stays lost with its picture; all others are attacked at every ε."""
    wanted = dataclasses.replace(plan, attacks=(attack,), eps=(2, 8, 30), monotone=True)
    assert [len(group) for group in together(wanted.jobs())] == [1] * 4
    out = tmp_path / "run"
    rows = run(wanted, out, progress=False)
    queries = tables(out)[1]
    by_job = {eps: {q["query"]: q for q in queries if q["eps"] == eps} for eps in (0, *wanted.eps)}
    kept = dict.fromkeys(wanted.eps, 0)
    for weaker, eps in ((2, 8), (8, 30)):
        for name, query in by_job[eps].items():
            before, clean = by_job[weaker][name], by_job[0][name]
            lost = clean["first_match_rank"] == 1 and before["first_match_rank"] != 1
            assert query["kept"] == lost
            paths = [Job(attack, e).folder + f"/{name}.png" for e in (weaker, eps)]
            same = pictures(out)[paths[0]] == pictures(out)[paths[1]]
            assert same if lost else True
            if lost:
                kept[eps] += 1
                assert query["first_match_rank"] == before["first_match_rank"]
    for row in rows[1:]:
        said = [flag for flag in row["flags"] if flag.startswith("monotone")]
        expected = f"monotone: {kept[row['eps']]} queries were lost at a smaller ε"
        assert [flag.startswith(expected) for flag in said] == [True] * bool(kept[row["eps"]])
    recalls = [row["recall@1"] for row in rows]
    assert recalls == sorted(recalls, reverse=True)
    if attack == "basic":
        assert kept[30] >= kept[8] > 0
        cost = {row["eps"]: row["gradients"] for row in rows[1:]}
        assert sum(slopes) == sum(cost[eps] * (QUERIES - kept[eps]) for eps in wanted.eps)
        assert header(out)["gradients"]["spent"] == sum(slopes)
