"""Verification: the score above which a pair passes for the same, fixed on clean pairs.

Every pair of a query and an item that is irrelevant to it and not ignored is an impostor pair.
Which genuine pairs pass is a metric of a ranking (`metrics.accepted`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.retrieval.ranking import Chunk

_SCORES = 4_000_000
"""Scores looked through at a time; where all are taken, ten times their 16 MB are at work."""


@final
@dataclass(frozen=True, eq=False)
class Impostors:
    """The impostor pairs seen so far: their number, and the highest of their scores.

    A false positive rate of ``fpr`` over at most ``pairs`` pairs rests on no more than the
    fpr·pairs + 2 highest scores, and no more than twice as many are kept.

    >>> seen = Impostors(fpr=0.25, pairs=8)
    >>> from uturn.retrieval.judge import Judgement
    >>> items = torch.arange(8)[None]
    >>> judgement = Judgement.of(relevant=items > 4, ignored=items == 4)
    >>> seen.see(Chunk.of(items / 8, judgement)).threshold()
    0.25

    Raises:
        ArgumentError: ``fpr`` is not in [0, 1].
    """

    fpr: float
    pairs: int
    count: int = 0
    highest: Tensor | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fpr <= 1:
            raise ArgumentError(f"a false positive rate is within 0 and 1, got {self.fpr}")

    def see(self, chunk: Chunk) -> Impostors:
        """The same with the impostor pairs of ``chunk``."""
        highest, kept = self.highest, int(self.fpr * self.pairs) + 2
        rows = max(1, _SCORES // max(1, chunk.impostors.shape[1]))
        for part in torch.split(chunk.impostors, rows):
            floor = -math.inf
            if highest is not None and len(highest) >= kept:
                floor = float(highest.min())  # what is lower than all of them changes nothing
            found = part[part > floor]
            highest = found if highest is None else torch.cat([highest, found])
            if len(highest) > 2 * kept:  # cut now and then: cutting is what costs
                highest = highest.topk(kept).values
        count = int((chunk.items - chunk.matches).sum())
        return replace(self, count=self.count + count, highest=highest)

    def threshold(self) -> float:
        """The least score that no more than ``fpr`` of the impostor pairs lie above.

        A pair is accepted if its score is *above* it. It is the score of the first impostor that
        is one too many: of n impostor pairs the (m + 1)-th highest, where m is the largest number
        with m / n ≤ fpr. So impostors that tie with it are all rejected, and the rate that is
        reached may be less than ``fpr``, never more. -inf if all may pass, NaN if there are none.
        """
        if self.highest is None or not self.count:
            return math.nan
        about = int(self.fpr * self.count)  # a product of floats can be off by one
        allowed = next(m for m in (about + 1, about, about - 1) if m / self.count <= self.fpr)
        if allowed >= len(self.highest):
            return -math.inf
        return float(self.highest.topk(allowed + 1).values[-1])
