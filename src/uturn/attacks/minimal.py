"""The smallest ε: per query, how little is enough to lose the first match."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.attacks.objectives import Objective
from uturn.attacks.problem import Attacker, certified, keys, knowledge
from uturn.attacks.threats import Threat
from uturn.errors import ArgumentError
from uturn.types import Perturbation, Scene
from uturn.victims.victim import Victim


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
    def gradients(self) -> int:
        """The most that a query can cost: the bisection asks ⌈log₂(n + 1)⌉ attacks."""
        rounds = math.ceil(math.log2(len(self.ladder) + 1))
        return sum(sorted(attack.gradients for attack in self.ladder)[-rounds:])

    def __call__(
        self,
        victim: Victim,
        images: Tensor,
        scene: Scene | None = None,
        *,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Perturbation:
        """Attack uint8 ``images`` ``(B, 3, H, W)``; see `uturn.attacks.Attack`."""
        if scene is None or scene.lost is None:
            raise ArgumentError("the smallest ε is found by asking a ranking: pass Scene(lost=…)")
        began, named = time.perf_counter(), keys(images, names)
        everyone = torch.arange(len(images))
        found = images.clone()
        # The answer lies in low … high; high = len(ladder) stands for "none of them".
        low, high = torch.zeros(len(images)).long(), torch.full((len(images),), len(self.ladder))
        open_ = ~scene.lost(images, everyone).cpu()
        strongest = images.clone()
        while bool(open_.any()):
            middle = (low + high) // 2
            for rung in sorted(set(middle[open_].tolist())):
                which = ((middle == rung) & open_).nonzero()[:, 0]
                attack = self.ladder[rung]
                tried = attack(
                    victim, images[which], scene, names=[named[i] for i in which], seed=seed
                ).images.to(images.device)
                lost = scene.lost(tried, which).cpu()
                found[which[lost]] = tried[lost]
                high[which[lost]] = rung
                low[which[~lost]] = rung + 1
                if rung == len(self.ladder) - 1:
                    strongest[which] = tried
            open_ &= low < high
        never = high == len(self.ladder)
        found[never] = strongest[never]
        clean = images.to(victim.device).float()
        delta = found.to(clean) - clean
        return certified(self.threat, clean, delta, [], self.gradients, began)
