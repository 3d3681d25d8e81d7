"""Objectives: what hurts the victim, one number per picture, larger = worse for the victim.

Features are looked at part by part, ``(B, P, D)``: P = 1 for a global feature, P = 6 for PCB.
Every part is pushed, and the mean over the parts is what is climbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.types import Pixels, Scene
from uturn.victims.victim import Victim

Target = Literal["unit", "raw"]

_GUARDED = 4
"""Ways in which a guard has the victim look at a picture (`uturn.guard.detector.Shown`)."""

Loss = Callable[[Pixels], Tensor]
"""Pixels ``(B, 3, H, W)`` → ``(B,)``, differentiable."""


class Objective(Protocol):
    """A frozen value; ``bind`` looks at the clean pictures once and returns what to climb.

    One that cannot do without a field of the scene names it in ``needs`` (see `needs`).
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss: ...


def needs(objective: Objective | None) -> tuple[str, ...]:
    """The fields of the `Scene` that ``objective`` cannot do without."""
    return tuple(getattr(objective, "needs", ()))


def looks(objective: Objective) -> int:
    """How often one gradient of ``objective`` passes through the victim."""
    if isinstance(objective, Unnoticed):
        return looks(objective.objective) + _GUARDED
    return len(objective.scales) if isinstance(objective, AtScales) else 1


def watched(objective: Objective | None) -> str | None:
    """The file of the guard that ``objective`` is to get past, if there is one."""
    if isinstance(objective, AtScales):
        return watched(objective.objective)
    return objective.guard if isinstance(objective, Unnoticed) else None


def lowers(objective: Objective | None) -> bool:
    """Whether what was chosen is to fall in a ranking, and not to rise."""
    if isinstance(objective, AtScales):
        return lowers(objective.objective)
    return isinstance(objective, (MoveCandidates, MoveInRankings)) and not objective.up


@final
@dataclass(frozen=True)
class OppositeDirection:
    """Push the feature f(x') towards −f(x): the U-turn (ODFA).

    ``−‖f(x') + f(x)‖²`` with ``f`` the unit embedding (``target="unit"``, the paper's) or the
    un-normalised feature (``target="raw"``).

    At x itself the unit form has its minimum and its gradient is exactly zero; float32 leaves
    noise of 1e-8 whose sign means nothing. Start it one level away from x (``start="sign"``).
    The raw form does not vanish there, since shortening the feature already helps it.

    ``centre`` moves the target from −f to ``centre · mean(f) · 1 − f`` (mean over the D
    values, then unit length again). Features that end in a ReLU are never negative and cannot
    reach −f; with ``centre=1`` their target is −f less its part along the all-ones direction,
    which they can approach by raising what was low. For features of mean 0 it changes nothing.

    Source (centre=0): Zheng et al., "U-turn: Crafting Adversarial Queries with Opposite-Direction
    Features", IJCV 2022.
    """

    target: Target = "unit"
    centre: float = 0.0

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        feature = _feature(victim, self.target)
        with torch.no_grad():
            own = feature(clean)  # (B, P, D)
            opposite = self.centre * own.mean(2, keepdim=True) - own
            if self.target == "unit":
                opposite = F.normalize(opposite, dim=2)
        return lambda pixels: -(feature(pixels) - opposite).square().sum(2).mean(1)


@final
@dataclass(frozen=True)
class OppositeLogits:
    """Push the logits l(x') towards −l(x), ``−‖l(x') + l(x)‖²``: the U-turn of a classifier.

    What a closed set's classifier ranks is its classes, by their logits; turned round, the first
    becomes the last. Features that end in a ReLU are never negative and cannot reach −f, but
    logits can reach −l. At x the gradient is not zero, since shortening l already helps.

    Source: the U-turn of Zheng et al., IJCV 2022, of the logits in place of the feature.
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        with torch.no_grad():
            opposite = -victim.logits(clean)  # (B, C)
        return lambda pixels: -(victim.logits(pixels) - opposite).square().sum(1)


Turned = Literal["unit", "raw", "logits"]
"""What a U-turn turns round: the unit feature, the raw one, or a classifier's logits."""


def opposite(of: Turned) -> Objective:
    """The U-turn of the feature or of the logits."""
    return OppositeLogits() if of == "logits" else OppositeDirection(of)


@final
@dataclass(frozen=True)
class AwayFromFeature:
    """Push the feature f(x') away from f(x): the squared distance between them.

    With unit embeddings this is `OppositeDirection` but for a constant, and has its zero
    gradient at x. The raw form (SMA, and the untargeted use of PIRE and TMA) has a zero
    gradient there too, as any distance from one's own place has.

    Source: Bouniot et al., "Vulnerability of Person Re-Identification Models to Metric
    Adversarial Attacks", CVPR-W 2020 (SMA); Liu et al., "Who's Afraid of Adversarial Queries?",
    ICMR 2019 (PIRE, unit).
    """

    target: Target = "raw"

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        feature = _feature(victim, self.target)
        with torch.no_grad():
            own = feature(clean)  # (B, P, D)
        return lambda pixels: (feature(pixels) - own).square().sum(2).mean(1)


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
class TowardsUniform:
    """Make all training classes equally likely: ``1/C Σ_c log p_c``, the label-smooth attack.

    Source: Zheng et al., IJCV 2022 (baseline "label-smooth").
    """

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        victim.logits(clean[:1])  # no classifier: say so now
        return lambda pixels: F.log_softmax(victim.logits(pixels), dim=1).mean(1)


@final
@dataclass(frozen=True)
class TowardsTarget:
    """Cosine to the embedding of another picture, ``scene.targets``: be retrieved as it.

    Source: Tolias et al., "Targeted Mismatch Adversarial Attack", ICCV 2019 (global
    descriptor loss).
    """

    needs: ClassVar[tuple[str, ...]] = ("targets",)

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        if scene.targets is None or len(scene.targets) != len(clean):
            raise ArgumentError(
                f"this attack needs one target picture per query: pass "
                f"Scene(targets=…) with {len(clean)} pictures"
            )
        feature = _feature(victim, "unit")
        with torch.no_grad():
            target = feature(scene.targets)  # (B, P, D)
        return lambda pixels: (feature(pixels) * target).sum(2).mean(1)


@final
@dataclass(frozen=True)
class MoveCandidates:
    """Change a query so that chosen gallery items rise (QA+) or fall (QA−) in its ranking.

    With candidates c (``scene.candidates``, ``(B, M, D)``) and other items o
    (``scene.others``, ``(B, N, D)``), all raw features, rising climbs
    ``−mean [cos(f', o) − cos(f', c)]₊`` over all pairs, falling the same with c and o changed.

    Source: Zhou et al., "Adversarial Ranking Attack and Defense", ECCV 2020 (QA+, QA−).
    """

    needs: ClassVar[tuple[str, ...]] = ("candidates", "others")
    up: bool

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        chosen = _unit(scene.candidates, "candidates", len(clean))
        others = _unit(scene.others, "others", len(clean))

        def loss(pixels: Pixels) -> Tensor:
            feature = victim.embed(pixels)[:, :, None]  # (B, D, 1)
            near, far = (chosen @ feature), (others @ feature).mT  # (B, M, 1), (B, 1, N)
            wrong = far - near if self.up else near - far
            return -wrong.clamp(min=0).mean((1, 2))

        return loss


@final
@dataclass(frozen=True)
class MoveInRankings:
    """Change a gallery picture so that it rises (CA+) or falls (CA−) for chosen queries.

    With queries q (``scene.queries``, ``(B, M, D)``) and the gallery's other items o
    (``scene.others``, ``(B, N, D)``), all raw features, rising climbs
    ``−mean [cos(q, o) − cos(q, f')]₊`` over all pairs, falling the same with f' and o changed.

    Source: Zhou et al., "Adversarial Ranking Attack and Defense", ECCV 2020 (CA+, CA−).
    """

    needs: ClassVar[tuple[str, ...]] = ("queries", "others")
    up: bool

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        queries = _unit(scene.queries, "queries", len(clean))
        rivals = queries @ _unit(scene.others, "others", len(clean)).mT  # (B, M, N)

        def loss(pixels: Pixels) -> Tensor:
            own = queries @ victim.embed(pixels)[:, :, None]  # (B, M, 1)
            wrong = rivals - own if self.up else own - rivals
            return -wrong.clamp(min=0).mean((1, 2))

        return loss


@final
@dataclass(frozen=True)
class AwayFromKnown:
    """Push away from known pictures of the same identity, whose features are given.

    ``−mean cos(f', s)`` over ``scene.same`` (``(B, M, D)``, raw features): the guided push of
    FNA. Its gradient at x is not zero, since x is none of them.

    Source: Bouniot et al., CVPR-W 2020 (FNA).
    """

    needs: ClassVar[tuple[str, ...]] = ("same",)

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        same = _unit(scene.same, "same", len(clean))
        return lambda pixels: -(same @ victim.embed(pixels)[:, :, None]).mean((1, 2))


@final
@dataclass(frozen=True)
class TowardsNearest:
    """Cosine to the nearest of ``scene.others`` (``(B, N, D)``, raw features): be taken for it.

    The least way to a wrong answer, and one that ends where gallery items are.

    Source: Sabour et al., "Adversarial Manipulation of Deep Representations", ICLR 2016 (the
    feature of another picture as the target), with the nearest for the other picture.
    """

    needs: ClassVar[tuple[str, ...]] = ("others",)

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        others = _unit(scene.others, "others", len(clean))
        with torch.no_grad():
            cosines = (others @ victim.embed(clean)[:, :, None])[..., 0]  # (B, N)
            target = others[torch.arange(len(others)), cosines.argmax(1)]  # (B, D)
        return lambda pixels: (victim.embed(pixels) * target).sum(1)


@final
@dataclass(frozen=True)
class Unnoticed:
    """Another objective, less ``weight`` · Σ [s − `USUAL`]₊ over the signs s that a guard sees.

    ``guard`` is the file that it was saved to; the attacker knows all of it, ``scene.watch``. A
    sign costs nothing while it is that of an ordinary clean query.

    Source: Carlini and Wagner, "Adversarial Examples Are Not Easily Detected: Bypassing Ten
    Detection Methods", AISec 2017 (the detector in the objective).
    """

    objective: Objective
    guard: str
    weight: float

    @property
    def needs(self) -> tuple[str, ...]:
        return (*needs(self.objective), "watch")

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        harm, watch = self.objective.bind(victim, clean, scene), scene.watch
        if watch is None:
            raise ArgumentError("to get past a guard an attack must know it: pass Scene(watch=…)")
        return lambda pixels: (
            harm(pixels) - self.weight * (watch(pixels) - USUAL).clamp(min=0).sum(1)
        )


USUAL = 1.0
"""Spreads above the mean that a sign of many a clean query is."""


@final
@dataclass(frozen=True)
class AtScales:
    """Another objective with the victim at each of ``scales`` on its own: the mean of the losses.

    ``(1.0,)`` attacks a victim that averages over scales as if it looked at one only; several
    are the paper's multi-scale query. One gradient costs as many passes as there are scales.
    Without this, it goes through the victim's own averaging of embeddings, which is the
    stronger attack if its scales are known.

    Source: Zheng et al., IJCV 2022 (multi-scale query).
    """

    objective: Objective
    scales: tuple[float, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return needs(self.objective)

    def bind(self, victim: Victim, clean: Pixels, scene: Scene) -> Loss:
        losses = [
            self.objective.bind(victim.at_scales((scale,)), clean, scene) for scale in self.scales
        ]
        return lambda pixels: torch.stack([loss(pixels) for loss in losses]).mean(0)


def _feature(victim: Victim, target: Target) -> Callable[[Pixels], Tensor]:
    """Pixels → features by parts ``(B, P, D)``, of unit length each or raw."""
    if target == "raw":
        return victim.parts
    return lambda pixels: F.normalize(victim.parts(pixels), dim=2)


def _unit(features: Tensor | None, name: str, batch: int) -> Tensor:
    """Unit features ``(B, M, D)`` from a field of the scene."""
    if features is None or features.ndim != 3 or len(features) != batch:
        got = "nothing" if features is None else tuple(features.shape)
        raise ArgumentError(
            f"this attack needs Scene({name}=…): features of shape ({batch}, M, D), got {got}"
        )
    return F.normalize(features, dim=2)
