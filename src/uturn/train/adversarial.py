"""Online adversarial training: pictures crafted against the weights as they are, batch by batch.

The loop asks an `Adversary` for the adversarial partners of a batch, learns identities from clean
and adversarial pictures alike, and adds the adversary's own ``term``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn import specs
from uturn.attacks.loop import Attack
from uturn.attacks.objectives import Loss
from uturn.attacks.presets import PRESETS, load_attack
from uturn.attacks.problem import Attacker, knowledge
from uturn.attacks.steps import Sign
from uturn.attacks.threats import LInf
from uturn.attacks.training import for_training
from uturn.errors import ArgumentError, SpecError
from uturn.rng import generator
from uturn.types import Pixels, Scene
from uturn.victims.victim import Victim

RISING = 0.2
"""The share of training in which ε rises from 1 to its largest."""

ACT = "act"
"""The name under which `load_adversary` knows `AntiCollapse`."""


class Adversary(Protocol):
    """What makes training adversarial; the same ``(seed, step)`` always draws the same."""

    def __call__(self, images: Tensor, classes: Tensor, step: int) -> Tensor:
        """uint8 pictures ``(B, 3, H, W)`` of classes ``(B,)`` → their adversarial partners.

        They are crafted against the live network's weights at this moment, and lie within ε.
        """
        ...

    def term(self, clean: Tensor, adversarial: Tensor, classes: Tensor, step: int) -> Tensor:
        """What is added to the loss: a number, from features ``(B, D)`` of both, row by row."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Budget:
    """ε at every step of training, in levels.

    The ceiling rises in a straight line from 1 to ``eps`` within the first ``warmup`` steps; what
    is used is a whole number drawn from ``least`` (or the ceiling, where that is lower) up to it.
    A network that only ever sees its largest ε learns that one, and starts with pictures that it
    can do nothing with.

    Raises:
        ArgumentError: ε or ``least`` out of range.
    """

    eps: float
    least: float = 1
    warmup: int = 0

    def __post_init__(self) -> None:
        LInf(self.eps)
        if not 1 <= self.least <= self.eps:
            raise ArgumentError(
                f"the smallest ε of training must lie between 1 and {self.eps:g}, got {self.least}"
            )

    def at(self, seed: int, step: int) -> float:
        """ε of step ``step``, counted from 0.

        >>> [Budget(eps=8, least=8, warmup=4).at(0, step) for step in range(6)]
        [1, 2, 4, 6, 8, 8]
        """
        risen = min(1.0, step / self.warmup) if self.warmup else 1.0
        top = math.floor(max(1.0, risen * self.eps))
        low = min(math.ceil(self.least), top)
        return int(generator(seed, "adversary", "eps", step).integers(low, top + 1))


Now = Callable[[], Victim]
"""The network in training as a victim, with its weights of this moment; in evaluation mode, so
that crafting moves no running statistics and every picture is on its own."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Online:
    """Any of our attacks, run against the current weights: ``attack`` is its spec.

    ``consistency`` weighs the mean of ``1 − cos(f(x), f(x′))``, which asks that a picture and
    its adversarial partner have one direction: TRADES' second term, with the angle that retrieval
    looks at in place of the divergence of classes. The clean feature takes part in it.

    Source: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR
    2018; Zheng et al., IJCV 2022 (U-turn queries, clean and adversarial mixed); Zhang et al.,
    "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019 (TRADES).

    Raises:
        ArgumentError: the attack has to know a gallery, or a negative weight.
    """

    attack: str
    now: Now
    budget: Budget
    consistency: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        missing = knowledge(self.at(self.budget.eps))
        if missing:
            raise ArgumentError(
                f"{self.attack} has to know {', '.join(missing)}, which training cannot tell it; "
                "train with odfa, uturn, sma, fast or another that needs the picture only"
            )
        if self.consistency < 0:
            raise ArgumentError(f"consistency must be at least 0, got {self.consistency}")

    def at(self, eps: float) -> Attacker:
        """The attack as training uses it (`for_training`), at ``eps``."""
        return for_training(load_attack(self.attack, eps=eps), eps)

    def __call__(self, images: Tensor, classes: Tensor, step: int) -> Tensor:
        attack = self.at(self.budget.at(self.seed, step))
        names = [f"{step}/{row}" for row in range(len(images))]
        return attack(self.now(), images, names=names, seed=self.seed).images

    def term(self, clean: Tensor, adversarial: Tensor, classes: Tensor, step: int) -> Tensor:
        if not self.consistency:
            return clean.new_zeros(())
        return self.consistency * (1 - F.cosine_similarity(clean, adversarial)).mean()


@final
@dataclass(frozen=True, eq=False)
class Mixed:
    """A lesson of the training loop: a batch, and the adversarial partners of its first pictures.

    All go through the network together, in one batch norm, and are learned alike.
    """

    adversary: Adversary
    share: float
    """How many of the batch have a partner."""

    def __call__(self, pupil: nn.Module, images: Tensor, classes: Tensor, step: int) -> Tensor:
        count = min(len(images), max(2, round(self.share * len(images))))
        partners = self.adversary(images[:count], classes[:count], step)

        def term(features: Tensor) -> Tensor:
            joined = F.normalize(features, dim=2).flatten(1)  # (B, P·D)
            clean, adversarial = joined[:count], joined[len(images) :]
            return self.adversary.term(clean, adversarial, classes[:count], step)

        together = torch.cat([images, partners.to(images.device)])
        loss: Tensor = pupil(together, torch.cat([classes, classes[:count]]), term)
        return loss


@final
@dataclass(frozen=True)
class Collapse:
    """Bring f(x′) and the feature of the picture's partner together: ``−‖f(x′_i) − f(x′_j)‖²``.

    Unit features; ``partners[i] = j`` and ``partners[j] = i``, so that both sides move, and a
    picture that is its own partner stays. The sign of the slope is that of the distance itself.

    Source: Zhou et al., "Adversarial Attack and Defense in Deep Ranking", arXiv 2106.03614
    (anti-collapse triplet, the perturbation of positive and negative).
    """

    partners: tuple[int, ...]

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        if len(self.partners) != len(clean):
            raise ArgumentError(f"{len(clean)} pictures, but {len(self.partners)} partners")
        partners = torch.tensor(self.partners, device=clean.device)

        def loss(pixels: Pixels) -> Tensor:
            features = victim.embed(pixels)  # (B, D)
            return -(features - features[partners]).square().sum(1)

        return loss


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class AntiCollapse:
    """Anti-collapse triplet (ACT): learn to keep apart what an attack pulls into one point.

    Positive p and negative n of a triplet are perturbed until they collapse,
    ``δ* = argmin ‖f(p + δ_p) − f(n + δ_n)‖`` over ``‖δ‖∞ ≤ ε``, and the triplet loss
    ``[d(a, p̃) − d(a, ñ) + m]₊`` is taken with the clean anchor a, ``d`` the distance of unit
    features, ``m = 0.2``. Gradients at an unmoved anchor do not mislead as those of a moved one.

    Negatives are drawn at random, as there. Each pair (p, n) of different identities serves two
    triplets, since each of them is a positive of its own identity: so one batch is perturbed
    once. Batches need two pictures per identity (``sampler="pk:pictures=…"``); a picture without
    a second one is no positive. The paper has this loss alone, the loop keeps the recipe's too.

    Source: Zhou et al., "Adversarial Attack and Defense in Deep Ranking", arXiv 2106.03614.
    """

    now: Now
    budget: Budget
    steps: int = 8
    margin: float = 0.2
    weight: float = 1.0
    seed: int = 0

    def __call__(self, images: Tensor, classes: Tensor, step: int) -> Tensor:
        eps = self.budget.at(self.seed, step)
        attack = Attack(
            objective=Collapse(tuple(pairs(classes, self.seed, step).tolist())),
            threat=LInf(eps),
            step=Sign(max(1.0, 1.25 * eps / self.steps)),
            steps=self.steps,
        )
        return attack(self.now(), images, seed=self.seed).images

    def term(self, clean: Tensor, adversarial: Tensor, classes: Tensor, step: int) -> Tensor:
        negative = pairs(classes, self.seed, step).to(clean.device)
        anchor = successors(classes).to(clean.device)
        rows = torch.arange(len(classes), device=clean.device)
        whole = (negative != rows) & (anchor != rows)  # (B,)
        if not bool(whole.any()):
            raise ArgumentError(
                "no two pictures of one identity are in a batch, so there are no triplets; "
                "train with sampler='pk:pictures=4' and at least two identities per batch"
            )
        a, moved = F.normalize(clean, dim=1), F.normalize(adversarial, dim=1)
        near = F.pairwise_distance(a[anchor], moved)  # (B,)
        far = F.pairwise_distance(a[anchor], moved[negative])
        return self.weight * (near - far + self.margin).clamp(min=0)[whole].mean()


def pairs(classes: Tensor, seed: int, step: int) -> Tensor:
    """Partners of another class, drawn by (seed, step): ``(B,)`` with ``p[p[i]] = i``.

    Whoever finds no other class (an odd one, or a class of more than half) partners itself.

    >>> found = pairs(torch.tensor([0, 0, 1, 1, 2, 2]), 0, 0)
    >>> bool((found[found] == torch.arange(6)).all()), int((found == torch.arange(6)).sum())
    (True, 0)
    """
    draw = generator(seed, "adversary", "pairs", step)
    _, group = np.unique(classes.cpu().numpy(), return_inverse=True)
    partners = np.arange(len(group))
    left = draw.permutation(len(group))
    while len(left):
        # Whoever is of the largest class left goes first, so that nobody stays over needlessly.
        largest = np.bincount(group[left]).argmax()
        one, others = left[group[left] == largest][0], left[group[left] != largest]
        if not len(others):
            break
        other = draw.choice(others)
        partners[one], partners[other] = other, one
        left = left[(left != one) & (left != other)]
    return torch.from_numpy(partners)


def successors(classes: Tensor) -> Tensor:
    """Another picture of the same class, the next one in a circle: ``(B,)``; itself if alone.

    >>> successors(torch.tensor([7, 3, 7, 7])).tolist()
    [2, 1, 3, 0]
    """
    labels = classes.cpu().numpy()
    found = np.arange(len(labels))
    for each in np.unique(labels):
        members = np.flatnonzero(labels == each)
        found[members] = np.roll(members, -1)
    return torch.from_numpy(found)


def load_adversary(
    spec: str, now: Now, budget: Budget, *, consistency: float = 0.0, seed: int = 0
) -> Adversary:
    """The adversary of a spec: an attack's (``odfa:steps=4``, ``fast``), or ``act``.

    ``act:steps=8,margin=0.2,weight=1`` is `AntiCollapse`.

    Raises:
        SpecError: unknown adversary or option. ArgumentError: it cannot be trained with.
    """
    parsed = specs.Spec.parse(spec)
    if parsed.name != ACT:
        specs.choose("adversary", parsed.name, [*PRESETS, ACT])
        return Online(attack=spec, now=now, budget=budget, consistency=consistency, seed=seed)
    if consistency:
        raise SpecError(f"{ACT} has a loss of its own; leave the consistency out")

    def act(steps: int = 8, margin: float = 0.2, weight: float = 1.0) -> AntiCollapse:
        return AntiCollapse(
            now=now, budget=budget, steps=steps, margin=margin, weight=weight, seed=seed
        )

    adversary: AntiCollapse = specs.call("adversary", act, parsed)
    return adversary


def known(spec: str, eps: float, consistency: float) -> None:
    """Raise `SpecError` or `ArgumentError` unless ``spec`` can be trained with at ``eps``."""

    def nobody() -> Victim:
        raise ArgumentError("no network is in training")

    load_adversary(spec, nobody, Budget(eps=eps), consistency=consistency)
