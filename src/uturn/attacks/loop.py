"""The attack: objective × threat × step × views as one frozen value, and its one loop."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from uturn.attacks.objectives import Objective, looks
from uturn.attacks.problem import Attacker, Batch, Problem, Start, better
from uturn.attacks.steps import Info, Step
from uturn.attacks.surrogates import Surrogate
from uturn.attacks.threats import LInf, Threat
from uturn.attacks.views import Identity, View
from uturn.errors import ArgumentError
from uturn.types import LEVELS, Levels


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
        return self.steps * len(self.views) * looks(self.objective)

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> tuple[Levels, list[Tensor]]:
        """The change before it is rounded, and the objective ``(B,)`` before each step."""
        return self.climb(self.pose(batch))

    def pose(self, batch: Batch) -> Problem:
        """Bind the objective to the pictures: what there is to climb."""
        return Problem(
            clean=batch.clean,
            loss=self.objective.bind(batch.victim, batch.clean / LEVELS, batch.scene),
            threat=self.threat,
            views=self.views,
            names=batch.keys,
            seed=batch.seed,
            restart=self.restart,
        )

    def way_back(self, index: int) -> AbstractContextManager[Any]:
        """The context in which the gradient of step ``index`` is taken."""
        return self.surrogate(Info(index, self.steps)) if self.surrogate else nullcontext()

    def climb(self, problem: Problem) -> tuple[Levels, list[Tensor]]:
        """The change before it is rounded, and the objective ``(B,)`` before each step."""
        delta = problem.start(self.start)
        state = self.step.init(delta)
        best, best_value = delta, delta.new_full((len(delta),), -torch.inf)
        losses = []
        for index in range(self.steps):
            slope = problem.slope(delta, self.way_back(index))
            best, best_value = better(delta, slope.value, best, best_value)
            info = Info(index, self.steps, views=len(self.views), first=slope.first)
            update, state = self.step.update(slope.grad, state, info)
            delta = problem.project(delta + update)
            losses.append(slope.value)
        if self.keep == "best":
            delta, _ = better(delta, problem.value(delta), best, best_value)
        return delta, losses
