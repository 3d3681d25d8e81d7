"""Ten thousand queries against a million: peak memory, and time as the gallery grows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.harness import Case, Contender, Do, Done, Target
from benchmarks.setting import Setting

PEAK = "peak, GB"
SLOPE = "seconds per million"


def cases(setting: Setting) -> Iterator[Case]:
    """At 0.1, 0.3 and 1 million gallery pictures, each in a process of its own."""
    queries, dimensions = setting.size(10_000, 50), setting.size(256, 16)
    sizes = [setting.size(gallery, gallery // 100) for gallery in (100_000, 300_000, 1_000_000)]

    def named(gallery: int) -> str:
        return f"uturn, {gallery / 1e6:g} M"

    def make(gallery: int) -> Callable[[], Do]:
        return lambda: lambda: _child(queries, gallery, dimensions)

    largest = named(sizes[-1])
    yield Case(
        work="memory",
        name="a million gallery pictures",
        title=f"ranks and AP of {queries} queries × 0.1, 0.3 and 1 M × {dimensions}",
        contenders=tuple(Contender(named(size), "ours", make(size)) for size in sizes),
        reference=named(sizes[0]),
        # Linear in the gallery: ten times as long, and a quarter for what does not grow evenly.
        targets=(Target(largest, 4.0, PEAK), Target(largest, 12.5)),
        most=1,
        cold=True,
    )


def _child(queries: int, gallery: int, dimensions: int) -> Done:
    command = [
        sys.executable,
        "-m",
        "benchmarks.million",
        *map(str, (queries, gallery, dimensions)),
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    slope = found["seconds"] * 1e6 / gallery
    return Done(seconds=found["seconds"], facts={PEAK: found["peak"], SLOPE: slope})
