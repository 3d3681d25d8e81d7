"""Paper mode: the attacks as the original implementation runs them.

They work in whitened space, start where their gradient is zero or at random, and are truncated.
Kept apart from the presets, which are correct; `sweep --mode paper` uses these.

Source: the implementation that was published with Zheng et al., IJCV 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.loop import Attack, iterations
from uturn.attacks.objectives import (
    AwayFromFeature,
    AwayFromPredicted,
    Objective,
    OppositeDirection,
    TowardsLeastLikely,
)
from uturn.attacks.problem import Start
from uturn.attacks.steps import Adam, Info, PerChannel, Sign, Step, chain
from uturn.attacks.threats import LInf
from uturn.types import LEVELS, Levels

_RATIO = (0.229 / 0.226, 0.224 / 0.226, 0.225 / 0.226)
"""ImageNet's deviations by channel over the one that steps are counted in."""


@final
@dataclass(frozen=True)
class Whitened:
    """The ball of the original code: ε steps of 1/(255 · 0.226) in whitened space.

    So ε counts 1.0133, 0.9912 and 0.9956 levels of R, G and B. The result is truncated, not
    rounded, which takes up to one more level off. With ``recentred`` the start is drawn within
    ε and the ball is then held around it (by `Held`), so that the budget is 2 ε.
    """

    eps: float
    recentred: bool = False

    def __post_init__(self) -> None:
        LInf(self.eps)  # the same range

    def project(self, delta: Levels, clean: Levels) -> Levels:
        reach = delta.new_tensor(_RATIO)[:, None, None] * self._reach
        return (clean + delta.clamp(-reach, reach)).clamp(0, LEVELS) - clean

    def round(self, delta: Levels, clean: Levels) -> Levels:
        # The tolerance keeps whole numbers whole: 100.0 may be stored as 99.99999.
        return (self.project(delta, clean) + clean + 1e-3).floor() - clean

    def sample(self, clean: Levels, rngs: list[np.random.Generator]) -> Levels:
        shape = tuple(clean.shape[1:])
        drawn = np.stack([2 * rng.random(shape) - 1 for rng in rngs])
        ratio = clean.new_tensor(_RATIO)[:, None, None]
        return self.project(torch.from_numpy(drawn).to(clean) * self.eps * ratio, clean)

    def size(self, delta: Levels) -> Tensor:
        return delta.abs().amax((1, 2, 3))

    def allows(self, size: Tensor) -> Tensor:
        return size <= self._reach * max(_RATIO) + 1

    @property
    def _reach(self) -> float:
        return 2 * self.eps if self.recentred else self.eps


@final
@dataclass(frozen=True)
class Held:
    """Never further than ``eps`` from where the attack began, wherever that was."""

    eps: float

    def init(self, delta: Levels) -> Tensor:
        return torch.zeros_like(delta)

    def update(self, grad: Tensor, state: Tensor, info: Info) -> tuple[Tensor, Tensor]:
        after = (state + grad).clamp(-self.eps, self.eps)
        return after - state, after


def _attack(
    J: Objective, eps: float, *, step: Step | None = None, steps: int = 1, start: Start = "clean"
) -> Attack:
    whitened = chain(step or Sign(), PerChannel(_RATIO))
    return Attack(objective=J, threat=Whitened(eps), step=whitened, steps=steps, start=start)


def fast(*, eps: float) -> Attack:
    """One step of ε away from the predicted training class."""
    return _attack(AwayFromPredicted(), eps, step=Sign(eps))


def basic(*, eps: float) -> Attack:
    """Unit steps away from the predicted training class."""
    return _attack(AwayFromPredicted(), eps, steps=iterations(eps))


def least_likely(*, eps: float) -> Attack:
    """Unit steps towards the least likely training class."""
    return _attack(TowardsLeastLikely(), eps, steps=iterations(eps))


def odfa(*, eps: float) -> Attack:
    """Unit steps towards −f. The first one follows the rounding noise of a zero gradient."""
    return _attack(OppositeDirection(), eps, steps=iterations(eps))


def sma(*, eps: float) -> Attack:
    """Unit steps away from the raw feature, from noise around which the ball is held: 2 ε."""
    step, T = chain(Sign(), Held(eps), PerChannel(_RATIO)), iterations(eps)
    threat = Whitened(eps, recentred=True)
    return Attack(objective=AwayFromFeature(), threat=threat, step=step, steps=T, start="sample")


def pire(*, eps: float) -> Attack:
    """Adam of 0.1 level away from the raw feature, as few steps as the others: under-tuned."""
    step, T = Adam(size=0.1), iterations(eps)
    return _attack(AwayFromFeature("raw"), eps, step=step, steps=T, start="sample")


def tma(*, eps: float) -> Attack:
    """Adam of 0.1 level away from the unit feature: the paper's table uses TMA untargeted."""
    step, T = Adam(size=0.1), iterations(eps)
    return _attack(AwayFromFeature("unit"), eps, step=step, steps=T, start="sample")


PAPER: dict[str, Callable[..., Attack]] = {
    preset.__name__: preset for preset in (fast, basic, least_likely, odfa, sma, pire, tma)
}
