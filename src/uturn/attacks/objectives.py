"""Objectives: what hurts the victim, one number per picture, larger = worse for the victim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.types import Pixels, Scene
from uturn.victims.victim import Victim

Target = Literal["unit", "raw"]

Loss = Callable[[Pixels], Tensor]
"""Pixels ``(B, 3, H, W)`` → ``(B,)``, differentiable."""


class Objective(Protocol):
    """A frozen value; ``bind`` looks at the clean pictures once and returns what to climb."""

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss: ...


@final
@dataclass(frozen=True)
class OppositeDirection:
    """Push the feature f(x') towards −f(x): the U-turn (ODFA).

    ``−‖f(x') + f(x)‖²`` with ``f`` the unit embedding (``target="unit"``, the paper's) or the
    un-normalised feature (``target="raw"``).

    At x itself the unit form has its minimum and its gradient is exactly zero; float32 leaves
    noise of 1e-8 whose sign means nothing. Start it one level away from x (``start="sign"``).
    The raw form does not vanish there, since shortening the feature already helps it.

    Source: Zheng et al., "U-turn: Crafting Adversarial Queries with Opposite-Direction
    Features", IJCV 2022.
    """

    target: Target = "unit"

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        feature = victim.embed if self.target == "unit" else victim.features
        with torch.no_grad():
            opposite = -feature(clean)  # (B, D)
        return lambda pixels: -(feature(pixels) - opposite).square().sum(1)


@final
@dataclass(frozen=True)
class AwayFromPredicted:
    """Cross-entropy of the class that the victim predicts for the clean picture.

    Test identities are unseen, so the class is the *training* class with the largest logit.

    Source: Goodfellow et al., ICLR 2015 (one step); Kurakin et al., ICLR-W 2017 (iterated).
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        with torch.no_grad():
            predicted = victim.logits(clean).argmax(1)  # (B,)
        return lambda pixels: F.cross_entropy(victim.logits(pixels), predicted, reduction="none")


@final
@dataclass(frozen=True)
class TowardsLeastLikely:
    """Minus the cross-entropy of the training class with the smallest logit.

    Source: Kurakin et al., "Adversarial Examples in the Physical World", ICLR-W 2017.
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        with torch.no_grad():
            least = victim.logits(clean).argmin(1)  # (B,)
        return lambda pixels: -F.cross_entropy(victim.logits(pixels), least, reduction="none")


@final
@dataclass(frozen=True)
class TowardsTarget:
    """Cosine to the embedding of another picture, ``scene.targets``: be retrieved as it.

    Source: Tolias et al., "Targeted Mismatch Adversarial Attack", ICCV 2019 (global
    descriptor loss).
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        if scene.targets is None or len(scene.targets) != len(clean):
            raise ArgumentError(
                f"this attack needs one target picture per query: pass "
                f"Scene(targets=…) with {len(clean)} pictures"
            )
        with torch.no_grad():
            target = victim.embed(scene.targets)  # (B, D)
        return lambda pixels: (victim.embed(pixels) * target).sum(1)
