"""The classic attacks against Foolbox, an implementation of its own.

Compared before the rounding to 8 bits, which Foolbox does not do. Its momentum attack is left out:
it accumulates gradients of any length, where the paper divides each by its own (ours is held to the
formula in test_steps_and_views.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import Tensor, nn

from uturn import attacks
from uturn.attacks.loop import Attack
from uturn.attacks.problem import Batch
from uturn.attacks.steps import UnitL2
from uturn.attacks.threats import L2
from uturn.victims.victim import Victim, to_pixels

foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed (the dev extra has it)")


class Logits(nn.Module):
    """A victim as a classifier of pixels."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, pixels: Tensor) -> Tensor:
        return self.victim.logits(pixels)


@pytest.fixture(scope="module")
def queries(glyph_victim: Victim) -> Tensor:
    from uturn import load_data

    query = load_data("glyphs").query
    return glyph_victim.grid([query.read(i) for i in range(0, 4000, 500)])


def foolboxs(victim: Victim, images: Tensor, attack: Any, eps: float) -> Tensor:
    """The change that Foolbox finds, in levels."""
    model = foolbox.PyTorchModel(Logits(victim).eval(), bounds=(0, 1), device="cpu")
    clean = to_pixels(images)
    labels = victim.logits(clean).argmax(1)
    found = attack.run(model, clean, foolbox.criteria.Misclassification(labels), epsilon=eps / 255)
    return (found - clean) * 255


def ours(victim: Victim, images: Tensor, attack: Attack) -> Tensor:
    delta = attack.climb(attack.pose(Batch(victim, images))).delta
    return delta


def agree(mine: Tensor, theirs: Tensor, within: float = 0.01) -> None:
    """All but a few values: where a gradient is nearly zero, its sign is the last bit's."""
    apart = (mine - theirs).abs() > within
    assert float(apart.float().mean()) < 0.002
    assert bool(mine.any())


def test_fast(glyph_victim: Victim, queries: Tensor) -> None:
    theirs = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    agree(
        ours(glyph_victim, queries, attacks.fast(eps=6)),
        foolboxs(glyph_victim, queries, theirs, 6),
    )


def test_basic(glyph_victim: Victim, queries: Tensor) -> None:
    theirs = foolbox.attacks.LinfBasicIterativeAttack(
        abs_stepsize=1 / 255, steps=4, random_start=False
    )
    agree(
        ours(glyph_victim, queries, attacks.basic(eps=3, steps=4)),
        foolboxs(glyph_victim, queries, theirs, 3),
    )


def test_l2(glyph_victim: Victim, queries: Tensor) -> None:
    theirs = foolbox.attacks.L2BasicIterativeAttack(
        abs_stepsize=20 / 255, steps=4, random_start=False
    )
    mine = dataclasses.replace(attacks.basic(eps=50, steps=4), threat=L2(50), step=UnitL2(20))
    agree(ours(glyph_victim, queries, mine), foolboxs(glyph_victim, queries, theirs, 50), 0.05)
