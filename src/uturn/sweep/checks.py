"""Distrust: what is certified from the files, and what a result row must confess."""

from __future__ import annotations

import numpy as np

from uturn.data.pictures import Picture
from uturn.errors import BudgetError
from uturn.sweep.plan import Job
from uturn.sweep.store import Row


def measure(job: Job, query: str, clean: Picture, scored: Picture) -> tuple[int, float]:
    """Distance of the decoded picture from the decoded clean one: L∞ in levels, L2 in pixels.

    Raises:
        BudgetError: another size, or beyond the job's ε. Such a picture is never scored.
    """
    if clean.shape != scored.shape:
        raise BudgetError(
            f"{job.folder}/{query}.png is {scored.shape[:2]}, its clean original "
            f"{clean.shape[:2]}; delete both files and run again"
        )
    change = scored.astype(np.int16) - clean
    levels = int(np.abs(change).max())
    if levels > job.eps:
        raise BudgetError(
            f"{job.folder}/{query}.png differs from its clean original by {levels} levels, "
            f"more than the {job.eps:g} allowed; delete the file and run again"
        )
    return levels, float(np.linalg.norm(change / 255))


def flags(rows: list[Row]) -> list[str]:
    """What a reader of one result row must know; ``rows`` are its queries."""
    found = []
    unmatched = sum(row["matches"] == 0 for row in rows)
    if unmatched:
        found.append(f"no-match: {unmatched} queries have no relevant item and are left out")
    tied = sum(row["tied"] for row in rows)
    if tied:
        found.append(f"tied: the first match of {tied} queries ties with a wrong item")
    unchanged = sum(row["eps"] > 0 and row["linf_levels"] == 0 for row in rows)
    if unchanged:
        found.append(f"unchanged: the attack left {unchanged} queries as they were")
    return found
