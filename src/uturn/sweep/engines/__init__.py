"""Engines: where the work of a sweep is done. One file each; the results do not depend on it."""

from __future__ import annotations

from uturn import specs
from uturn.sweep.engines.engine import Crew, Engine
from uturn.sweep.engines.in_process import InProcess
from uturn.sweep.engines.ray import Ray

__all__ = ["ENGINES", "Crew", "Engine", "load_engine"]

ENGINES: dict[str, type[InProcess | Ray]] = {"in-process": InProcess, "ray": Ray}


def load_engine(spec: str) -> Engine:
    """An engine from a spec: ``in-process``, ``ray`` or ``ray:ADDRESS,workers=4,threads=2``.

    Raises:
        SpecError: unknown name or option, or the engine's package is missing.

    >>> load_engine("in-process")
    InProcess()
    """
    parsed = specs.Spec.parse(spec)
    name = specs.choose("engine", parsed.name, ENGINES)
    engine: Engine = specs.call("engine", ENGINES[name], parsed)
    return engine
