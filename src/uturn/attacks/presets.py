"""Attacks by name. A preset is a function of at most nine lines that returns an `Attack`.

Its name here, on the command line and in a result row is the same.
"""

from __future__ import annotations

from collections.abc import Callable

from uturn import specs
from uturn.attacks.loop import Attack, Start
from uturn.attacks.objectives import (
    AwayFromFeature,
    AwayFromPredicted,
    OppositeDirection,
    Target,
    TowardsLeastLikely,
    TowardsTarget,
    TowardsUniform,
)
from uturn.attacks.steps import Adam, Linear, Momentum, Sign, chain
from uturn.attacks.threats import LInf


def iterations(eps: float, steps: int | None = None) -> int:
    """``steps``, or the paper's number of them: T(ε) = round(min(ε + 4, 1.25 ε)), at least 1.

    >>> [iterations(eps) for eps in (2, 4, 8, 12, 16)]
    [2, 5, 10, 15, 20]
    """
    return max(1, round(min(eps + 4, 1.25 * eps))) if steps is None else steps


def fast(*, eps: float) -> Attack:
    """Fast gradient sign: one step of ε away from the predicted training class."""
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(eps), steps=1)


def basic(*, eps: float, steps: int | None = None) -> Attack:
    """Basic iterative: steps of one level away from the predicted training class."""
    T = iterations(eps, steps)
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(), steps=T)


def least_likely(*, eps: float, steps: int | None = None) -> Attack:
    """Least likely: steps of one level towards the least likely training class."""
    T = iterations(eps, steps)
    return Attack(objective=TowardsLeastLikely(), threat=LInf(eps), step=Sign(), steps=T)


def odfa(
    *, eps: float, steps: int | None = None, start: Start = "sign", target: Target = "unit"
) -> Attack:
    """U-turn (ODFA): steps of one level towards the opposite feature, from a ±1-level start."""
    J = OppositeDirection(target)
    T = iterations(eps, steps)
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T, start=start)


def label_smooth(*, eps: float, steps: int | None = None) -> Attack:
    """Label-smooth: steps of one level towards equal training classes."""
    T = iterations(eps, steps)
    return Attack(objective=TowardsUniform(), threat=LInf(eps), step=Sign(), steps=T)


def sma(*, eps: float, steps: int | None = None, start: Start = "sign") -> Attack:
    """Self metric attack: steps of one level away from the raw feature, from a ±1 start."""
    J, T = AwayFromFeature(), iterations(eps, steps)
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T, start=start)


def pire(*, eps: float, steps: int = 100, start: Start = "sign") -> Attack:
    """PIRE: Adam away from the unit feature; its paper takes 100 steps and more."""
    J, step = AwayFromFeature("unit"), Adam(size=0.5)
    return Attack(objective=J, threat=LInf(eps), step=step, steps=steps, start=start)


def tma(*, eps: float, steps: int = 100) -> Attack:
    """Targeted mismatch: Adam towards `Scene.targets`, so that the query is found as them."""
    step = Adam(size=0.5)
    return Attack(objective=TowardsTarget(), threat=LInf(eps), step=step, steps=steps)


def momentum(*, eps: float, steps: int | None = None, decay: float = 1.0) -> Attack:
    """U-turn with momentum (MI): gradients are accumulated before the sign is taken."""
    J, T = OppositeDirection(), iterations(eps, steps)
    step = chain(Momentum(decay), Sign())
    return Attack(objective=J, threat=LInf(eps), step=step, steps=T, start="sign")


def uturn(*, eps: float, steps: int | None = None) -> Attack:
    """Improved U-turn: centred target, sizes falling from 2ε, more momentum the more steps."""
    J, T = OppositeDirection(centre=1.0), iterations(eps, steps)
    size = Linear(2 * eps, max(0.5, 2 * eps / max(T, 1)))
    step = chain(Momentum(min(0.5, T / 40)), Sign(size))
    return Attack(objective=J, threat=LInf(eps), step=step, steps=T, start="sign")


PRESETS: dict[str, Callable[..., Attack]] = {
    preset.__name__: preset
    for preset in (fast, basic, least_likely, label_smooth, odfa, uturn, momentum, sma, pire, tma)
}


WORST = "worst"
MEMBERS = ("odfa:steps=20", "uturn:steps=20", "uturn:steps=50", "momentum:steps=20", "sma:steps=20")
"""What `WORST` takes the worst of, per query. Fixed, free of parameters, and without need of a
classifier, so that worst cases of different victims can be compared."""


def load_attack(spec: str, *, eps: float) -> Attack:
    """Build an attack from a spec such as ``odfa`` or ``odfa:steps=20,start=clean``.

    Raises:
        SpecError: unknown attack or option; the message lists the valid ones.
    """
    parsed = specs.Spec.parse(spec)
    preset = PRESETS[specs.choose("attack", parsed.name, PRESETS)]
    attack: Attack = specs.call("attack", preset, parsed, eps=eps)
    return attack
