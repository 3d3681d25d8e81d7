"""The victim asked again: what it says of the pictures as they lie there, beside what the run says.

On the machine of the run, with its versions and as many threads, the numbers are the same to the
bit, and have to be. Elsewhere features differ in their last bits, which the cosines and the
threshold tell; and where two items score almost the same, which of them comes first may turn with
them. So there a place is held against the interval in which it moves if scores move by `NEAR`. An
index that answers with its first items has no such interval; few places may differ there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from uturn.data.channels import CHANNELS
from uturn.data.pictures import Picture, Pictures, decode
from uturn.errors import ArgumentError, DataError, UturnError
from uturn.parallel import threaded
from uturn.progress import bar
from uturn.report.folder import read_json
from uturn.retrieval.extract import extract_all
from uturn.retrieval.judge import Labels
from uturn.retrieval.ranking import Ranking, join, rank_chunk, scored
from uturn.sweep.agenda import batches
from uturn.sweep.craft import WORSE, extremes
from uturn.sweep.engines.engine import TITLES
from uturn.sweep.loaded import Loaded
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.scorer import SHOWN, Queries, Scorer
from uturn.sweep.store import Row
from uturn.verify.files import picture
from uturn.verify.notes import Notes
from uturn.verify.numbers import Block, compare, of, same
from uturn.victims.victim import At

NEAR = 1e-4
"""By how much a cosine may differ from the one of the run, and a score, relative to the largest
score that the query has."""

_SAME = 1e-9
"""Up to which a number is the same."""

_GOAL = 0.01
"""By which share of the ranking the place of a goal may differ."""

_CERTIFIED = {"linf_levels", "l2"}
"""What `uturn.verify.files` certifies."""

_FEW = 0.01
"""Of which share of its answers an index with a depth may place a query otherwise."""

_RANKED = {*WORSE, "tied"} - {"label_rank"}
"""Columns of a ranking, in which places may move."""

_DECISIVE = (
    "victim weights",
    "preprocessing",
    "test time",
    "similarity",
    "protocol",
    "data fingerprint",
    "left out",
)
"""What of a configuration has to be the same; where victims and pictures lie is no matter."""

_THUMBNAILS = "thumbnails/"


def again(
    folder: Path,
    header: Mapping[str, Any],
    plan: Plan,
    names: Sequence[str],
    blocks: Mapping[Block, list[Row]],
    notes: Notes,
    *,
    progress: bool,
) -> None:
    """Score the pictures of a run again and compare.

    ``plan`` says where victims and data are here, ``names`` what the run calls the victims. What
    is not there, or is another, is noted as not checked.
    """
    try:
        loaded = Loaded.of(plan, progress=progress)
        _require_same(header, loaded)
        scorers = _scorers(loaded, progress=progress)
    except (UturnError, OSError) as error:
        notes.unchecked.append(f"scores, and clean pictures beside those of the data set: {error}")
        return
    clean = [row["query"] for row in blocks[names[0], CLEAN, 0]]
    if clean != list(loaded.split.query.names):
        notes.find("queries.parquet", "has other queries than its plan draws from its data")
        return
    _Again(folder, header, loaded, scorers, names, blocks, notes)(progress=progress)


def _require_same(header: Mapping[str, Any], loaded: Loaded) -> None:
    """Raise `ArgumentError` where the run was made with something else than is here."""
    there, here = header["configuration"], json.loads(json.dumps(loaded.configuration()))
    there = dict(there)
    for each in (there, here):
        each["targets"] = list(each.get("targets", {}).values())
    for key in ("targets", *_DECISIVE):
        if there.get(key) != here.get(key):
            raise ArgumentError(
                f"the run was made with {key} {there.get(key)!r}, and here is {here.get(key)!r}; "
                "give --victim and --data where they are"
            )
    made, now = (header["versions"]["pillow"], metadata.version("pillow"))
    if made != now:
        raise ArgumentError(
            f"the run was made with Pillow {made}, here is {now}, which may resize and code "
            "pictures otherwise"
        )


def _scorers(loaded: Loaded, *, progress: bool) -> list[Scorer]:
    plan, split = loaded.plan, loaded.split
    return [
        Scorer.build(
            name,
            plan,
            victim,
            split,
            extract_all(victim, split.gallery, TITLES["gallery"], progress=progress),
            extract_all(victim, split.query, TITLES["query"], progress=progress),
            progress=progress,
        )
        for name, victim in zip(plan.victims, loaded.victims, strict=True)
    ]


@final
@dataclass(frozen=True, eq=False)
class _Look:
    """A batch of queries under one attack, scored again by everybody."""

    job: Job
    batch: range
    queries: Queries
    pictures: list[Picture]
    rows: list[list[Row]]
    """Of each scorer."""
    answers: list[Row]
    members: list[_Look]
    """What the worst is the worst of."""
    bounds: dict[int, tuple[list[Row], list[Row]]] = field(default_factory=dict)
    """Of each scorer, once they are asked for."""


@final
@dataclass(frozen=True, eq=False)
class _Again:
    """A run, and what it was made with."""

    folder: Path
    header: Mapping[str, Any]
    loaded: Loaded
    scorers: list[Scorer]
    names: Sequence[str]
    """What the run calls the scorers."""
    blocks: Mapping[Block, list[Row]]
    notes: Notes
    answers: dict[Job, list[Row]] = field(default_factory=dict)
    near: Notes = field(default_factory=Notes)
    """What is not the same, and near enough for another machine."""
    turned: set[Job] = field(default_factory=set)
    """The attacks of which a picture's cosine is another, if only by its last bit."""
    deep: set[tuple[int, Job, int]] = field(default_factory=set)
    """Whose index with a depth has placed a query otherwise, under which attack, and which."""

    def __call__(self, *, progress: bool) -> None:
        plan, split = self.loaded.plan, self.loaded.split
        self._facts()
        jobs = list(plan.jobs())
        with bar(len(split.query) * len(jobs), "scoring again", "picture", show=progress) as shown:
            for batch in batches(plan, split):
                for look in self._looks(batch, jobs):
                    shown.update(len(batch))
                    self.answers.setdefault(look.job, []).extend(look.answers)
                    for number in range(len(self.scorers)):
                        self._compare(look, number)
        answers = len(jobs) * len(split.query)
        if len(self.deep) > max(1, _FEW * answers):
            told = (
                f"{len(self.deep)} of {answers} answers of the index differ, and rounding moves few"
            )
            self.notes.find("queries.parquet", told)
        self._rank_lists(jobs)
        self._thumbnails()
        there, here = self.header.get("threshold"), self.scorers[0].facts()["threshold"]
        alike = there == here and not self.turned
        if alike:
            self.notes.findings.extend(self.near.findings)
        self.notes.checked.append(
            f"{len(self.blocks)} rows of the table: every query scored again from its picture, "
            + ("as by the machine of the run" if alike else self._elsewhere())
        )

    def _elsewhere(self) -> str:
        moved = len(self.near.findings)
        return f"by another than the run's: {moved} values differ and are within the tolerance"

    # -- what is scored -----------------------------------------------------------------------

    def _looks(self, batch: range, jobs: Sequence[Job]) -> Iterator[_Look]:
        """A batch under one attack after another; one whose files cannot be read is left out."""
        asked = self.loaded.split.query.subset(np.array(batch))
        try:
            clean = self._decoded(Job(CLEAN, 0), asked.names)
            self._originals(asked, clean)
            labels = Labels.of(asked, self.scorers[0].victim.device)
            queries = Queries(asked, clean, labels, shown=sum(i < SHOWN for i in batch))
            before = [scorer.look(clean) for scorer in self.scorers]
            done = dict[Job, _Look]()
            for job in jobs:
                members = [done[member] for member in job.members]
                done[job] = self._look(job, batch, queries, before, members)
                yield done[job]
        except (DataError, ArgumentError) as error:
            self.notes.unchecked.append(f"scores of queries {batch.start} to {batch.stop}: {error}")

    def _look(
        self,
        job: Job,
        batch: range,
        queries: Queries,
        before: list[Tensor],
        members: list[_Look],
    ) -> _Look:
        pictures = self._decoded(job, queries.pictures.names)
        insider = self.scorers[0].insider
        goal = insider.goal(job, queries.pictures.names, queries.labels, before[0])
        sizes = [(0, 0.0)] * len(batch)  # `uturn.verify.files` certifies them
        scores = [
            scorer.score(queries, features, pictures, sizes, goal)
            for scorer, features in zip(self.scorers, before, strict=True)
        ]
        if members:
            extremes(list(zip(*(member.rows[0] for member in members), strict=True)), scores)
        rows = [score["rows"] for score in scores]
        return _Look(job, batch, queries, pictures, rows, scores[0]["answers"], members)

    def _decoded(self, job: Job, names: Sequence[str]) -> list[Picture]:
        return threaded(decode, [self.folder / picture(job, name) for name in names])

    def _originals(self, asked: Pictures, clean: list[Picture]) -> None:
        """Whether the clean pictures are those of the data set."""
        for position, (name, there) in enumerate(zip(asked.names, clean, strict=True)):
            self._same_picture(
                picture(Job(CLEAN, 0), name), asked.read(position), there, self.loaded.plan.at
            )

    def _thumbnails(self) -> None:
        """Whether the gallery pictures of the rank lists are those of the data set."""
        gallery = self.loaded.split.gallery
        position = {name: i for i, name in enumerate(gallery.names)}
        for file in self.header["files"]:
            if file.startswith(_THUMBNAILS):
                name = file.removeprefix(_THUMBNAILS).removesuffix(".png")
                original = gallery.read(position[name])
                self._same_picture(file, original, decode(self.folder / file), "model")

    def _same_picture(self, where: str, original: Picture, there: Picture, at: At) -> None:
        if not np.array_equal(self.scorers[0].victim.canvas(original, at), there):
            self.notes.find(where, "is not the picture of the data set")

    # -- beside what the run says -------------------------------------------------------------

    def _facts(self) -> None:
        """What ``run.json`` says of the scorers."""
        first, *others = (scorer.facts() for scorer in self.scorers)
        facts = {**first, "targets": dict(zip(self.names[1:], others, strict=True))}
        there = {key: self.header.get(key) for key in facts}
        compare("run.json", there, json.loads(json.dumps(facts)), self.notes, NEAR)

    def _compare(self, look: _Look, number: int) -> None:
        """A scorer's rows of a batch with those of the run."""
        job, part = look.job, slice(look.batch.start, look.batch.stop)
        block = of(self.blocks, self.names[number], job)[part]
        for position, (there, now) in enumerate(zip(block, look.rows[number], strict=True)):
            by = f" by {self.names[number]}" if number else ""
            where = f"{job.name} at ε={job.eps:g}{by}, query {now['query']}{_drawn(job)}"
            if job.eps and there["cosine_to_clean"] != now["cosine_to_clean"]:
                self.turned.add(job)
            for key in now.keys() - _CERTIFIED:
                if not same(there.get(key), now[key], _SAME):
                    near = self._near(look, number, position, key, there)
                    notes = self.near if near else self.notes
                    notes.differ(f"queries.parquet, {where}, {key}", there.get(key), now[key])

    def _near(self, look: _Look, number: int, position: int, key: str, there: Row) -> bool:
        """Whether what the run says of a query can be had by rounding."""
        now, kind = look.rows[number][position], re.split("[|@]", key)[0]
        if key == "cosine_to_clean":
            return same(there.get(key), now[key], NEAR)
        if kind.startswith("goal_rank"):
            return bool(abs(there[key] - now[key]) <= _GOAL * now["goal_items"])
        if key == "goal_first":
            return bool(there["goal_rank"] != now["goal_rank"])
        if kind not in _RANKED:
            return False
        if self.scorers[number].system.depth is not None:
            self.deep.add((number, look.job, look.batch[position]))
            return True
        low, high = (rows[position] for rows in self._bounds(look, number))
        if key == "tied":
            return bool(low["first_match_rank"] != high["first_match_rank"])
        if low[key] is None or there[key] is None:
            return False
        least, most = sorted((low[key], high[key]))
        return bool(least - _SAME <= there[key] <= most + _SAME)

    def _bounds(self, look: _Look, number: int) -> tuple[list[Row], list[Row]]:
        """The rows where every relevant item scores a little more, and a little less."""
        if number not in look.bounds:
            look.bounds[number] = (self._moved(look, number, 1), self._moved(look, number, -1))
            if not number and look.members:
                members = [self._bounds(member, number) for member in look.members]
                for rows, of in zip(look.bounds[number], zip(*members, strict=True), strict=True):
                    extremes(list(zip(*of, strict=True)), [{"rows": rows}])
        return look.bounds[number]

    def _moved(self, look: _Look, number: int, sign: int) -> list[Row]:
        scorer, labels = self.scorers[number], look.queries.labels
        columns = _columns(scorer, look.pictures, labels, sign)
        for channel in self.loaded.plan.survive:
            seen = threaded(CHANNELS[channel], look.pictures)
            moved = _columns(scorer, seen, labels, sign)
            columns |= {f"{key}|{channel}": values for key, values in moved.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _rank_lists(self, jobs: Sequence[Job]) -> None:
        there = read_json(self.folder, "ranklists.json")["queries"]
        now = [
            {"victim": self.names[0], "attack": job.name, "eps": job.eps, "folder": job.folder}
            | answer
            for job in jobs
            if not job.repeat  # rank lists are of the first seed
            for answer in self.answers.get(job, [])
        ]
        if len(there) != len(now):
            self.notes.find("ranklists.json", f"has {len(there)} rank lists, and {len(now)} follow")
        for one, other in zip(there, now, strict=False):
            where = f"ranklists.json, {other['attack']} at ε={other['eps']:g}, {other['query']}"
            items: tuple[Any, Any] = (one.get("items"), other["items"])
            compare(where, one | {"items": []}, other | {"items": []}, self.notes)
            if items[0] != items[1]:
                notes = self.near if _near_list(*items) else self.notes
                notes.differ(f"{where}, items", *items)


def _drawn(job: Job) -> str:
    return f", repeat {job.repeat}" if job.repeat else ""


def _columns(
    scorer: Scorer, pictures: Sequence[Picture], labels: Labels, sign: int
) -> dict[str, list[Any]]:
    """Columns of a ranking in which every relevant item scores `NEAR` more, or less."""
    system, moved = scorer.system, list[Ranking]()
    features = scorer.look(pictures)
    for chunk in scored(system.whole, features, labels, system.gallery, system.judge):
        both = torch.cat([chunk.genuine, chunk.impostors], 1)
        largest = both.where(both.isfinite(), 0).abs().amax(1, keepdim=True)
        moved.append(rank_chunk(chunk._replace(genuine=chunk.genuine + sign * NEAR * largest)))
    return scorer.columns(join(moved))


def _near_list(there: Any, now: list[Row]) -> bool:
    """Whether two rank lists are the same but for rounding: near scores, the same names by them."""
    if not isinstance(there, list) or len(there) != len(now):
        return False
    scores = {item["name"]: item["score"] for item in now}
    reach = 2 * NEAR * max((abs(score) for score in scores.values()), default=0.0)
    relevant = {item["name"]: item["relevant"] for item in now}
    for one, other in zip(there, now, strict=True):
        if abs(one["score"] - other["score"]) > reach:
            return False
        # Who has come in at the end was as close as the last.
        if abs(scores.get(one["name"], now[-1]["score"]) - one["score"]) > reach:
            return False
        if relevant.get(one["name"], one["relevant"]) is not one["relevant"]:
            return False
    return len({item["name"] for item in there}) == len(there)
