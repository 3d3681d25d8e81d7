"""The smallest ε: per query, how little is enough to lose the first match."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch

from uturn.attacks.objectives import Objective
from uturn.attacks.problem import Attacker, Batch, Found, draws, knowledge
from uturn.attacks.threats import Threat
from uturn.errors import ArgumentError


@final
@dataclass(frozen=True, kw_only=True)
class Minimal:
    """Search a ladder of attacks for the first that makes a query lose, by bisection.

    Whether it lost is asked of the ranking, ``scene.lost``. A query that loses even unchanged
    stays as it is; one that nothing makes lose is returned as the strongest attack left it.
    Bisection takes for granted that what loses at some ε loses at a larger one; where that fails,
    the ε found is one that is enough, perhaps not the smallest.
    """

    ladder: tuple[Attacker, ...]
    """From the weakest to the strongest, such as one attack at ε = 1, 2, 3, …"""

    def __post_init__(self) -> None:
        if not self.ladder:
            raise ArgumentError("a search for the smallest ε needs at least one attack")
        wanted = {field for attack in self.ladder for field in knowledge(attack)}
        if wanted:
            raise ArgumentError(
                "a search for the smallest ε takes attacks that know the query only, such as "
                f"uturn; this one must be given {', '.join(sorted(wanted))}"
            )

    @property
    def threat(self) -> Threat:
        """That of the strongest."""
        return self.ladder[-1].threat

    @property
    def objective(self) -> Objective | None:
        return self.ladder[-1].objective

    @property
    def needs(self) -> tuple[str, ...]:
        return ("lost",)

    @property
    def draws(self) -> bool:
        """Whether one of the ladder does."""
        return any(map(draws, self.ladder))

    @property
    def gradients(self) -> int:
        """The most that a query can cost: the bisection asks ⌈log₂(n + 1)⌉ attacks."""
        rounds = math.ceil(math.log2(len(self.ladder) + 1))
        return sum(sorted(attack.gradients for attack in self.ladder)[-rounds:])

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        """Per picture the change of the first attack that is enough, or of the strongest."""
        lost_now, images, last = batch.scene.lost, batch.images, len(self.ladder) - 1
        if lost_now is None:
            raise ArgumentError("the smallest ε is found by asking a ranking: pass Scene(lost=…)")
        found = images.clone()
        # The answer lies in low … high; high = last + 1 stands for "none of them".
        low, high = torch.zeros(len(images)).long(), torch.full((len(images),), last + 1)
        open_ = ~lost_now(images, torch.arange(len(images))).cpu()
        while bool(open_.any()):
            middle = (low + high) // 2
            for rung in sorted(set(middle[open_].tolist())):
                which = ((middle == rung) & open_).nonzero()[:, 0]
                names = [batch.keys[i] for i in which]
                attack = self.ladder[rung]
                tried = attack(
                    batch.victim, images[which], batch.scene, names=names, seed=batch.seed
                ).images.to(images.device)
                lost = lost_now(tried, which).cpu()
                kept = lost | (rung == last)  # the strongest is kept even if it is in vain
                found[which[kept]] = tried[kept]
                high[which[lost]] = rung
                low[which[~lost]] = rung + 1
            open_ &= low < high
        return Found(found.to(batch.clean) - batch.clean)
