"""Progress with a remaining time, on stderr."""

from __future__ import annotations

import sys
from typing import NoReturn

from tqdm import tqdm


def say(text: str, *, show: bool = True) -> None:
    """A line on stderr, above any bar."""
    if show:
        tqdm.write(text, file=sys.stderr)


def bar(total: int, what: str, unit: str, *, done: int = 0, show: bool = True) -> tqdm[NoReturn]:
    """A progress bar over ``total`` units, ``done`` of which an earlier run did."""
    return tqdm(
        total=total,
        initial=done,
        desc=what,
        unit=f" {unit}s",
        unit_scale=True,
        disable=not show,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,  # logs need a line now and then
    )
