"""The Ray engine: workers on one machine or many, each with a victim of its own.

A worker does a batch with all its jobs and commits it to the run folder itself, as one process
alone does. The driver hands out numbers, hands those of a dead worker to another, and reads the
run folder at the end; so whoever dies, what was committed stays.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.errors import ArgumentError, EngineError, UturnError
from uturn.memory import keep_freed_memory
from uturn.optional import require
from uturn.progress import bar, say
from uturn.retrieval.extract import chunks, extract_all
from uturn.retrieval.index import read_index
from uturn.storage import anywhere, place
from uturn.sweep.agenda import Agenda, batches
from uturn.sweep.craft import craft
from uturn.sweep.engines.engine import TITLES, Crew
from uturn.sweep.loaded import Kind, Loaded
from uturn.sweep.plan import Plan
from uturn.sweep.scorer import Known, Scorer
from uturn.sweep.store import RunFolder

Actor: TypeAlias = Any
Reference: TypeAlias = Any
Features: TypeAlias = npt.NDArray[np.float32]

TRIES = 3
"""So often Ray is started, and a piece of work given to a worker that dies of it, or of something
else."""
GIVE_UP = 5
"""After so many failures in a row nothing more is tried: it is not the pictures."""
PATIENCE = 30.0
"""Seconds without a worker after which the user is told."""


@final
@dataclass(frozen=True)
class Ray:
    """Workers of a Ray cluster: ``ray``, ``ray:ADDRESS``, ``ray:workers=4,threads=2``.

    Without an address it is the cluster that runs on this machine, or one that is started for this
    sweep only; that is ``local``, too.

    Raises:
        SpecError: Ray is not installed. ArgumentError: a number is out of range.
    """

    address: str | None = None
    workers: int | None = None
    """None: as many as the cluster has room for, but no more than there are batches."""
    threads: int | None = None
    """Cores of each worker. None: as many as PyTorch uses in this process, because the last bits of
    sums depend on it; one where the plan's device is CUDA, which sums itself."""
    gpus: float | None = None
    """Of each worker; a half lets two share one. None: one where the plan's device is CUDA."""

    def __post_init__(self) -> None:
        _ray()
        if any(number is not None and number < 1 for number in (self.workers, self.threads)):
            raise ArgumentError(f"there is at least 1 worker, of at least 1 thread; got {self}")
        if self.gpus is not None and self.gpus < 0:
            raise ArgumentError(f"a worker has 0 GPUs or more; got {self}")

    @contextmanager
    def crew(self, loaded: Loaded, folder: RunFolder, *, progress: bool) -> Iterator[Crew]:
        if loaded.plan.device.startswith("cuda:"):
            raise ArgumentError(
                f"Ray chooses each worker's GPU; give --device cuda, not {loaded.plan.device}"
            )
        index = read_index(str(loaded.plan.index), "cosine")
        if index.alone:
            raise ArgumentError(
                f"{index} is a file that one process at a time can open, and every worker asks its "
                "index; use a Milvus server, or --engine in-process"
            )
        ray, started = _ray(), self._connect(loaded.plan.device, progress)
        crew = _Crew(ray, self, loaded, folder, progress)
        try:
            crew.gather()
            yield crew
        finally:
            crew.dismiss()
            if started:
                ray.shutdown()

    def _connect(self, device: str, progress: bool) -> bool:
        """Whether a connection was made; a program that has one uses that."""
        ray = _ray()
        if ray.is_initialized():
            return False
        quiet = {"logging_level": logging.ERROR, "log_to_driver": progress}
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address != "local":
            try:
                _knock(address or "auto")
                ray.init(address=address or "auto", **quiet)
                return True
            except Exception as error:  # refused, another version, a name that is no address
                if address:
                    raise EngineError(
                        f"cannot use a Ray cluster at {address} ({error}); `ray status` on one of "
                        "its machines tells its address, and --engine ray needs none"
                    ) from error
        threads = int(self.needs(device)["CPU"])
        cores = threads * self.workers if self.workers else max(threads, _cores())
        _start(ray, num_cpus=cores, **quiet)
        return True

    def needs(self, device: str) -> dict[str, float]:
        """What Ray keeps for a worker."""
        on_gpu = device.startswith("cuda")
        threads = self.threads or (1 if on_gpu else torch.get_num_threads())
        gpus = float(on_gpu) if self.gpus is None else self.gpus
        return {"CPU": threads} | ({"GPU": gpus} if gpus else {})


def _ray() -> Any:
    """Ray, or what to install."""
    # Ray warns until one says what becomes of CUDA's variable where no GPU is asked for: nothing.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return require("ray", "ray")


def _start(ray: Any, **settings: Any) -> None:
    """A cluster of this machine, and of this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    for left in reversed(range(TRIES)):
        try:
            with _own_signals():
                ray.init(address="local", include_dashboard=False, **settings)
            return
        except Exception as error:  # Ray raises plain ones
            # It forks, which a busy machine, or gRPC in this program (`uturn.retrieval.milvus`),
            # makes hang or fail at times.
            ray.shutdown()
            if not left:
                raise EngineError(
                    f"Ray did not start on this machine in {TRIES} tries ({error}); "
                    "--engine in-process needs none"
                ) from error


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens: Ray would try it for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what the program does on SIGTERM: Ray would end it without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@final
class _Worker:
    """A process of the cluster: everything is loaded once, then it does batch after batch."""

    loaded: Loaded
    folder: RunFolder

    def __init__(self, plan: Plan, out: str, here: str, threads: int) -> None:
        self.plan, self.out = plan, out
        self.scorers: list[Scorer] = []
        if Path(here).is_dir():
            os.chdir(here)  # relative paths in specs mean the driver's
        torch.set_num_threads(threads)
        keep_freed_memory()

    def begin(self, header: dict[str, Any]) -> None:
        """Load what the plan names, and make sure that it is what the driver has."""
        self.loaded = Loaded.of(self.plan)
        configuration = self.loaded.configuration()
        self.folder = RunFolder.join(place(self.out), header, configuration, Plan.defaults())

    def embed(self, victim: int, kind: Kind, part: range) -> Features:
        """Raw features ``(n, D)`` of a chunk of pictures."""
        pictures = self.loaded.pictures(kind).subset(np.array(part))
        by = self.loaded.victims[victim]
        found = extract_all(by, pictures, TITLES[kind], progress=False)
        features: Features = found.cpu().numpy()
        return features

    def craft(self, number: int, known: list[Known]) -> None:
        """Do what is missing of a batch, with the driver's scorers."""
        loaded = self.loaded
        if not self.scorers:
            self.scorers = [
                Scorer.like(name, self.plan, victim, loaded.split, each)
                for name, victim, each in zip(self.plan.victims, loaded.victims, known, strict=True)
            ]
        agenda = Agenda(self.plan, self.folder, loaded.split)
        missing = agenda.missing([number])
        with agenda.bar(missing, show=False) as shown:
            craft(self.plan, self.folder, loaded.split, self.scorers, missing, shown)


@final
@dataclass(eq=False)
class _Task:
    """A piece of work, what an error calls it, and how often a worker was lost with it."""

    called: str
    begin: Callable[[Actor], Reference]
    done: Callable[[Any], None]
    lost: int = 0


class _Lost(Exception):  # noqa: N818  (it is no failure: somebody else does the work)
    """A worker is gone, or may be damaged, before it has done what it was given."""


@final
@dataclass(eq=False)
class _Crew:
    """The driver's side: who is there, and what they are at."""

    ray: Any
    engine: Ray
    loaded: Loaded
    folder: RunFolder
    progress: bool
    starting: dict[Reference, Actor] = field(default_factory=dict)
    idle: list[Actor] = field(default_factory=list)
    busy: dict[Reference, tuple[Actor, _Task]] = field(default_factory=dict)
    refused: list[UturnError] = field(default_factory=list)
    """Why workers could not take part."""
    stillborn: int = 0
    """How many were lost before they could begin."""

    # -- who is there -------------------------------------------------------------------------

    def gather(self) -> None:
        """Ask for the workers; they load while others are at work."""
        for _ in range(self._count()):
            self._hire()

    def dismiss(self) -> None:
        """End all workers, in the middle of what they do."""
        for worker in (*self.idle, *self.starting.values(), *(w for w, _ in self.busy.values())):
            self.ray.kill(worker)

    def _count(self) -> int:
        plan, split = self.loaded.plan, self.loaded.split
        needs = self.engine.needs(plan.device)
        room = sum(
            int(min(node["Resources"].get(what, 0) / much for what, much in needs.items()))
            for node in self.ray.nodes()
            if node["Alive"]
        )
        wanted = self.engine.workers or room
        if not wanted:
            told = " and ".join(f"{much:g} {what}" for what, much in needs.items())
            raise EngineError(
                f"no machine of the Ray cluster has {told} for a worker; ask for less with "
                "threads= or gpus=, or give workers=N to wait until the cluster has grown"
            )
        return min(wanted, max(len(batches(plan, split)), len(chunks(len(split.gallery)))))

    def _hire(self) -> None:
        plan = self.loaded.plan
        needs = self.engine.needs(plan.device)
        options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0)}
        worker = (
            self.ray.remote(_Worker)
            .options(scheduling_strategy="SPREAD", **options)
            .remote(plan, anywhere(self.folder.path), str(Path.cwd()), int(needs["CPU"]))
        )
        self.starting[worker.begin.remote(self.folder.header)] = worker

    # -- what they do -------------------------------------------------------------------------

    def embed(self, victim: int, kind: Kind) -> Tensor:
        by, pictures = self.loaded.victims[victim], self.loaded.pictures(kind)
        found = dict[int, Features]()
        title = f"embedding the {TITLES[kind]} by {by.name}"
        with bar(len(pictures), title, "picture", show=self.progress) as shown:

            def task(part: range) -> _Task:
                def done(features: Features) -> None:
                    found[part.start] = features
                    shown.update(len(part))

                called = f"pictures {part.start + 1} to {part.stop} of the {TITLES[kind]}"
                return _Task(called, lambda w: w.embed.remote(victim, kind, part), done)

            self._through([task(part) for part in chunks(len(pictures))])
        joined = np.concatenate([found[start] for start in sorted(found)])
        return torch.from_numpy(joined).to(by.device)

    def craft(self, scorers: list[Scorer]) -> None:
        plan, split = self.loaded.plan, self.loaded.split
        agenda, cut = Agenda(plan, self.folder, split), batches(plan, split)
        missing = agenda.missing()
        known = self.ray.put([scorer.known for scorer in scorers])
        with agenda.bar(missing, show=self.progress) as shown:

            def task(number: int) -> _Task:
                def done(_: None) -> None:
                    shown.update(agenda.steps(number, missing[number]))

                names = [split.query.names[i] for i in cut[number]]
                called = f"batch {number} (queries {_shortly(names)})"
                return _Task(called, lambda w: w.craft.remote(number, known), done)

            self._through([task(number) for number in missing])

    def _through(self, tasks: Sequence[_Task]) -> None:
        """Have all ``tasks`` done, in any order; then tell of those that could not be.

        Raises:
            EngineError: some failed, or nobody is left to do them.
        """
        waiting, failed, in_a_row = deque(tasks), list[str](), 0
        while self.busy or (waiting and in_a_row < GIVE_UP):
            while waiting and self.idle and in_a_row < GIVE_UP:
                worker, task = self.idle.pop(), waiting.popleft()
                self.busy[task.begin(worker)] = (worker, task)
            for reference in self._arrived():
                if reference in self.starting:
                    self._begun(reference)
                    continue
                worker, task = self.busy.pop(reference)
                try:
                    result = self._result(reference, worker)
                except _Lost as lost:
                    self._hire()
                    task.lost += 1
                    if task.lost < TRIES:
                        waiting.append(task)
                        say(f"{task.called}, is done again: {lost}", show=self.progress)
                        continue
                    failed.append(f"{task.called}: {TRIES} times, {lost}")
                    in_a_row += 1
                except UturnError as error:
                    self.idle.append(worker)
                    failed.append(f"{task.called}: {error}")
                    in_a_row += 1
                else:
                    self.idle.append(worker)
                    task.done(result)
                    in_a_row = 0
        if failed:
            untried = f" {len(waiting)} more were not tried after that." if waiting else ""
            raise EngineError(
                f"{len(failed)} of {len(tasks)} pieces of work failed, the others are finished: "
                f"{'; '.join(failed)}.{untried} Mend the cause and repeat the command, which "
                f"does only what {self.folder.path} lacks"
            )

    def _arrived(self) -> list[Reference]:
        """What has come back: at least one answer."""
        if not (self.busy or self.starting):
            raise EngineError(f"no Ray worker can take part: {self.refused[0]}")
        told = False
        while True:
            pending = [*self.busy, *self.starting]
            ready, _ = self.ray.wait(pending, timeout=PATIENCE)
            if ready:
                return list(ready)
            if not (self.busy or told):
                say("waiting for Ray to find room for a worker", show=self.progress)
                told = True

    def _begun(self, reference: Reference) -> None:
        """A worker has loaded everything, or cannot."""
        worker = self.starting.pop(reference)
        try:
            self._result(reference, worker)
        except _Lost as lost:
            self.stillborn += 1
            if self.stillborn < TRIES:
                self._hire()
            else:
                self.refused.append(EngineError(f"{self.stillborn} could not begin, {lost}"))
        except UturnError as error:
            self.ray.kill(worker)
            self.refused.append(error)
            say(f"a Ray worker cannot take part: {error}", show=self.progress)
        else:
            self.idle.append(worker)

    def _result(self, reference: Reference, worker: Actor) -> Any:
        """What a worker answers.

        Raises:
            UturnError: it has looked, and says what is wrong. _Lost: it is gone.
        """
        from ray.exceptions import RayError, RayTaskError

        try:
            return self.ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UturnError):
                raise cause from None
            self.ray.kill(worker)  # who knows what state its GPU is in
            raise _Lost(f"{type(cause).__name__}: {cause}") from error
        except RayError as error:
            raise _Lost(f"its worker died ({_last_line(error)})") from error


def _shortly(names: Sequence[str]) -> str:
    """The first and the last, and how many are between them."""
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]}, … {len(names) - 2} more …, {names[-1]}"


def _last_line(error: Exception) -> str:
    """What a message of Ray comes to."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
