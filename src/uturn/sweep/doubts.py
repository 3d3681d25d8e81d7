"""Doubts: what the rows of a run say of each other that a healthy victim's would not.

Everything follows from the rows per query and from `uturn.sweep.looks`, so that `uturn verify`
finds it again. What is compared is only what a healthy victim orders surely, query by query; and
since a run compares many rows, it takes both `MUCH` and an interval that leaves 0 out.

Source: Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018; Carlini
et al., "On Evaluating Adversarial Robustness", 2019; Croce and Hein, ICML 2020 (AutoAttack).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt

from uturn.attacks.blackbox import BlackBox
from uturn.attacks.loop import Attack
from uturn.attacks.objectives import (
    AtScales,
    AwayFromFeature,
    AwayFromKnown,
    AwayFromPredicted,
    Objective,
    OppositeDirection,
    OppositeLogits,
    TowardsLeastLikely,
    Unnoticed,
)
from uturn.attacks.search import Search
from uturn.attacks.universal import RandomSigns
from uturn.retrieval.intervals import identity_bootstrap, paired_bootstrap
from uturn.sweep.checks import CLIMBED, late
from uturn.sweep.insider import has_goal
from uturn.sweep.looks import Looks
from uturn.sweep.plan import CLEAN, Job
from uturn.sweep.store import Row
from uturn.victims.same import SAME, TIE

Column = npt.NDArray[np.float64]

MUCH = 0.05
"""Recall@1 by which one row must be below another, and the share of queries, that raise a doubt."""

BLIND = 2.0**-23
"""What float32 leaves of an objective: a first step that adds less is led by rounding."""

TOLD = 5
"""Looks at the objective from which on the last quarter of its way can be told from the rest."""

MORE = 1.25
"""Times its share of the steps that the last quarter of them brings where a climb is not done."""

TURNED = 0.5
"""Share of the way to the opposite feature that is a right angle."""

NATS = 3.0
"""By which cross-entropy grows where a class becomes twenty times less likely."""

FAR, UNMOVED = 0.9, 0.25
"""Share of queries whose objective must be as far as that; and what Recall@1 must surely have lost
less of. With sixteen identities, none that is lost bounds it by 0.21."""


@final
@dataclass(frozen=True, kw_only=True)
class Doubt:
    """One thing that was looked at in one row; a flag of that row if it ``fires``."""

    name: str
    attack: str
    eps: float
    fires: bool
    says: str
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """As the row has it."""
        return f"{self.name}: {self.says}"


def doubts(seed: int, blocks: Mapping[Job, list[Row]], looks: Looks, *, own: bool) -> list[Doubt]:
    """Everything that can be doubted of what one victim scored, whether it is cause for it or not.

    ``blocks`` are its rows per query by job, all of the same queries; of several seeds the first
    is doubted. ``own``: it is the victim
    that was attacked; of another that only scored the pictures just ``looks`` are told. ``seed`` is
    that of the run's intervals.
    """
    found = list(_looked(looks))
    if own:
        count = len(next(iter(blocks.values())))  # clean draws nothing
        trials = [_Trial(job, rows[:count], seed) for job, rows in blocks.items()]
        clean, *attacked = trials
        for trial in attacked:
            found += [*_finite(trial), *_climb(trial), *_in_vain(clean, trial)]
        for eps in dict.fromkeys(trial.job.eps for trial in attacked):
            found += _beside([trial for trial in attacked if trial.job.eps == eps])
        for less, more in itertools.combinations(attacked, 2):
            found += _larger(less, more)
    return found


@final
@dataclass(frozen=True, eq=False)
class _Trial:
    """A job and its rows per query."""

    job: Job
    rows: list[Row]
    seed: int

    def column(self, key: str) -> Column:
        """``(Q,)``, NaN where there is none."""
        return np.array([row.get(key) for row in self.rows], dtype=np.float64)

    @cached_property
    def identities(self) -> npt.NDArray[np.int64]:
        return np.array([row["identity"] for row in self.rows], dtype=np.int64)

    @cached_property
    def hits(self) -> Column:
        """1 where the first item is right, NaN where none is relevant."""
        first = self.column("first_match_rank")
        return np.where(np.isnan(first), np.nan, first <= 1)

    @cached_property
    def recall(self) -> float:
        """Recall@1; NaN if no query has a relevant item."""
        kept = self.hits[~np.isnan(self.hits)]
        return float(kept.mean()) if len(kept) else math.nan

    @property
    def climber(self) -> Attack | None:
        """The attack that climbs the victim's own gradient, if it is one and only to do harm."""
        attack = self.job.attack.attack if isinstance(self.job.attack, Search) else self.job.attack
        return attack if isinstance(attack, Attack) and not has_goal(self.job) else None

    @property
    def objective(self) -> Objective | None:
        """What is climbed, without its frames."""
        found = self.climber.objective if self.climber else None
        while isinstance(found, (AtScales, Unnoticed)):
            found = found.objective
        return found

    def doubt(
        self, name: str, fires: bool, says: str, measured: Mapping[str, float] | None = None
    ) -> Doubt:
        return Doubt(
            name=name,
            attack=self.job.name,
            eps=self.job.eps,
            fires=fires,
            says=says,
            measured=measured or {},
        )

    def share(self, which: npt.NDArray[np.bool_], of: npt.NDArray[np.bool_]) -> tuple[float, float]:
        """Of the queries ``of``, how many are ``which``, and the low end of the interval."""
        values = np.where(of, which.astype(np.float64), np.nan)
        interval = identity_bootstrap(values, self.identities, self.seed)
        return float(which[of].mean()) if of.any() else 0.0, interval[0] if interval else 0.0

    def less(self, other: _Trial) -> tuple[float, float, float]:
        """By how much Recall@1 is below ``other``'s, and the ends of the 95 % interval."""
        if math.isnan(self.recall):
            return 0.0, -1.0, 1.0
        interval = paired_bootstrap(self.hits, other.hits, self.identities, self.seed)
        return other.recall - self.recall, *(interval or (-1.0, 1.0))


# -- the scorer ------------------------------------------------------------------------------------


def _looked(looks: Looks) -> Iterator[Doubt]:
    """What the scorer says of gallery pictures when it is asked again; told once, of clean."""

    def told(name: str, fires: bool, says: str, **measured: float) -> Doubt:
        return Doubt(name=name, attack=CLEAN, eps=0, fires=fires, says=says, measured=measured)

    moved, way = looks.again, "of the way to another"
    random, mixed = moved > SAME, looks.together > SAME
    says = f"features of the same pictures, shown twice, moved by {moved:.1%} {way}"
    yield told("randomness", random, says, moved=moved)
    if not random:
        says = f"beside others, features of a picture moved by {looks.together:.1%} {way}"
        yield told("batch", mixed, says, moved=looks.together)
    if not (random or mixed):
        says = f"gallery features that were ranked by are {looks.used:.1%} {way} from new ones"
        yield told("stale-cache", looks.used > SAME, says, moved=looks.used)
    if looks.widest is not None:
        says = f"gallery pictures differ by at most {looks.widest:.1e} in 1 − cosine"
        yield told("collapse", looks.widest <= TIE, says, widest=looks.widest)


# -- one row ---------------------------------------------------------------------------------------


def _finite(trial: _Trial) -> Iterator[Doubt]:
    """Numbers that are none."""
    columns = [
        [row[key] for key in (*CLIMBED, "cosine_to_clean") if key in row] for row in trial.rows
    ]
    broken = sum(
        not all(value is None or math.isfinite(value) for value in values) for values in columns
    )
    says = f"feature, objective or gradient of {broken} of {len(columns)} queries is not finite"
    yield trial.doubt("not-finite", broken > 0, says, {"queries": broken})


def _climb(trial: _Trial) -> Iterator[Doubt]:
    """Where the objective began, whether it rose, and whether it had come to rest."""
    attack = trial.climber
    if attack is None:
        return
    start, near, end, rise = (trial.column(key) for key in CLIMBED)
    matched = trial.column("matches") > 0  # others may have nothing to flee from
    known = np.isfinite(start) & np.isfinite(near) & np.isfinite(end) & np.isfinite(rise) & matched
    if not known.any():
        return
    blind = known & (rise <= BLIND * np.abs(start))
    says = f"the first gradient of {blind.sum()} of {known.sum()} queries is zero, or below "
    says += "what float32 resolves"
    yield trial.doubt("zero-gradient", bool(blind.any()), says, {"queries": int(blind.sum())})
    if attack.steps == 1:
        return
    flat = known & (end <= start)
    share, low = trial.share(flat, known)
    says = f"the objective of {flat.sum()} of {known.sum()} queries is no higher before the last "
    says += f"of {attack.steps} steps than before the first"
    measured = {"share": share, "at least (95 %)": low}
    yield trial.doubt("no-rise", low > MUCH, says, measured)
    if attack.steps < TOLD or low > MUCH:
        return
    total = np.where(known & ~flat, end - start, np.nan)
    part = late(attack.steps) / (attack.steps - 1)
    gain = np.clip((end - near) / total, 0, 1)
    interval = identity_bootstrap(gain, trial.identities, trial.seed)
    left = identity_bootstrap(trial.hits, trial.identities, trial.seed)
    if interval is None or left is None:
        return
    mean = float(np.nanmean(gain))
    rising = interval[0] > MORE * part and left[0] > MUCH
    says = f"the last {part:.0%} of the steps brought {mean:.0%} of the rise of the objective"
    measured = {"of the steps": part, "of the rise": mean, "at least (95 %)": interval[0]}
    yield trial.doubt("under-iterated", rising, says, measured)


def _in_vain(clean: _Trial, trial: _Trial) -> Iterator[Doubt]:
    """An objective that went far, and a ranking that has not noticed."""
    start, end = trial.column("loss_start"), trial.column("loss_end")
    known, objective = np.isfinite(start) & np.isfinite(end), trial.objective
    with np.errstate(divide="ignore", invalid="ignore"):
        if isinstance(objective, (OppositeDirection, OppositeLogits)):
            far = 1 - end / start >= TURNED
        elif isinstance(objective, AwayFromFeature) and objective.target == "unit":
            far = end >= 4 * TURNED  # of a squared distance of 4
        elif isinstance(objective, AwayFromPredicted):
            far = end - start >= NATS
        elif isinstance(objective, TowardsLeastLikely):
            far = end >= -math.log(2)
        else:
            return
    if not known.any() or not clean.recall > MUCH:
        return
    share = float(far[known].mean())
    lost, _, most = trial.less(clean)
    says = f"the objective went far for {share:.0%} of the queries, and Recall@1 fell by {lost:.3f}"
    measured = {"far": share, "lost": lost, "at most (95 %)": most}
    unmoved = lost < MUCH and most < UNMOVED
    yield trial.doubt("objective", share >= FAR and unmoved, says, measured)


# -- rows beside each other ------------------------------------------------------------------------


def _beaten(name: str, trial: _Trial, by: _Trial, why: str = "") -> Doubt:
    """Whether ``by``, which should not, does more harm than ``trial``."""
    gain, low, _ = by.less(trial)
    fires = low > 0 and gain >= MUCH
    does = "does more harm" if fires else "does no more harm"
    says = f"{by.job.name} at ε={by.job.eps:g} {does}{why}: "
    says += f"R@1 {by.recall:.3f}, here {trial.recall:.3f}"
    return trial.doubt(name, fires, says, {"lower by": gain, "at least (95 %)": low})


def _beside(trials: Sequence[_Trial]) -> Iterator[Doubt]:
    """Trials at the same ε."""
    for chance in trials:
        if isinstance(chance.job.attack, RandomSigns):
            for trial in trials:
                if isinstance(trial.objective, (OppositeDirection, AwayFromFeature, AwayFromKnown)):
                    yield _beaten("noise", trial, chance)
    climbing = [trial for trial in trials if trial.climber]
    for one, other in itertools.permutations(climbing, 2):
        yield from _steps(one, other)
    white = [trial for trial in climbing if not math.isnan(trial.recall)]
    for trial in trials:
        if isinstance(trial.job.attack, BlackBox) and white:
            strongest = min(white, key=lambda each: each.recall)
            spent = f" by answers alone than {strongest.job.gradients:g} gradients"
            yield _beaten("black-box", strongest, trial, spent)


def _steps(short: _Trial, long: _Trial) -> Iterator[Doubt]:
    """Two attacks that climb the same, one of them by fewer steps."""
    a, b = short.job.attack, long.job.attack
    if not (isinstance(a, Attack) and isinstance(b, Attack) and a.steps < b.steps):
        return
    if a.trail != b.trail or a.threat != b.threat:
        return
    if a.steps == 1 and a.surrogate == b.surrogate:
        yield _beaten("one-step", long, short)
    elif replace(a, steps=b.steps) == b:
        yield _beaten("more-steps", long, short, " by fewer steps")
        yield _beaten("under-iterated", short, long, " by more steps")


def _larger(less: _Trial, more: _Trial) -> Iterator[Doubt]:
    """One attack at two ε: what it may do at the smaller, it may do at the larger."""
    same = less.job.name == more.job.name and less.job.eps < more.job.eps
    if same and less.climber and more.climber and more.climber.steps > 1:
        yield _beaten("larger-eps", more, less)
