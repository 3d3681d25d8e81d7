"""What a run outlives: kills at any moment, full disks, a second process, odd clocks, bad files."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.test_craft import data, pictures, stopping, tables  # noqa: F401  (the fixture)
from uturn.cli import main
from uturn.data.readable import unreadable
from uturn.data.split import Listing
from uturn.errors import DataError, RunFolderError
from uturn.retrieval.judge import Labels, judge_for
from uturn.storage import commit, write
from uturn.sweep import Plan, run, store
from uturn.sweep.loaded import Loaded
from uturn.sweep.lock import NAME, locked
from uturn.sweep.store import RunFolder
from uturn.verify import verify

SEED = 9
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")


@pytest.fixture(scope="module")
def plan(data: str) -> Plan:  # noqa: F811
    return Plan(
        victim="tests.test_craft:a_classifier",
        data=data,
        attacks=("fast", "odfa"),
        eps=(2, 4),
        batch_size=5,
        seed=3,
    )


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it is when nothing happens."""
    out = tmp_path_factory.mktemp("durability") / "whole"
    run(plan, out, progress=False)
    return out


def same(out: Path, whole: Path) -> None:
    """Equal rows, seconds aside, equal rows per query, the same files and nothing else."""
    assert tables(out) == tables(whole)
    assert pictures(out) == pictures(whole)
    found = [{p.relative_to(folder) for p in folder.rglob("*")} for folder in (out, whole)]
    assert found[0] == found[1]


def parts(out: Path) -> dict[str, int]:
    """The finished batches: their files, and which copy of each."""
    root = out / "parts"
    return {str(p.relative_to(root)): p.stat().st_ino for p in root.rglob("0*.json")}


# -- kill −9 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    """A process that has imported everything and computed nothing, to fork from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "uturn.sweep.run", "uturn.victims.load"])
    return context


def started(server: ForkServerContext, work: Callable[..., None], *of: Any) -> ForkServerProcess:
    process = server.Process(target=work, args=of)
    process.start()
    return process


def sweep(plan: Plan, out: Path, log: Path, deadly: int | None = None) -> None:
    """A run in a process of its own, which notes what it commits; it may die in a write."""
    torch.set_num_threads(1)
    add, writes = RunFolder.add_part, 0

    def noted(self: RunFolder, job: Any, batch: int, part: dict[str, Any]) -> None:
        add(self, job, batch, part)
        with log.open("a") as file:
            file.write(f"{job.folder}/{batch:05d}.json\n")

    def dying(self: Path, target: Path) -> Path:
        nonlocal writes
        writes += 1
        if writes == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    RunFolder.add_part = noted  # type: ignore[method-assign]
    replace = Path.replace
    Path.replace = dying  # type: ignore[method-assign, assignment]
    run(plan, out, progress=False)


def resumed(
    server: ForkServerContext, plan: Plan, out: Path, log: Path, whole: Path
) -> tuple[int, int]:
    """Finish a killed run: what was finished is not done again. How much was, and is."""
    before = parts(out)
    kept = {name for name in before if not (out / "results.json").exists()}
    log.write_text("")
    process = started(server, sweep, plan, out, log)
    process.join()
    assert process.exitcode == 0
    done = log.read_text().split()
    assert not kept & set(done)
    same(out, whole)
    return len(before), len(done)


def kills(
    server: ForkServerContext, plan: Plan, whole: Path, folder: Path, count: int
) -> list[tuple[int, int]]:
    """Kill ``count`` runs at random moments and finish each."""
    rng, log, lengths = np.random.default_rng(SEED), folder / "log", list[float]()
    for number in range(3):
        begun = time.perf_counter()
        started(server, sweep, plan, folder / f"timed{number}", log).join()
        lengths.append(time.perf_counter() - begun)
    found = []
    for number in range(count):
        out = folder / f"run{number}"
        process = started(server, sweep, plan, out, log)
        process.join(rng.uniform(0, 1.05 * sorted(lengths)[1]))
        process.kill()
        process.join()
        found.append(resumed(server, plan, out, log, whole))
    return found


@needs_fork
def test_runs_killed_at_random_moments_end_the_same(
    server: ForkServerContext, plan: Plan, whole: Path, tmp_path: Path
) -> None:
    kills(server, plan, whole, tmp_path, 4)


@pytest.mark.slow
@needs_fork
def test_200_runs_killed_at_random_moments_end_the_same(
    server: ForkServerContext, plan: Plan, whole: Path, tmp_path: Path
) -> None:
    found = kills(server, plan, whole, tmp_path, 200)
    jobs = len(list(plan.jobs())) * 3
    assert len(found) == 200
    # The moments were spread over the run: before, in the midst, and behind.
    assert len({before for before, _ in found}) > jobs / 2
    print(f"\n{sorted(before for before, _ in found)}")


@needs_fork
@pytest.mark.parametrize("deadly", [1, 2, 9, 33, 60, 78])
def test_a_kill_in_the_middle_of_a_write_loses_no_finished_batch(
    server: ForkServerContext, plan: Plan, whole: Path, tmp_path: Path, deadly: int
) -> None:
    """Between a file that is written aside and its name: first of all files, last of all tables."""
    out, log = tmp_path / "run", tmp_path / "log"
    process = started(server, sweep, plan, out, log, deadly)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(out.rglob(".*.tmp"))
    resumed(server, plan, out, log, whole)


def test_pictures_that_a_loss_of_power_has_damaged_are_made_again(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are on the disk when they are committed; their pictures may not be."""
    out = stopped_after(7, plan, tmp_path / "run", monkeypatch)
    before = parts(out)
    damaged = [out / "images/clean/class0/0.png", out / "images/fast/eps2/class1/1.png"]
    damaged[0].write_bytes(b"")
    damaged[1].unlink()
    said = list[str]()
    monkeypatch.setattr(store, "say", said.append)
    again = list[str]()
    commit = RunFolder.add_part

    def noted(self: RunFolder, job: Any, batch: int, part: dict[str, Any]) -> None:
        again.append(f"{job.folder}/{batch:05d}.json")
        commit(self, job, batch, part)

    monkeypatch.setattr(RunFolder, "add_part", noted)
    run(plan, out, progress=False)
    assert "batches are done again: their pictures" in said[0]
    assert len(set(again) & set(before)) == int(said[0].split()[0]) <= 2
    same(out, whole)


def stopped_after(
    count: int,
    plan: Plan,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type = KeyboardInterrupt,
) -> Path:
    """A run that is stopped once ``count`` batches are committed."""
    with monkeypatch.context() as patch:
        stopping(patch, error)[0] = count
        with pytest.raises(error):
            run(plan, out, progress=False)
    assert len(parts(out)) == count
    return out


# -- disks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 9, 40, 64, 75, 90])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Full after so many files: the header, pictures, parts, tables."""
    out, left = tmp_path / "run", [room]

    def full(call: Any) -> Any:
        def writes(*args: Any) -> Any:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            left[0] -= 1
            return call(*args)

        return writes

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full(Path.write_bytes))
        patch.setattr(os, "fsync", full(os.fsync))
        with pytest.raises(RunFolderError, match=rf"cannot write {out}/.*No space left.*make room"):
            run(plan, out, progress=False)
    assert not list(out.rglob(".*.tmp"))  # what was half written takes no room
    before = parts(out)
    run(plan, out, progress=False)
    assert len(before) <= 15
    same(out, whole)


@pytest.mark.skipif(sys.platform == "win32", reason="limits as POSIX has them")
def test_a_file_that_may_not_grow_is_a_sentence(plan: Plan, whole: Path, tmp_path: Path) -> None:
    """The system itself refuses: of all files a table is the largest."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    try:
        with pytest.raises(RunFolderError, match=r"run/\w+\.\w+: File too large; make room"):
            run(plan, tmp_path / "run", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(parts(tmp_path / "run")) == 15
    run(plan, tmp_path / "run", progress=False)
    same(tmp_path / "run", whole)


def read_only(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing can be made below ``folder``; who runs tests as root may write anywhere else."""
    make, open_ = Path.mkdir, Path.open

    def refuse(call: Any) -> Any:
        def asked(self: Path, *args: Any, **options: Any) -> Any:
            reads = call is open_ and (args or ("r",))[0].startswith("r")
            if self.is_relative_to(folder) and not reads and not (call is make and self.exists()):
                raise OSError(errno.EROFS, "Read-only file system", str(self))
            return call(self, *args, **options)

        return asked

    patch.setattr(Path, "mkdir", refuse(make))
    patch.setattr(Path, "open", refuse(open_))


def test_a_target_that_cannot_be_written_is_a_sentence_before_anything_is_computed(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("uturn.sweep.run"), "_done", None)
    read_only(monkeypatch, tmp_path)
    with pytest.raises(RunFolderError, match=r"run/run\.json: Read-only file system; see that it"):
        run(plan, tmp_path / "run", progress=False)
    read_only(monkeypatch, whole)
    assert (
        run(plan, whole, progress=False) == json.loads((whole / "results.json").read_text())["rows"]
    )


@pytest.mark.parametrize("place", [write, commit])
def test_a_file_is_there_whole_or_as_it_was(
    place: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a" / "b" / "file"
    place(file, b"old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(OSError, match="no"):
        place(file, b"new")
    assert file.read_bytes() == b"old"
    assert [path.name for path in file.parent.iterdir()] == ["file"]


# -- two processes ---------------------------------------------------------------------------------


def hold(out: Path, configuration: dict[str, Any], ready: Any) -> None:
    with RunFolder.alone(out, configuration, {}):
        ready.set()
        time.sleep(60)


@needs_fork
def test_a_second_process_is_refused_until_the_first_is_gone(
    server: ForkServerContext, plan: Plan, whole: Path, tmp_path: Path
) -> None:
    out, ready = tmp_path / "run", server.Event()
    configuration = Loaded.of(plan).configuration()
    first = started(server, hold, out, configuration, ready)
    assert ready.wait(60)
    with pytest.raises(
        RunFolderError, match=f"process {first.pid} on .* is at work in {out}; wait"
    ):
        run(plan, out, progress=False)
    header = json.loads((out / "run.json").read_bytes())
    assert RunFolder.join(out, header, configuration, Plan.defaults()).header == header  # a worker
    first.kill()
    first.join()
    assert (out / NAME).exists()  # it could not tidy up, and that is no matter
    run(plan, out, progress=False)
    same(out, whole)


def test_a_lock_goes_with_its_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path):
            assert [path.name for path in tmp_path.iterdir()] == [NAME]
            with pytest.raises(RunFolderError, match="is at work"), locked(tmp_path):
                pass
        assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


# -- clocks ----------------------------------------------------------------------------------------


def test_nothing_hangs_on_what_the_clock_says(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps by years, back and forth, before and after a stop."""
    rng = np.random.default_rng(SEED)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(float(rng.uniform(0, 4e9)), tz)

    monkeypatch.setattr(time, "time", lambda: float(rng.uniform(0, 4e9)))
    monkeypatch.setattr(datetime, "datetime", Jumping)
    monkeypatch.setenv("UTURN_CACHE", str(tmp_path / "cache"))
    out = stopped_after(6, plan, tmp_path / "run", monkeypatch)
    for path in (*out.rglob("*"), *(tmp_path / "cache").rglob("*")):
        os.utime(path, (rng.uniform(0, 4e9),) * 2)
    run(plan, out, progress=False)
    same(out, whole)
    assert not verify(out, device="cpu", trust=True, progress=False).findings


# -- stops that ask --------------------------------------------------------------------------------


@needs_fork
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_says_how_to_go_on(
    plan: Plan, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    out, add, handlers = tmp_path / "run", RunFolder.add_part, signal.getsignal(how)

    def asked(self: RunFolder, *part: Any) -> None:
        add(self, *part)
        if len(parts(out)) == 4:
            os.kill(os.getpid(), how)

    monkeypatch.setattr(RunFolder, "add_part", asked)
    line = ["sweep", "--victim", plan.victim, "--data", plan.data, "--attack", "fast,odfa"]
    line += ["--eps", "2,4", "--batch-size", "5", "--seed", "3", "--device", "cpu", "--quiet"]
    line += ["--out", str(out)]
    stopped = CliRunner().invoke(main, line)
    assert stopped.exit_code == 1
    assert f"finished batches are kept in {out}, the same command resumes there" in stopped.output
    assert len(parts(out)) >= 4
    assert signal.getsignal(how) == handlers
    monkeypatch.setattr(RunFolder, "add_part", add)
    assert CliRunner().invoke(main, line).exit_code == 0
    for page in ("report.html", "card.html", "card.md"):
        (out / page).unlink()
    same(out, whole)


# -- pictures that cannot be read ------------------------------------------------------------------


@pytest.fixture
def broken(plan: Plan, tmp_path: Path) -> Plan:
    """The plan on a copy of its data, of which two pictures are broken."""
    folder = tmp_path / Path(plan.data.partition(":")[2]).name
    shutil.copytree(plan.data.partition(":")[2], folder)
    (folder / "class1/0.png").write_bytes((folder / "class1/0.png").read_bytes()[:50])
    (folder / "class2/2.png").write_text("no picture")
    return dataclasses.replace(plan, data=f"folder:{folder}")


def test_pictures_that_cannot_be_read_stop_the_run_or_are_left_out_and_told(
    broken: Plan, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"class[12]/[02]\.png"):
        run(broken, tmp_path / "failed", progress=False)
    out = tmp_path / "skipped"
    skipping = dataclasses.replace(broken, unreadable="skip")
    rows = run(skipping, out, progress=False)
    flag = "unreadable: 2 of the query and 2 of the gallery could not be read and are left out"
    assert all(flag in row["flags"] for row in rows)
    assert {row["queries"] for row in rows} == {10}
    told = json.loads((out / "run.json").read_bytes())["configuration"]
    assert told["left out"] == {key: ["class1/0", "class2/2"] for key in ("query", "gallery")}
    assert not (out / "images/clean/class1/0.png").exists()
    assert not verify(out, device="cpu", trust=True, progress=False).findings
    # Exactly the run on a data set that never had them.
    folder = Path(broken.data.partition(":")[2])
    for name in ("class1/0.png", "class2/2.png"):
        (folder / name).unlink()
    without = run(broken, tmp_path / "without", progress=False)
    assert [row["map"] for row in rows] == pytest.approx([row["map"] for row in without])
    assert pictures(out) == pictures(tmp_path / "without")
    # One more that breaks makes another run of it.
    again = dataclasses.replace(skipping, seed=4)
    (folder / "class2/1.png").write_text("no picture")
    with pytest.raises(RunFolderError, match="left out"):
        run(skipping, out, progress=False)
    assert len(run(again, tmp_path / "other", progress=False)) == 5


def test_where_nothing_can_be_read_it_says_so(broken: Plan) -> None:
    folder = Path(broken.data.partition(":")[2])
    for file in folder.rglob("*.png"):
        file.write_text("no picture")
    with pytest.raises(DataError, match=r"no query or no gallery picture of folder:.* can be read"):
        Loaded.of(dataclasses.replace(broken, unreadable="skip"))


def test_lists_of_a_data_set_are_amended(plan: Plan) -> None:
    """The relevant items of those who are left are the same pictures as before."""
    split = Loaded.of(plan).split
    names, rng = split.gallery.names, np.random.default_rng(SEED)
    listings = {
        name: Listing(*np.split(rng.permutation(len(names))[:7], [4])) for name in split.query.names
    }
    listed = dataclasses.replace(split, protocol="listed", listings=listings)
    gone = set(rng.choice(names, 5, replace=False).tolist())
    rest = listed.without([split.query.names[3]], gone)
    assert rest.query.names == tuple(n for n in split.query.names if n != split.query.names[3])
    cpu = torch.device("cpu")
    judgement = judge_for(rest)(Labels.of(rest.query, cpu), Labels.of(rest.gallery, cpu))
    for mask, field in zip(judgement.masks(), ("relevant", "ignored"), strict=True):
        for row, name in zip(mask, rest.query.names, strict=True):
            before = {names[i] for i in getattr(listings[name], field)}
            assert {rest.gallery.names[i] for i in row.nonzero()[:, 0]} == before - gone
    assert unreadable(rest) == {"query": {}, "gallery": {}}
