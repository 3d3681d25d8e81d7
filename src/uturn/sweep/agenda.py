"""What is left to do of a plan: its batches, and which of their jobs the run folder lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, final

from tqdm import tqdm

from uturn.data.split import Split
from uturn.progress import bar
from uturn.retrieval.extract import chunks
from uturn.sweep.plan import Job, Plan
from uturn.sweep.store import RunFolder


def batches(plan: Plan, split: Split) -> list[range]:
    """Cut by the configuration, never by where a run stopped or who does the work."""
    return chunks(len(split.query), plan.batch_size)


@final
@dataclass(frozen=True, eq=False)
class Agenda:
    """The batches of a plan, and how far its run folder is."""

    plan: Plan
    folder: RunFolder
    split: Split

    def missing(self, numbers: Sequence[int] | None = None) -> dict[int, list[Job]]:
        """Per batch (of ``numbers``; None: of all) the jobs of it that are not done."""
        jobs = list(self.plan.jobs())
        asked = range(len(batches(self.plan, self.split))) if numbers is None else numbers
        return {
            number: missing
            for number in asked
            if (missing := [job for job in jobs if not self.folder.has_part(job, number)])
        }

    def steps(self, number: int, jobs: Sequence[Job]) -> int:
        """Passes through victims that ``jobs`` make for a batch."""
        passes = sum(job.work + len(self.plan.transfer_to) for job in jobs)
        return passes * len(batches(self.plan, self.split)[number])

    def bar(self, missing: dict[int, list[Job]], *, show: bool) -> tqdm[NoReturn]:
        """A progress bar in `steps` over the whole plan, of which ``missing`` is left."""
        jobs = list(self.plan.jobs())
        numbers = range(len(batches(self.plan, self.split)))
        total = sum(self.steps(number, jobs) for number in numbers)
        left = sum(self.steps(number, missing[number]) for number in missing)
        return bar(total, "crafting and scoring", "step", done=total - left, show=show)
