"""What an engine is: it does the work of a sweep, and what comes out does not depend on it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from uturn.sweep.loaded import Kind, Loaded
from uturn.sweep.scorer import Scorer
from uturn.sweep.store import RunFolder

TITLES: dict[Kind, str] = {"gallery": "gallery", "query": "clean queries"}
"""What progress bars call the pictures of a split."""


class Crew(Protocol):
    """Those who are at work on one sweep."""

    def embed(self, victim: int, kind: Kind) -> Tensor:
        """Raw features ``(N, D)`` of all pictures of a kind, by the victim of this number.

        They are on the victim's device, and the same as of `uturn.retrieval.extract.extract_all`.

        Raises:
            UturnError: a picture cannot be read. What was embedded is kept (`retrieval.cache`).
        """
        ...

    def craft(self, scorers: list[Scorer]) -> None:
        """Bring every batch that the run folder lacks into it, as `uturn.sweep.craft` does.

        Raises:
            UturnError: something failed; what was committed before stays.
        """
        ...


class Engine(Protocol):
    """Where a sweep is done. It is no part of a run's identity: another may finish the run."""

    def crew(
        self, loaded: Loaded, folder: RunFolder, *, progress: bool
    ) -> AbstractContextManager[Crew]:
        """A crew for the sweep ``loaded`` into ``folder``; leaving the context dismisses it."""
        ...
