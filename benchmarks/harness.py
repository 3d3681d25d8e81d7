"""How contenders are compared: the same work, in turns, medians, ratios. It knows no work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

Role = Literal["ours", "peer", "limit"]


class MissingError(Exception):
    """What a work or a contender needs is not here; the message says what, and the way out."""


@final
@dataclass(frozen=True, eq=False)
class Done:
    """One whole piece of work, done."""

    product: Any = None
    """What shows that the same work was done."""

    seconds: float | None = None
    """By the contender's own clock (a child process, a share that is scaled up); None: ours."""

    facts: Mapping[str, float] = field(default_factory=dict)
    """What was counted or measured beside time."""


Do = Callable[[], Done]
"""The whole work, once."""


@final
@dataclass(frozen=True, eq=False)
class Contender:
    """Somebody who does the work; ``make`` loads what that takes, which is not timed."""

    name: str
    role: Role
    make: Callable[[], Do]
    """Raises `MissingError` where the contender cannot take part."""

    note: str = ""


@final
@dataclass(frozen=True)
class Target:
    """What a contender must reach: its ``of`` at most ``at_most``.

    ``of`` is ``ratio`` to the reference, ``over`` (seconds above it), or the name of a fact.
    """

    contender: str
    at_most: float
    of: str = "ratio"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One work at one size, with everybody who does it."""

    work: str
    name: str
    title: str
    """What is done, at what size."""

    contenders: tuple[Contender, ...]
    reference: str
    """The contender whose time is 1.00."""

    targets: tuple[Target, ...] = ()
    unit: str = "s"
    per: float = 1.0
    """Seconds of the whole work × ``per`` are what ``unit`` counts."""

    same_work: Callable[[Mapping[str, Done]], list[str]] = lambda done: []
    """Complaints, a sentence each, where contenders did not do the same."""

    least: int = 1
    most: int = 1000
    """Repeats: of short works no fewer, of long ones no more than so many."""

    cold: bool = False
    """Nobody warms up: what a first time costs belongs to the work."""


@final
@dataclass(frozen=True, kw_only=True)
class Timed:
    """A contender's times, in seconds of the whole work."""

    name: str
    role: Role
    warm_up: float | None
    """The first time, compilation and caches included; no median holds it. None: cold."""

    runs: tuple[float, ...]
    facts: Mapping[str, float]
    """Medians over the runs."""

    note: str = ""

    @property
    def median(self) -> float:
        """Of the runs, in seconds."""
        return statistics.median(self.runs)


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target, and what was reached; None where it could not be measured."""

    target: Target
    value: float | None

    @property
    def reached(self) -> bool | None:
        """Whether the target is met."""
        return None if self.value is None else self.value <= self.target.at_most


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A case, measured."""

    case: Case
    timed: tuple[Timed, ...]
    skipped: Mapping[str, str]
    """By contender, why it did not take part."""

    complaints: tuple[str, ...]

    def of(self, name: str) -> Timed | None:
        """A contender's times; None if it did not take part."""
        return next((timed for timed in self.timed if timed.name == name), None)

    def ratio(self, timed: Timed) -> float | None:
        """Its median over the reference's; None if that did not take part."""
        reference = self.of(self.case.reference)
        return None if reference is None else timed.median / reference.median

    def spread(self, timed: Timed) -> tuple[float, float] | None:
        """The smallest and the largest ratio of one round."""
        reference = self.of(self.case.reference)
        if reference is None:
            return None
        rounds = [own / other for own, other in zip(timed.runs, reference.runs, strict=True)]
        return min(rounds), max(rounds)

    def verdict(self, target: Target) -> Verdict:
        """What became of a target."""
        timed, reference = self.of(target.contender), self.of(self.case.reference)
        value: float | None = None
        if timed is not None and target.of == "ratio":
            value = self.ratio(timed)
        elif timed is not None and target.of == "over":
            value = None if reference is None else timed.median - reference.median
        elif timed is not None:
            value = timed.facts.get(target.of)
        return Verdict(target=target, value=value)


def rounds(names: Iterable[str], repeats: int) -> list[str]:
    """Everybody once, then everybody again: what drifts on the machine meets them alike.

    >>> rounds("ABC", 2)
    ['A', 'B', 'C', 'A', 'B', 'C']
    """
    return list(names) * repeats


def measure(
    case: Case,
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Do the work of ``case`` once by everybody to warm up, then in turns ``repeats`` times."""
    ready, skipped = dict[str, Do](), dict[str, str]()
    for contender in case.contenders:
        try:
            ready[contender.name] = contender.make()
        except MissingError as missing:
            skipped[contender.name] = str(missing)
            say(f"  {contender.name}: left out, {missing}")

    def once(name: str) -> tuple[float, Done]:
        began = clock()
        done = ready[name]()
        wall = clock() - began
        return (wall if done.seconds is None else done.seconds), done

    warm_up, complaints = dict[str, float](), list[str]()
    runs: dict[str, list[float]] = {name: [] for name in ready}
    facts: dict[str, list[Mapping[str, float]]] = {name: [] for name in ready}

    def turn(keep: bool) -> None:
        products = dict[str, Done]()
        for name in ready:
            seconds, done = once(name)
            say(f"  {name}: {seconds:.3g} s{'' if keep else ' to warm up'}")
            if keep:
                runs[name].append(seconds)
                facts[name].append(done.facts)
            else:
                warm_up[name] = seconds
            if first:
                products[name] = done
        if first:
            complaints.extend(case.same_work(products))

    first = True
    if not case.cold:
        turn(keep=False)
        first = False
    for _ in range(min(max(repeats, case.least), case.most)):
        turn(keep=True)
        first = False
    timed = tuple(
        Timed(
            name=contender.name,
            role=contender.role,
            warm_up=warm_up.get(contender.name),
            runs=tuple(runs[contender.name]),
            facts=_medians(facts[contender.name]),
            note=contender.note,
        )
        for contender in case.contenders
        if contender.name in ready
    )
    return Measured(case=case, timed=timed, skipped=skipped, complaints=tuple(complaints))


def _medians(facts: list[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in facts) for key in facts[0]}
