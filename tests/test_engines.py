"""Engines: the same rows and pictures whoever does the work, dies of it, or finishes it."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from tests.conftest import RAW, Tiny
from tests.test_craft import pictures, stopping, tables
from uturn.cli import main
from uturn.data.pictures import encode
from uturn.errors import ArgumentError, EngineError, RunFolderError, SpecError
from uturn.report import html
from uturn.storage import place
from uturn.sweep import Plan, run
from uturn.sweep.agenda import Agenda
from uturn.sweep.compare import compare
from uturn.sweep.engines import load_engine
from uturn.sweep.engines import ray as engine
from uturn.sweep.loaded import Loaded
from uturn.sweep.plan import Job
from uturn.sweep.scorer import Scorer
from uturn.sweep.store import RunFolder
from uturn.victims.victim import Victim

QUERIES, BATCH = 12, 3
BRIGHT = "class3/2"
"""The query that is brighter than any other."""


class Moody(Tiny):
    """A network that is slow, waits until two processes attack it, or dies of a bright picture
    under attack, as files tell it.
    """

    def __init__(self, seed: int, mood: Path) -> None:
        super().__init__(seed)
        self.mood = mood

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            if (self.mood / "slow").exists():
                time.sleep(0.2)
            if (self.mood / "together").exists():
                (self.mood / f"at work {os.getpid()}").touch()
                while not together(self.mood):
                    time.sleep(0.01)
            if bool((x.flatten(1).mean(1) > 0.8).any()):
                for kind in ("once", "always"):
                    if (self.mood / kind).exists():
                        (self.mood / "once").unlink(missing_ok=True)
                        os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def together(mood: Path) -> bool:
    return len(list(mood.glob("at work *"))) >= 2


def a_moody_victim(mood: str) -> Victim:
    torch.manual_seed(1)
    preprocessing = dataclasses.replace(RAW, size=(12, 12))
    return Victim(name="moody", network=Moody(0, Path(mood)), preprocessing=preprocessing)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the workers have: how a sum is split decides its last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    (tmp_path / "mood").mkdir()
    return tmp_path / "mood"


@pytest.fixture
def plan(tmp_path: Path, mood: Path) -> Plan:
    """Four classes of three pictures each, in four batches."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    for label in range(4):
        ground = rng.integers(0, 180, (12, 12, 3))
        for number in range(3):
            noise = rng.integers(-9, 10, ground.shape)
            lighter = 60 + ground // 20 + 160 if f"class{label}/{number}" == BRIGHT else ground
            picture = np.clip(lighter + noise, 0, 255).astype(np.uint8)
            encode(folder / f"class{label}" / f"{number}.png", picture)
    return Plan(
        victim=f"tests.test_engines:a_moody_victim,mood={mood}",
        data=f"folder:{folder}",
        attacks=("odfa",),
        eps=(2, 4),
        batch_size=BATCH,
        seed=3,
    )


def bright_batch(plan: Plan) -> tuple[int, int]:
    """The number of the batch with the bright query, and of all batches."""
    names = Loaded.of(plan).split.query.names
    return names.index(BRIGHT) // BATCH, -(-len(names) // BATCH)


def undisturbed(plan: Plan, out: Path) -> Path:
    run(plan, out, progress=False)
    return out


def same(one: Path, other: Path) -> None:
    """Equal rows, seconds aside, equal rows per query, and the same files."""
    assert tables(one) == tables(other)
    assert pictures(one) == pictures(other)


def parts(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted((out / "parts").rglob("0*.json"))}


# -- specs, and what is lacking --------------------------------------------------------------------


def test_specs_name_engines() -> None:
    assert repr(load_engine("in-process")) == "InProcess()"
    with pytest.raises(SpecError, match="in-process, ray"):
        load_engine("dask")
    with pytest.raises(SpecError, match="has no option 'workers'"):
        load_engine("in-process:workers=2")


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'uturn\[ray\]'"):
        load_engine("ray")


# -- who may help with a run -----------------------------------------------------------------------


def test_only_who_sees_the_same_run_and_would_do_the_same_may_join(tmp_path: Path) -> None:
    begun = RunFolder(tmp_path / "run", {"seed": 1, "eps": (2, 4)})
    joined = RunFolder.join(begun.path, begun.header, {"seed": 1, "eps": (2, 4)}, {})
    assert joined.header == json.loads((begun.path / "run.json").read_bytes())
    with pytest.raises(RunFolderError, match=r"does not see the run in .*elsewhere"):
        RunFolder.join(tmp_path / "elsewhere", begun.header, {"seed": 1}, {})
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(RunFolderError, match="does not see"):
        RunFolder.join(begun.path, begun.header | {"started": "then"}, {"seed": 1}, {})
    with pytest.raises(RunFolderError, match="Every node needs") as told:
        RunFolder.join(begun.path, begun.header, {"seed": 2, "eps": (2, 4)}, {})
    assert "seed: 1 there, 2 now" in str(told.value)
    begun.header["versions"]["uturn"] = "0.0.1"
    begun.write_json("run.json", begun.header)
    with pytest.raises(RunFolderError, match=r'uturn: "0\.0\.1" there'):
        RunFolder.join(begun.path, begun.header, {"seed": 1, "eps": (2, 4)}, {})


def test_two_writers_of_one_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was thought dead may commit what somebody else is writing."""
    folder, sync, written = RunFolder(tmp_path, {}), os.fsync, set[str]()

    def slow(descriptor: int) -> None:
        first = not written
        written.update(path.name for path in tmp_path.rglob(".*.tmp"))
        if first and written:  # in the middle of its writing the other one writes it all
            monkeypatch.setattr(os, "getpid", lambda: 12345)
            folder.add_part(Job("clean", 0), 0, {"seconds": 0})
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    folder.add_part(Job("clean", 0), 0, {"seconds": 0})
    assert len(written) == 2
    assert folder.part(Job("clean", 0), 0) == {"seconds": 0}


# -- Ray -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine with a core each."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    from ray.cluster_utils import Cluster

    memory = 80 * 2**20
    node = {"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
    found = started(lambda: Cluster(initialize_head=True, head_node_args=node))
    started(lambda: found.add_node(num_cpus=1, object_store_memory=memory))
    yield found
    found.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """What ``start`` gives; Ray allows a node 30 s, which a busy machine with a cold disk needs."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:  # a plain one
            late = error
            if "timed out during startup" not in str(error):
                raise
    raise late


def at(cluster: Any, workers: int) -> Any:
    return load_engine(f"ray:{cluster.address},workers={workers}")


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_and_pictures_do_not_depend_on_the_workers(
    plan: Plan, tmp_path: Path, cluster: Any, workers: int
) -> None:
    whole = dataclasses.replace(plan, attacks=("odfa", "apgd:steps=4", "tma:steps=3"), eps=(2, 4))
    run(whole, tmp_path / "ray", engine=at(cluster, workers), progress=False)
    same(tmp_path / "ray", undisturbed(whole, tmp_path / "alone"))
    assert html.write(tmp_path / "ray").exists()


def test_a_killed_worker_loses_nothing(
    plan: Plan, mood: Path, tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed(plan, tmp_path / "alone")
    (mood / "once").touch()
    run(plan, tmp_path / "ray", engine=at(cluster, 1))
    assert not (mood / "once").exists()
    number, _ = bright_batch(plan)
    assert f"batch {number} (queries " in (told := capsys.readouterr().err)
    assert "is done again" in told
    same(tmp_path / "ray", tmp_path / "alone")


def test_a_batch_that_kills_is_left_and_named_and_another_engine_finishes(
    plan: Plan, mood: Path, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed(plan, tmp_path / "alone")
    monkeypatch.setattr(engine, "TRIES", 2)
    (mood / "always").touch()
    number, count = bright_batch(plan)
    with pytest.raises(
        EngineError, match=f"1 of {count} .*batch {number} .*2 times.* died"
    ) as told:
        run(plan, tmp_path / "ray", engine=at(cluster, 1), progress=False)
    assert "repeat the command" in str(told.value)
    (mood / "always").unlink()
    agenda = Agenda(plan, RunFolder(tmp_path / "ray", Loaded.of(plan).configuration()), split(plan))
    assert set(agenda.missing()) == {number}
    before = parts(tmp_path / "ray")
    finish_watched(plan, tmp_path / "ray", before, monkeypatch)
    same(tmp_path / "ray", tmp_path / "alone")


def split(plan: Plan) -> Any:
    return Loaded.of(plan).split


def finish_watched(
    plan: Plan, out: Path, before: dict[Path, int], monkeypatch: pytest.MonkeyPatch, **how: Any
) -> None:
    """Finish the run; what was committed ``before`` is not written again."""
    seen, clean_up = dict[Path, int](), RunFolder.clean_up

    def watched(self: RunFolder) -> None:
        seen.update(parts(out))
        clean_up(self)

    monkeypatch.setattr(RunFolder, "clean_up", watched)
    run(plan, out, progress=False, **how)
    assert before
    assert before.items() <= seen.items()
    assert len(seen) > len(before)


def test_a_batch_with_a_broken_picture_is_named_and_the_others_are_finished(
    plan: Plan, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed(plan, tmp_path / "alone")
    file = Path(plan.data.partition(":")[2]) / f"{BRIGHT}.png"
    content, build = file.read_bytes(), Scorer.build

    def damaging(*args: Any, **more: Any) -> Scorer:
        file.write_bytes(content[:100])  # after everything was embedded
        return build(*args, **more)

    monkeypatch.setattr(Scorer, "build", damaging)
    number, count = bright_batch(plan)
    names = Loaded.of(plan).split.query.names[number * BATCH : (number + 1) * BATCH]
    with pytest.raises(EngineError, match=f"1 of {count} .*batch {number} ") as told:
        run(plan, tmp_path / "ray", engine=at(cluster, 1), progress=False)
    assert f"queries {names[0]}, … 1 more …, {names[-1]}" in str(told.value)
    assert f"cannot read the picture {file}" in str(told.value)
    file.write_bytes(content)
    monkeypatch.setattr(Scorer, "build", build)
    before = parts(tmp_path / "ray")
    assert len(before) == 3 * (count - 1)
    finish_watched(plan, tmp_path / "ray", before, monkeypatch, engine=at(cluster, 1))
    same(tmp_path / "ray", tmp_path / "alone")


def test_a_picture_that_cannot_be_embedded_is_named_before_anything_is_crafted(
    plan: Plan, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(plan.data.partition(":")[2]) / f"{BRIGHT}.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"pictures 1 to 12 of the gallery: .*class3/2\.png"):
        run(plan, tmp_path / "ray", engine=at(cluster, 1), progress=False)
    assert not parts(tmp_path / "ray")


def test_ray_finishes_what_one_process_began(
    plan: Plan, tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed(plan, tmp_path / "alone")
    with monkeypatch.context() as patch:
        stopping(patch)[0] = 5
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "ray", progress=False)
    before = parts(tmp_path / "ray")
    assert len(before) == 5
    finish_watched(plan, tmp_path / "ray", before, monkeypatch, engine=at(cluster, 2))
    same(tmp_path / "ray", tmp_path / "alone")


def test_a_killed_node_loses_nothing(
    plan: Plan, mood: Path, tmp_path: Path, cluster: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last of those on the cluster: one node is left of it."""
    undisturbed(plan, tmp_path / "alone")
    (mood / "slow").touch()
    (mood / "together").touch()  # or one worker might do much before the node's own has begun
    node = next(iter(cluster.worker_nodes))

    def kill() -> None:
        while not together(mood) or len(parts(tmp_path / "ray")) < 2:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    run(plan, tmp_path / "ray", engine=at(cluster, 2))
    killer.join()
    assert "is done again" in capsys.readouterr().err
    same(tmp_path / "ray", tmp_path / "alone")


def test_a_wrong_address_is_told(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    with pytest.raises(EngineError, match=r"Ray cluster at 127\.0\.0\.1:9 .*refused.*ray status"):
        run(plan, tmp_path / "run", engine=load_engine("ray:127.0.0.1:9"), progress=False)


def test_options_out_of_range_are_refused(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    for spec, message in (
        ("ray:workers=0", "at least 1 worker"),
        ("ray:threads=0", "at least 1 thread"),
        ("ray:gpus=-1", "0 GPUs or more"),
    ):
        with pytest.raises(ArgumentError, match=message):
            load_engine(spec)
    assert load_engine("ray:host:6379,threads=2").address == "host:6379"  # type: ignore[attr-defined]
    assert load_engine("ray").needs("cuda") == {"CPU": 1, "GPU": 1}  # type: ignore[attr-defined]
    assert load_engine("ray:gpus=0.5").needs("cuda")["GPU"] == 0.5  # type: ignore[attr-defined]
    torch.set_num_threads(2)  # as it is here, so that the bits are
    assert load_engine("ray").needs("cpu") == {"CPU": 2}  # type: ignore[attr-defined]
    assert load_engine("ray:threads=3").needs("cpu") == {"CPU": 3}  # type: ignore[attr-defined]
    chosen = dataclasses.replace(plan, device="cuda:1")
    with (
        pytest.raises(ArgumentError, match="give --device cuda, not cuda:1"),
        load_engine("ray").crew(
            Loaded(chosen, [], split(plan)), RunFolder(tmp_path / "run", {}), progress=False
        ),
    ):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a half-begun Ray
@pytest.mark.parametrize("failures", [1, 2, 3])
def test_ray_is_started_again_where_it_does_not_come_up(
    failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    start, starts = ray.init, list[int]()

    def impatient(*args: Any, **settings: Any) -> None:
        starts.append(1)
        patience = "0" if len(starts) <= failures else "60"
        monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", patience)
        start(*args, **settings)

    monkeypatch.setattr(ray, "init", impatient)
    begun = load_engine("ray:local,workers=1,threads=1")
    if failures < 3:
        assert begun._connect("cpu", progress=False)
        assert ray.cluster_resources()["CPU"] == 1
        ray.shutdown()
    else:
        with pytest.raises(EngineError, match=r"in 3 tries .*Timed out.*in-process needs none"):
            begun._connect("cpu", progress=False)
    assert len(starts) == min(failures + 1, 3)
    gc.collect()  # Python warns here, and not in another test, of the processes that go with it


def test_ctrl_c_leaves_a_run_to_resume_and_no_processes(
    plan: Plan, mood: Path, tmp_path: Path
) -> None:
    """On a cluster of its own, which goes with it."""
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uturn[ray]'")
    out, ray_folder = tmp_path / "run", Path(tempfile.mkdtemp())  # sockets need short names
    (mood / "slow").touch()
    words = [sys.executable, "-m", "uturn", "sweep", "--victim", plan.victim, "--data", plan.data]
    words += ["--batch-size", str(BATCH), "--eps", "2,4", "--device", "cpu", "--attack", "odfa"]
    words += ["--out", str(out), "--engine", "ray:local,workers=1", "--quiet"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_TMPDIR": str(ray_folder)},
    )
    deadline = time.monotonic() + 120
    while len(parts(out)) < 4:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "the same command resumes" in errors
    assert "Traceback" not in errors
    assert parts(out)
    while left := whose(ray_folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    shutil.rmtree(ray_folder)


def whose(folder: Path) -> list[int]:
    """Processes that have this folder in their environment or among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in told:
            found.append(int(process.name))
    return found


# -- run folders under a URL -----------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    pytest.importorskip("upath", reason="universal_pathlib is not installed")
    return f"memory://{tmp_path.name}/run"


def test_a_run_folder_in_an_object_store_is_the_same_as_on_disk(
    plan: Plan, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after every second part, and resumed."""
    alone, out = undisturbed(plan, tmp_path / "alone"), place(url)
    left = stopping(monkeypatch)
    stops = 0
    while not left[0]:
        left[0] = 2
        try:
            run(plan, out, progress=False)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 5
    report = html.write(out)
    assert str(report) == f"{url}/report.html"
    assert report.read_bytes()[:15] == b"<!doctype html>"
    assert not (out / "parts").exists()
    for file in sorted(alone.rglob("*")):
        if file.is_file() and file.suffix != ".json":
            assert (out / file.relative_to(alone).as_posix()).read_bytes() == file.read_bytes()
    assert compare([alone, out]).pairs[0].lines
    with pytest.raises(RunFolderError, match="seed: 3 there, 4 now"):
        run(dataclasses.replace(plan, seed=4), out, progress=False)


def test_storage_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(SpecError, match="cannot use nowhere://bucket/run"):
        place("nowhere://bucket/run")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(SpecError, match=r"pip install 'uturn\[storage\]'"):
        place(url)


def test_the_command_line_takes_urls(url: str) -> None:
    words = ["sweep", "--victim", "glyph_net", "--data", "glyphs", "--queries", "4", "--quiet"]
    words += ["--attack", "odfa", "--eps", "4", "--device", "cpu", "--out", url]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 0, told.output
    assert f"report: {url}/report.html" in told.output
    again = CliRunner().invoke(main, ["report", url])
    assert again.exit_code == 0, again.output
    wrong = CliRunner().invoke(main, ["report", "nowhere://a"])
    assert "cannot use nowhere://a" in wrong.output
