"""A gallery's features, begun by a process of its own while this one imports torch and Gradio.

Importing holds the interpreter's lock for seconds, so a thread would wait. What is found
meanwhile lies in the cache, chunk by chunk, and `extract_all` goes on from there. This module
imports neither: it is to be quicker than they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from uturn.errors import UturnError


@contextmanager
def begun(victim: str, data: str, device: str) -> Iterator[Callable[[], None]]:
    """Embed the gallery of these specs elsewhere, until the function that is given is called.

    What goes wrong there is not told: it will go wrong here again, where it can be said.
    """
    half = str(max(1, (os.cpu_count() or 1) // 2))  # two programs on one core wait for each other
    elsewhere = subprocess.Popen(
        [sys.executable, "-m", __name__, victim, data, device],
        env={"OMP_NUM_THREADS": half, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        elsewhere.kill()  # the cache holds whole chunks only
        elsewhere.wait()

    try:
        yield end
    finally:
        end()


def main(victim: str, data: str, device: str) -> None:
    """Put the gallery's features into the cache, if there is one."""
    from uturn.data.catalog import load_data
    from uturn.retrieval.cache import Shelf
    from uturn.retrieval.extract import extract_all
    from uturn.victims.load import load_victim, pick_device

    with suppress(UturnError):
        seen = load_victim(victim, pick_device(device)).folded()
        if Shelf.of(seen) is not None:
            extract_all(seen, load_data(data).gallery, "gallery", progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
