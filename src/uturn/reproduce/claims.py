"""What the paper claims, asked of result rows: yes or no, and the numbers it follows from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

from uturn.report.text import interval, shown, value
from uturn.reproduce.published import rows

Row = dict[str, Any]

CLEAN = "clean"


@final
@dataclass(frozen=True)
class Tables:
    """What an experiment measured."""

    rows: Mapping[str, Sequence[Row]]
    """Of its sweeps, by their names."""
    facts: Mapping[str, Row] = field(default_factory=dict)
    """Of its other steps, by their names; of trained victims what `uturn eval` says."""

    def scored(self, run: str, victim: str | None = None) -> list[Row]:
        """The rows of ``run`` that ``victim`` scored; None is who the gradients were taken of."""
        found = self.rows.get(run, ())
        return [
            row
            for row in found
            if row["victim"] == (victim or row.get("crafted_on", row["victim"]))
        ]


class Number(Protocol):
    """A measured number and its 95 % interval; None where it was not measured."""

    def of(self, tables: Tables) -> float | None: ...

    def interval(self, tables: Tables) -> tuple[float, float] | None: ...


@final
@dataclass(frozen=True)
class Fact:
    """A number that a step other than a sweep found, such as a trained victim's Recall@1."""

    step: str
    metric: str = "recall@1"

    def of(self, tables: Tables) -> float | None:
        found = tables.facts.get(self.step, {}).get(self.metric)
        return None if found is None else float(found)

    def interval(self, tables: Tables) -> tuple[float, float] | None:
        return interval(tables.facts.get(self.step, {}), self.metric)

    def __str__(self) -> str:
        return f"{shown(self.metric)} ({self.step})"


@final
@dataclass(frozen=True)
class Cell:
    """One number: an attack at an ε in a run, by a metric, as a victim scored it."""

    run: str
    attack: str
    eps: float
    metric: str = "recall@1"
    victim: str | None = None

    def row(self, tables: Tables) -> Row | None:
        """Its row, or None where it was not measured."""
        key = (self.attack, self.eps)
        found = tables.scored(self.run, self.victim)
        return next((row for row in found if (row["attack"], row["eps"]) == key), None)

    def of(self, tables: Tables) -> float | None:
        row = self.row(tables)
        return None if row is None else value(row, self.metric)

    def interval(self, tables: Tables) -> tuple[float, float] | None:
        return interval(self.row(tables) or {}, self.metric)

    def __str__(self) -> str:
        at = "" if self.attack == CLEAN else f" ε={self.eps:g}"
        return f"{shown(self.metric)} {self.attack}{at} ({self.run})"


@final
@dataclass(frozen=True)
class Printed:
    """A number of the paper's tables; no interval is published."""

    key: str
    """A victim of `published`."""
    attack: str
    eps: float
    metric: str = "recall@1"

    def of(self, tables: Tables) -> float | None:
        at = (self.attack, self.eps)
        found = (row for row in rows(self.key) if (row["attack"], row["eps"]) == at)
        return next((value(row, self.metric) for row in found), None)

    def interval(self, tables: Tables) -> None:
        return None

    def __str__(self) -> str:
        return f"{shown(self.metric)} {self.attack} ε={self.eps:g} (paper)"


@final
@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds (None: it cannot be said) and what was compared."""

    holds: bool | None
    evidence: str

    @property
    def word(self) -> str:
        """For a table."""
        return {True: "yes", False: "**no**", None: "not measured"}[self.holds]


class Test(Protocol):
    """Asks rows. Implementations are frozen dataclasses."""

    def __call__(self, tables: Tables) -> Verdict: ...


@final
@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, or of this project, and how rows are asked about it."""

    text: str
    test: Test

    @property
    def sources(self) -> frozenset[str]:
        """The names of the steps whose numbers are compared."""
        parts = (self.test, *vars(self.test).values())
        found = (getattr(part, name, None) for part in parts for name in ("run", "step"))
        return frozenset(name for name in found if isinstance(name, str))


@final
@dataclass(frozen=True, kw_only=True)
class Lowest:
    """None ``among`` is below ``attack``, by any metric at any ε from ``since``; ties count."""

    run: str
    attack: str
    among: tuple[str, ...]
    metrics: tuple[str, ...] = ("recall@1", "map")
    since: float = 8
    victim: str | None = None

    def __call__(self, tables: Tables) -> Verdict:
        found = tables.scored(self.run, self.victim)
        levels = sorted({row["eps"] for row in found if row["eps"] >= self.since})
        others = [name for name in self.among if name != self.attack]
        broken, compared, ties = list[str](), 0, 0
        for eps, metric, other in itertools.product(levels, self.metrics, others):
            own, theirs = (
                Cell(self.run, name, eps, metric, self.victim).of(tables)
                for name in (self.attack, other)
            )
            if own is None or theirs is None:
                lacking = self.attack if own is None else other
                return Verdict(None, f"{shown(metric)} {lacking} ε={eps:g} is not there")
            compared, ties = compared + 1, ties + (own == theirs)
            if theirs < own:
                broken.append(f"{shown(metric)} at ε={eps:g}: {own:.4f}, {other} {theirs:.4f}")
        if not compared:
            return Verdict(None, f"no rows at ε ≥ {self.since:g}")
        tied = f", {ties} of them ties" if ties else ""
        return Verdict(not broken, "; ".join(broken) or f"in all {compared} comparisons{tied}")


@final
@dataclass(frozen=True)
class AtMost:
    """A number is at most ``bound``."""

    cell: Number
    bound: float

    def __call__(self, tables: Tables) -> Verdict:
        return _compared(tables, lambda found: found <= self.bound, self.cell)


@final
@dataclass(frozen=True)
class AtLeast:
    """A number is at least ``bound``."""

    cell: Number
    bound: float

    def __call__(self, tables: Tables) -> Verdict:
        return _compared(tables, lambda found: found >= self.bound, self.cell)


@final
@dataclass(frozen=True)
class Below:
    """The first number is below the second, by ``by`` at least, or with intervals apart."""

    lower: Number
    upper: Number
    by: float = 0.0
    apart: Literal["values", "intervals"] = "values"

    def __call__(self, tables: Tables) -> Verdict:
        verdict = _compared(tables, lambda low, high: low + self.by < high, self.lower, self.upper)
        if self.apart == "values" or verdict.holds is None:
            return verdict
        ends, others = self.lower.interval(tables), self.upper.interval(tables)
        if ends is None or others is None:
            return Verdict(None, f"{verdict.evidence}; an interval is not there")
        evidence = f"{verdict.evidence}; 95 % up to {ends[1]:.4f} and from {others[0]:.4f}"
        return Verdict(ends[1] + self.by < others[0], evidence)


@final
@dataclass(frozen=True)
class Within:
    """Two numbers differ by at most ``by``."""

    first: Number
    second: Number
    by: float

    def __call__(self, tables: Tables) -> Verdict:
        return _compared(
            tables, lambda one, other: abs(one - other) <= self.by, self.first, self.second
        )


@final
@dataclass(frozen=True, kw_only=True)
class Nearer:
    """No attack is further from the paper's number in ``run`` than in another, at any ε."""

    run: str
    than: str
    published: str
    attacks: tuple[str, ...]
    metric: str = "recall@1"

    def __call__(self, tables: Tables) -> Verdict:
        levels = sorted({row["eps"] for row in tables.scored(self.run) if row["eps"]})
        compared, broken = 0, list[str]()
        for attack, eps in itertools.product(self.attacks, levels):
            paper = Printed(self.published, attack, eps, self.metric).of(tables)
            own, other = (
                Cell(run, attack, eps, self.metric).of(tables) for run in (self.run, self.than)
            )
            if paper is None or own is None or other is None:
                return Verdict(None, f"{shown(self.metric)} {attack} ε={eps:g} is not there")
            compared += 1
            if abs(own - paper) > abs(other - paper):
                broken.append(f"{attack} ε={eps:g}: {own:.4f}, {other:.4f}, paper {paper:.4f}")
        if not compared:
            return Verdict(None, f"{self.run} is not there")
        return Verdict(not broken, "; ".join(broken) or f"in all {compared} comparisons")


def _compared(tables: Tables, holds: Callable[..., bool], *numbers: Number) -> Verdict:
    """Whether ``holds`` of the numbers, unless one of them was not measured."""
    found = list[float]()
    for number in numbers:
        measured = number.of(tables)
        if measured is None:
            return Verdict(None, f"{number} is not there")
        found.append(measured)
    evidence = "; ".join(
        f"{number}: {measured:.4f}" for number, measured in zip(numbers, found, strict=True)
    )
    return Verdict(holds(*found), evidence)
