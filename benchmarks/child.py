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

from benchmarks.harness import Do, Done
from uturn.memory import keep_freed_memory


def apart(make: Callable[[], Do], *, keep: bool = False) -> Callable[[], Do]:
    """``make``, which can be pickled, in a child, which does the work there.

    With ``keep`` it keeps freed memory, as the command line does (`uturn.memory`). The child ends
    with its parent, or when what this returns is forgotten.
    """

    def begin() -> Do:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        context.Process(target=_serve, args=(there, make, keep), daemon=True).start()
        there.close()
        failure: Exception | None = here.recv()
        if failure is not None:
            raise failure

        def do() -> Done:
            here.send(None)
            done = here.recv()
            if isinstance(done, Exception):
                raise done
            assert isinstance(done, Done)
            return done

        return do

    return begin


def _serve(pipe: Connection, make: Callable[[], Do], keep: bool) -> None:
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
