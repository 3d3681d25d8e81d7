"""What the numbers were computed on, and how long each step took, over kills and resumptions."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, final

import torch

from uturn.reproduce.files import read_json, write_whole

BEAT = 15.0
"""Seconds between two looks at the clock: what a kill can lose of a time."""


def machine(device: str) -> str:
    """Processor, cores, memory and torch's version, as far as the system tells, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}", *_memory()]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def _memory() -> list[str]:
    try:
        return [f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"]
    except (AttributeError, ValueError):  # Windows; a name that a system does not have
        return []


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


MEASURED = Path(__file__).with_name("measured.json")
"""By preset: the machine that its steps were timed on, and their minutes."""


@functools.cache
def expected(preset: str) -> tuple[str, dict[str, float]]:
    """Where a preset's steps were timed, and the minutes of those that were, by step."""
    found = json.loads(MEASURED.read_text(encoding="utf-8")).get(preset, {})
    return found.get("machine", ""), found.get("minutes", {})


def record(preset: str, on: str, minutes: Mapping[str, float]) -> None:
    """Keep the times of a preset's steps for `expected`, beside those of the same machine."""
    known = json.loads(MEASURED.read_text(encoding="utf-8"))
    before = known.get(preset, {})
    kept = {**(before["minutes"] if before.get("machine") == on else {}), **minutes}
    known[preset] = {"machine": on, "minutes": dict(sorted(kept.items()))}
    write_whole(MEASURED, json.dumps(known, indent=1) + "\n")


@final
@dataclass(frozen=True)
class Time:
    """How long something took, over all sittings.

    >>> print(Time(100, sittings=2, killed=1) + Time(42, sittings=1))
    2.4 min in 3 sittings, of which 1 was killed
    """

    seconds: float = 0.0
    sittings: int = 0
    killed: int = 0
    """So many were killed; of each, up to `BEAT` seconds are not counted."""

    def __add__(self, other: Time) -> Time:
        return Time(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        more = f" in {self.sittings} sittings" if self.sittings > 1 else ""
        was = "was" if self.killed == 1 else "were"
        lost = f", of which {self.killed} {was} killed" if self.killed else ""
        return f"{duration(self.seconds)}{more}{lost}"


@final
@dataclass(frozen=True)
class Clock:
    """Wall time per step, kept in a file for each and brought up to date every `BEAT` seconds.

    Programs that work on different steps of one folder do not disturb each other.
    """

    folder: Path
    on: str
    """The machine."""

    @contextmanager
    def sitting(self, step: str) -> Iterator[None]:
        """Time what is done inside, also where it is stopped by an exception or a kill."""
        before = self._sittings(step)
        if any(sitting.get("finished") for sitting in before):
            before = []  # its product was removed: it is done again
        begun = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        sitting: dict[str, Any] = {"started": begun, "machine": self.on, "seconds": 0.0}
        start, over = time.monotonic(), threading.Event()

        def tick() -> None:
            sitting["seconds"] = round(time.monotonic() - start, 1)
            told = {"step": step, "sittings": [*before, sitting]}
            write_whole(self._file(step), json.dumps(told, indent=1) + "\n")

        def beat() -> None:
            while not over.wait(BEAT):
                tick()

        tick()
        heart = threading.Thread(target=beat, daemon=True)
        heart.start()
        try:
            yield
            sitting["finished"] = True
        except BaseException:
            sitting["finished"] = False
            raise
        finally:
            over.set()
            heart.join()
            tick()

    def time(self, step: str) -> Time | None:
        """What was counted for a step so far; None if it was never begun.

        Raises:
            RunFolderError: its file is damaged.
        """
        sittings = self._sittings(step)
        if not sittings:
            return None
        return Time(
            sum(sitting["seconds"] for sitting in sittings),
            len(sittings),
            sum("finished" not in sitting for sitting in sittings),
        )

    def machines(self, steps: Iterable[str]) -> list[str]:
        """What steps were done on, each once."""
        return list(dict.fromkeys(s["machine"] for step in steps for s in self._sittings(step)))

    def _sittings(self, step: str) -> list[dict[str, Any]]:
        file = self._file(step)
        found: list[dict[str, Any]] = read_json(file)["sittings"] if file.exists() else []
        return found

    def _file(self, step: str) -> Path:
        return self.folder / f"{step.replace(' ', '_')}.json"


def duration(seconds: float) -> str:
    """A time for people.

    >>> duration(42), duration(100), duration(5400)
    ('42 s', '1.7 min', '1 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
