"""The attack: objective × threat × step × views as one frozen value, and its one loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.objectives import Loss, Objective
from uturn.attacks.steps import Info, Step
from uturn.attacks.threats import Threat
from uturn.attacks.views import Draw, Identity, View
from uturn.errors import ArgumentError, BudgetError
from uturn.rng import generator
from uturn.types import LEVELS, Levels, Perturbation, Scene
from uturn.victims.victim import Victim

Start = Literal["clean", "sign", "sample"]


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
    """At the clean picture, one level up or down in every value, or anywhere in the threat.
    The last two are drawn from (seed, name)."""

    keep: Literal["last", "best"] = "last"
    """Return the last iterate, or per picture the one with the largest objective (which costs
    one more forward pass)."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ArgumentError(f"an attack needs at least 1 step, got {self.steps}")
        if not self.views:
            raise ArgumentError("an attack needs at least one view; Identity() is the picture")

    def __call__(
        self,
        victim: Victim,
        images: Tensor,
        scene: Scene | None = None,
        *,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Perturbation:
        """Attack uint8 ``images`` ``(B, 3, H, W)``; each picture is on its own.

        ``names`` key the randomness; without them the content of each picture does. The
        result holds whole levels inside the threat, so an 8-bit lossless file keeps it.

        Raises:
            ArgumentError: wrong shape or type. BudgetError: the threat was left (a bug).
        """
        _check(images, names)
        began = time.perf_counter()
        clean = images.to(victim.device).float()  # levels
        loss = self.objective.bind(victim, clean / LEVELS, scene or Scene())
        names = names or _content_names(images)
        draw = [generator(seed, name, "views") for name in names]
        delta = self._start(clean, names, seed)
        delta, losses = self._climb(loss, delta, clean, draw)
        delta = self._certified(self.threat.round(delta, clean), clean)
        return Perturbation(
            images=(clean + delta).to(torch.uint8),
            delta=delta,
            losses=losses,
            gradients=self.steps * len(self.views),
            seconds=time.perf_counter() - began,
        )

    def _climb(self, loss: Loss, delta: Levels, clean: Levels, draw: Draw) -> tuple[Levels, Tensor]:
        """The change before it is rounded, and the objective before each step ``(steps, B)``."""
        state = self.step.init(delta)
        best, best_value = delta, clean.new_full((len(clean),), -torch.inf)
        losses = []
        for index in range(self.steps):
            grad, value = self._gradient(loss, clean + delta, draw)
            best, best_value = _better(delta, value, best, best_value)
            update, state = self.step.update(grad, state, Info(index, self.steps))
            delta = self.threat.project(delta + update, clean)
            losses.append(value)
        if self.keep == "best":
            with torch.no_grad():
                value = self._value(loss, clean + delta, draw)
            delta, _ = _better(delta, value, best, best_value)
        return delta, torch.stack(losses)

    def _start(self, clean: Levels, names: Sequence[str], seed: int) -> Levels:
        if self.start == "clean":
            return torch.zeros_like(clean)
        rngs = [generator(seed, name, "start") for name in names]
        if self.start == "sample":
            return self.threat.sample(clean, rngs)
        shape = tuple(clean.shape[1:])
        signs = np.stack([2 * rng.integers(0, 2, shape, dtype=np.int8) - 1 for rng in rngs])
        return self.threat.project(torch.from_numpy(signs).to(clean), clean)

    def _gradient(self, loss: Loss, levels: Levels, draw: Draw) -> tuple[Tensor, Tensor]:
        """Gradient with respect to pixels, and the value ``(B,)``: means over the views."""
        grad = torch.zeros_like(levels)
        value = levels.new_zeros(len(levels))
        for view in self.views:  # one at a time, so that only one graph is in memory
            pixels = (levels / LEVELS).requires_grad_()
            per_sample = loss(view(pixels, draw))  # (B,)
            grad += torch.autograd.grad(per_sample.sum(), pixels)[0]
            value += per_sample.detach()
        return grad / len(self.views), value / len(self.views)

    def _value(self, loss: Loss, levels: Levels, draw: Draw) -> Tensor:
        return torch.stack([loss(view(levels / LEVELS, draw)) for view in self.views]).mean(0)

    def _certified(self, delta: Levels, clean: Levels) -> Levels:
        """Never trust an attack: whole levels, inside the threat, inside 0 … 255."""
        pixels = clean + delta
        whole = bool((delta == delta.round()).all())
        inside = bool(((pixels >= 0) & (pixels <= LEVELS)).all())
        if not (whole and inside and bool(self.threat.allows(self.threat.size(delta)).all())):
            raise BudgetError(
                f"{self} left its threat (size {self.threat.size(delta).max():g} levels, whole: "
                f"{whole}, in range: {inside}); its threat's project or round is wrong"
            )
        return delta


def _better(
    delta: Levels, value: Tensor, best: Levels, best_value: Tensor
) -> tuple[Levels, Tensor]:
    better = value > best_value
    return torch.where(better[:, None, None, None], delta, best), torch.where(
        better, value, best_value
    )


def _content_names(images: Tensor) -> list[str]:
    return [hashlib.sha256(i.cpu().contiguous().numpy().tobytes()).hexdigest() for i in images]


def _check(images: Tensor, names: Sequence[str] | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ArgumentError(
            f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}; "
            "8-bit pictures are attacked, so pass them undivided and un-normalised"
        )
    if names is not None and len(names) != len(images):
        raise ArgumentError(f"{len(images)} images but {len(names)} names; give one per picture")
