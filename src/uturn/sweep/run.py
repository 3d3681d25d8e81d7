"""Running a plan: an engine embeds, crafts and scores (`uturn.sweep.craft`); reduce at the end."""

from __future__ import annotations

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
            for job in plan.jobs():
                parts = [self.folder.part(job, n) for n in range(count)]
                scores = [part["scores"][number] for part in parts]
                key = {"victim": scorer.name, "attack": job.name, "eps": job.eps}
                rows = [{**key, **row} for score in scores for row in score["rows"]]
                seconds = sum(part["seconds"] for part in parts)
                borrowed = max(part["prior_gradients"] for part in parts)
                spent += sum(part["gradients"] for part in parts if number == 0)
                queries += rows
                blocks[job], costs[job] = rows, Cost(seconds, borrowed)
                ranklists += [
                    {**key, "folder": job.folder, **answer}
                    for score in scores
                    for answer in score["answers"]
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

        def column(key: str, of: list[Row] = rows) -> Column:
            return np.array([row[key] for row in of], dtype=np.float64)  # None → NaN

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
        identities, measured = column("identity").astype(np.int64), values()
        first, before = column("first_match_rank"), column("first_match_rank", clean)
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
        weights = {f"tpr@fpr={metrics.FPR}": matches}
        return {
            "attack": job.name,
            "eps": job.eps,
            "victim": by.name,
            "crafted_on": self.plan.victim,
            "data": self.plan.data,
            "queries": len(rows),
            "convention": by.convention,
            "index": by.index,
            **{name: weighted_mean(value) for name, value in measured.items()},
            "cosine": float(column("cosine_to_clean").mean()),
            "linf_levels": float(np.median(column("linf_levels"))),
            "goal": self._goal(rows),
            "ci95": {
                name: identity_bootstrap(value, identities, self.plan.seed, weights.get(name))
                for name, value in {**measured, **more}.items()
                if name != "mean_first_match"  # no fraction of queries
            }
            | {name: query_bootstrap(hits, self.plan.seed) for name, hits in tops.items()},
            "metrics": {
                **{name: weighted_mean(value, weights.get(name)) for name, value in more.items()},
                "median_first_match": median(first),
                **{name: float(hits.mean()) for name, hits in tops.items()},
            },
            "survive": {
                channel: {
                    name: weighted_mean(value) for name, value in values(f"|{channel}").items()
                }
                for channel in self.plan.survive
            },
            "gradients": job.gradients,
            "asked": float(column("asked").mean()),
            "prior_gradients": cost.borrowed,
            "seconds": round(cost.seconds, 3),
            "flags": [*doubted, *checks.flags(rows, job.eps, self.left_out)],
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
