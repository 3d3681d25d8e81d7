"""Relevance: how much of a search system's clean answer is left, read from the answer alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

from uturn.errors import ArgumentError
from uturn.types import Answer

Worth: TypeAlias = Callable[[Answer], float]
"""What the answer to a changed picture is worth to an attacker: larger = worse for the victim."""


@final
@dataclass(frozen=True)
class Relevance:
    """Minus what is left of the clean answer.

    Who attacks knows no identities. What came first for the clean picture counts as relevant,
    by its rank: with the discounts d(r) = 1 / log₂(1 + r) of nDCG, the items i of both answers,
    their clean ranks r and their ranks r′ now,

        left = Σ_i d(r_i) · d(r′_i) / Σ_r d(r)²

    is 1 if nothing has moved and 0 if no item of the clean answer is in this one. An item that
    falls within the list counts as progress, not only one that leaves it.

    With ``scores`` it is the mean score of the clean answer's items, weighted by d(r); an item
    that has left the list has at most the list's last score, and is taken to have that. It tells
    progress where no rank has changed yet, and has no bound.

    Source: Li et al., "QAIR: Practical Query-efficient Black-Box Attacks for Image Retrieval",
    CVPR 2021 (the relevance-based loss, by clean ranks; the discount of the rank now is ours).
    """

    scores: bool = False

    @property
    def most(self) -> float:
        """What no answer is worth more than: there is nothing left to be told."""
        return math.inf if self.scores else 0.0

    def bind(self, clean: Answer) -> Worth:
        """Remember the ``clean`` answer.

        Raises:
            ArgumentError: it is empty, or has no scores where they are wanted.

        >>> worth = Relevance().bind(Answer(("a", "b", "c")))
        >>> worth(Answer(("a", "b", "c"))), worth(Answer(("x", "y", "z")))
        (-1.0, -0.0)
        >>> worth(Answer(("x", "a", "b"))) > worth(Answer(("b", "a", "x")))
        True
        """
        if not clean.items:
            raise ArgumentError("the search system answers a clean picture with no item at all")
        known = {item: _discount(place) for place, item in enumerate(clean.items, 1)}
        if not self.scores:
            whole = sum(weight * weight for weight in known.values())
            return lambda answer: (
                -sum(
                    known.get(item, 0.0) * _discount(place)
                    for place, item in enumerate(answer.items, 1)
                )
                / whole
            )
        total = sum(known.values())

        def worth(answer: Answer) -> float:
            if answer.scores is None or not answer.scores:
                raise ArgumentError(
                    "this search system keeps its scores to itself; leave scores=yes out"
                )
            now = dict(zip(answer.items, answer.scores, strict=True))
            last = min(answer.scores)
            return -sum(weight * now.get(item, last) for item, weight in known.items()) / total

        worth(clean)
        return worth


def _discount(place: int) -> float:
    return 1 / math.log2(1 + place)
