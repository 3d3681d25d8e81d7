"""Work on many pictures at once, in threads: Pillow leaves the interpreter lock while it codes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def threaded(function: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """``list(map(function, *columns))`` in four threads; the first error is raised."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        return list(pool.map(function, *columns))
