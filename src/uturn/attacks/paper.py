"""Paper mode: the attacks as the original implementation runs them.

They work in whitened space, start where their gradient is zero or at random, and are truncated.
Kept apart from the presets, which are correct; `sweep --mode paper` uses these.

Source: the implementation that was published with Zheng et al., IJCV 2022.
"""

from __future__ import annotations

from collections.abc import Callable

from uturn.attacks.loop import Attack
from uturn.attacks.objectives import (
    AwayFromFeature,
    AwayFromPredicted,
    Objective,
    OppositeDirection,
    TowardsLeastLikely,
)
from uturn.attacks.steps import Adam, PerChannel, Sign, Step, chain
from uturn.attacks.threats import STD, Whitened

_RATIO = (STD[0] / 0.226, STD[1] / 0.226, STD[2] / 0.226)


def _attack(J: Objective, eps: float, *, step: Step | None = None, steps: int = 1) -> Attack:
    step = chain(step or Sign(), PerChannel(_RATIO))
    return Attack(objective=J, threat=Whitened(eps), step=step, steps=steps)


def _iterations(eps: float) -> int:
    return round(min(eps + 4, 1.25 * eps))


def fast(*, eps: float) -> Attack:
    """One step of ε away from the predicted training class."""
    return _attack(AwayFromPredicted(), eps, step=Sign(eps))


def basic(*, eps: float) -> Attack:
    """Unit steps away from the predicted training class."""
    return _attack(AwayFromPredicted(), eps, steps=_iterations(eps))


def least_likely(*, eps: float) -> Attack:
    """Unit steps towards the least likely training class."""
    return _attack(TowardsLeastLikely(), eps, steps=_iterations(eps))


def odfa(*, eps: float) -> Attack:
    """Unit steps towards −f. The first one follows the rounding noise of a zero gradient."""
    return _attack(OppositeDirection(), eps, steps=_iterations(eps))


def sma(*, eps: float) -> Attack:
    """Unit steps away from the raw feature, from noise to which the ball is moved: 2 ε."""
    step, T = chain(Sign(), PerChannel(_RATIO)), _iterations(eps)
    threat = Whitened(eps, recentred=True)
    return Attack(objective=AwayFromFeature(), threat=threat, step=step, steps=T, start="sample")


def pire(*, eps: float) -> Attack:
    """Adam of 0.1 level away from the raw feature, as few steps as the others: under-tuned."""
    step, T = chain(Adam(size=0.1), PerChannel(_RATIO)), _iterations(eps)
    J, threat = AwayFromFeature("raw"), Whitened(eps)
    return Attack(objective=J, threat=threat, step=step, steps=T, start="sample")


def tma(*, eps: float) -> Attack:
    """Adam of 0.1 level away from the unit feature: the paper's table uses TMA untargeted."""
    step, T = chain(Adam(size=0.1), PerChannel(_RATIO)), _iterations(eps)
    J, threat = AwayFromFeature("unit"), Whitened(eps)
    return Attack(objective=J, threat=threat, step=step, steps=T, start="sample")


PAPER: dict[str, Callable[..., Attack]] = {
    preset.__name__: preset for preset in (fast, basic, least_likely, odfa, sma, pire, tma)
}
