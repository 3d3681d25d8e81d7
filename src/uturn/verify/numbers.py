"""The numbers of a run: does its plan say so, and does each follow from those below it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from uturn._version import __version__
from uturn.report.folder import read_json, read_queries
from uturn.retrieval import metrics
from uturn.retrieval.index import read_index
from uturn.sweep import checks
from uturn.sweep.craft import extremes
from uturn.sweep.looks import Looks
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.run import Cost, Table
from uturn.sweep.scorer import Terms
from uturn.sweep.store import Row
from uturn.verify.notes import Notes

Block = tuple[str, str, float]
"""Who scored, an attack and its ε: a row of the table, of one seed after another."""


def of(blocks: Mapping[Block, list[Row]], victim: str, job: Job) -> list[Row]:
    """The rows of a job within its block."""
    block, count = blocks[victim, job.name, job.eps], len(blocks[victim, CLEAN, 0])
    return block[job.repeat * count : (job.repeat + 1) * count]


_MAYBE = (
    *("goal_rank", "goal_rank_clean", "goal_items", "goal_first", "kept", "label_rank", "asked"),
    *checks.CLIMBED,
)
"""Columns that only some jobs have; the table has them empty for the others."""


def planned(header: Mapping[str, Any], notes: Notes) -> Plan:
    """The plan that ``run.json`` spells out.

    Raises:
        UturnError, TypeError, ValueError, LookupError: it is none.
    """
    configuration = header["configuration"]
    names = {field.name for field in fields(Plan)}
    given = {key: value for key, value in configuration.items() if key in names}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    plan = Plan(**values)
    spelled = json.loads(json.dumps(plan.configuration()))
    if header["versions"]["uturn"] != __version__:
        notes.unchecked.append(
            f"what the attacks are spelled as: the run is of uturn {header['versions']['uturn']}"
        )
        return plan
    for key in given.keys() | {"jobs"}:
        if spelled[key] != configuration.get(key):
            notes.differ(f"run.json, configuration, {key}", configuration.get(key), spelled[key])
    notes.checked.append("run.json: the attacks are those of its plan")
    return plan


def per_query(folder: Path, plan: Plan, notes: Notes) -> dict[Block, list[Row]]:
    """The rows of ``queries.parquet``, in blocks; nothing if they are not those of the plan.

    Raises:
        RunFolderError: it cannot be read.
    """
    rows = read_queries(folder)
    wanted = [(name, job) for name in plan.victims for job in plan.jobs()]
    count, rest = divmod(len(rows), len(wanted))
    if rest or not count:
        notes.find("queries.parquet", f"has {len(rows)} rows for {len(wanted)} attacks and seeds")
        return {}
    asked, sound, blocks = _asked(rows[:count]), True, dict[Block, list[Row]]()
    for n, (name, job) in enumerate(wanted):
        block, key = rows[n * count : (n + 1) * count], (name, job.name, job.eps)
        blocks.setdefault(key, []).extend(block)
        drawn = plan.seed + job.repeat
        for row, expected in zip(block, asked, strict=True):
            found = ((row["victim"], row["attack"], row["eps"]), row["seed"], *_asked([row]))
            if found != (key, drawn, expected):
                sound = False
                where = f"queries.parquet, {_called(key)}, query {row['query']}"
                notes.differ(where, found, (key, drawn, expected))
    if not sound:
        return {}
    for block in blocks.values():
        for row in block:
            for name in _MAYBE:
                if row.get(name, 0) is None:
                    del row[name]
    notes.checked.append("queries.parquet: the same queries for every attack and ε of the plan")
    _same_sizes(plan, blocks, notes)
    _kept_and_worst(plan, blocks, notes)
    return blocks


def _asked(rows: Sequence[Row]) -> list[tuple[Any, ...]]:
    return [(row["query"], row["identity"], row["camera"], row["matches"]) for row in rows]


def _called(key: Block) -> str:
    victim, attack, eps = key
    return f"{attack} at ε={eps:g} by {victim}"


def _same_sizes(plan: Plan, blocks: Mapping[Block, list[Row]], notes: Notes) -> None:
    """Whoever scores a picture: it is as far from its clean original."""
    for block, rows in blocks.items():
        _, attack, eps = block
        for row, expected in zip(rows, blocks[plan.victim, attack, eps], strict=True):
            for key in ("linf_levels", "l2"):
                if row[key] != expected[key]:
                    where = f"queries.parquet, {_called(block)}, query {row['query']}, {key}"
                    notes.differ(where, row[key], expected[key])


def _kept_and_worst(plan: Plan, blocks: Mapping[Block, list[Row]], notes: Notes) -> None:
    """Rows and pictures that are taken over from other attacks."""
    own = {job: of(blocks, plan.victim, job) for job in plan.jobs()}
    for job, rows in own.items():
        if job.weaker is not None:
            _kept(job, rows, own[job.weaker], blocks[plan.victim, CLEAN, 0], notes)
        if job.members:
            members = [own[member] for member in job.members]
            _worst(job, rows, list(zip(*members, strict=True)), notes)


def _kept(job: Job, rows: list[Row], weaker: list[Row], clean: list[Row], notes: Notes) -> None:
    firsts = [
        torch.tensor([row["first_match_rank"] or torch.nan for row in of]) for of in (clean, weaker)
    ]
    lost = (metrics.attack_success(*firsts) == 1).tolist()
    for row, before, expected in zip(rows, weaker, lost, strict=True):
        where = f"queries.parquet, {job.name} at ε={job.eps:g}, query {row['query']}"
        if row.get("kept") is not expected:
            notes.differ(f"{where}, kept", row.get("kept"), expected)
        elif expected and row["sha256"] != before["sha256"]:
            notes.find(where, "keeps the picture of a smaller ε, and has another")


def _worst(job: Job, rows: list[Row], members: list[tuple[Row, ...]], notes: Notes) -> None:
    expected = [dict(row) for row in rows]
    extremes(members, [{"rows": expected}])
    for row, extreme, of in zip(rows, expected, members, strict=True):
        where = f"queries.parquet, {job.name} at ε={job.eps:g}, query {row['query']}"
        compare(where, row, extreme, notes)
        if row["sha256"] not in [member["sha256"] for member in of]:
            notes.find(where, "has a picture that no member has")


def table(
    folder: Path,
    plan: Plan,
    header: Mapping[str, Any],
    blocks: Mapping[Block, list[Row]],
    notes: Notes,
) -> None:
    """Whether ``results.json`` follows from the rows per query.

    Raises:
        RunFolderError: it cannot be read.
    """
    rows = read_json(folder, "results.json").get("rows")
    if not isinstance(rows, list) or len(rows) != len(blocks):
        notes.find("results.json", f"has no {len(blocks)} rows")
        return
    depth = read_index(str(plan.index), "cosine").depth
    made = Table(plan, header["configuration"].get("left out", {}))
    jobs, looks = [jobs[0] for jobs in plan.rows().values()], header.get("looks") or {}
    for number, victim in enumerate(plan.victims):
        there = rows[number * len(jobs) : (number + 1) * len(jobs)]
        own = {job: blocks[victim, job.name, job.eps] for job in jobs}
        # What was clocked, borrowed, built and asked again is told, and follows from nothing.
        index, classes = str(there[0].get("index")), "label_rank" in own[jobs[0]][0]
        terms = Terms(victim, index, depth, classes, str(plan.convention))
        costs = {
            job: Cost(row["seconds"], row["prior_gradients"])
            for job, row in zip(jobs, there, strict=True)
        }
        seen = Looks.read(looks[victim]) if victim in looks else None
        expected = json.loads(json.dumps(made.rows(terms, own, costs, seen)))
        for job, row, follows in zip(jobs, there, expected, strict=True):
            key = _called((victim, job.name, job.eps))
            compare(f"results.json, {key}", row, follows, notes)
    notes.checked.append("results.json: every number follows from queries.parquet")


def compare(where: str, there: Any, follows: Any, notes: Notes, near: float = 1e-9) -> None:
    """Note every leaf in which two JSON values differ; numbers by more than ``near``."""
    if isinstance(there, dict) and isinstance(follows, dict):
        for key in dict.fromkeys((*follows, *there)):
            name = f"{where}, {key}"
            if key in there and key in follows:
                compare(name, there[key], follows[key], notes, near)
            else:
                notes.find(name, "is missing" if key in follows else "does not belong there")
    elif isinstance(there, list) and isinstance(follows, list) and len(there) == len(follows):
        for n, pair in enumerate(zip(there, follows, strict=True)):
            compare(f"{where}[{n}]", *pair, notes, near)
    elif not same(there, follows, near):
        notes.differ(where, there, follows)


def same(there: Any, follows: Any, near: float) -> bool:
    """Whether two values are equal; numbers but for ``near``, relative above 1."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (there, follows))
    if not numbers:
        return bool(there == follows and type(there) is type(follows))
    if math.isnan(there) or math.isnan(follows):
        return math.isnan(there) and math.isnan(follows)
    return math.isclose(there, follows, rel_tol=near, abs_tol=near)
