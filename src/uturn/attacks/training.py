"""Attacks as adversarial training runs them: from anywhere in the ball, and across it."""

from __future__ import annotations

from dataclasses import replace

from uturn.attacks.loop import Attack
from uturn.attacks.problem import Attacker
from uturn.attacks.search import Search
from uturn.attacks.steps import Sign


def for_training(attack: Attacker, eps: float) -> Attacker:
    """The same attack from a random start in the ball, with sign steps that can cross it.

    Few steps from the picture itself are learned by heart (catastrophic overfitting); from
    anywhere in the ball, with steps of ``1.25 ε / steps``, they are not so easily. Attacks whose
    steps are longer already, or follow a schedule of their own, keep them: T(ε) steps of a level
    are just that long. `uturn.doctor.masking` tells whether it went well.

    Source: Wong et al., "Fast is Better than Free: Revisiting Adversarial Training", ICLR 2020.
    """
    if isinstance(attack, Search):
        return replace(attack, attack=_crossing(attack.attack, eps))
    return _crossing(attack, eps) if isinstance(attack, Attack) else attack


def _crossing(attack: Attack, eps: float) -> Attack:
    step = attack.step
    if isinstance(step, Sign) and isinstance(step.size, (int, float)):
        step = Sign(max(step.size, 1.25 * eps / attack.steps))
    return replace(attack, start="sample", step=step)
