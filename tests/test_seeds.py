"""Several seeds in one run: the same as so many runs, and every reader of a run copes with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.conftest import Tiny
from tests.test_craft import a_classifier, data, pictures, tables  # noqa: F401  (the fixture)
from tests.test_durability import stopped_after
from uturn import load_victim
from uturn.attacks.presets import PRESETS, load_attack
from uturn.attacks.problem import draws, knowledge
from uturn.data.pictures import decode
from uturn.errors import ArgumentError
from uturn.explorer.runs import RunBook
from uturn.gallery.plan import GalleryPlan
from uturn.report import card, html
from uturn.report.folder import Run
from uturn.report.text import table
from uturn.retrieval.intervals import identity_bootstrap
from uturn.sweep import Plan, run
from uturn.sweep.compare import compare
from uturn.sweep.plan import CLEAN
from uturn.verify import verify
from uturn.victims.victim import Victim

ME, OTHER = "tests.test_craft:a_classifier", "tests.test_seeds:another_classifier"


def another_classifier() -> Victim:
    return replace(a_classifier(), name="another", network=Tiny(5))


@pytest.fixture(scope="module")
def plan(data: str) -> Plan:  # noqa: F811
    """Three batches of 12 queries."""
    return Plan(
        victim=ME,
        data=data,
        attacks=("basic", "odfa", "tma:steps=5", "noise"),
        eps=(4, 8),
        seed=7,
        seeds=3,
        batch_size=5,
        transfer_to=(OTHER,),
    )


@pytest.fixture(scope="module")
def seeded(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("seeds") / "run"
    run(plan, out, progress=False)
    return out


def test_each_seed_draws_what_an_attack_by_it_draws(seeded: Path) -> None:
    """Pictures of the third seed are those of the attack alone by it, on the same queries."""
    rows = pq.read_table(seeded / "queries.parquet").to_pylist()
    names = [row["query"] for row in rows[:12]]
    victim, clean = load_victim(ME).folded(), seeded / "images" / CLEAN
    for part in (names[:5], names[5:10], names[10:]):
        images = victim.grid([decode(clean / f"{name}.png") for name in part])
        for seed, place in ((7, "eps8"), (9, "eps8,repeat2")):
            found = load_attack("odfa", eps=8)(victim, images, names=part, seed=seed).images
            for name, picture in zip(part, found, strict=True):
                there = decode(seeded / "images" / "odfa" / place / f"{name}.png")
                assert np.array_equal(there, picture.permute(1, 2, 0).numpy())
    goals = {row["seed"]: [] for row in rows}
    for row in rows:
        if (row["attack"], row["eps"], row["victim"]) == ("tma:steps=5", 8, ME):
            goals[row["seed"]].append(row["goal_rank_clean"])
    assert len({*map(tuple, goals.values())}) == 3  # targets are drawn anew


def test_what_draws_nothing_is_done_once_and_the_row_says_so(seeded: Path) -> None:
    rows = json.loads((seeded / "results.json").read_bytes())["rows"]
    drawn = {(row["attack"], row["eps"]): row["seeds"]["drawn"] for row in rows}
    assert drawn["clean", 0] == drawn["basic", 4] == [7]
    assert drawn["odfa", 8] == drawn["tma:steps=5", 8] == drawn["noise", 4] == [7, 8, 9]
    folders = {path.name for path in (seeded / "images" / "basic").iterdir()}
    assert folders == {"eps4", "eps8"}
    assert len({path.name for path in (seeded / "images" / "odfa").iterdir()}) == 6
    gradients = json.loads((seeded / "run.json").read_bytes())["gradients"]
    # basic as it is, odfa and tma with every seed; noise climbs nothing.
    alone = 12 * ((5 + 10) + 3 * (5 + 10) + 3 * (5 + 5))
    assert gradients["spent"] + gradients["saved"] == alone


def test_a_row_is_the_mean_and_the_spread_of_its_seeds(plan: Plan, seeded: Path) -> None:
    found = pq.read_table(seeded / "queries.parquet").to_pylist()
    for row in json.loads((seeded / "results.json").read_bytes())["rows"]:
        key = (row["victim"], row["attack"], row["eps"])
        own = [each for each in found if (each["victim"], each["attack"], each["eps"]) == key]
        assert row["queries"] == 12
        hits = np.array([float(each["first_match_rank"] == 1) for each in own]).reshape(-1, 12)
        each = row["seeds"]["each"]["recall@1"]
        assert each == pytest.approx(hits.mean(1))
        assert row["recall@1"] == pytest.approx(np.mean(each))
        assert row["map"] == pytest.approx(np.mean([line["ap"] for line in own]))
        if len(each) > 1:
            assert row["seeds"]["sd"]["recall@1"] == pytest.approx(np.std(each, ddof=1))
        else:
            assert row["seeds"]["sd"]["recall@1"] is None
        people = np.array([line["identity"] for line in own[:12]])
        ends = identity_bootstrap(hits.T, people, plan.seed)
        assert row["ci95"]["recall@1"] == pytest.approx(ends)


def test_one_seed_is_as_it_was(plan: Plan, tmp_path: Path, seeded: Path) -> None:
    """The first of three is the run with one, to the bit."""
    run(replace(plan, seeds=1), tmp_path / "one", progress=False)
    one, three = (
        pq.read_table(p / "queries.parquet").to_pylist() for p in (tmp_path / "one", seeded)
    )
    assert one == [row for row in three if row["seed"] == 7]
    for row in one:
        if row["victim"] == ME:
            place = (
                CLEAN if not row["eps"] else f"{row['attack'].replace(':', '_')}/eps{row['eps']:g}"
            )
            name = f"images/{place}/{row['query']}.png"
            assert (tmp_path / "one" / name).read_bytes() == (seeded / name).read_bytes()


def test_a_stopped_run_of_seeds_is_resumed(
    plan: Plan, seeded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped_after(19, plan, tmp_path / "run", monkeypatch)
    run(plan, out, progress=False)
    assert tables(out) == tables(seeded)
    assert pictures(out) == pictures(seeded)


def test_every_reader_copes(plan: Plan, seeded: Path, tmp_path: Path) -> None:
    rows = json.loads((seeded / "results.json").read_bytes())["rows"]
    assert "R@1 sd" in table(rows)
    html.write(seeded)
    card.write(Run.read(seeded))
    assert "repeated with 3" in (seeded / "card.md").read_text()
    checked = verify(seeded, progress=False)
    assert checked.findings == ()
    book = RunBook.open(seeded)
    assert len(book.falls) == 12 * 4 * 2
    other = tmp_path / "run"
    run(replace(plan, seeds=1, transfer_to=(), attacks=("odfa",)), other, progress=False)
    (pair,) = compare([seeded, other]).pairs
    told = {line.name: line.differences["recall@1"] for line in pair.lines}["odfa ε=8"]
    row = next(r for r in rows if (r["attack"], r["eps"], r["victim"]) == ("odfa", 8, ME))
    assert told is not None
    assert told.first == pytest.approx(row["recall@1"])
    assert told.other == pytest.approx(row["seeds"]["each"]["recall@1"][0])


def test_a_picture_of_another_seed_is_no_part_of_the_first(seeded: Path) -> None:
    """Seeds differ in their pictures, and verify would know one from the other."""
    name = pq.read_table(seeded / "queries.parquet")["query"][0].as_py()
    one, two = (
        (seeded / "images" / "odfa" / f"eps8{again}/{name}.png") for again in ("", ",repeat1")
    )
    kept = one.read_bytes()
    assert kept != two.read_bytes()
    one.write_bytes(two.read_bytes())
    try:
        where = [
            finding.where for finding in verify(seeded, files_only=True, progress=False).findings
        ]
    finally:
        one.write_bytes(kept)
    assert f"images/odfa/eps8/{name}.png" in where


def test_worst_and_monotone_are_of_one_seed_each(plan: Plan) -> None:
    plan = replace(plan, attacks=("worst",), seeds=2, monotone=True, transfer_to=())
    for job in plan.jobs():
        for member in job.members:
            assert member.repeat in (0, job.repeat)
        if job.weaker is not None:
            assert job.weaker.repeat == job.repeat
    assert {job.repeat for job in plan.jobs() if job.members} == {0, 1}


def test_the_number_of_seeds_is_positive_and_not_for_galleries(plan: Plan) -> None:
    with pytest.raises(ArgumentError, match="number of seeds must be at least 1"):
        replace(plan, seeds=0)
    with pytest.raises(ArgumentError, match="leave seeds to sweeps"):
        GalleryPlan(plan=Plan(victim=ME, data="glyphs", attacks=("uturn",), seeds=2))


@pytest.mark.parametrize("spec", [*sorted(set(PRESETS) - {"universal", "prgf"}), "basic:views=pad"])
def test_what_says_that_it_draws_nothing_finds_the_same_by_any_seed(spec: str) -> None:
    attack = load_attack(spec, eps=4)
    needs = set(knowledge(attack))
    if needs:
        assert draws(attack) or needs <= {"lost", "watch"}
        return
    victim, rng = load_victim(ME), np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 12, 12), dtype=np.uint8))
    found = [attack(victim, images, names=["a", "b"], seed=seed).images for seed in (0, 1)]
    assert torch.equal(*found) is not draws(attack)
