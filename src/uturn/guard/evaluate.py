"""A guard on trial: fitted to clean queries, shown the pictures of a finished run of any attack.

Only the files of the run are read. Threshold and spreads are fixed on clean queries of identities
that are not evaluated, so that neither an attacked picture nor its owner is known to the guard.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.data.catalog import load_data
from uturn.data.pictures import Picture, Pictures
from uturn.data.split import Split
from uturn.errors import RunFolderError
from uturn.guard.detector import Answer, Guard, Look
from uturn.progress import bar, say
from uturn.report.folder import CLEAN, Job, Run, fitting, read_json
from uturn.report.text import aligned, markdown, verbatim
from uturn.retrieval import metrics
from uturn.retrieval.extract import chunks, extract_all
from uturn.retrieval.index import require_here
from uturn.retrieval.intervals import auc, auc_bootstrap, identity_bootstrap
from uturn.retrieval.judge import Labels
from uturn.retrieval.support import few
from uturn.retrieval.system import RetrievalSystem
from uturn.rng import generator
from uturn.storage import write
from uturn.victims.load import load_victim, pick_device, require_data
from uturn.victims.preprocessing import by_shape, to_images
from uturn.victims.victim import Victim, to_pixels

Column = npt.NDArray[np.float64]
Interval = tuple[float, float] | None

ANSWERS: tuple[Answer, ...] = get_args(Answer)

CALIBRATION = 500
"""Clean queries that a guard is fitted to, where nothing else is said."""

_TIMED = 20
"""Single queries that are timed."""


@final
@dataclass(frozen=True)
class Verdict:
    """What a guard makes of one attack at one ε."""

    attack: str
    eps: float
    queries: int
    auc: float | None
    """Area under the ROC curve, against the same queries unattacked; None for these."""
    auc_ci95: Interval
    flagged: float
    """The share that is flagged: for clean queries the false positive rate that was reached, for
    others the true positive rate at the rate that the threshold was fixed for."""
    flagged_ci95: Interval
    fooled: float | None
    """Of the queries whose first match was right, the share that lost it and passes unflagged."""
    fooled_ci95: Interval
    recall: dict[Answer, float]
    """Recall@1 without refusing anything, by which features answer; ``query`` is undefended."""


@final
@dataclass(frozen=True)
class Choice:
    """What is left against an attacker who knows the guard, and keeps of each query's pictures at
    one ε, whatever attack made them, one that does harm and passes."""

    eps: float
    fooled: float
    fooled_ci95: Interval


@final
@dataclass(frozen=True)
class Trial:
    """What was found, and how."""

    run: str
    victim: str
    data: str
    fpr: float
    threshold: float
    calibrated_on: int
    """Clean queries that the guard was fitted to, and how many identities they show."""
    calibrated_identities: int
    identities: int
    """Of the queries that are evaluated."""
    milliseconds: float
    """Median for one query alone on this machine: the embedding of an unguarded system."""
    milliseconds_guarded: float
    """The same of `Guard.look`."""
    verdicts: tuple[Verdict, ...]
    choices: tuple[Choice, ...]
    """One for each ε at which there are several attacks."""

    def text(self) -> str:
        """For the terminal."""
        head, lines = self._table()
        told = [*self._chosen(), *self.caveats]
        return "\n".join([self.summary, "", *aligned([head, *lines]), *told])

    def markdown(self) -> str:
        """The same as a page."""
        head, lines = self._table()
        lines = [[verbatim(line[0]), *line[1:]] for line in lines]
        title = f"# The guard on {verbatim(self.run)}"
        told = "\n".join([*self._chosen(), *self.caveats])
        return "\n\n".join([title, self.summary, markdown(head, lines), told]) + "\n"

    @property
    def summary(self) -> str:
        """What was done."""
        return (
            f"The threshold is fixed for a false positive rate of {self.fpr:g} on "
            f"{self.calibrated_on:,} clean queries of {self.calibrated_identities:,} identities; "
            f"evaluated are {self.verdicts[0].queries:,} queries of {self.identities:,} others. "
            f"A query takes {self.milliseconds_guarded:.1f} ms, without the guard "
            f"{self.milliseconds:.1f} ms."
        )

    @property
    def caveats(self) -> list[str]:
        """What the queries do not bear out."""
        return few(self.identities)

    def _chosen(self) -> list[str]:
        return [
            f"Fooled at ε = {each.eps:g} by whichever of the attacks does: {each.fooled:.4f} "
            f"({_ends(each.fooled_ci95)})."
            for each in self.choices
        ]

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = ["attack", "ε", "AUC", "95 %", f"flagged at FPR {self.fpr:g}", "95 %"]
        head += ["fooled", "95 %", *(f"R@1 {by}" for by in ANSWERS)]
        lines = []
        for each in self.verdicts:
            line = [each.attack, f"{each.eps:g}", _number(each.auc), _ends(each.auc_ci95)]
            line += [_number(each.flagged), _ends(each.flagged_ci95)]
            line += [_number(each.fooled), _ends(each.fooled_ci95)]
            lines.append([*line, *(_number(each.recall[by]) for by in ANSWERS)])
        return head, lines


def try_guard(
    folder: Path,
    *,
    fpr: float = 0.01,
    calibrate: int = CALIBRATION,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
    progress: bool = True,
) -> tuple[Guard, Trial]:
    """Fit a guard for the victim of the run in ``folder``, and try it on the run's pictures.

    Without ``trust``, a victim of the run that is code is not loaded, nor an index that is a
    database.

    Raises:
        SpecError: the run names one.
        RunFolderError: it is no finished run, the victim or the data are others now, or no query
        is left to evaluate. ArgumentError: too few clean queries for ``fpr``.
    """
    case = _Case.read(folder, pick_device(device), trust)
    split, victim = case.split, case.victim
    held = _calibration(split.query.identities, calibrate, seed)
    kept = ~np.isin(case.asked.identities, split.query.identities[held])
    if not kept.any():
        raise RunFolderError(
            f"{calibrate} clean queries to calibrate on take all identities of {folder}; calibrate "
            "on fewer, or sweep more queries"
        )
    features = extract_all(victim, split.gallery, "gallery", progress=progress)
    court = _Court(victim, RetrievalSystem.build(victim, split, features, case.index))
    clean, evaluated = split.query.subset(held), case.asked.subset(np.flatnonzero(kept))
    say(f"fitting a guard to {len(clean)} clean queries", show=progress)
    guard = court.fit(features, clean, fpr)
    seen, total = dict[Job, _Seen](), len(case.places) * len(evaluated)
    with bar(total, "looking at the run's pictures", "picture", show=progress) as shown:
        for job, place in case.places.items():
            pictures = [np.asarray(case.run.picture("images", place, n)) for n in evaluated.names]
            seen[job] = court.see(guard, evaluated, pictures)
            shown.update(len(evaluated))
    own, guarded = _timed(guard, [evaluated.read(i) for i in range(min(_TIMED, len(evaluated)))])
    trial = Trial(
        run=str(folder),
        victim=case.run.victim,
        data=split.name,
        fpr=fpr,
        threshold=guard.threshold,
        calibrated_on=len(clean),
        calibrated_identities=len(np.unique(clean.identities)),
        identities=len(np.unique(evaluated.identities)),
        milliseconds=own,
        milliseconds_guarded=guarded,
        verdicts=tuple(
            _verdict(job, found, seen[CLEAN], evaluated.identities, seed)
            for job, found in seen.items()
        ),
        choices=tuple(_choices(seen, evaluated.identities, seed)),
    )
    return guard, trial


def keep(trial: Trial, out: Path) -> Path:
    """Write ``guard.json`` and ``guard.md`` into the folder ``out``; the latter's path."""
    write(
        out / "guard.json", (json.dumps({"schema": 1, **asdict(trial)}, indent=1) + "\n").encode()
    )
    write(out / "guard.md", trial.markdown().encode())
    return out / "guard.md"


@final
@dataclass(frozen=True, eq=False)
class _Case:
    """A run with its victim and its data, which are still what they were."""

    run: Run
    victim: Victim
    index: str
    split: Split
    asked: Pictures
    """The run's queries."""
    places: dict[Job, str]
    """Where the pictures of each job lie below ``images/``, the clean ones first."""

    @classmethod
    def read(cls, folder: Path, device: torch.device, trust: bool) -> _Case:
        run = Run.read(folder)
        with fitting(folder):
            configuration = run.configuration
            if not trust:
                where = f"{folder / 'run.json'} (see --trust)"
                require_data(configuration["victim"], where)
                require_here(str(configuration["index"]), where)
            victim = load_victim(configuration["victim"], device)
            victim = victim.at_scales(tuple(configuration["scales"])).folded()
            split = load_data(configuration["data"])
            asked = split.sample(configuration["queries"], configuration["seed"])
            places = {
                (entry["attack"], entry["eps"]): str(entry["folder"])
                for entry in read_json(folder, "ranklists.json")["queries"]
                if entry["victim"] == run.victim
            }
            places = {CLEAN: places.pop(CLEAN), **places}
            before = configuration["victim weights"], configuration["data fingerprint"]
            index = str(configuration["index"])
        for what, now, then in zip(
            ("weights", "data"), (victim.fingerprint, asked.fingerprint()), before, strict=True
        ):
            if now != then:
                raise RunFolderError(
                    f"{folder} was made with other {what} than {run.victim} on {split.name} is "
                    "now; a guard is tried on what was attacked"
                )
        return cls(run, victim, index, split, asked.query, places)


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """Of every evaluated query, ``(Q,)`` each."""

    score: Column
    flagged: Column
    right: dict[Answer, Column]
    """1 where the first item is relevant, 0 where it is not, NaN where none is."""


@final
@dataclass(frozen=True, eq=False)
class _Court:
    """The system that is asked, with and without a guard."""

    victim: Victim
    system: RetrievalSystem

    def fit(self, gallery: Tensor, clean: Pictures, fpr: float) -> Guard:
        """A guard fitted to ``clean``."""
        images = [self.victim.preprocessing.on_grid(clean.read(i)) for i in range(len(clean))]
        return Guard.fit(
            self.victim,
            gallery,
            [to_images([image])[0] for image in images],
            fpr=fpr,
            left_out=self._left_out(Labels.of(clean, self.victim.device)),
        )

    def see(self, guard: Guard, queries: Pictures, pictures: list[Picture]) -> _Seen:
        """What the guard and the system say of ``pictures`` in the place of ``queries``."""
        labels, found = Labels.of(queries, self.victim.device), dict[int, list[float]]()
        for part in chunks(len(pictures)):
            fitted = [self.victim.preprocessing.on_grid(pictures[i]) for i in part]
            for which, images in by_shape(fitted):
                mine = torch.tensor([part[i] for i in which], device=self.victim.device)
                asked = labels[mine]
                look = guard.look(images, self._left_out(asked))
                rows = [look.score.double(), look.flags.double(), *self._right(look, asked)]
                for place, row in zip(mine.tolist(), torch.stack(rows, 1).tolist(), strict=True):
                    found[place] = row
        score, flagged, *right = np.array([found[i] for i in range(len(pictures))]).T
        return _Seen(score, flagged, dict(zip(ANSWERS, right, strict=True)))

    def _right(self, look: Look, asked: Labels) -> Iterator[Tensor]:
        for by in ANSWERS:
            yield metrics.recall_at(self.system.rank(look.answer(by), asked), 1).double()

    def _left_out(self, asked: Labels) -> Tensor:
        return self.system.judge(asked, self.system.gallery).masks()[1]


def _calibration(identities: npt.NDArray[np.int64], count: int, seed: int) -> npt.NDArray[np.int64]:
    """Places of clean queries to calibrate on: whole identities, drawn until there are ``count``.

    What a run asks has no part in it, so that every run on the same data is tried before the same
    guard.
    """
    drawn = generator(seed, "guard", "identities").permutation(np.unique(identities))
    sizes = dict(zip(*np.unique(identities, return_counts=True), strict=True))
    taken, total = list[int](), 0
    for identity in drawn:
        if total >= count:
            break
        taken.append(int(identity))
        total += int(sizes[identity])
    found: npt.NDArray[np.int64] = np.flatnonzero(np.isin(identities, taken))
    return found


def _fooled(found: _Seen, clean: _Seen) -> Column:
    """1 where a right first match is lost and nobody is told; NaN where there was none to lose."""
    before, after = clean.right["query"], found.right["query"]
    return np.where(before == 1, (after == 0) & (found.flagged == 0), np.nan)


def _choices(
    seen: Mapping[Job, _Seen], identities: npt.NDArray[np.int64], seed: int
) -> Iterator[Choice]:
    for eps in dict.fromkeys(eps for _, eps in seen):
        by_attack = [_fooled(each, seen[CLEAN]) for job, each in seen.items() if job[1] == eps]
        best = np.max(by_attack, axis=0)
        if len(by_attack) > 1 and not np.isnan(best).all():
            share = float(np.nanmean(best))
            yield Choice(eps, share, identity_bootstrap(best, identities, seed))


def _verdict(
    job: Job, found: _Seen, clean: _Seen, identities: npt.NDArray[np.int64], seed: int
) -> Verdict:
    attacked = job != CLEAN
    fooled = _fooled(found, clean)
    some = attacked and not np.isnan(fooled).all()
    return Verdict(
        attack=job[0],
        eps=job[1],
        queries=len(identities),
        auc=auc(found.score, clean.score) if attacked else None,
        auc_ci95=auc_bootstrap(found.score, clean.score, identities, seed) if attacked else None,
        flagged=float(found.flagged.mean()),
        flagged_ci95=identity_bootstrap(found.flagged, identities, seed),
        fooled=float(np.nanmean(fooled)) if some else None,
        fooled_ci95=identity_bootstrap(fooled, identities, seed) if some else None,
        recall={by: float(np.nanmean(right)) for by, right in found.right.items()},
    )


def _timed(guard: Guard, pictures: list[Picture]) -> tuple[float, float]:
    """Median milliseconds for one query alone, embedded and guarded."""
    seconds = []
    with torch.no_grad():
        for picture in pictures:
            image = guard.victim.grid([picture])
            began = time.perf_counter()
            guard.victim.features(to_pixels(image)).cpu()
            between = time.perf_counter()
            guard.look(image).flags.cpu()
            seconds.append((between - began, time.perf_counter() - between))
    own, guarded = 1e3 * np.median(seconds, axis=0)
    return float(own), float(guarded)


def _number(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.4f}"


def _ends(interval: Interval) -> str:
    return "–" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"
