"""Two runs or more on the queries that they share: by how much they differ, and how surely."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from uturn.errors import ArgumentError, RunFolderError
from uturn.report.compare import Comparison, Difference, Line, Pair
from uturn.report.flags import PAGE, graver
from uturn.report.folder import CLEAN, Columns, Run, fitting
from uturn.report.matrix import Matrix
from uturn.report.text import flat, precision
from uturn.retrieval.intervals import holm, paired_bootstrap, sign_flip
from uturn.retrieval.metrics import RECALLS
from uturn.retrieval.support import ENOUGH, resolution
from uturn.sweep.doubts import MUCH

SEED = 0
"""Of the bootstrap, so that the same runs always compare alike."""

Scored = tuple[str | None, str, float]
"""Who scored, None for the victim that was attacked; attack; ε."""


def compare(folders: Sequence[Path]) -> Comparison:
    """Hold every run against the first: per attack and ε, metrics over the queries all have.

    Where a run transferred, what its targets scored is compared by the targets' names.

    Raises:
        ArgumentError: fewer than two folders, or one twice. RunFolderError: a folder is no
        finished run, or the runs share no data, queries or attacks.
    """
    if len(folders) < 2:
        raise ArgumentError("a comparison needs at least two run folders")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ArgumentError("a run folder is given twice; compare it with another one")
    runs = [_Scores.read(folder) for folder in folders]
    with fitting(*folders):
        return _compared(runs)


def _compared(runs: Sequence[_Scores]) -> Comparison:
    first, *others = runs
    for other in others:
        _require_same_data(first.run, other.run)
    common = _common(runs)
    positions = [[run.position[name] for name in common] for run in runs]
    identities = _labels(runs, positions)
    metrics, notes = _metrics(runs)
    columns = [run.values(metrics, which) for run, which in zip(runs, positions, strict=True)]
    pairs = [
        _pair(first, other, columns[0], values, metrics, identities)
        for other, values in zip(others, columns[1:], strict=True)
    ]
    called, people = _called(runs), len(np.unique(identities))
    if people < ENOUGH:
        notes.append(
            f"{people} identities say little of others: intervals over fewer than {ENOUGH} are too "
            "narrow."
        )
    return Comparison(
        first=str(first.run.path),
        data=str(first.run.configuration["data"]),
        queries=len(common),
        identities=people,
        metrics=metrics,
        settings=_settings([run.run for run in runs]),
        pairs=tuple(_corrected(pairs)),
        notes=(*notes, *_confessed(runs), *_transferred(runs, positions, identities)),
        called=called,
        matrices=tuple(_matrices(runs, called)),
    )


@final
@dataclass(frozen=True, eq=False)
class _Scores:
    """A run and what its victims make of each query."""

    run: Run
    jobs: dict[Scored, list[Columns]]
    """Of every seed."""
    position: dict[str, int]
    """Of a query, by its name."""
    precision: str
    """The key of its average precision."""

    @classmethod
    def read(cls, folder: Path) -> _Scores:
        run = Run.read(folder)
        with fitting(folder):
            jobs: dict[Scored, list[Columns]] = {}
            metric = precision(run.rows[0])
            ap = metric.removeprefix("m")  # ap of map, ap@100 of map@100
            for victim in dict.fromkeys(row["victim"] for row in run.rows):
                scorer = None if victim == run.victim else victim
                read = run.repeats(victim, "identity", "camera", "first_match_rank", ap)
                jobs |= {(scorer, *job): columns for job, columns in read.items()}
            names = jobs[(None, *CLEAN)][0]["query"]
            return cls(run, jobs, {name: place for place, name in enumerate(names)}, metric)

    @property
    def convention(self) -> str:
        """Of average precision; ``map@k`` where the index answered with k items."""
        named = str(self.run.configuration["convention"])
        return named if self.precision == "map" else self.precision

    @property
    def labels(self) -> list[tuple[int, int]]:
        """Identity and camera of each query."""
        clean = self.jobs[(None, *CLEAN)][0]
        return list(zip(clean["identity"], clean["camera"], strict=True))

    def values(
        self, metrics: Sequence[str], which: Sequence[int]
    ) -> dict[Scored, dict[str, npt.NDArray[np.float64]]]:
        """By job and metric, ``(Q, S)`` values of the queries ``which`` by every seed.

        NaN without a match.
        """
        found = {}
        for job, seeds in self.jobs.items():

            def column(name: str, seeds: list[Columns] = seeds) -> npt.NDArray[np.float64]:
                return np.array([each[name] for each in seeds], dtype=np.float64).T[list(which)]

            first = column("first_match_rank")
            values = {f"recall@{k}": np.where(np.isnan(first), np.nan, first <= k) for k in RECALLS}
            values[self.precision] = column(self.precision.removeprefix("m"))
            found[job] = {metric: values[metric] for metric in metrics}
        return found


def _require_same_data(first: Run, other: Run) -> None:
    """Fingerprints tell for sure; those of runs with other numbers of queries differ anyway."""
    one, two = first.configuration, other.configuration
    with fitting(other.path):
        if one["data fingerprint"] == two["data fingerprint"]:
            return
        told = [(key, one[key], two[key]) for key in ("data", "protocol")]
        told.append(
            ("number of gallery pictures", first.header["gallery"], other.header["gallery"])
        )
    for key, mine, theirs in told:
        if mine != theirs:
            raise RunFolderError(
                f"{other.path} has the {key} {theirs}, {first.path} has {mine}; only runs on the "
                "same data can be compared, and paths to it count: repeat one with the other's"
            )


def _common(runs: Sequence[_Scores]) -> list[str]:
    """The queries that all runs have, in the first's order."""
    first, *others = runs
    common = [name for name in first.position if all(name in run.position for run in others)]
    if not common:
        raise RunFolderError(
            f"no query is in all of {', '.join(str(run.run.path) for run in runs)}; repeat one "
            "with the other's --seed"
        )
    return common


def _labels(runs: Sequence[_Scores], positions: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Identities of the common queries, which all runs must agree about, and about cameras."""
    first, *others = [
        [run.labels[place] for place in which] for run, which in zip(runs, positions, strict=True)
    ]
    for run, labels in zip(runs[1:], others, strict=True):
        if labels != first:
            raise RunFolderError(
                f"{run.run.path} and {runs[0].run.path} give queries of the same name other "
                "identities or cameras; only runs on the same data can be compared"
            )
    return np.array([identity for identity, _ in first], dtype=np.int64)


def _metrics(runs: Sequence[_Scores]) -> tuple[tuple[str, ...], list[str]]:
    """What can be compared; average precisions by different conventions cannot."""
    recalls = tuple(f"recall@{k}" for k in RECALLS)
    conventions = dict.fromkeys(run.convention for run in runs)
    if len(conventions) == 1:
        return (*recalls, runs[0].precision), []
    told = f"mAP is left out: the runs average precision by {' and by '.join(conventions)}."
    return recalls, [told]


def _pair(
    first: _Scores,
    other: _Scores,
    before: Mapping[Scored, Mapping[str, npt.NDArray[np.float64]]],
    after: Mapping[Scored, Mapping[str, npt.NDArray[np.float64]]],
    metrics: Sequence[str],
    identities: npt.NDArray[np.int64],
) -> Pair:
    shared = [job for job in first.jobs if job in other.jobs]
    if all(eps == 0 for _, _, eps in shared):
        raise RunFolderError(
            f"{other.run.path} and {first.run.path} share no attack at the same ε; "
            f"the first has {_told(first.jobs)}, the other {_told(other.jobs)}"
        )
    lines = [
        Line(
            *job,
            {key: _difference(before[job][key], after[job][key], identities) for key in metrics},
        )
        for job in shared
    ]
    missing = [Line(*job, {}).name for job in {**first.jobs, **other.jobs} if job not in shared]
    return Pair(str(other.run.path), tuple(lines), tuple(missing))


def _difference(
    before: npt.NDArray[np.float64],
    after: npt.NDArray[np.float64],
    identities: npt.NDArray[np.int64],
) -> Difference | None:
    before_mean, after_mean = before.mean(1), after.mean(1)  # over the seeds
    both = ~np.isnan(before_mean + after_mean)
    if not both.any():
        return None
    interval = paired_bootstrap(before, after, identities, SEED)
    p = sign_flip(after_mean - before_mean, identities)
    means = float(before_mean[both].mean()), float(after_mean[both].mean())
    return Difference(*means, interval, 1.0 if p is None else p, resolution(interval))


def _corrected(pairs: Sequence[Pair]) -> Iterator[Pair]:
    """With every p-value as it stands beside all others of the comparison."""
    every = [d for pair in pairs for line in pair.lines for d in line.differences.values() if d]
    adjusted = iter(holm([difference.p for difference in every]))
    for pair in pairs:
        lines = [
            replace(
                line,
                differences={
                    key: difference and replace(difference, p=next(adjusted))
                    for key, difference in line.differences.items()
                },
            )
            for line in pair.lines
        ]
        yield replace(pair, lines=tuple(lines))


def _called(runs: Sequence[_Scores]) -> dict[str, str]:
    """Short names for all victims that scored, by their specs."""
    attacked = {run.run.victim: f"victim {number}" for number, run in enumerate(runs, 1)}
    others = dict.fromkeys(job[0] for run in runs for job in run.jobs if job[0])
    targets = [spec for spec in others if spec not in attacked]
    return attacked | {spec: f"target {number}" for number, spec in enumerate(targets, 1)}


def _matrices(runs: Sequence[_Scores], called: Mapping[str, str]) -> Iterator[Matrix]:
    """Nothing where one victim was attacked twice, or where the queries are not the same."""
    configurations = [run.run.configuration for run in runs]
    if (
        len({run.run.victim for run in runs}) < len(runs)
        or len({each["data fingerprint"] for each in configurations}) > 1
    ):
        return
    if not any(job[0] for run in runs for job in run.jobs):
        return
    shared = set.intersection(*({job[1:] for job in run.jobs if job[2]} for run in runs))
    for name in dict.fromkeys(attack for _, attack, _ in runs[0].jobs):
        if levels := [eps for attack, eps in shared if attack == name]:
            yield Matrix.of([run.run.path for run in runs], name, max(levels), titles=called)


def _told(jobs: Mapping[Scored, Any]) -> str:
    return ", ".join(f"{attack} ε={eps:g}" for scorer, attack, eps in jobs if eps and not scorer)


def _confessed(runs: Sequence[_Scores]) -> Iterator[str]:
    """What the runs say of themselves that a comparison must not hide."""
    for run in runs:
        for name, says in graver(run.run.rows):
            yield f"{run.run.path}, {name}: {says} ({PAGE}#flag-{name})"


def _transferred(
    runs: Sequence[_Scores], positions: Sequence[Sequence[int]], identities: npt.NDArray[np.int64]
) -> Iterator[str]:
    """Where pictures crafted on another victim do more harm than those crafted on itself."""

    def hits(run: _Scores, which: Sequence[int], job: Scored) -> npt.NDArray[np.float64]:
        return run.values(("recall@1",), which)[job]["recall@1"]

    for (white, here), (other, there) in itertools.permutations(
        zip(runs, positions, strict=True), 2
    ):
        for scorer, attack, eps in other.jobs:
            if scorer != white.run.victim or (None, attack, eps) not in white.jobs:
                continue
            spelled = white.run.configuration.get("jobs", {}).get(f"{attack} eps={eps:g}", "")
            if not spelled.startswith(_TURNS):
                continue
            own = hits(white, here, (None, attack, eps))
            moved = hits(other, there, (scorer, attack, eps))
            found = _difference(own, moved, identities)
            if found and found.sure and found.change <= -MUCH:
                yield (
                    f"{white.run.path}, transfer: {attack} at ε={eps:g} crafted in "
                    f"{other.run.path} on another victim does more harm: R@1 {found.other:.3f}, "
                    f"with full access {found.first:.3f} ({PAGE}#flag-transfer)"
                )


_TURNS = ("Attack(objective=OppositeDirection(", "Attack(objective=AwayFrom")
"""How attacks are spelled that surely do more harm to the victim whose gradient they climb."""


def _settings(runs: Sequence[Run]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What the runs' configurations differ in; of attacks, those that all have and spell alike."""
    told = []
    for run in runs:
        with fitting(run.path):
            lines = dict(flat({k: v for k, v in run.configuration.items() if k != "targets"}))
            told.append(lines | dict(flat({"uturn": run.header["versions"]["uturn"]})))
    keys = list(dict.fromkeys(key for lines in told for key in lines))
    values = {key: tuple(lines.get(key, "–") for lines in told) for key in keys}
    return tuple(
        (key, found)
        for key, found in values.items()
        if len(set(found)) > 1 and not (key.startswith("jobs: ") and "–" in found)
    )
