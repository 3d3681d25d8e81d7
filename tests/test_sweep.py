"""Sweeps: resume after a kill, refusal of another configuration, and certified pictures."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_market
from uturn import load_data, load_victim
from uturn.attacks import load_attack
from uturn.attacks.presets import MEMBERS
from uturn.data.channels import CHANNELS
from uturn.data.folder import replace_queries
from uturn.data.pictures import decode, encode
from uturn.errors import ArgumentError, BudgetError, RunFolderError, SpecError
from uturn.report import html
from uturn.report.text import table
from uturn.retrieval.evaluate import evaluate
from uturn.sweep import Plan, run
from uturn.sweep.checks import measure
from uturn.sweep.plan import Job
from uturn.sweep.store import RunFolder
from uturn.victims.victim import At

SMALL = ["--queries", "40", "--batch-size", "8", "--eps", "2,8", "--seed", "3"]


def plan(**changes: Any) -> Plan:
    given = {
        "victim": "glyph_net",
        "data": "glyphs",
        "attacks": ("fast", "odfa"),
        "eps": (2, 8),
        "queries": 12,
        "batch_size": 8,
        "seed": 3,
    }
    return Plan(**given | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "run"
    run(plan(), out, progress=False)
    return out


def rows(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if key != "seconds"}
        for row in json.loads((out / "results.json").read_bytes())["rows"]
    ]


# -- what a run folder holds ---------------------------------------------------------------------


def test_the_run_folder_keeps_its_contract(finished: Path) -> None:
    table = rows(finished)
    assert [(row["attack"], row["eps"]) for row in table] == [
        ("clean", 0),
        ("fast", 2),
        ("fast", 8),
        ("odfa", 2),
        ("odfa", 8),
    ]
    needed = {"attack", "eps", "victim", "data", "queries", "convention", "recall@1", "recall@5"}
    needed |= {"recall@10", "map", "ci95", "gradients", "flags"}
    assert all(needed <= set(row) for row in table)
    assert [row["gradients"] for row in table] == [0, 1, 1, 2, 10]
    header = json.loads((finished / "run.json").read_bytes())
    assert header["finished"]
    assert header["configuration"]["queries"] == 12
    assert "OppositeDirection" in header["configuration"]["jobs"]["odfa eps=8"]
    assert not (finished / "parts").exists()


def test_rows_follow_from_the_queries(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    assert len(queries) == 5 * 12
    for row in rows(finished):
        own = [q for q in queries if (q["attack"], q["eps"]) == (row["attack"], row["eps"])]
        assert row["recall@5"] == np.mean([q["first_match_rank"] <= 5 for q in own])
        assert row["map"] == pytest.approx(np.mean([q["ap"] for q in own]), abs=1e-12)
        low, high = row["ci95"]["map"]
        assert low <= row["map"] <= high


def test_the_other_metrics_follow_from_the_queries_too(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    clean = {q["query"]: q["first_match_rank"] for q in queries if q["attack"] == "clean"}
    for row in rows(finished):
        own = [q for q in queries if (q["attack"], q["eps"]) == (row["attack"], row["eps"])]
        found = row["metrics"]
        for name, column in (("minp", "inp"), ("tpr@fpr=0.001", "tpr")):
            shares = [q[column] for q in own]
            weights = [q["matches"] if name.startswith("tpr") else 1 for q in own]
            assert found[name] == pytest.approx(np.average(shares, weights=weights), abs=1e-12)
        assert found["median_first_match"] == np.median([q["first_match_rank"] for q in own])
        lost = [q["first_match_rank"] > 1 for q in own if clean[q["query"]] == 1]
        assert found["success"] == (np.mean(lost) if row["eps"] else None)
    strongest = rows(finished)[-1]["metrics"]
    assert strongest["success"] > 0.5
    assert strongest["tpr@fpr=0.001"] < rows(finished)[0]["metrics"]["tpr@fpr=0.001"] / 2


def test_the_threshold_is_that_of_the_clean_queries(finished: Path) -> None:
    """A sweep's clean row and `uturn eval` agree, and so does the attacked row given the clean."""
    split = load_data("glyphs").sample(12, 3)
    victim = load_victim("glyph_net")
    clean, *_, attacked = rows(finished)
    alone = evaluate(victim, split, progress=False)
    assert alone["tpr@fpr=0.001"] == pytest.approx(clean["metrics"]["tpr@fpr=0.001"])
    changed = replace_queries(split.query, finished / "images" / "odfa" / "eps8")
    after = evaluate(victim, replace(split, query=changed), clean=split.query, progress=False)
    assert after["tpr@fpr=0.001"] == pytest.approx(attacked["metrics"]["tpr@fpr=0.001"])
    assert after["success"] == pytest.approx(attacked["metrics"]["success"])
    assert after["map (plain)"] == pytest.approx(attacked["map"])


def test_re_ranked_sweeps_name_their_stages_and_score_each_query_alone(tmp_path: Path) -> None:
    people = range(1, 9)
    gallery = [f"{i:04d}_c{c}s1_{n:06d}_01.jpg" for i in people for c in (2, 3) for n in (1, 2)]
    write_market(tmp_path / "market", gallery, [f"{i:04d}_c1s1_000003_01.jpg" for i in people])
    stages = "aqe:n=3+k-reciprocal:k1=8,k2=3"
    few = plan(
        data=f"market1501:{tmp_path / 'market'}",
        queries=4,
        attacks=("odfa",),
        eps=(8,),
        rerank=stages,
        batch_size=4,
    )
    first = run(few, tmp_path / "four", progress=False)
    second = run(replace(few, batch_size=1), tmp_path / "one", progress=False)
    assert first[0]["index"] == (
        "aqe:n=3,alpha=3+exact:cosine+k-reciprocal:k1=8,k2=3,weight=0.3,power=2"
    )
    assert first[0]["map"] == pytest.approx(second[0]["map"], abs=1e-6)
    with pytest.raises(SpecError, match="k-reciprocal"):
        run(replace(few, rerank="k-reciprocal-together"), tmp_path / "no", progress=False)
    assert not (tmp_path / "no").exists()


def test_re_ranking_is_refused_where_queries_stand_in_the_gallery(tmp_path: Path) -> None:
    """Their clean originals would pull the answers to attacked ones back."""
    with pytest.raises(ArgumentError, match="every query is there itself"):
        run(plan(rerank="aqe"), tmp_path / "run", progress=False)
    with pytest.raises(ArgumentError, match="every query is there itself"):
        evaluate(load_victim("glyph_net"), load_data("glyphs"), rerank="aqe", progress=False)


def test_every_scored_picture_is_within_its_budget(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    for query in queries:
        folder = query["attack"] if query["eps"] == 0 else f"{query['attack']}/eps{query['eps']:g}"
        scored = decode(finished / "images" / folder / f"{query['query']}.png").astype(int)
        clean = decode(finished / "images" / "clean" / f"{query['query']}.png").astype(int)
        change = np.abs(scored - clean)
        assert change.max() == query["linf_levels"] <= query["eps"]
        assert query["l2"] == pytest.approx(np.linalg.norm((scored - clean) / 255))


def test_a_clean_query_is_itself(finished: Path) -> None:
    queries = pq.read_table(finished / "queries.parquet").to_pylist()
    clean = [q for q in queries if q["attack"] == "clean"]
    assert all(q["cosine_to_clean"] == pytest.approx(1) for q in clean)


def test_a_finished_run_is_not_computed_again(finished: Path) -> None:
    before = (finished / "run.json").read_bytes()
    assert [r["recall@1"] for r in run(plan(), finished, progress=False)] == [
        r["recall@1"] for r in rows(finished)
    ]
    assert (finished / "run.json").read_bytes() == before


# -- refusals ------------------------------------------------------------------------------------


def test_another_configuration_is_refused_with_the_differing_keys(finished: Path) -> None:
    with pytest.raises(RunFolderError, match=r"eps: \[2, 8\] there, \[2, 4\] now") as caught:
        run(plan(eps=(2, 4), seed=9), finished, progress=False)
    assert "seed: 3 there, 9 now" in str(caught.value)
    assert "queries" not in str(caught.value)


def test_a_run_from_before_an_option_was_made_had_its_default(
    finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    header = json.loads((out / "run.json").read_bytes())
    for option in ("precision", "transfer_to"):
        del header["configuration"][option]
    (out / "run.json").write_text(json.dumps(header))
    rows = run(plan(), out, progress=False)
    assert rows == json.loads((out / "results.json").read_bytes())["rows"]
    with pytest.raises(RunFolderError, match='precision: "float32" there, "bfloat16" now'):
        run(plan(precision="bfloat16"), out, progress=False)


def test_a_half_done_run_is_not_finished_by_other_software(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"seed": 1})
    folder.header["versions"]["torch"] = "1.0"
    folder.write_json("run.json", folder.header)
    with pytest.raises(RunFolderError, match=r'torch: "1\.0" there'):
        RunFolder(tmp_path, {"seed": 1})
    folder.write_json("run.json", folder.header | {"finished": "now"})
    assert RunFolder(tmp_path, {"seed": 1}).finished


def test_a_misfit_leaves_nothing_behind(tmp_path: Path) -> None:
    for changes in ({"index": "hnsw"}, {"index": "exact:manhattan"}):
        with pytest.raises(SpecError):
            run(plan(**changes), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


def test_eps_are_written_one_way() -> None:
    assert plan(eps=(8.0, 2, 4.5)).eps == (2, 4.5, 8)
    assert plan(eps=(8.0, 2)) == plan(eps=(2, 8))
    folders = {job.folder for job in plan(eps=(2, 2.0000001)).jobs()}
    assert len(folders) == 5
    with pytest.raises(ArgumentError, match="each once"):
        plan(eps=(2, 2.0))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_killed_at_its_first_file_begins_again(tmp_path: Path) -> None:
    (tmp_path / ".run.json.tmp").write_text('{"schema"')
    RunFolder(tmp_path, {"seed": 1})
    assert RunFolder(tmp_path, {"seed": 1}).header["configuration"] == {"seed": 1}


def test_impossible_plans_fail_before_any_work() -> None:
    for changes, error, message in (
        ({"attacks": ("pgd",)}, SpecError, "unknown attack"),
        ({"attacks": ("odfa", "odfa")}, ArgumentError, "each once"),
        ({"eps": (0.5,)}, ArgumentError, "between 1 and 255"),
        ({"convention": "mean"}, SpecError, "plain, trapezoid"),
        ({"batch_size": 0}, ArgumentError, "at least 1"),
    ):
        with pytest.raises(error, match=message):
            plan(**changes)


def test_a_picture_beyond_its_budget_is_never_scored() -> None:
    clean = np.full((4, 4, 3), 100, dtype=np.uint8)
    changed = clean.copy()
    changed[0, 0, 0] = 105
    wide = Job("odfa", 5, load_attack("odfa", eps=5))
    assert measure(wide, "q", clean, changed) == (5, pytest.approx(5 / 255))
    assert measure(Job("clean", 0), "q", clean, clean) == (0, 0)
    with pytest.raises(BudgetError, match=r"clean/q\.png"):
        measure(Job("clean", 0), "q", clean, changed)
    job = Job("odfa", 4, load_attack("odfa", eps=4))
    with pytest.raises(BudgetError, match=r"odfa.*q\.png differs .* by up to 5 levels"):
        measure(job, "q", clean, changed)
    with pytest.raises(BudgetError, match=r"\(5, 4\)"):
        measure(job, "q", clean, np.zeros((5, 4, 3), dtype=np.uint8))


def test_the_length_of_a_change_is_that_of_its_values() -> None:
    rng = np.random.default_rng(0)
    clean, changed = rng.integers(0, 256, (2, 64, 48, 3), dtype=np.uint8)
    whole = Job("odfa", 255, load_attack("odfa", eps=255))
    length = np.linalg.norm(changed / 255 - clean / 255)
    assert measure(whole, "q", clean, changed)[1] == pytest.approx(length, rel=1e-12)
    black, white = np.zeros_like(clean), np.full_like(clean, 255)
    assert measure(whole, "q", black, white) == (255, math.sqrt(clean.size))


# -- the worst case ------------------------------------------------------------------------------


def test_the_worst_is_never_better_than_any_member(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(plan(attacks=("worst", "uturn:steps=20"), eps=(3,)), out, progress=False)
    table = {row["attack"]: row for row in rows(out)}
    assert list(table) == ["clean", *MEMBERS, "worst"]
    queries = pq.read_table(out / "queries.parquet").to_pylist()
    by_name = {name: [q for q in queries if q["attack"] == name] for name in table}
    for i, worst in enumerate(by_name["worst"]):
        members = [by_name[name][i] for name in MEMBERS]
        assert {m["query"] for m in members} == {worst["query"]}
        assert worst["first_match_rank"] == max(m["first_match_rank"] for m in members)
        assert worst["ap"] == min(m["ap"] for m in members)
        files = [
            out / "images" / Job(name, 3).folder / f"{worst['query']}.png"
            for name in ("worst", *MEMBERS)
        ]
        pictures = [decode(file).tobytes() for file in files]
        assert pictures[0] in pictures[1:]
    for key in ("recall@1", "recall@5", "recall@10", "map"):
        assert table["worst"][key] <= min(table[name][key] for name in MEMBERS)
    assert table["worst"]["gradients"] == sum(table[name]["gradients"] for name in MEMBERS)


# -- what survives -------------------------------------------------------------------------------


def test_survival_is_scored_from_the_coded_picture(tmp_path: Path) -> None:
    """Each channel's column equals an evaluation of the pictures that were put through it."""
    out = tmp_path / "run"
    channels = tuple(CHANNELS)
    run(plan(attacks=("odfa",), eps=(8,), survive=channels), out, progress=False)
    results = rows(out)
    assert [set(row["survive"]) for row in results] == [set(channels)] * 2
    for channel in channels:
        folder = tmp_path / channel
        for picture in (out / "images/odfa/eps8").glob("*.png"):
            encode(folder / picture.name, CHANNELS[channel](decode(picture)))
        split = load_data("glyphs")
        again = replace(split, query=replace_queries(split.query, folder))
        values = evaluate(load_victim("glyph_net"), again, progress=False)
        assert results[1]["survive"][channel]["recall@1"] == pytest.approx(values["recall@1"])
        assert results[1]["survive"][channel]["map"] == pytest.approx(
            values["map (plain)"], abs=1e-5
        )
    columns = pq.read_table(out / "queries.parquet").column_names
    assert {"ap|jpeg75", "first_match_rank|resize"} <= set(columns)
    assert "R@1 jpeg75" in table(results)
    assert "R@1 jpeg75" in html.write(out).read_text(encoding="utf-8")


def test_channels_change_little_and_keep_the_size() -> None:
    picture = load_data("glyphs").query.read(0)[:27, :30]
    for channel in CHANNELS.values():
        seen = channel(picture)
        assert seen.shape == picture.shape
        assert 0 < np.abs(seen.astype(int) - picture).mean() < 25
    with pytest.raises(SpecError, match="jpeg75, jpeg95, resize"):
        plan(survive=("webp",))


# -- kill and resume -----------------------------------------------------------------------------


def command(out: Path) -> list[str]:
    base = [sys.executable, "-m", "uturn", "sweep", "--victim", "glyph_net", "--data", "glyphs"]
    return [*base, *SMALL, "--device", "cpu", "--out", str(out), "--quiet"]


def environment(out: Path) -> dict[str, str]:
    """With a place of this run's own where the features of the gallery are kept."""
    return {**os.environ, "UTURN_CACHE": str(out.with_name(f"{out.name}-kept"))}


def parts(out: Path, *kinds: str) -> list[Path]:
    """Committed parts: ``*.json`` are attacked batches, ``*.npy`` pieces of the gallery."""
    places = (out / "parts", Path(environment(out)["UTURN_CACHE"]))
    found = (path for place in places for kind in kinds for path in place.rglob(kind))
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def stop_midway(
    out: Path, how: signal.Signals, after: int, kind: str = "*.json"
) -> subprocess.Popen[str]:
    """Start a sweep and stop it once ``after`` parts are committed."""
    process = subprocess.Popen(
        command(out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(out),
    )
    deadline = time.monotonic() + 300
    while len(parts(out, kind)) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(how)
    return process


def test_kill_9_and_resume_give_the_undisturbed_numbers(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    whole = {"check": True, "capture_output": True}
    subprocess.run(command(undisturbed), env=environment(undisturbed), **whole)
    committed: dict[Path, int] = {}
    for kind, after in (("*.npy", 3), ("*.npy", 20), ("*.json", 1), ("*.json", 11), ("*.json", 30)):
        process = stop_midway(killed, signal.SIGKILL, after, kind)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "results.json").exists()
        # What an earlier try had committed was not done again.
        assert all(path.stat().st_ino == written for path, written in committed.items())
        committed = {path: path.stat().st_ino for path in parts(killed, "*.json", "*.npy")}
        assert len(parts(killed, kind)) >= after
    subprocess.run(command(killed), env=environment(killed), **whole)
    assert rows(killed) == rows(undisturbed)
    columns = [pq.read_table(out / "queries.parquet").to_pylist() for out in (killed, undisturbed)]
    assert columns[0] == columns[1]
    for picture in (undisturbed / "images").rglob("*.png"):
        twin = killed / picture.relative_to(undisturbed)
        assert twin.read_bytes() == picture.read_bytes()


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = stop_midway(tmp_path / "run", signal.SIGINT, 2)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert len(parts(tmp_path / "run", "*.json")) >= 2


# -- protocols -----------------------------------------------------------------------------------


def test_market_protocol_end_to_end(tmp_path: Path) -> None:
    """Junk and the same camera are ignored, and a query without a match is reported."""
    gallery = [
        "-1_c2s1_000001_01.jpg",
        "0000_c2s1_000001_01.jpg",
        "0002_c1s1_000001_02.jpg",
        "0002_c2s1_000001_02.jpg",
        "0003_c1s1_000001_02.jpg",
    ]
    query = ["0002_c1s1_000451_03.jpg", "0003_c1s1_000451_03.jpg"]
    root = write_market(tmp_path / "market", gallery, query)
    # The junk picture and the one in the query's own camera are the query itself.
    asked = decode(root / "query" / query[0])
    for name in (gallery[0], gallery[2]):
        encode(root / "bounding_box_test" / name, asked)
    out = tmp_path / "run"
    table = run(
        plan(data=f"market1501:{root}", queries=None, attacks=("odfa",), eps=(4,)),
        out,
        progress=False,
    )
    assert table[0]["flags"] == ["no-match: 1 queries have no relevant item and are left out"]
    shown = json.loads((out / "ranklists.json").read_bytes())["queries"][0]["items"]
    names = {item["name"] for item in shown}
    assert names == {"0000_c2s1_000001_01", "0002_c2s1_000001_02", "0003_c1s1_000001_02"}
    assert [i["name"] for i in shown if i["relevant"]] == ["0002_c2s1_000001_02"]
    first = pq.read_table(out / "queries.parquet").to_pylist()
    assert first[0]["first_match_rank"] in (1, 2, 3)
    assert first[1]["first_match_rank"] is None
    assert not math.isnan(table[0]["map"])


@pytest.mark.parametrize("at", ["model", "native"])
def test_pictures_of_many_shapes_with_their_proportions_kept(tmp_path: Path, at: At) -> None:
    """Landmarks and other photographs: no two need have the same shape on the victim's grid."""
    rng = np.random.default_rng(0)
    for number in range(12):
        height, width = rng.integers(10, 60, 2)
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        encode(tmp_path / "data" / f"class{number % 3}" / f"{number}.png", picture)
    shaped = Plan(
        victim="tests.test_preprocessing:a_small_network,size=32x32,fit=within",
        data=f"folder:{tmp_path / 'data'}",
        attacks=("odfa", "tma:steps=2"),
        eps=(4,),
        batch_size=5,
        at=at,
        survive=("resize",),
    )
    clean, odfa, _ = run(shaped, tmp_path / "run", progress=False)
    assert clean["queries"] == 12
    assert odfa["cosine"] < clean["cosine"]
    shapes = set()
    for file in (tmp_path / "run" / "images" / "odfa").rglob("*.png"):
        before = decode(tmp_path / "run" / "images" / "clean" / file.relative_to(file.parents[1]))
        shapes.add(before.shape)
        assert decode(file).shape == before.shape
        assert np.abs(decode(file).astype(int) - before).max() <= 4
    assert len(shapes) > 6
    assert (max(max(shape) for shape in shapes) <= 32) == (at == "model")
