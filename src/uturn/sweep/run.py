"""Running a plan: embed the gallery, craft and score batch by batch, reduce at the end.

What is scored is the PNG decoded again, never the tensor that an attack returned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.attacks.objectives import needs
from uturn.data.catalog import load_data
from uturn.data.pictures import Picture, decode, encode
from uturn.data.split import Split
from uturn.errors import ArgumentError
from uturn.parallel import threaded
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.classification import TOPS
from uturn.retrieval.extract import chunks
from uturn.retrieval.index import build_index
from uturn.retrieval.intervals import identity_bootstrap, query_bootstrap, weighted_mean
from uturn.retrieval.judge import Labels
from uturn.retrieval.ranking import TIES
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.system import require_apart, require_matches
from uturn.sweep import checks
from uturn.sweep.channels import PAPER_QUALITY, jpeg
from uturn.sweep.insider import Goal
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.scorer import SHOWN, Queries, Scorer
from uturn.sweep.store import Row, RunFolder
from uturn.types import Scene
from uturn.victims.load import load_victim
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_picture, to_pixels

Column = npt.NDArray[np.float64]

WORSE = {
    **dict.fromkeys(("ap", "r_precision", "inp", "tpr"), min),
    **dict.fromkeys(("first_match_rank", "normalised_rank", "label_rank"), max),
}
"""Which of two values of a column is the worse for the victim."""


def run(plan: Plan, out: Path, *, progress: bool = True) -> list[Row]:
    """Run ``plan`` into the run folder ``out``, or resume it there; return the result rows.

    First the rows of the victim that is attacked, then those of each victim in
    ``plan.transfer_to``, which scores the same pictures. A run that was stopped at any moment
    loses at most one batch of one attack. A finished run is not computed again.

    Raises:
        RunFolderError: ``out`` holds another configuration. UturnError: a victim, data set,
        picture or spec is wrong; what was computed before stays.
    """
    names = (plan.victim, *plan.transfer_to)
    victims = [load_victim(name, plan.device).at_scales(plan.scales) for name in names]
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
    )
    if folder.finished:
        folder.clean_up()
        return folder.results()
    scorers = [
        Scorer.build(name, number, plan, victim, split, folder, progress=progress)
        for number, (name, victim) in enumerate(zip(names, victims, strict=True))
    ]
    sweep = _Sweep(plan, folder, split, scorers, progress)
    sweep.craft()
    return sweep.reduce()


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
class _Batch:
    """A batch of queries, and the features of the clean ones by every scorer."""

    queries: Queries
    features: list[Tensor]


@final
@dataclass(frozen=True, eq=False)
class _Sweep:
    """A plan with everything loaded."""

    plan: Plan
    folder: RunFolder
    split: Split
    scorers: list[Scorer]
    """The victim that is attacked, and those that its pictures are transferred to."""
    progress: bool

    @property
    def attacked(self) -> Scorer:
        """Whose gradients are used."""
        return self.scorers[0]

    def batches(self) -> list[range]:
        """Cut by the configuration, never by where a run stopped."""
        return chunks(len(self.split.query), self.plan.batch_size)

    # -- crafting and scoring ---------------------------------------------------------------

    def craft(self) -> None:
        """Do every batch of every job that is not in the run folder yet."""
        jobs, batches = list(self.plan.jobs()), self.batches()
        todo = [
            [job for job in jobs if not self.folder.has_part(job, number)]
            for number in range(len(batches))
        ]

        def work(jobs: list[Job], batch: range) -> int:
            looking_on = len(self.plan.transfer_to)
            return sum(job.work + looking_on for job in jobs) * len(batch)

        total = sum(work(jobs, batch) for batch in batches)
        done = total - sum(map(work, todo, batches))
        with bar(total, "crafting and scoring", "step", done=done, show=self.progress) as shown:
            for number, batch in enumerate(batches):
                if not todo[number]:
                    continue
                queries = self._load(batch)
                for job in todo[number]:
                    shown.set_postfix_str(
                        f"{job.name} ε={job.eps}" if job.eps else CLEAN, refresh=False
                    )
                    self.folder.add_part(job, number, self._part(job, number, queries))
                    shown.update(work([job], batch))

    def _load(self, batch: range) -> _Batch:
        """Decode a batch of queries and write the clean ones, which everything is held against."""
        victim, pictures = self.attacked.victim, self.split.query.subset(np.array(batch))
        read = [victim.canvas(pictures.read(i), self.plan.at) for i in range(len(pictures))]
        self._write(Job(CLEAN, 0), pictures.names, read)
        clean = threaded(decode, [self.folder.picture(Job(CLEAN, 0), n) for n in pictures.names])
        labels = Labels.of(pictures, victim.device)
        queries = Queries(pictures, clean, labels, shown=sum(i < SHOWN for i in batch))
        return _Batch(queries, [scorer.look(clean) for scorer in self.scorers])

    def _write(self, job: Job, names: tuple[str, ...], pictures: Iterable[Picture]) -> None:
        threaded(encode, [self.folder.picture(job, name) for name in names], pictures)

    def _part(self, job: Job, number: int, batch: _Batch) -> dict[str, Any]:
        if job.members:
            return self._worst(job, number, batch)
        if job.attack is None:
            return {"seconds": 0.0, "scores": self._score(job, batch)}
        queries, features = batch.queries, batch.features[0]
        names, insider = queries.pictures.names, self.attacked.insider
        goal = insider.goal(job, names, queries.labels, features)
        found, seconds = dict[int, Picture](), 0.0
        for which, images in by_shape(queries.clean):
            mine, labels = [names[i] for i in which], queries.labels[torch.tensor(which)]
            part = None if goal is None else replace(goal, chosen=goal.chosen[which])
            scene = insider.scene(job, mine, labels, features[which], part)
            victim, seed = self.attacked.victim, self.plan.seed
            result = job.attack(victim, images, scene, names=mine, seed=seed)
            found |= dict(zip(which, map(to_picture, result.images), strict=True))
            seconds += result.seconds
        changed = [found[i] for i in range(len(names))]
        if self.plan.mode == "paper":
            changed = [jpeg(picture, PAPER_QUALITY) for picture in changed]
        self._write(job, names, changed)
        return {"seconds": seconds, "scores": self._score(job, batch, goal)}

    def _worst(self, job: Job, number: int, batch: _Batch) -> dict[str, Any]:
        """Per query the member's picture that is worst for the attacked ranking, scored again.

        Worst is the latest first match, and among equals the least average precision. What is
        reported of the attacked victim is the worst of any member by each measure, so that no
        number of this row is ever better than a member's. Other victims score the picture.
        """
        parts = [self.folder.part(member, number) for member in job.members]
        by_query = list(zip(*(part["scores"][0]["rows"] for part in parts), strict=True))
        chosen = []
        for rows in by_query:
            damage = [(row["first_match_rank"] or 0, -(row["ap"] or 0.0)) for row in rows]
            member = job.members[damage.index(max(damage))]
            chosen.append(decode(self.folder.picture(member, rows[0]["query"])))
        self._write(job, batch.queries.pictures.names, chosen)
        scores = self._score(job, batch)
        for worst, rows in zip(scores[0]["rows"], by_query, strict=True):
            for key in worst:
                extreme = WORSE.get(key.partition("|")[0])
                if extreme and worst[key] is not None:
                    worst[key] = extreme(row[key] for row in rows)
        return {"seconds": sum(part["seconds"] for part in parts), "scores": scores}

    def _score(self, job: Job, batch: _Batch, goal: Goal | None = None) -> list[dict[str, Any]]:
        """What every scorer says of the pictures on disk, which are certified once."""
        names, clean = batch.queries.pictures.names, batch.queries.clean
        scored = threaded(decode, [self.folder.picture(job, name) for name in names])
        lossy = self.plan.mode == "paper"  # JPEG keeps no budget; the row's flags say so
        sizes = [
            checks.measure(job, *each, lossy=lossy)
            for each in zip(names, clean, scored, strict=True)
        ]
        return [
            scorer.score(batch.queries, before, scored, sizes, goal)
            for scorer, before in zip(self.scorers, batch.features, strict=True)
        ]

    # -- the reduction at the edge ------------------------------------------------------------

    def reduce(self) -> list[Row]:
        """From parts to tables."""
        queries, results, ranklists = list[Row](), list[Row](), list[Row]()
        for number, scorer in enumerate(self.scorers):
            before = len(queries)
            for job in self.plan.jobs():
                parts = [self.folder.part(job, n) for n in range(len(self.batches()))]
                scores = [part["scores"][number] for part in parts]
                key = {"victim": scorer.name, "attack": job.name, "eps": job.eps}
                rows = [{**key, **row} for score in scores for row in score["rows"]]
                seconds = sum(part["seconds"] for part in parts)
                queries += rows
                clean = queries[before : before + len(rows)]
                results.append(self._result(scorer, job, rows, seconds, clean))
                ranklists += [
                    {**key, "folder": job.folder, **answer}
                    for score in scores
                    for answer in score["answers"]
                ]
        self._thumbnails({item["name"] for r in ranklists for item in r["items"]})
        facts = {
            "gallery": len(self.split.gallery),
            **self.attacked.facts(),
            "targets": {scorer.name: scorer.facts() for scorer in self.scorers[1:]},
            "gradients": sum(
                row["gradients"] * row["queries"]
                for row in results
                if row["victim"] == row["crafted_on"]
            ),
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
            encode(self.folder.thumbnail(name), self.attacked.victim.canvas(picture, "model"))
