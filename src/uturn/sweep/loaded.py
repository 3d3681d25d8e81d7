"""A plan with its victims and pictures loaded: what a process has to have before it can work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

from uturn.data.catalog import load_data
from uturn.data.pictures import Pictures
from uturn.data.readable import unreadable
from uturn.data.split import Split
from uturn.errors import DataError
from uturn.progress import say
from uturn.retrieval.ranking import TIES
from uturn.sweep.plan import Plan
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim

Kind = Literal["gallery", "query"]


@final
@dataclass(frozen=True, eq=False)
class Loaded:
    """A plan, its victims on this process's device, and its pictures."""

    plan: Plan
    victims: list[Victim]
    """The one that is attacked, then those of ``plan.transfer_to``."""
    split: Split
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names of queries and gallery pictures that ``plan.unreadable`` leaves out."""

    @classmethod
    def of(cls, plan: Plan, *, progress: bool = False) -> Loaded:
        """Load what ``plan`` names.

        Where it leaves out what cannot be read, every picture is read once.

        Raises:
            UturnError: a spec is wrong, or what it names is not there.
        """
        victims = [
            load_victim(name, plan.device).at_scales(plan.scales).folded() for name in plan.victims
        ]
        victims[0] = victims[0].searched_in(plan.precision)
        split = load_data(plan.data).sample(plan.queries, plan.seed)
        if plan.unreadable == "fail":
            return cls(plan, victims, split)
        found = unreadable(split, progress=progress)
        for why in (*found["query"].values(), *found["gallery"].values()):
            say(f"left out: {why}", show=progress)
        rest = split.without(found["query"], found["gallery"])
        if not (len(rest.query) and len(rest.gallery)):
            raise DataError(f"no query or no gallery picture of {split.name} can be read")
        return cls(plan, victims, rest, {kind: sorted(names) for kind, names in found.items()})

    def pictures(self, kind: Kind) -> Pictures:
        """Those that are ranked, or those that are asked."""
        return self.split.gallery if kind == "gallery" else self.split.query

    def configuration(self) -> dict[str, Any]:
        """All that decides the numbers of the run, down to weights and the pictures' content."""
        identities = [_identity(victim) for victim in self.victims]
        return {
            **self.plan.configuration(),
            "protocol": self.split.protocol,
            "ties": TIES,
            **({"left out": self.left_out} if self.left_out else {}),
            **identities[0],
            "targets": dict(zip(self.plan.transfer_to, identities[1:], strict=True)),
            "data fingerprint": self.split.fingerprint(),
        }


def _identity(victim: Victim) -> dict[str, Any]:
    """What makes a victim another one, for the configuration of a run."""
    return {
        "victim weights": victim.fingerprint,
        "preprocessing": repr(victim.preprocessing),
        "test time": repr(victim.test_time),
        "similarity": victim.similarity,
    }
