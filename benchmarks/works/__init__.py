"""The works by name, in the order of the table. Each yields its cases for a `Setting`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.harness import Case
from benchmarks.setting import Setting
from benchmarks.works import (
    end_to_end,
    evaluation,
    explorer,
    gpu,
    memory,
    recall,
    startup,
    step,
    sweep,
)

WORKS: dict[str, Callable[[Setting], Iterator[Case]]] = {
    "step": step.cases,
    "recall": recall.cases,
    "sweep": sweep.cases,
    "end_to_end": end_to_end.cases,
    "evaluation": evaluation.cases,
    "memory": memory.cases,
    "startup": startup.cases,
    "explorer": explorer.cases,
    "gpu": gpu.cases,
}
