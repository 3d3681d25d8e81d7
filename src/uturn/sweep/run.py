"""Running a plan: embed the gallery, craft and score (`uturn.sweep.craft`), reduce at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.attacks.objectives import needs
from uturn.data.catalog import load_data
from uturn.data.pictures import encode
from uturn.data.split import Split
from uturn.errors import ArgumentError
from uturn.retrieval import metrics
from uturn.retrieval.classification import TOPS
from uturn.retrieval.index import build_index
from uturn.retrieval.intervals import identity_bootstrap, query_bootstrap, weighted_mean
from uturn.retrieval.ranking import TIES
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.system import require_apart, require_matches
from uturn.sweep import checks
from uturn.sweep.craft import batches, craft
from uturn.sweep.plan import Job, Plan
from uturn.sweep.scorer import Scorer
from uturn.sweep.store import Row, RunFolder
from uturn.types import Scene
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim, to_pixels

Column = npt.NDArray[np.float64]


def run(plan: Plan, out: Path, *, progress: bool = True) -> list[Row]:
    """Run ``plan`` into the run folder ``out``, or resume it there; return the result rows.

    First the rows of the victim that is attacked, then those of each victim in
    ``plan.transfer_to``, which scores the same pictures. A run that was stopped at any moment
    loses at most one batch of the attacks that climb together. A finished one is not done again.

    Raises:
        RunFolderError: ``out`` holds another configuration. UturnError: a victim, data set,
        picture or spec is wrong; what was computed before stays.
    """
    names = (plan.victim, *plan.transfer_to)
    victims = [load_victim(name, plan.device).at_scales(plan.scales).folded() for name in names]
    victims[0] = victims[0].searched_in(plan.precision)
    split = load_data(plan.data).sample(plan.queries, plan.seed)
    require_matches(split)
    for victim in victims:
        _rehearse(victim, split, plan)
    _rehearse_objectives(victims[0], split, plan)
    identities = [_identity(victim) for victim in victims]
    folder = RunFolder(
        out,
        {
            **plan.configuration(),
            "protocol": split.protocol,
            "ties": TIES,
            **identities[0],
            "targets": dict(zip(plan.transfer_to, identities[1:], strict=True)),
            "data fingerprint": split.fingerprint(),
        },
        defaults=Plan.defaults(),
    )
    if folder.finished:
        folder.clean_up()
        return folder.results()
    scorers = [
        Scorer.build(name, plan, victim, split, progress=progress)
        for name, victim in zip(names, victims, strict=True)
    ]
    craft(plan, folder, split, scorers, progress=progress)
    return _Reduction(plan, folder, split, scorers)()


def _identity(victim: Victim) -> dict[str, Any]:
    """What makes a victim another one, for the configuration of a run."""
    return {
        "victim weights": victim.fingerprint,
        "preprocessing": repr(victim.preprocessing),
        "test time": repr(victim.test_time),
        "similarity": victim.similarity,
    }


def _rehearse(victim: Victim, split: Split, plan: Plan) -> None:
    """Try the index on one query, so that misfits fail before long work."""
    with torch.no_grad():
        one = victim.features(_first(victim, split))
    built = build_index(str(plan.index), one, victim.similarity)
    if plan.rerank:
        require_apart(split)
        build_stages(plan.rerank, built)


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

    plan: Plan
    folder: RunFolder
    split: Split
    scorers: list[Scorer]

    def __call__(self) -> list[Row]:
        queries, results, ranklists = list[Row](), list[Row](), list[Row]()
        spent, count = 0.0, len(batches(self.plan, self.split))
        for number, scorer in enumerate(self.scorers):
            before = len(queries)
            for job in self.plan.jobs():
                parts = [self.folder.part(job, n) for n in range(count)]
                scores = [part["scores"][number] for part in parts]
                key = {"victim": scorer.name, "attack": job.name, "eps": job.eps}
                rows = [{**key, **row} for score in scores for row in score["rows"]]
                seconds = sum(part["seconds"] for part in parts)
                spent += sum(part["gradients"] for part in parts if number == 0)
                queries += rows
                clean = queries[before : before + len(rows)]
                results.append(self._result(scorer, job, rows, seconds, clean))
                ranklists += [
                    {**key, "folder": job.folder, **answer}
                    for score in scores
                    for answer in score["answers"]
                ]
        alone = sum(job.gradients for job in self.plan.jobs() if not job.members)
        alone *= len(self.split.query)
        self._thumbnails({item["name"] for r in ranklists for item in r["items"]})
        facts = {
            "gallery": len(self.split.gallery),
            **self.scorers[0].facts(),
            "targets": {scorer.name: scorer.facts() for scorer in self.scorers[1:]},
            "gradients": {"spent": round(spent), "saved": round(alone - spent)},
        }
        self.folder.finish(queries, results, ranklists, facts)
        return results

    def _result(
        self, scorer: Scorer, job: Job, rows: list[Row], seconds: float, clean: list[Row]
    ) -> Row:
        """A row of the table, from a job's query rows and those of the clean queries."""

        def column(key: str, of: list[Row] = rows) -> Column:
            return np.array([row[key] for row in of], dtype=np.float64)  # None → NaN

        def values(suffix: str = "") -> dict[str, Column]:
            first = column(f"first_match_rank{suffix}")
            hit = {
                f"recall@{k}": np.where(np.isnan(first), np.nan, first <= k)
                for k in metrics.RECALLS
            }
            return {**hit, "map": column(f"ap{suffix}")}

        identities, measured = column("identity").astype(np.int64), values()
        first, before = column("first_match_rank"), column("first_match_rank", clean)
        lost = metrics.attack_success(torch.from_numpy(before), torch.from_numpy(first)).numpy()
        more = {
            "success": lost if job.eps else np.full_like(lost, np.nan),
            "r_precision": column("r_precision"),
            "minp": column("inp"),
            "normalised_rank": column("normalised_rank"),
            f"tpr@fpr={metrics.FPR}": column("tpr"),
            "mean_first_match": first,
        }
        tops = {
            f"top{k}": (column("label_rank") <= k).astype(np.float64)
            for k in (TOPS if scorer.classes else ())
        }
        # Of genuine pairs, not of queries.
        weights = {f"tpr@fpr={metrics.FPR}": column("matches")}
        return {
            "attack": job.name,
            "eps": job.eps,
            "victim": scorer.name,
            "crafted_on": self.plan.victim,
            "data": self.plan.data,
            "queries": len(rows),
            "convention": self.plan.convention,
            "index": str(scorer.system.index),
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
                "median_first_match": float(np.nanmedian(first)),
                **{name: float(hits.mean()) for name, hits in tops.items()},
            },
            "survive": {
                channel: {
                    name: weighted_mean(value) for name, value in values(f"|{channel}").items()
                }
                for channel in self.plan.survive
            },
            "gradients": job.gradients,
            "seconds": round(seconds, 3),
            "flags": checks.flags(rows, job.eps),
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

    def _thumbnails(self, names: set[str]) -> None:
        position = {name: i for i, name in enumerate(self.split.gallery.names)}
        for name in sorted(names):
            picture = self.split.gallery.read(position[name])
            encode(self.folder.thumbnail(name), self.scorers[0].victim.canvas(picture, "model"))
