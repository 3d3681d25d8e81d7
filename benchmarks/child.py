"""A contender in a process of its own, as anybody runs it.

What the C library does with freed memory depends on all that a process has done before, and the
choice to keep it holds for the whole process: in one that they share, contenders would be measured
by each other's leavings.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from benchmarks.harness import Do, Done
from uturn.memory import keep_freed_memory


def apart(make: Callable[[], Do], *, keep: bool = False, workers: int = 0) -> Callable[[], Do]:
    """``make``, which can be pickled, in a child, which does the work there.

    With ``keep`` it keeps freed memory, as the command line does (`uturn.memory`). With ``workers``
    there are so many children of one thread each. All do the work at the same time, and what it
    took is divided by their number: it is told per piece of work, as if there were one child. They
    end with their parent, or when what this returns is forgotten.
    """

    def begin() -> Do:
        children = [_child(make, keep, 1 if workers else None) for _ in range(workers or 1)]
        for child in children:
            failure: Exception | None = child.recv()
            if failure is not None:
                raise failure

        def do() -> Done:
            began = time.perf_counter()
            for child in children:
                child.send(None)
            found = [child.recv() for child in children]
            wall = time.perf_counter() - began
            for done in found:
                if isinstance(done, Exception):
                    raise done
            first = found[0]
            assert isinstance(first, Done)
            return replace(first, seconds=wall / workers) if workers else first

        return do

    return begin


def _child(make: Callable[[], Do], keep: bool, threads: int | None) -> Connection:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, make, keep, threads), daemon=True).start()
    there.close()
    return here


def _serve(pipe: Connection, make: Callable[[], Do], keep: bool, threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)
    if keep:
        keep_freed_memory()
    try:
        do = make()
        pipe.send(None)
        while True:
            pipe.recv()
            began = time.perf_counter()
            done = do()
            pipe.send(replace(done, seconds=done.seconds or time.perf_counter() - began))
    except EOFError:
        return
    except Exception as error:
        pipe.send(error)
