"""Attacks by name. A preset is a function of at most nine lines that returns an `Attack`.

Its name here, on the command line and in a result row is the same.
"""

from __future__ import annotations

from collections.abc import Callable

from uturn import specs
from uturn.attacks.loop import Attack, Start
from uturn.attacks.objectives import (
    AwayFromPredicted,
    OppositeDirection,
    Target,
    TowardsLeastLikely,
)
from uturn.attacks.steps import Sign
from uturn.attacks.threats import LInf


def iterations(eps: float) -> int:
    """The paper's number of steps: T(ε) = round(min(ε + 4, 1.25 ε)), at least 1.

    >>> [iterations(eps) for eps in (2, 4, 8, 12, 16)]
    [2, 5, 10, 15, 20]
    """
    return max(1, round(min(eps + 4, 1.25 * eps)))


def fast(*, eps: float) -> Attack:
    """Fast gradient sign: one step of ε away from the predicted training class."""
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(eps), steps=1)


def basic(*, eps: float, steps: int | None = None) -> Attack:
    """Basic iterative: steps of one level away from the predicted training class."""
    T = iterations(eps) if steps is None else steps
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(), steps=T)


def least_likely(*, eps: float, steps: int | None = None) -> Attack:
    """Least likely: steps of one level towards the least likely training class."""
    T = iterations(eps) if steps is None else steps
    return Attack(objective=TowardsLeastLikely(), threat=LInf(eps), step=Sign(), steps=T)


def odfa(
    *, eps: float, steps: int | None = None, start: Start = "sign", target: Target = "unit"
) -> Attack:
    """U-turn (ODFA): steps of one level towards the opposite feature, from a ±1-level start."""
    J = OppositeDirection(target)
    T = iterations(eps) if steps is None else steps
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T, start=start)


PRESETS: dict[str, Callable[..., Attack]] = {
    preset.__name__: preset for preset in (fast, basic, least_likely, odfa)
}


def load_attack(spec: str, *, eps: float) -> Attack:
    """Build an attack from a spec such as ``odfa`` or ``odfa:steps=20,start=clean``.

    Raises:
        SpecError: unknown attack or option; the message lists the valid ones.
    """
    parsed = specs.Spec.parse(spec)
    preset = PRESETS[specs.choose("attack", parsed.name, PRESETS)]
    attack: Attack = specs.call("attack", preset, parsed, eps=eps)
    return attack
