"""One process that fuzzes one target, and the parent that outlives it.

With atheris inputs are chosen by the coverage of uturn's code, without it at random from the corpus
and what was found. The child notes each input before it runs it, in memory that it shares with
the parent: what killed or froze it is known.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import os
import random
import re
import struct
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from fuzz.target import Target

FINDINGS = Path(__file__).parent / "findings"
"""Inputs that found something, each with what it found; not kept by git."""

_HEAD = struct.Struct("<QQ")
_PATIENCE = 60.0
"""Seconds of the processor's time in one execution, after which native code is taken to hang."""
_SILENCE = 600.0
"""Seconds in which nothing at all happens."""
_RESTARTS = 20
_INSTRUMENTED = ["uturn", "tarfile", "zipfile", "gzip", "pickletools", "csv", "json", "http.client"]


@final
class Slate:
    """Shared memory: how many executions there were, and the input of the last."""

    def __init__(self, file: Path, size: int) -> None:
        if not file.exists():
            file.write_bytes(bytes(_HEAD.size + size))
        with file.open("r+b") as opened:
            self.map = mmap.mmap(opened.fileno(), 0)

    def note(self, count: int, data: bytes) -> None:
        """``data`` is about to be run, as number ``count``."""
        _HEAD.pack_into(self.map, 0, count, len(data))
        self.map[_HEAD.size : _HEAD.size + len(data)] = data

    def read(self) -> tuple[int, bytes]:
        """The last that was noted."""
        count, length = _HEAD.unpack_from(self.map, 0)
        return count, bytes(self.map[_HEAD.size : _HEAD.size + length])


@final
@dataclass(frozen=True)
class Told:
    """What came of fuzzing one target."""

    target: str
    executions: int
    seconds: float
    edges: int | None
    """Of uturn's code and some of the standard library's; None without atheris."""
    findings: tuple[Path, ...]


def fuzz(name: str, *, executions: int, seconds: float, corpus: Path, seed: int = 0) -> Told:
    """Fuzz a target in a process of its own, begun again where it was killed.

    New inputs that reach something new are put into ``corpus``.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    begun, done, edges, deaths = time.monotonic(), 0, None, 0
    before = set(FINDINGS.glob(f"{name}-*.txt"))
    while done < executions and time.monotonic() - begun < seconds and deaths < _RESTARTS:
        left = seconds - (time.monotonic() - begun)
        slate_file, log = corpus.with_suffix(".slate"), corpus.with_suffix(".log")
        slate_file.unlink(missing_ok=True)
        slate = Slate(slate_file, 1 << 20)
        words = [name, str(executions - done), f"{left:.0f}", str(corpus), str(slate_file)]
        with log.open("w") as told:
            child = subprocess.Popen(
                [sys.executable, "-m", "fuzz.engine", *words, str(seed + deaths)],
                stdout=told,
                stderr=subprocess.STDOUT,
                env=os.environ | {"UTURN_CACHE": "", "OMP_NUM_THREADS": "1"},
            )
            died = _watch(child, slate)
        count, data = slate.read()
        done += count
        found = re.findall(r"cov: (\d+)", log.read_text(errors="replace"))
        edges = int(found[-1]) if found else edges
        if died is not None:
            deaths += 1
            tail = log.read_text(errors="replace")[-3000:]
            keep(name, data, f"the process ended: {died}\n\n{tail}")
        elif count == 0 or child.returncode == 0:
            break
    spent = time.monotonic() - begun
    new = sorted(set(FINDINGS.glob(f"{name}-*.txt")) - before)
    return Told(name, done, spent, edges, tuple(new))


def _watch(child: subprocess.Popen[bytes], slate: Slate) -> str | None:
    """Wait for a child. What was wrong with its end; None if nothing was."""
    last, since, spent = -1, time.monotonic(), 0.0
    while child.poll() is None:
        time.sleep(0.2)
        count, _ = slate.read()
        state, used = _processor(child.pid)
        if count != last or state in "Tt":  # somebody has it wait
            last, since, spent = count, time.monotonic(), used
        elif used - spent > _PATIENCE or time.monotonic() - since > _SILENCE:
            child.kill()
            child.wait()
            return f"no end after {used - spent:.0f} s"
    return None if child.returncode == 0 else f"exit status {child.returncode}"


def _processor(pid: int) -> tuple[str, float]:
    """A process's state as Linux calls it, and the processor's seconds that it has used."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return told[0], (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def keep(name: str, data: bytes, why: str) -> Path:
    """Keep an input and what it found, once for each place in the code; return the text's path."""
    mark = hashlib.sha256("\n".join(_places(why)).encode()).hexdigest()[:10]
    FINDINGS.mkdir(exist_ok=True)
    file = FINDINGS / f"{name}-{mark}"
    if not file.exists() or file.stat().st_size > len(data):
        file.write_bytes(data)
        file.with_suffix(".txt").write_text(why)
    return file.with_suffix(".txt")


def _places(why: str) -> list[str]:
    """Where a traceback goes through uturn, and what it ends with; else the whole text."""
    places = re.findall(r'File ".*?(src/uturn/[^"]+)", line (\d+)', why)
    if not places:
        return [why]
    last = [line for line in why.splitlines() if line and not line.startswith(" ")][-1]
    return ["".join(place) for place in places[-2:]] + [last.partition(":")[0]]


def _work(words: Sequence[str]) -> None:
    """The child."""
    name, executions, seconds, corpus, slate_file, seed = words
    guided = importlib.util.find_spec("atheris") is not None
    with _instrumenting(guided):
        from fuzz.guards import room
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    slate, tally = Slate(Path(slate_file), 0), Counter[str]()
    count = 0
    with room(target) as run:

        def one(data: bytes) -> None:
            nonlocal count
            count += 1
            slate.note(count, data)
            try:
                tally[run(data)] += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                keep(name, data, "".join(traceback.format_exception(error)))
                tally["FOUND"] += 1

        for start in [*target.seeds(), *(path.read_bytes() for path in target.kept)]:
            one(start)
            mark = hashlib.sha256(start).hexdigest()[:16]
            (Path(corpus) / mark).write_bytes(start)
        if guided:
            _guided(target, one, int(executions) - count, float(seconds), Path(corpus), int(seed))
        else:
            _blind(target, one, int(executions) - count, float(seconds), Path(corpus), int(seed))
        print(dict(tally), flush=True)


@contextmanager
def _instrumenting(guided: bool) -> Iterator[None]:
    if not guided:
        yield
        return
    import torch  # noqa: F401 — not itself

    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        yield


def _guided(
    target: Target, one: Any, executions: int, seconds: float, corpus: Path, seed: int
) -> None:
    """By coverage. libFuzzer ends the process, so it is left in a fork of its loop's end."""
    atheris: Any = importlib.import_module("atheris")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed: bytes = (
            target.mutate(data, rng) if rng.random() < 0.7 else atheris.Mutate(data, most)
        )
        return changed[:most]

    quiet = [f"-handle_{signal}=0" for signal in ("segv", "bus", "abrt", "ill", "fpe", "xfsz")]
    options = [
        *(f"-runs={max(1, executions)}", f"-max_total_time={max(1, round(seconds))}"),
        *(f"-max_len={target.largest}", f"-seed={seed + 1}", "-timeout=0", "-rss_limit_mb=0"),
        *("-print_final_stats=0", "-len_control=0", "-reload=0", "-detect_leaks=0", *quiet),
    ]
    atheris.Setup(["fuzz", *options, str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


def _blind(
    target: Target, one: Any, executions: int, seconds: float, corpus: Path, seed: int
) -> None:
    """At random: changes to seeds, to kept inputs, and to changed ones."""
    rng, until = random.Random(seed), time.monotonic() + seconds
    parents = [path.read_bytes() for path in sorted(corpus.iterdir())]
    grown = list[bytes]()
    for _ in range(executions):
        if time.monotonic() > until:
            return
        parent = rng.choice(grown if grown and rng.random() < 0.3 else parents)
        child = target.mutate(parent, rng)[: target.largest]
        grown = [*grown[-200:], child] if rng.random() < 0.05 else grown
        one(child)


if __name__ == "__main__":
    _work(sys.argv[1:])
