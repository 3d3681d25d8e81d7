"""Running a plan: craft, take the changed pictures in, ask, and write the tables.

Pictures are crafted, certified and resumed as those of a sweep are (`uturn.sweep.craft`). What is
taken in and asked is what their PNGs hold, the clean ones first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.data.pictures import Picture, decode
from uturn.data.split import Split
from uturn.gallery.cast import Cast, Owner
from uturn.gallery.plan import GalleryPlan
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.exposure import FIRST, Exposure, exposure
from uturn.retrieval.extract import extract_all, extract_decoded
from uturn.retrieval.fidelity import NEAREST, recall_of_exact
from uturn.retrieval.index import AnyIndex, IndexSpec, Reingest, read_index
from uturn.retrieval.intervals import identity_bootstrap, paired_bootstrap, weighted_mean
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.support import caveats
from uturn.retrieval.system import RetrievalSystem, require_matches
from uturn.sweep.agenda import Agenda, batches
from uturn.sweep.craft import craft
from uturn.sweep.insider import Goal
from uturn.sweep.loaded import Loaded
from uturn.sweep.plan import Job, Plan
from uturn.sweep.scorer import Queries
from uturn.sweep.store import Row, RunFolder
from uturn.victims.victim import Victim

ASR = (1, FIRST)
"""The k of the attack success rates."""

Column = npt.NDArray[np.float64]


def run(plan: GalleryPlan, out: Path, *, progress: bool = True) -> list[Row]:
    """Run ``plan`` into the run folder ``out``, or resume it there; return the result rows.

    The first row is of the clean pictures. A run that was stopped loses one batch of pictures, or
    one measurement. A finished one is not done again.

    Raises:
        RunFolderError: ``out`` holds another configuration. UturnError: a victim, data set,
        picture or spec is wrong, or the index takes in nothing once it is built; what was computed
        before stays.
    """
    loaded = Loaded.of(plan.plan, progress=progress)
    require_matches(loaded.split)
    victim = loaded.victims[0]
    cast = Cast.draw(plan, loaded.split)
    spec = read_index(str(plan.plan.index), victim.similarity)
    spec.require_growing()
    configuration = loaded.configuration() | plan.configuration()
    with RunFolder.alone(out, configuration, Plan.defaults()) as folder:
        if folder.finished:
            folder.clean_up()
            return folder.results()
        return _done(plan, loaded, cast, spec, folder, progress=progress)


def _done(
    plan: GalleryPlan,
    loaded: Loaded,
    cast: Cast,
    spec: IndexSpec,
    folder: RunFolder,
    *,
    progress: bool,
) -> list[Row]:
    """Do what the run folder lacks, and reduce it."""
    victim, split = loaded.victims[0], loaded.split
    gallery = extract_all(victim, split.gallery, "gallery", progress=progress)
    spec.rehearse(gallery[:1])
    queries = extract_all(victim, split.query, "queries", progress=progress)
    owner = Owner(plan, victim, split, cast, gallery, queries)
    changed = replace(split, query=split.gallery.subset(cast.items))
    agenda = Agenda(plan.plan, folder, changed)
    missing = agenda.missing()
    with agenda.bar(missing, show=progress) as shown:
        craft(plan.plan, folder, changed, [_Onlooker(victim, owner)], missing, shown)
    measure = _Measurement(plan, folder, owner, changed, progress)
    labels, judge = Labels.of(split.gallery, victim.device), judge_for(split)
    items = torch.from_numpy(cast.items)
    if measure.missing():
        with spec.aside(items, gallery, labels, judge, progress=progress) as reingest:
            measure.all(reingest)
    return measure.reduce()


@final
@dataclass(frozen=True, eq=False)
class _Onlooker:
    """Sees how far crafted pictures went; what comes of it is measured when all are there."""

    victim: Victim
    insider: Owner

    def look(self, pictures: Sequence[Picture]) -> Tensor:
        return extract_decoded(self.victim, pictures)

    def score(
        self,
        queries: Queries,
        before: Tensor,
        scored: list[Picture],
        sizes: Sequence[tuple[int, float]],
        goal: Goal | None,
    ) -> dict[str, Any]:
        cosine = F.cosine_similarity(self.look(scored), before).tolist()
        columns = (queries.pictures.names, queries.pictures.identities.tolist(), cosine, sizes)
        return {
            "rows": [
                {
                    "query": name,
                    "identity": identity,
                    "cosine_to_clean": similar,
                    "linf_levels": levels,
                    "l2": length,
                }
                for name, identity, similar, (levels, length) in zip(*columns, strict=True)
            ]
        }


@final
@dataclass(frozen=True, eq=False)
class _Measurement:
    """From crafted pictures to tables."""

    plan: GalleryPlan
    folder: RunFolder
    owner: Owner
    changed: Split
    """The split in which the changed pictures stand in the place of queries."""
    progress: bool

    @property
    def last(self) -> int:
        """The number of a job's part behind those of its batches: what was measured."""
        return len(batches(self.plan.plan, self.changed))

    def missing(self) -> list[Job]:
        """Jobs whose pictures nobody has asked for yet."""
        return [job for job in self.plan.plan.jobs() if not self.folder.has_part(job, self.last)]

    def all(self, reingest: Reingest) -> None:
        """Take the pictures of every missing job in, ask, and commit what was found."""
        held = self.owner.cast.held
        asked = Labels.of(self.owner.split.query.subset(held), self.owner.victim.device)
        features = self.owner.queries[torch.from_numpy(held).to(self.owner.queries.device)]
        jobs = self.missing()
        with bar(len(jobs), "taking pictures in and asking", "job", show=self.progress) as shown:
            for job in jobs:
                pictures = [
                    decode(self.folder.picture(job, name)) for name in self.changed.query.names
                ]
                now = extract_decoded(self.owner.victim, pictures)
                began = time.perf_counter()
                index = reingest(now)
                seconds = time.perf_counter() - began
                part = self._measured(index, now, features, asked)
                self.folder.add_part(job, self.last, {**part, "reingest_seconds": seconds})
                shown.update()

    def _measured(
        self, index: AnyIndex, now: Tensor, features: Tensor, asked: Labels
    ) -> dict[str, Any]:
        owner = self.owner
        system = RetrievalSystem(index, owner.gallery, owner.judge)
        items = torch.from_numpy(owner.cast.items)
        found = exposure(system, features, asked, items)
        inside = owner.features.clone()
        inside[items.to(inside.device)] = now.to(inside.device)
        return {
            "index": str(index),
            "depth": system.depth,
            f"recall@{NEAREST}": recall_of_exact(system, inside, features, asked),
            "queries": self._queries(found, system.depth),
            "items": {
                "intrusions": found.intrusions.tolist(),
                "finds": found.finds.tolist(),
            },
        }

    def _queries(self, found: Exposure, depth: int | None) -> dict[str, list[float | None]]:
        """Columns of per-query values; None where there is none."""
        ranking = found.ranking
        if depth is None:
            precision = metrics.average_precision(ranking, str(self.plan.plan.convention))
        else:
            precision = metrics.ap_within(ranking, depth)
        raised = self.plan.aim == "raise"
        columns = {
            "first_match_rank": metrics.first_match(ranking),
            "ap": precision,
            "intruder_rank": found.intruder,
            "own": found.own,
            "normalised_rank": found.rank_of_intruders if raised else found.rank_of_own,
        }
        return {
            name: [None if math.isnan(value) else value for value in column.tolist()]
            for name, column in columns.items()
        }

    # -- tables -------------------------------------------------------------------------------

    def reduce(self) -> list[Row]:
        """Write the tables of what was measured; return the result rows."""
        jobs = list(self.plan.plan.jobs())
        parts = {job: self.folder.part(job, self.last) for job in jobs}
        results, queries, items = list[Row](), list[Row](), list[Row]()
        asked = self.owner.split.query.subset(self.owner.cast.held)
        known = set(self.owner.cast.known.tolist()) if self.plan.aim == "lower" else set()
        for job in jobs:
            key, part = {"attack": job.name, "eps": job.eps}, parts[job]
            crafted = [self.folder.part(job, number) for number in range(self.last)]
            own = [row for each in crafted for row in each["scores"][0]["rows"]]
            results.append(self._result(job, part, parts[jobs[0]], own, crafted))
            columns = part["queries"]
            queries += [
                {**key, "query": name, "identity": identity, "camera": camera}
                | {column: values[n] for column, values in columns.items()}
                for n, (name, identity, camera) in enumerate(
                    zip(
                        asked.names,
                        asked.identities.tolist(),
                        asked.cameras.tolist(),
                        strict=True,
                    )
                )
            ]
            places = self.owner.cast.items.tolist()
            items += [
                {**key, "item": row["query"], **_without(row, "query"), "known": place in known}
                | {column: values[n] for column, values in part["items"].items()}
                for n, (row, place) in enumerate(zip(own, places, strict=True))
            ]
        clean = parts[jobs[0]]
        facts = {
            "gallery": len(self.owner.split.gallery),
            "changed items": len(self.owner.cast.items),
            "known to the attacker": len(self.owner.cast.known),
            "held-out queries": len(asked),
            "index": {"depth": clean["depth"], f"recall@{NEAREST}": clean[f"recall@{NEAREST}"]},
        }
        self.folder.close({"queries.parquet": queries, "items.parquet": items}, results, facts)
        return results

    def _result(self, job: Job, part: Row, clean: Row, own: list[Row], crafted: list[Row]) -> Row:
        seed = self.plan.plan.seed
        identities = self.owner.split.query.identities[self.owner.cast.held]
        values, before = self._values(part), self._values(clean)
        mine = np.array(part["queries"]["own"]) > 0
        precision = "map" if part["depth"] is None else f"map@{part['depth']}"
        intrusions, finds = (np.array(part["items"][key]) for key in ("intrusions", "finds"))
        hidden = {
            name: np.where(mine, values[name], np.nan)
            for name in ("recall@1", "recall@10", precision)
        }
        intervals = {
            name: identity_bootstrap(value, identities, seed) for name, value in values.items()
        }
        return {
            "attack": job.name,
            "eps": job.eps,
            "aim": self.plan.aim,
            "victim": self.plan.plan.victim,
            "data": self.plan.plan.data,
            "index": part["index"],
            f"index recall@{NEAREST}": part[f"recall@{NEAREST}"],
            "items": len(own),
            "queries": len(identities),
            "convention": self.plan.plan.convention if part["depth"] is None else precision,
            **{name: weighted_mean(value) for name, value in values.items()},
            "intrusions": {"mean": float(intrusions.mean()), "most": int(intrusions.max())},
            "own": {
                "queries": int(mine.sum()),
                "finds": float(finds.mean()),
                **{name: weighted_mean(value) for name, value in hidden.items()},
                "ci95": {
                    name: identity_bootstrap(value, identities, seed)
                    for name, value in hidden.items()
                },
            },
            "ci95": intervals,
            "change": {
                name: {
                    "mean": weighted_mean(values[name] - before[name]),
                    "ci95": paired_bootstrap(before[name], values[name], identities, seed),
                }
                for name in ("recall@1", precision)
                if job.eps
            },
            "cosine": float(np.mean([row["cosine_to_clean"] for row in own])),
            "linf_levels": float(np.median([row["linf_levels"] for row in own])),
            "gradients": job.gradients,
            "seconds": round(sum(each["seconds"] for each in crafted), 3),
            "reingest_seconds": round(part["reingest_seconds"], 3),
            "flags": _flags(job, own, part),
            "caveats": caveats(
                values["recall@1"],
                identities,
                intervals["recall@1"],
                seed,
                before["recall@1"] if job.eps else None,
            ),
        }

    def _values(self, part: Row) -> dict[str, Column]:
        """Per held-out query what the table's means are of, by metric ``(Q,)``."""
        columns = {
            name: np.array(values, dtype=np.float64)  # None → NaN
            for name, values in part["queries"].items()
        }
        first, intruder = columns["first_match_rank"], columns["intruder_rank"]
        hit = {
            f"recall@{k}": np.where(np.isnan(first), np.nan, first <= k) for k in metrics.RECALLS
        }
        precision = "map" if part["depth"] is None else f"map@{part['depth']}"
        return {
            **hit,
            precision: columns["ap"],
            **{f"asr@{k}": (intruder <= k).astype(np.float64) for k in ASR},
            "normalised_rank": columns["normalised_rank"],
        }


def _flags(job: Job, own: list[Row], part: Row) -> list[str]:
    """What a reader of one result row must know."""
    found = []
    unmatched = sum(rank is None for rank in part["queries"]["first_match_rank"])
    if unmatched:
        found.append(f"no-match: {unmatched} queries have no relevant item and are left out")
    unchanged = sum(row["linf_levels"] == 0 for row in own)
    if job.eps and unchanged:
        found.append(f"unchanged: the attack left {unchanged} pictures as they were")
    return found


def _without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}
