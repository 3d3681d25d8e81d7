"""Work on many pictures at once, in threads: Pillow leaves the interpreter lock while it codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, starmap
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")
_THREADS = min(8, max(2, os.cpu_count() or 1))
"""More would wait for the interpreter lock."""


def threaded(function: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """``list(map(function, *columns))`` in a few threads; the first error is raised.

    Each thread takes one run of the items, because handing small pictures over one by one
    costs more than coding them.

    >>> threaded(pow, [2, 3, 4], [5, 2, 1])
    [32, 9, 4]
    """
    items = list(zip(*columns, strict=True))
    size = -(-len(items) // _THREADS) or 1
    runs = [items[begin : begin + size] for begin in range(0, len(items), size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda run: list(starmap(function, run)), runs)))


@contextmanager
def behind() -> Iterator[Executor]:
    """A thread for work behind the caller's back, in the order in which it is given.

    An error of that work is raised where its result is asked for. When the caller leaves, by an
    error or by Ctrl-C too, what runs is waited for and what has not begun is dropped.
    """
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(pool: Executor, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """``map(function, items)``, where ``pool`` works at the next item while one is in use."""
    following: Future[T] | None = None
    for item in items:
        present, following = following, pool.submit(function, item)
        if present is not None:
            yield present.result()
    if following is not None:
        yield following.result()
