"""The attack: objective × threat × step × views as one frozen value."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, final

from uturn.attacks.objectives import Loss, Objective, looks
from uturn.attacks.problem import Attacker, Batch, Found, Problem, Start
from uturn.attacks.steps import Step, When, now
from uturn.attacks.surrogates import Surrogate
from uturn.attacks.threats import LInf, Threat
from uturn.attacks.together import climb
from uturn.attacks.views import Identity, View, is_random
from uturn.errors import ArgumentError
from uturn.types import LEVELS
from uturn.victims.victim import Victim


def iterations(eps: float, steps: int | None = None) -> int:
    """``steps``, or the paper's number of them: T(ε) = round(min(ε + 4, 1.25 ε)), at least 1.

    Raises:
        ArgumentError: no ε (see `LInf`), or fewer than one step.

    >>> [iterations(eps) for eps in (2, 4, 8, 12, 16)]
    [2, 5, 10, 15, 20]
    """
    LInf(eps)
    if steps is not None and steps < 1:
        raise ArgumentError(f"an attack needs at least 1 step, got {steps}")
    return max(1, round(min(eps + 4, 1.25 * eps))) if steps is None else steps


@final
@dataclass(frozen=True, kw_only=True)
class Attack:
    """δ* = argmax over the threat of the mean over views of objective(view(x + δ)).

    Printing an attack prints its whole configuration.
    """

    objective: Objective
    threat: Threat
    step: Step
    steps: int
    """Gradient steps; each costs one gradient per view."""

    views: tuple[View, ...] = (Identity(),)
    start: Start = "clean"
    keep: Literal["last", "best"] = "last"
    """Return the last iterate, or per picture the one with the largest objective (which costs
    one more forward pass)."""

    surrogate: Surrogate | None = None
    """Another way back through the victim; None is the true gradient."""

    restart: int = 0
    """Another number draws another start and other views."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"an attack needs at least 1 step, got {self.steps}")
        if not self.views:
            raise ArgumentError("an attack needs at least one view; Identity() is the picture")

    @property
    def gradients(self) -> int:
        """Gradients per picture: steps × views × scales that are looked at one by one."""
        return self.steps * self.looks

    @property
    def looks(self) -> int:
        """Gradients per step and picture."""
        return len(self.views) * looks(self.objective)

    @property
    def draws(self) -> bool:
        """Whether anything is drawn on the way."""
        return self.start != "clean" or any(map(is_random, self.views))

    @property
    def trail(self) -> tuple[Objective, tuple[View, ...], int]:
        """What is climbed. Attacks on one trail can climb together (`uturn.attacks.together`)."""
        return self.objective, self.views, self.restart

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        """The change before it is rounded, and what it took."""
        return self.climb(self.pose(batch))

    def pose(self, batch: Batch) -> Problem:
        """Bind the objective to the pictures: what there is to climb."""

        def bound(victim: Victim) -> Loss:
            return self.objective.bind(victim, batch.clean / LEVELS, batch.scene)

        searcher = batch.victim.searcher
        return Problem(
            clean=batch.clean,
            loss=bound(batch.victim),
            search=None if searcher is None else bound(searcher),
            threat=self.threat,
            views=self.views,
            names=batch.keys,
            seed=batch.seed,
            restart=self.restart,
        )

    def step_at(self, index: int) -> Step:
        """The step number ``index`` is made with."""
        return now(self.step, When(index, self.steps))

    def surrogate_at(self, index: int) -> Surrogate | None:
        """Whose way back the gradient of step ``index`` takes."""
        return now(self.surrogate, When(index, self.steps))

    def climb(self, problem: Problem) -> Found:
        """The same of a problem that is posed."""
        (arrived,) = itertools.chain.from_iterable(climb(problem, [self]))
        return Found(arrived.delta, arrived.losses, rise=arrived.rise)
