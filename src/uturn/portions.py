"""Work in portions: what does not fit into memory is done in halves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch

from uturn.errors import MemoryLimitError
from uturn.progress import say


@final
@dataclass
class Portion:
    """How many pictures are worked on at a time; it learns from what did not fit."""

    most: int

    def through(self, count: int, work: Callable[[range], None]) -> None:
        """Call ``work`` with one part of ``range(count)`` after another, `most` at the most.

        A part for which memory does not suffice is done again in halves, which are told, and all
        that follows is done in parts as small. Other errors pass.

        Raises:
            MemoryLimitError: there is too little memory for a single picture.
        """
        begin = 0
        while begin < count:
            part = range(begin, min(begin + self.most, count))
            try:
                work(part)
            except (RuntimeError, MemoryError) as error:
                self._halve(len(part), error)
            else:
                begin = part.stop

    def _halve(self, tried: int, error: Exception) -> None:
        if not lacks_memory(error):
            raise error
        if tried == 1:
            raise MemoryLimitError(
                f"there is too little memory for a single picture ({error}); close other programs, "
                "or choose smaller pictures or a smaller victim"
            ) from error
        self.most = tried // 2
        say(f"out of memory with {tried} pictures at a time; going on with {self.most}", show=True)


def lacks_memory(error: Exception) -> bool:
    """Whether ``error`` says that there is no memory left, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "can't allocate memory" in str(error)  # PyTorch's allocator on CPUs
