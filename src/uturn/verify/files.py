"""The files of a run: is each the one that was written, and is each picture within its budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from uturn.data.pictures import decode
from uturn.errors import BudgetError, DataError
from uturn.parallel import threaded
from uturn.storage import inside
from uturn.sweep import checks
from uturn.sweep.lock import NAME
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.store import TABLES, Row, digest, seal
from uturn.types import LEVELS
from uturn.verify.notes import Notes

PAGES = ("report.html", "card.html", "card.md", "guard.json", "guard.md")
"""What `uturn report` and `uturn guard` make of a run, again and again."""


def sealed(header: dict[str, Any], notes: Notes) -> None:
    """Whether ``run.json`` is as the run has written it."""
    there = header.get("seal")
    if there is None:
        notes.find("run.json", "has no seal: it was changed, or the run is older than seals")
    elif there != seal(header):
        notes.find("run.json", "was changed: its seal is of another content")
    else:
        notes.checked.append("run.json: its seal")


def hashed(folder: Path, header: Mapping[str, Any], notes: Notes) -> None:
    """Whether the tables and the thumbnails are the files that ``run.json`` names."""
    listed = header.get("files")
    if not isinstance(listed, dict):
        notes.find("run.json", "lists no files")
        return
    for name in TABLES:
        if name not in listed:
            notes.find("run.json", f"does not list {name}")
    for name, expected in listed.items():
        if not inside(name):
            notes.find("run.json", f"lists a file outside the run: {name}")
            continue
        try:
            if digest(folder / name) != expected:
                notes.find(name, "is not the file that the run has written (SHA-256)")
        except OSError as error:
            notes.find(name, f"cannot be read ({error.strerror})")
    notes.checked.append(f"{len(listed)} files: their hashes")


def complete(folder: Path, listed: Iterable[str], pictures: Iterable[str], notes: Notes) -> None:
    """Whether nothing is there that does not belong to the run; `within` says what is missing."""
    known = {"run.json", NAME, *PAGES, *TABLES, *listed, *pictures}
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_file(path))
    for name in sorted(set(found) - known):
        notes.find(name, "is no part of the run")
    notes.checked.append("nothing is there that does not belong to the run")
    notes.unchecked.extend(
        f"{name}: it can be written again" for name in PAGES if (folder / name).exists()
    )


def _is_file(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def picture(job: Job, query: str) -> str:
    """Where the picture that is scored for a query lies in the run."""
    return f"images/{job.folder}/{query}.png"


def within(folder: Path, plan: Plan, own: Mapping[Job, list[Row]], notes: Notes) -> None:
    """Certify the distance of every picture from its clean original, in whole levels.

    ``own`` are the rows of the attacked victim: they hold what the run has measured, and the hash
    of each file that was scored.
    """
    lossy, certified = plan.mode == "paper", 0
    for job, rows in own.items():
        for row, wrong in zip(
            rows, threaded(partial(_wrong, folder, job, lossy), rows), strict=True
        ):
            certified += not wrong
            for says in wrong:
                notes.find(picture(job, row["query"]), says)
    notes.checked.append(
        f"{certified} pictures: the files that were scored, and in whole levels as far from their "
        "clean originals as the table says and their threat allows"
    )


def _wrong(folder: Path, job: Job, lossy: bool, row: Row) -> list[str]:
    """What is wrong with the picture of a row."""
    query, found = row["query"], list[str]()
    path, original = (folder / picture(of, query) for of in (job, Job(CLEAN, 0)))
    if not inside(query):
        return ["lies outside the run"]
    try:
        if digest(path) != row.get("sha256"):
            found.append("is not the file that was scored (SHA-256)")
        clean, scored = decode(original), decode(path)
        levels, _ = checks.measure(job, query, clean, scored, lossy=lossy)
    except OSError as error:
        return [*found, f"cannot be read ({error.strerror})"]
    except (BudgetError, DataError) as error:
        return [*found, str(error)]
    squares = int(((scored.astype(np.int64) - clean) ** 2).sum())
    length = math.sqrt(squares) / LEVELS
    if levels != row["linf_levels"] or not math.isclose(length, row["l2"], rel_tol=1e-12):
        found.append(
            f"differs from its clean original by {levels} levels, L2 {length} (√{squares} levels), "
            f"and queries.parquet says {row['linf_levels']} levels, L2 {row['l2']}"
        )
    return found
