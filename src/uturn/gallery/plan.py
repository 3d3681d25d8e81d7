"""The plan: whose pictures are changed, by which attacks, and what the attacker is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

from uturn import specs
from uturn.attacks.objectives import MoveInRankings, lowers
from uturn.attacks.presets import WORST
from uturn.attacks.problem import knowledge
from uturn.errors import ArgumentError, SpecError
from uturn.sweep.plan import Plan

Aim = Literal["raise", "lower"]
"""Pictures shall be found by queries that they are no answer to, or not by those that they are."""

_GIVEN = {"queries", "others"}
"""What an attack on the gallery is given (`uturn.gallery.cast`)."""


@final
@dataclass(frozen=True, kw_only=True)
class GalleryPlan:
    """A sweep's plan, in which gallery pictures take the place of queries.

    Raises:
        ArgumentError: a number is out of range, or the plan holds what only queries have.
        SpecError: an attack needs what is not given here, or goes against the aim.
    """

    plan: Plan
    items: int = 100
    """Gallery pictures that are changed; those who lower change all of a person's, so here it is
    the most."""
    known: int = 500
    """Queries that an attacker who raises has seen, about."""
    audience: int = 100
    """Of what the attacker knows, so many at the most does one picture move for."""
    queries: int | None = None
    """Held-out queries that ask in the end, drawn by the seed; None is all that are left."""
    aim: Aim | None = None
    """None is what the attacks do: ``ca_plus`` raises; all that name no direction lower."""

    def __post_init__(self) -> None:
        for name in ("items", "known", "audience", "queries"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ArgumentError(f"{name} is {number}; it has to be at least 1")
        plan, elsewhere = self.plan, ("queries", "rerank", "transfer_to", "survive", "monotone")
        told = [name for name in elsewhere if getattr(plan, name)] + ["seeds"] * (plan.seeds > 1)
        if told or plan.mode == "paper":
            raise ArgumentError(
                "gallery pictures are attacked, and ranked by one victim through a plain index; "
                f"leave {', '.join(told) or 'paper mode'} to sweeps of queries"
            )
        if WORST in plan.attacks:
            raise SpecError(f"{WORST} is the worst for a query; name its members one by one")
        ways = set[Aim]()
        for job in plan.jobs():
            if job.attack is None:
                continue
            if missing := sorted(set(knowledge(job.attack)) - _GIVEN):
                raise SpecError(
                    f"{job.name} has to be given {', '.join(missing)}, which the owner of a "
                    "gallery picture has not; use ca_plus or ca_minus, or what needs nothing, "
                    "such as uturn"
                )
            if isinstance(job.attack.objective, MoveInRankings):
                ways.add("lower" if lowers(job.attack.objective) else "raise")
        if self.aim is not None:
            specs.choose("aim", self.aim, get_args(Aim))
            ways.add(self.aim)
        if len(ways) > 1:
            raise SpecError(
                "ca_plus raises and ca_minus lowers, which is measured on other pictures; run them "
                "one by one, each with its own --out"
            )
        object.__setattr__(self, "aim", next(iter(ways), "lower"))

    def configuration(self) -> dict[str, Any]:
        """What it adds to a sweep's configuration, as JSON holds it."""
        names = ("items", "known", "audience", "queries", "aim")
        return {"gallery side": {name: getattr(self, name) for name in names}}
