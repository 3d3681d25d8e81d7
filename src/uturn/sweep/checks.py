"""Distrust: what is certified from the files, and what a result row must confess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from uturn.data.pictures import Picture
from uturn.errors import BudgetError
from uturn.sweep.plan import Job
from uturn.sweep.store import Row
from uturn.types import LEVELS, Perturbation


def measure(
    job: Job, query: str, clean: Picture, scored: Picture, *, lossy: bool = False
) -> tuple[int, float]:
    """Distance of the decoded picture from the decoded clean one: L∞ in levels, L2 in pixels.

    ``lossy`` pictures went through a codec that keeps no budget, and are only measured.

    Raises:
        BudgetError: another size, or beyond the job's threat. Such a picture is never scored.
    """
    if clean.shape != scored.shape:
        raise BudgetError(
            f"{job.folder}/{query}.png is {scored.shape[:2]}, its clean original {clean.shape[:2]}"
        )
    change = scored.astype(np.int16) - clean
    levels = int(np.abs(change).max())
    if not (lossy or _allowed(job, change)):
        raise BudgetError(
            f"{job.folder}/{query}.png differs from its clean original by up to {levels} levels, "
            "which its threat does not allow: a bug in the attack, or a disk that changes files"
        )
    # In whole numbers, and not by `norm`, whose BLAS starts threads that keep others waiting.
    squares = np.square(change, dtype=np.int32).sum(dtype=np.int64)
    return levels, math.sqrt(squares) / LEVELS


def _allowed(job: Job, change: npt.NDArray[np.int16]) -> bool:
    threat = job.threat
    if threat is None:
        return not change.any()
    delta = torch.from_numpy(change).permute(2, 0, 1)[None].float()  # (1, 3, H, W), levels
    return bool(threat.allows(threat.size(delta)))


CLIMBED = ("loss_start", "loss_late", "loss_end", "rise")
"""Columns of `climbed`."""


def climbed(found: Perturbation) -> list[Row]:
    """Per picture the objective before the first step, late, and before the last; nothing if none.

    ``late`` steps before the last (see there), and to first order what one level along the sign of
    the first gradient adds (`Perturbation.rise`).
    """
    if found.rise is None:
        return []
    steps = len(found.losses)
    places = (0, steps - 1 - late(steps), steps - 1)
    columns = [*(found.losses[place] for place in places), found.rise]
    values = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(CLIMBED, each, strict=True)) for each in values]


def late(steps: int) -> int:
    """How many of the ways between ``steps`` looks at the objective are the late ones: a quarter.

    >>> [late(steps) for steps in (1, 2, 5, 10, 100)]
    [0, 1, 1, 2, 24]
    """
    return max(1, (steps - 1) // 4) if steps > 1 else 0


def flags(rows: list[Row], eps: float, left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """What a reader of one result row must know; ``rows`` are its queries.

    ``left_out`` are the queries and gallery pictures that could not be read.
    """
    found = []
    unread = [f"{len(names)} of the {kind}" for kind, names in left_out.items() if names]
    if unread:
        found.append(f"unreadable: {' and '.join(unread)} could not be read and are left out")
    beyond = sum(row["linf_levels"] > eps for row in rows)
    if beyond:
        found.append(f"beyond: {beyond} queries differ from the clean ones by more than ε levels")
    unmatched = sum(row["matches"] == 0 for row in rows)
    if unmatched:
        found.append(f"no-match: {unmatched} queries have no relevant item and are left out")
    tied = sum(row["tied"] for row in rows)
    if tied:
        found.append(f"tied: the first match of {tied} queries ties with a wrong item")
    kept = sum(row.get("kept", False) for row in rows)
    if kept:
        found.append(f"monotone: {kept} queries were lost at a smaller ε and keep that picture")
    unchanged = sum(eps > 0 and row["linf_levels"] == 0 for row in rows)
    if unchanged:
        found.append(f"unchanged: the attack left {unchanged} queries as they were")
    return found
