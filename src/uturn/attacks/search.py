"""APGD: a search that needs no step sizes. It halves them by itself and goes back to the best."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.attacks.loop import Attack
from uturn.attacks.objectives import Objective
from uturn.attacks.problem import Attacker, Batch, Found, Problem, better
from uturn.attacks.steps import Info
from uturn.attacks.threats import Threat


@final
@dataclass(frozen=True, kw_only=True)
class Search:
    """Climb with a step size that is halved, per picture, whenever it brings too little.

    At fixed checkpoints a picture's step is halved if fewer than ``rho`` of the steps since the
    last one raised the objective, or if neither step nor best value has changed in between; it
    then goes on from its best change so far, at rest (the paper keeps the inertia of the jump
    back). The best one is returned.

    ``attack`` says what is climbed, within what, from where and for how many steps; its step
    gives the direction, and its size the first step (2 ε in the paper).

    Source: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of
    Diverse Parameter-free Attacks", ICML 2020 (APGD, Algorithm 1).
    """

    attack: Attack
    rho: float = 0.75
    inertia: float = 0.25
    """The share of the last move that is repeated (1 − α in the paper)."""

    @property
    def threat(self) -> Threat:
        return self.attack.threat

    @property
    def objective(self) -> Objective:
        return self.attack.objective

    @property
    def gradients(self) -> int:
        """Gradients per picture, as many as its attack's."""
        return self.attack.gradients

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        return self.climb(self.attack.pose(batch))

    def climb(self, problem: Problem) -> Found:
        """The best change found, and the objective ``(B,)`` before each step."""
        attack, total = self.attack, self.attack.steps
        delta = before = problem.start(attack.start)
        state = attack.step.init(delta)
        scale = delta.new_ones(len(delta))  # of the step, halved again and again
        rises = torch.zeros_like(scale)
        best, best_value = delta, torch.full_like(scale, -torch.inf)
        best_grad = torch.zeros_like(delta)
        last_value, last_scale, last_best = torch.full_like(scale, torch.inf), scale, best_value
        ends, begun, losses, rise = checkpoints(total), 0, list[Tensor](), torch.zeros_like(scale)
        for index in range(total):
            slope = problem.slope(delta, attack.surrogate_at(index))
            grad, value = slope.grad, slope.value
            losses.append(value)
            rises += value > last_value
            last_value = value
            improved = _wide(value > best_value)
            best_grad = torch.where(improved, grad, best_grad)
            best, best_value = better(delta, value, best, best_value)
            if index == 0:
                last_best, rise = best_value, slope.rise
            if index in ends:
                few = rises < self.rho * (index - begun)
                stuck = (scale == last_scale) & (best_value == last_best)
                halve = few | stuck
                last_scale, last_best = scale, best_value
                scale = torch.where(halve, scale / 2, scale)
                delta = torch.where(_wide(halve), best, delta)
                before = torch.where(_wide(halve), best, before)
                grad = torch.where(_wide(halve), best_grad, grad)
                last_value = torch.where(halve, best_value, last_value)
                rises, begun = torch.zeros_like(rises), index
            info = Info(index, views=len(attack.views), first=slope.first)
            update, state = attack.step_at(index).update(grad, state, info)
            ahead = problem.project(delta + _wide(scale) * update)
            inertia = self.inertia if index else 0.0
            move = (1 - inertia) * (ahead - delta) + inertia * (delta - before)
            delta, before = problem.project(delta + move), delta
        best, _ = better(delta, problem.value(delta), best, best_value)
        return Found(best, losses, rise=rise)


def checkpoints(total: int) -> set[int]:
    """The steps at which the search looks back: 22 % of ``total``, then ever closer.

    >>> sorted(checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    found, before, share = set(), 0.0, 0.22
    while share < 1:
        found.add(math.ceil(round(share * total, 9)))
        before, share = share, share + max(share - before - 0.03, 0.06)
    return found


def _wide(column: Tensor) -> Tensor:
    return column[:, None, None, None]
