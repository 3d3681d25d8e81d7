"""A contender in a process of its own, as anybody runs it.

What the C library does with freed memory depends on all that a process has done before, and the
choice to keep it holds for the whole process: in one that they share, contenders would be measured
by each other's leavings.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import torch

from benchmarks.harness import Do, Done
from uturn.memory import keep_freed_memory

SPARE = 6e9
"""Bytes that must be free for the next contender; one of ResNet-50 takes up to 3 GB."""


def apart(make: Callable[[], Do], *, keep: bool = False) -> Callable[[], Do]:
    """``make``, which can be pickled, in a child, which does the work there.

    With ``keep`` it keeps freed memory, as the command line does (`uturn.memory`). The child ends
    with its parent, or when what this returns is forgotten; or after its turn, where less than
    `SPARE` is free then. Another takes its place at the next, and does the work once before it
    counts.
    """

    def begin() -> Do:
        child: _Child | None = _Child(make, keep)

        def do() -> Done:
            nonlocal child
            if child is None:
                child = _Child(make, keep)
                child.work()
            done = child.work()
            if _free() < SPARE:
                child.end()
                child = None
            return done

        return do

    return begin


def side_by_side(make: Callable[[], Do], workers: int) -> Callable[[], Do]:
    """``make`` in ``workers`` children of one thread each, which do the work at the same time.

    What they take is divided by their number: it is told per piece of work, as of one child. They
    begin anew every time and do the work once before it counts, so that their memory, which they
    keep as in `apart`, is not held while others are at work.
    """

    def do() -> Done:
        children = [_Child(make, keep=True, threads=1) for _ in range(workers)]
        for _ in ("to warm up", "counted"):
            began = time.perf_counter()
            for child in children:
                child.go()
            found = [child.done() for child in children]
            wall = time.perf_counter() - began
        for child in children:
            child.end()  # or it would end beside who comes next
        return replace(found[0], seconds=wall / workers)

    return lambda: do


def _free() -> float:
    return float(os.sysconf("SC_AVPHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")


class _Child:
    def __init__(self, make: Callable[[], Do], keep: bool, threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        serve = (there, make, keep, threads)
        self.process = context.Process(target=_serve, args=serve, daemon=True)
        self.process.start()
        there.close()
        failure: Exception | None = self.pipe.recv()
        if failure is not None:
            raise failure

    def end(self) -> None:
        self.pipe.close()
        self.process.join()

    def work(self) -> Done:
        self.go()
        return self.done()

    def go(self) -> None:
        self.pipe.send(None)

    def done(self) -> Done:
        done = self.pipe.recv()
        if isinstance(done, Exception):
            raise done
        assert isinstance(done, Done)
        return done


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
