"""What the numbers were computed on, and how long each step took, over kills and resumptions."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, final

import torch

from uturn.reproduce.files import read_json, write_whole


def machine(device: str) -> str:
    """Processor, cores, memory and torch's version, in one line."""
    cores, memory = len(os.sched_getaffinity(0)), _memory()
    parts = [f"{_processor()}, {cores} {'core' if cores == 1 else 'cores'}", f"{memory:.0f} GB"]
    if device.startswith("cuda"):
        parts.append(torch.cuda.get_device_name(device))
    return ", ".join([*parts, f"torch {torch.__version__}"])


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@functools.cache
def expected(preset: str) -> tuple[str, dict[str, float]]:
    """Where a preset's steps were timed, and the minutes of those that were, by step."""
    file = resources.files("uturn.reproduce") / "measured.json"
    found = json.loads(file.read_text(encoding="utf-8")).get(preset, {})
    return found.get("machine", ""), found.get("minutes", {})


@final
class Clock:
    """Wall time per step, kept in a file; a sitting that was killed has begun and not ended.

    Raises:
        RunFolderError: the file is damaged.
    """

    def __init__(self, file: Path, on: str) -> None:
        self.file, self.on = file, on
        self.steps: dict[str, list[dict[str, Any]]] = read_json(file) if file.exists() else {}

    @contextmanager
    def sitting(self, step: str) -> Iterator[None]:
        """Time what is done inside, also where it is stopped by an exception."""
        if any(sitting.get("finished") for sitting in self.steps.get(step, [])):
            self.steps[step] = []  # its product was removed: it is done again
        begun = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        sitting: dict[str, Any] = {"started": begun, "machine": self.on, "seconds": None}
        self.steps.setdefault(step, []).append(sitting)
        self._write()
        start = time.monotonic()
        try:
            yield
            sitting["finished"] = True
        finally:
            sitting["seconds"] = round(time.monotonic() - start, 1)
            self._write()

    def seconds(self, step: str) -> float:
        """What was counted for a step so far."""
        return sum(sitting["seconds"] or 0.0 for sitting in self.steps.get(step, []))

    def told(self, step: str) -> str:
        """How long a step took, for the page."""
        sittings = self.steps.get(step, [])
        killed = sum(sitting["seconds"] is None for sitting in sittings)
        if not sittings:
            return "–"
        more = "" if len(sittings) == 1 else f" in {len(sittings)} sittings"
        lost = f", and what {killed} killed did" if killed else ""
        return f"{duration(self.seconds(step))}{more}{lost}"

    def total(self, steps: Iterable[str]) -> str:
        """How long steps took together, for the page."""
        return duration(sum(map(self.seconds, steps)))

    def machines(self, steps: Iterable[str]) -> list[str]:
        """What steps were done on, each once."""
        return list(dict.fromkeys(s["machine"] for step in steps for s in self.steps.get(step, [])))

    def _write(self) -> None:
        write_whole(self.file, json.dumps(self.steps, indent=1) + "\n")


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
