"""Running a plan: an engine embeds, crafts and scores (`uturn.sweep.craft`); reduce at the end."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.attacks.objectives import needs
from uturn.data.split import Split
from uturn.errors import ArgumentError
from uturn.retrieval import metrics
from uturn.retrieval.classification import TOPS
from uturn.retrieval.index import build_index, read_index, whole
from uturn.retrieval.intervals import (
    identity_bootstrap,
    median,
    query_bootstrap,
    weighted_mean,
)
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.support import caveats
from uturn.retrieval.system import require_apart, require_matches
from uturn.sweep import checks
from uturn.sweep.agenda import batches
from uturn.sweep.doubts import doubts
from uturn.sweep.engines.engine import Engine
from uturn.sweep.engines.in_process import InProcess
from uturn.sweep.insider import has_goal
from uturn.sweep.loaded import Loaded
from uturn.sweep.looks import Looks
from uturn.sweep.plan import Job, Plan
from uturn.sweep.scorer import Scorer, Terms
from uturn.sweep.store import Row, RunFolder
from uturn.types import Scene
from uturn.victims.victim import Victim, to_pixels

Column = npt.NDArray[np.float64]


def run(plan: Plan, out: Path, *, engine: Engine | None = None, progress: bool = True) -> list[Row]:
    """Run ``plan`` into the run folder ``out``, or resume it there; return the result rows.

    First the rows of the victim that is attacked, then those of each victim in
    ``plan.transfer_to``, which scores the same pictures. A run that was stopped at any moment
    loses at most one batch of the attacks that climb together. A finished one is not done again.
    ``engine`` does the work (`uturn.sweep.engines`); None is this process.

    Raises:
        RunFolderError: ``out`` holds another configuration. UturnError: a victim, data set,
        picture or spec is wrong; what was computed before stays.
    """
    loaded = Loaded.of(plan, progress=progress)
    split = loaded.split
    require_matches(split)
    for victim in loaded.victims:
        _rehearse(victim, split, plan)
    _rehearse_objectives(loaded.victims[0], split, plan)
    configuration, defaults = loaded.configuration(), Plan.defaults()
    with RunFolder.alone(out, configuration, defaults) as folder:
        if folder.finished:
            folder.clean_up()
            return folder.results()
        return _done(loaded, folder, engine or InProcess(), progress=progress)


def _done(loaded: Loaded, folder: RunFolder, engine: Engine, *, progress: bool) -> list[Row]:
    """Do what the run folder lacks, and reduce it."""
    plan, split = loaded.plan, loaded.split
    with engine.crew(loaded, folder, progress=progress) as crew:
        scorers = [
            Scorer.build(
                name,
                plan,
                victim,
                split,
                crew.embed(number, "gallery"),
                crew.embed(number, "query"),
                progress=progress,
            )
            for number, (name, victim) in enumerate(zip(plan.victims, loaded.victims, strict=True))
        ]
        crew.craft(scorers)
    return _Reduction(loaded, folder, scorers)()


def _rehearse(victim: Victim, split: Split, plan: Plan) -> None:
    """Try the index on one query, so that misfits fail before long work."""
    with torch.no_grad():
        one = victim.features(_first(victim, split))
    index = str(plan.index)
    read_index(index, victim.similarity).rehearse(one)
    for job in plan.jobs():
        if has_goal(job):
            whole(index, victim.similarity, f"the goal of {job.name}")
    if plan.rerank:
        whole(index, victim.similarity, f"the stage {plan.rerank}")
        require_apart(split)
        build_stages(plan.rerank, build_index(index, one, victim.similarity))


def _rehearse_objectives(victim: Victim, split: Split, plan: Plan) -> None:
    """Try every objective on one query, for the same reason."""
    pixels = _first(victim, split)
    for objective in {job.attack.objective for job in plan.jobs() if job.attack}:
        if objective is None or needs(objective):
            continue  # nothing to climb, or something that is drawn from the gallery
        if not bool(objective.bind(victim, pixels, Scene())(pixels).isfinite().all()):
            raise ArgumentError(
                f"{objective} is not finite on query {split.query.names[0]}; "
                "the victim's weights or preprocessing are broken"
            )


def _first(victim: Victim, split: Split) -> Tensor:
    return to_pixels(victim.grid([split.query.read(0)])).to(victim.device)


@final
@dataclass(frozen=True, eq=False)
class _Reduction:
    """From the parts of a plan to its tables."""

    loaded: Loaded
    folder: RunFolder
    scorers: list[Scorer]

    def __call__(self) -> list[Row]:
        plan, split = self.loaded.plan, self.loaded.split
        queries, results, ranklists = list[Row](), list[Row](), list[Row]()
        table = Table(plan, self.loaded.left_out)
        spent, count = 0.0, len(batches(plan, split))
        seen = dict[str, Looks]()
        for number, scorer in enumerate(self.scorers):
            seen[scorer.name] = Looks.of(scorer.victim, split, scorer.features, plan.seed)
            blocks, costs = dict[Job, list[Row]](), dict[Job, Cost]()
            for jobs in plan.rows().values():
                job, rows = jobs[0], list[Row]()
                key = {"victim": scorer.name, "attack": job.name, "eps": job.eps}
                parts = [[self.folder.part(each, n) for n in range(count)] for each in jobs]
                for each, own in zip(jobs, parts, strict=True):
                    seeded = {**key, "seed": plan.seed + each.repeat}
                    rows += [
                        {**seeded, **row} for part in own for row in part["scores"][number]["rows"]
                    ]
                every = list(itertools.chain.from_iterable(parts))
                seconds = sum(part["seconds"] for part in every)
                borrowed = max(part["prior_gradients"] for part in every)
                spent += sum(part["gradients"] for part in every if number == 0)
                queries += rows
                blocks[job], costs[job] = rows, Cost(seconds, borrowed)
                ranklists += [
                    {**key, "folder": job.folder, **answer}
                    for part in parts[0]  # of the first seed
                    for answer in part["scores"][number]["answers"]
                ]
            results += table.rows(scorer.terms, blocks, costs, seen[scorer.name])
        alone = sum(job.gradients for job in plan.jobs() if not job.members)
        alone *= len(split.query)
        self._thumbnails({item["name"] for r in ranklists for item in r["items"]})
        facts = {
            "gallery": len(split.gallery),
            **self.scorers[0].facts(),
            "targets": {scorer.name: scorer.facts() for scorer in self.scorers[1:]},
            "gradients": {"spent": round(spent), "saved": round(alone - spent)},
            "looks": {name: looks.as_dict() for name, looks in seen.items()},
        }
        self.folder.finish(queries, results, ranklists, facts)
        return results

    def _thumbnails(self, names: set[str]) -> None:
        position = {name: i for i, name in enumerate(self.loaded.split.gallery.names)}
        for name in sorted(names):
            picture = self.loaded.split.gallery.read(position[name])
            shown = self.scorers[0].victim.canvas(picture, "model")
            self.folder.write_thumbnail(name, shown)


class Cost(NamedTuple):
    """What a row was clocked at and borrowed: it is told in the table only."""

    seconds: float
    borrowed: int
    """Gradients of another network per picture, at the most."""


@final
@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a plan's table: they follow from the rows per query."""

    plan: Plan
    left_out: Mapping[str, Sequence[str]]
    """Pictures that could not be read (`Loaded.left_out`)."""

    def rows(
        self,
        by: Terms,
        blocks: Mapping[Job, list[Row]],
        costs: Mapping[Job, Cost],
        looks: Looks | None,
    ) -> list[Row]:
        """What ``by`` made of every job, from its rows per query; the clean queries come first.

        Rows are those of one seed after another, under the job of the first.

        Without ``looks``, which runs from before there were doubts lack, none is told.
        """
        clean, *_ = blocks.values()
        own, flags = by.name == self.plan.victim, dict[tuple[str, float], list[str]]()
        for doubt in doubts(self.plan.seed, blocks, looks, own=own) if looks else ():
            if doubt.fires:
                flags.setdefault((doubt.attack, doubt.eps), []).append(doubt.flag)
        return [
            self._row(by, job, rows, clean, costs[job], flags.get((job.name, job.eps), []))
            for job, rows in blocks.items()
        ]

    def _row(
        self,
        by: Terms,
        job: Job,
        rows: list[Row],
        clean: list[Row],
        cost: Cost,
        doubted: Sequence[str],
    ) -> Row:
        """What ``by`` made of a job, from its rows per query and those of the clean queries.

        ``rows`` are those of one seed after another, and values stand ``(Q, S)`` here.
        """
        count = len(rows) // len(clean)
        seeds = [row["seed"] for row in rows[:: len(clean)]]

        def column(key: str, of: list[Row] = rows) -> Column:
            found = np.array([row[key] for row in of], dtype=np.float64)  # None → NaN
            return found.reshape(-1, len(clean)).T

        def values(suffix: str = "") -> dict[str, Column]:
            first = column(f"first_match_rank{suffix}")
            hit = {
                f"recall@{k}": np.where(np.isnan(first), np.nan, first <= k)
                for k in metrics.RECALLS
            }
            precision = {"map": column(f"ap{suffix}")}
            if by.depth is not None:
                precision[by.convention] = column(f"{by.precision}{suffix}")
            return {**hit, **precision}

        matches = column("matches")
        identities, measured = column("identity", clean)[:, 0].astype(np.int64), values()
        first = column("first_match_rank")
        before = column("first_match_rank", clean).repeat(count, 1)
        lost = metrics.attack_success(torch.from_numpy(before), torch.from_numpy(first)).numpy()
        more = {
            "success": lost if job.eps else np.full_like(lost, np.nan),
            "r_precision": metrics.known(column("r_precision"), matches),
            "minp": column("inp"),
            "normalised_rank": column("normalised_rank"),
            f"tpr@fpr={metrics.FPR}": column("tpr"),
            "mean_first_match": first,
        }
        tops = {
            f"top{k}": (column("label_rank") <= k).astype(np.float64)
            for k in (TOPS if by.classes else ())
        }
        # Of genuine pairs, not of queries.
        weights = {f"tpr@fpr={metrics.FPR}": matches[:, 0]}
        intervals = {
            name: identity_bootstrap(value, identities, self.plan.seed, weights.get(name))
            for name, value in {**measured, **more}.items()
            if name != "mean_first_match"  # no fraction of queries
        }
        asked, hits = self.plan.seed, measured["recall@1"]
        right = np.where(np.isnan(before), np.nan, before <= 1)[:, 0]
        return {
            "attack": job.name,
            "eps": job.eps,
            "victim": by.name,
            "crafted_on": self.plan.victim,
            "data": self.plan.data,
            "queries": len(clean),
            "convention": by.convention,
            "index": by.index,
            **{name: weighted_mean(value) for name, value in measured.items()},
            "cosine": float(column("cosine_to_clean").mean()),
            "linf_levels": float(np.median(column("linf_levels"))),
            "goal": self._goal(rows),
            "ci95": intervals
            | {name: query_bootstrap(value, self.plan.seed) for name, value in tops.items()},
            "metrics": {
                **{
                    name: weighted_mean(value, matches if name in weights else None)
                    for name, value in more.items()
                },
                "median_first_match": median(first),
                **{name: float(value.mean()) for name, value in tops.items()},
            },
            "survive": {
                channel: {
                    name: weighted_mean(value) for name, value in values(f"|{channel}").items()
                }
                for channel in self.plan.survive
            },
            "seeds": _by_seed(seeds, measured),
            "cameras": _by_camera(column("camera", clean)[:, 0], hits, identities, asked),
            "gradients": job.gradients,
            "asked": float(column("asked").mean()),
            "prior_gradients": cost.borrowed,
            "seconds": round(cost.seconds, 3),
            "flags": [*doubted, *checks.flags(rows, job.eps, self.left_out)],
            "caveats": caveats(
                hits, identities, intervals["recall@1"], asked, right if job.eps else None
            ),
        }

    def _goal(self, rows: list[Row]) -> Row | None:
        """Where the chosen items stood and stand, 0 first and 1 last; None without a goal."""
        if "goal_rank" not in rows[0]:
            return None

        def mean(key: str) -> float:
            return float(np.mean([(row[key] - 1) / max(1, row["goal_items"] - 1) for row in rows]))

        return {
            "clean": mean("goal_rank_clean"),
            "attacked": mean("goal_rank"),
            "first": float(np.mean([row["goal_first"] for row in rows])),
        }


def _by_seed(seeds: Sequence[int], measured: Mapping[str, Column]) -> Row:
    """What each seed comes to by itself, and how far seeds stand apart.

    Of an attack that draws nothing, and of the clean queries, there is one, and no spread.
    """
    each = {
        name: [weighted_mean(value[:, n]) for n in range(len(seeds))]
        for name, value in measured.items()
    }
    spread = {
        name: float(np.std([value for value in values if value is not None], ddof=1))
        if len(values) > 1 and None not in values
        else None
        for name, values in each.items()
    }
    return {"drawn": list(seeds), "each": each, "sd": spread}


def _by_camera(
    cameras: Column, hits: Column, identities: npt.NDArray[np.int64], seed: int
) -> dict[str, Row]:
    """Recall@1 of the queries of each camera; empty where there is one camera only."""
    judged = ~np.isnan(hits).all(1)
    known = np.unique(cameras[judged])
    found = {}
    for camera in known if len(known) > 1 else ():
        of = judged & (cameras == camera)
        found[f"{camera:.0f}"] = {
            "queries": int(of.sum()),
            "recall@1": weighted_mean(hits[of]),
            "ci95": identity_bootstrap(hits[of], identities[of], seed),
        }
    return found
