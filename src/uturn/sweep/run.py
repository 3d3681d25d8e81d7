"""Running a plan: embed the gallery, craft and score batch by batch, reduce at the end.

What is scored is the PNG decoded again, never the tensor that an attack returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.attacks.objectives import needs
from uturn.data.catalog import load_data
from uturn.data.pictures import Picture, Pictures, decode, encode
from uturn.data.split import Split
from uturn.errors import ArgumentError
from uturn.parallel import threaded
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.index import build_index
from uturn.retrieval.intervals import identity_bootstrap, weighted_mean
from uturn.retrieval.judge import Labels
from uturn.retrieval.ranking import TIES
from uturn.retrieval.rerank import build_stages
from uturn.retrieval.system import (
    RetrievalSystem,
    chunks,
    extract_all,
    extract_decoded,
    extract_pictures,
    require_apart,
    require_matches,
)
from uturn.sweep import checks
from uturn.sweep.channels import CHANNELS, PAPER_QUALITY, jpeg
from uturn.sweep.insider import Goal, Insider
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.store import Row, RunFolder
from uturn.types import Scene
from uturn.victims.load import load_victim
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_picture, to_pixels

Column = npt.NDArray[np.float64]

WORSE = {
    **dict.fromkeys(("ap", "r_precision", "inp", "tpr"), min),
    **dict.fromkeys(("first_match_rank", "normalised_rank"), max),
}
"""Which of two values of a column is the worse for the victim."""

SHOWN = 8
"""Queries whose rank lists are kept for the report: the first of the seeded sample, not the
most telling ones."""
RANKS = 10


def run(plan: Plan, out: Path, *, progress: bool = True) -> list[Row]:
    """Run ``plan`` into the run folder ``out``, or resume it there; return the result rows.

    A run that was stopped at any moment loses at most one batch of one attack. A finished
    run is not computed again.

    Raises:
        RunFolderError: ``out`` holds another configuration. UturnError: a victim, data set,
        picture or spec is wrong; what was computed before stays.
    """
    victim = load_victim(plan.victim, plan.device).at_scales(plan.scales)
    split = load_data(plan.data).sample(plan.queries, plan.seed)
    require_matches(split)
    _rehearse(victim, split, plan)
    folder = RunFolder(
        out,
        {
            **plan.configuration(),
            "protocol": split.protocol,
            "ties": TIES,
            "victim weights": victim.fingerprint,
            "preprocessing": repr(victim.preprocessing),
            "test time": repr(victim.test_time),
            "similarity": victim.similarity,
            "data fingerprint": split.fingerprint(),
        },
    )
    if folder.finished:
        folder.clean_up()
        return folder.results()
    features = _gallery(victim, split, folder, progress).to(victim.device)
    system = RetrievalSystem.build(victim, split, features, str(plan.index), rerank=plan.rerank)
    insider = Insider(victim, split, system, features, str(plan.index), plan.seed)
    clean = extract_all(victim, split.query, "clean queries", progress=progress)
    threshold = system.threshold(clean, Labels.of(split.query, victim.device), metrics.FPR)
    sweep = _Sweep(plan, folder, victim, split, system, insider, threshold, progress)
    sweep.craft()
    return sweep.reduce()


def _rehearse(victim: Victim, split: Split, plan: Plan) -> None:
    """Try the index and every objective on one query, so that misfits fail before long work."""
    pixels = to_pixels(victim.grid([split.query.read(0)])).to(victim.device)
    with torch.no_grad():
        one = victim.features(pixels)
    built = build_index(str(plan.index), one, victim.similarity)
    if plan.rerank:
        require_apart(split)
        build_stages(plan.rerank, built)
    for objective in {job.attack.objective for job in plan.jobs() if job.attack}:
        if objective is None or needs(objective):
            continue  # nothing to climb, or something that is drawn from the gallery
        if not bool(objective.bind(victim, pixels, Scene())(pixels).isfinite().all()):
            raise ArgumentError(
                f"{objective} is not finite on query {split.query.names[0]}; "
                "the victim's weights or preprocessing are broken"
            )


def _gallery(victim: Victim, split: Split, folder: RunFolder, progress: bool) -> Tensor:
    """Extract the gallery's raw features ``(G, D)``, chunk by chunk into the run folder."""
    gallery = split.gallery
    parts = chunks(len(gallery))
    stored = {
        number: part_features
        for number in range(len(parts))
        if (part_features := folder.gallery_part(number)) is not None
    }
    done = sum(map(len, stored.values()))
    with bar(len(gallery), "embedding the gallery", "picture", done=done, show=progress) as shown:
        for number, part in enumerate(parts):
            if number not in stored:
                stored[number] = extract_pictures(victim, gallery, part).cpu().numpy()
                folder.add_gallery_part(number, stored[number])
                shown.update(len(part))
    return torch.from_numpy(np.concatenate([stored[n] for n in range(len(parts))]))


@final
@dataclass(frozen=True, eq=False)
class _Queries:
    """A batch of queries: as their clean PNGs decode, labels, and clean features."""

    pictures: Pictures
    clean: list[Picture]
    labels: Labels
    features: Tensor
    shown: int


@final
@dataclass(frozen=True, eq=False)
class _Sweep:
    """A plan with everything loaded."""

    plan: Plan
    folder: RunFolder
    victim: Victim
    split: Split
    system: RetrievalSystem
    insider: Insider
    threshold: float
    """Of `metrics.accepted`, fixed on the clean queries."""
    progress: bool

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

        def work(jobs: list[Job], batch: range) -> int:  # a forward pass beside the gradients
            return sum(job.work for job in jobs) * len(batch)

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

    def _load(self, batch: range) -> _Queries:
        """Decode a batch of queries and write the clean ones, which everything is held against."""
        pictures = self.split.query.subset(np.array(batch))
        read = [self.victim.canvas(pictures.read(i), self.plan.at) for i in range(len(pictures))]
        self._write(Job(CLEAN, 0), pictures.names, read)
        clean = threaded(decode, [self.folder.picture(Job(CLEAN, 0), n) for n in pictures.names])
        return _Queries(
            pictures,
            clean,
            Labels.of(pictures, self.victim.device),
            extract_decoded(self.victim, clean),
            shown=sum(i < SHOWN for i in batch),
        )

    def _write(self, job: Job, names: tuple[str, ...], pictures: Iterable[Picture]) -> None:
        threaded(encode, [self.folder.picture(job, name) for name in names], pictures)

    def _part(self, job: Job, batch: int, queries: _Queries) -> dict[str, Any]:
        if job.members:
            return self._worst(job, batch, queries)
        if job.attack is None:
            return {"seconds": 0.0, **self._score(job, queries)}
        names = queries.pictures.names
        goal = self.insider.goal(job, names, queries.labels, queries.features)
        found, seconds = dict[int, Picture](), 0.0
        for which, images in by_shape(queries.clean):
            mine, labels = [names[i] for i in which], queries.labels[torch.tensor(which)]
            part = None if goal is None else replace(goal, chosen=goal.chosen[which])
            scene = self.insider.scene(job, mine, labels, queries.features[which], part)
            result = job.attack(self.victim, images, scene, names=mine, seed=self.plan.seed)
            found |= dict(zip(which, map(to_picture, result.images), strict=True))
            seconds += result.seconds
        changed = [found[i] for i in range(len(names))]
        if self.plan.mode == "paper":
            changed = [jpeg(picture, PAPER_QUALITY) for picture in changed]
        self._write(job, names, changed)
        return {"seconds": seconds, **self._score(job, queries, goal)}

    def _worst(self, job: Job, batch: int, queries: _Queries) -> dict[str, Any]:
        """Per query the member's picture that is worst for the ranking, scored again.

        Worst is the latest first match, and among equals the least average precision. What is
        reported is the worst of any member by each measure, so that no number of this row is
        ever better than a member's.
        """
        parts = [self.folder.part(member, batch) for member in job.members]
        by_query = list(zip(*(part["rows"] for part in parts), strict=True))
        chosen = []
        for rows in by_query:
            damage = [(row["first_match_rank"] or 0, -(row["ap"] or 0.0)) for row in rows]
            member = job.members[damage.index(max(damage))]
            chosen.append(decode(self.folder.picture(member, rows[0]["query"])))
        self._write(job, queries.pictures.names, chosen)
        part = self._score(job, queries)
        for worst, rows in zip(part["rows"], by_query, strict=True):
            for key in worst:
                extreme = WORSE.get(key.partition("|")[0])
                if extreme and worst[key] is not None:
                    worst[key] = extreme(row[key] for row in rows)
        return {"seconds": sum(part["seconds"] for part in parts), **part}

    def _score(self, job: Job, queries: _Queries, goal: Goal | None = None) -> dict[str, Any]:
        """Score the pictures on disk: certify, embed, rank."""
        names = queries.pictures.names
        scored = threaded(decode, [self.folder.picture(job, name) for name in names])
        lossy = self.plan.mode == "paper"  # JPEG keeps no budget; the row's flags say so
        sizes = [
            checks.measure(job, *each, lossy=lossy)
            for each in zip(names, queries.clean, scored, strict=True)
        ]
        labels = queries.labels
        features = extract_decoded(self.victim, scored)
        columns = self._ranks(features, labels)
        for channel in self.plan.survive:
            received = extract_decoded(self.victim, threaded(CHANNELS[channel], scored))
            ranks = self._ranks(received, labels)
            columns |= {f"{key}|{channel}": ranks[key] for key in ("first_match_rank", "ap")}
        if goal is not None:
            before = self.insider.places(goal, labels, queries.features)
            columns |= self.insider.places(goal, labels, features)
            columns["goal_rank_clean"] = before["goal_rank"]
        cosine = F.cosine_similarity(features, queries.features).tolist()
        rows = [
            {
                "query": name,
                "identity": int(queries.pictures.identities[n]),
                "camera": int(queries.pictures.cameras[n]),
                "cosine_to_clean": cosine[n],
                "linf_levels": sizes[n][0],
                "l2": sizes[n][1],
                **{key: values[n] for key, values in columns.items()},
            }
            for n, name in enumerate(names)
        ]
        return {"rows": rows, "answers": self._answers(queries, features, labels)}

    def _ranks(self, features: Tensor, labels: Labels) -> dict[str, list[Any]]:
        """Columns of per-query values; None where a query has no relevant item."""
        ranking = self.system.rank(features, labels)
        first = metrics.first_match(ranking).tolist()
        values = {
            "ap": metrics.average_precision(ranking, str(self.plan.convention)),
            "r_precision": metrics.r_precision(ranking),
            "inp": metrics.inp(ranking),
            "normalised_rank": metrics.normalised_rank(ranking),
            "tpr": metrics.accepted(ranking, self.threshold),
        }
        columns = {name: column.tolist() for name, column in values.items()}
        return {
            "first_match_rank": [None if math.isnan(rank) else int(rank) for rank in first],
            **{k: [None if math.isnan(v) else v for v in column] for k, column in columns.items()},
            "matches": ranking.matches.tolist(),
            "tied": ranking.tied.tolist(),
        }

    def _answers(self, queries: _Queries, features: Tensor, labels: Labels) -> list[Row]:
        """The first ranks of the queries that the report shows."""
        if not queries.shown:
            return []
        part, gallery = slice(queries.shown), self.split.gallery.names
        answers = self.system.ask(features[part], labels[part], RANKS)
        return [
            {
                "query": name,
                "items": [
                    {"name": gallery[hit.item], "score": hit.score, "relevant": hit.relevant}
                    for hit in answer
                ],
            }
            for name, answer in zip(queries.pictures.names[part], answers, strict=True)
        ]

    # -- the reduction at the edge ------------------------------------------------------------

    def reduce(self) -> list[Row]:
        """From parts to tables."""
        queries, results, ranklists = [], [], []
        for job in self.plan.jobs():
            parts = [self.folder.part(job, n) for n in range(len(self.batches()))]
            rows = [
                {"attack": job.name, "eps": job.eps, **row}
                for part in parts
                for row in part["rows"]
            ]
            seconds = sum(part["seconds"] for part in parts)
            queries += rows
            results.append(self._result(job, rows, seconds, queries[: len(rows)]))
            ranklists += [
                {"attack": job.name, "eps": job.eps, "folder": job.folder, **answer}
                for part in parts
                for answer in part["answers"]
            ]
        self._thumbnails({item["name"] for r in ranklists for item in r["items"]})
        features = self.insider.features
        facts = {
            "gallery": len(features),
            "dimensions": features.shape[1],
            "nonnegative features": bool((features >= 0).all()),
            "gradients": sum(row["gradients"] * row["queries"] for row in results),
            "threshold": self.threshold,
        }
        self.folder.finish(queries, results, ranklists, facts)
        return results

    def _result(self, job: Job, rows: list[Row], seconds: float, clean: list[Row]) -> Row:
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
        # Of genuine pairs, not of queries.
        weights = {f"tpr@fpr={metrics.FPR}": column("matches")}
        return {
            "attack": job.name,
            "eps": job.eps,
            "victim": self.plan.victim,
            "data": self.plan.data,
            "queries": len(rows),
            "convention": self.plan.convention,
            "index": str(self.system.index),
            **{name: weighted_mean(value) for name, value in measured.items()},
            "cosine": float(column("cosine_to_clean").mean()),
            "linf_levels": float(np.median(column("linf_levels"))),
            "goal": self._goal(rows),
            "ci95": {
                name: identity_bootstrap(value, identities, self.plan.seed, weights.get(name))
                for name, value in {**measured, **more}.items()
                if name != "mean_first_match"  # no fraction of queries
            },
            "metrics": {
                **{name: weighted_mean(value, weights.get(name)) for name, value in more.items()},
                "median_first_match": float(np.nanmedian(first)),
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
            encode(self.folder.thumbnail(name), self.victim.canvas(picture, "model"))
