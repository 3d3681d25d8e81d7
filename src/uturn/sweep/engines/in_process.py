"""The engine that needs nothing: this process does everything, batch after batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from torch import Tensor

from uturn.retrieval.extract import extract_all
from uturn.sweep.agenda import Agenda
from uturn.sweep.craft import craft
from uturn.sweep.engines.engine import TITLES, Crew
from uturn.sweep.loaded import Kind, Loaded
from uturn.sweep.scorer import Scorer
from uturn.sweep.store import RunFolder


@final
@dataclass(frozen=True)
class InProcess:
    """This process, on the plan's device. The first error stops it."""

    @contextmanager
    def crew(self, loaded: Loaded, folder: RunFolder, *, progress: bool) -> Iterator[Crew]:
        yield _Crew(loaded, folder, progress)


@final
@dataclass(frozen=True, eq=False)
class _Crew:
    loaded: Loaded
    folder: RunFolder
    progress: bool

    def embed(self, victim: int, kind: Kind) -> Tensor:
        by, pictures = self.loaded.victims[victim], self.loaded.pictures(kind)
        return extract_all(by, pictures, TITLES[kind], progress=self.progress)

    def craft(self, scorers: list[Scorer]) -> None:
        agenda = Agenda(self.loaded.plan, self.folder, self.loaded.split)
        missing = agenda.missing()
        with agenda.bar(missing, show=self.progress) as shown:
            craft(self.loaded.plan, self.folder, self.loaded.split, scorers, missing, shown)
