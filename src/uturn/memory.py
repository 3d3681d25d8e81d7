"""Freed memory, kept for what comes next."""

from __future__ import annotations

import ctypes

_TRIM, _PAD, _MAPPED = -1, -2, -3
"""``M_TRIM_THRESHOLD``, ``M_TOP_PAD`` and ``M_MMAP_THRESHOLD`` of glibc's malloc.h."""
_ALL, _AHEAD = 2**31 - 1, 256 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed instead of giving it back to the system.

    The maps of a network are made and freed in every pass. By default large ones are given back at
    once, and the system hands every page out anew, zeroed: a third of the time of a pass on a CPU
    (docs/speed.md). The process then stays as large as it was at its largest.

    It holds for the whole process, so libraries should leave it to programs; the command line
    does it. False where the C library is not glibc, and nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return all([mallopt(_MAPPED, _ALL), mallopt(_TRIM, _ALL), mallopt(_PAD, _AHEAD)])
