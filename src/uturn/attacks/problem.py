"""The problem: one batch of pictures under attack, and what every loop asks of it."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Literal, Protocol, final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.objectives import Loss, Objective, needs
from uturn.attacks.surrogates import Surrogate
from uturn.attacks.threats import Threat
from uturn.attacks.views import Draw, View
from uturn.errors import ArgumentError, BudgetError
from uturn.rng import generator
from uturn.types import LEVELS, Levels, Perturbation, Scene
from uturn.victims.victim import Victim

Start = Literal["clean", "sign", "sample"]
"""At the clean picture, one level up or down in every value, or anywhere in the threat."""


_DRAWN = {"targets", "candidates", "queries", "others", "same"}
"""Fields of the `Scene` that are drawn for a query (`uturn.sweep.insider`)."""


class Attacker(Protocol):
    """Anything that changes pictures within a threat: `Attack`, or a loop of its own.

    A frozen value whose ``repr`` is its whole configuration.
    """

    @property
    def threat(self) -> Threat:
        """What the changes are held to."""
        ...

    @property
    def objective(self) -> Objective | None:
        """What is climbed; None if nothing is (a perturbation that is there already)."""
        ...

    @property
    def gradients(self) -> int:
        """Gradients spent per picture, at the most."""
        ...

    def find(self, batch: Batch) -> Found:
        """The change before it is rounded, and what it took."""
        ...

    def __call__(
        self,
        victim: Victim,
        images: Tensor,
        scene: Scene | None = None,
        *,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Perturbation:
        """Attack uint8 ``images`` ``(B, 3, H, W)``; each picture is on its own.

        ``names`` key the randomness; without them the content of each picture does. The
        result holds whole levels inside the threat, so an 8-bit lossless file keeps it.

        Raises:
            ArgumentError: wrong shape or type. BudgetError: the threat was left (a bug).
        """
        # Every attack takes this as its own: ``__call__ = Attacker.__call__``.
        began = time.perf_counter()
        batch = Batch(victim, images, scene or Scene(), names, seed)
        return perturbation(self, batch, self.find(batch), began)


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """What an attack is called with, checked: pictures, their victim and what is known.

    Raises:
        ArgumentError: the images are no 8-bit batch, or the names do not fit them.
    """

    victim: Victim
    images: Tensor
    """uint8 ``(B, 3, H, W)``."""

    scene: Scene = field(default_factory=Scene)
    names: InitVar[Sequence[str] | None] = None
    seed: int = 0
    keys: Sequence[str] = field(init=False)
    """What keys each picture's randomness: its name, or else its content."""

    clean: Levels = field(init=False)
    """The images on the victim's device, in levels."""

    def __post_init__(self, names: Sequence[str] | None) -> None:
        object.__setattr__(self, "keys", _keys(self.images, names))
        clean = self.images.to(self.victim.device).float()
        clean = clean.contiguous(memory_format=self.victim.layout)  # changes will be laid out alike
        object.__setattr__(self, "clean", clean)


@final
@dataclass(frozen=True, eq=False)
class Found:
    """What a loop returns."""

    delta: Levels
    """The change before it is rounded."""

    losses: Sequence[Tensor] = ()
    """The objective ``(B,)`` before each step."""

    asked: Tensor | None = None
    """How many pictures an oracle was asked per query, ``(B,)`` int64; None: it was not."""

    prior_gradients: int = 0
    """Gradients of another network that were borrowed per picture, at the most."""

    rise: Tensor | None = None
    """`Slope.rise` of the first gradient, ``(B,)``; None: nothing was climbed."""


def knowledge(attack: Attacker) -> tuple[str, ...]:
    """The fields of the `Scene` that ``attack`` cannot do without."""
    return (*needs(attack.objective), *getattr(attack, "needs", ()))


def draws(attack: Attacker) -> bool:
    """Whether another seed may change what ``attack`` finds: it draws, or is given what is drawn.

    One that has no ``draws`` of its own is taken to.
    """
    return bool(_DRAWN & {*knowledge(attack)}) or bool(getattr(attack, "draws", True))


def perturbation(attack: Attacker, batch: Batch, found: Found, began: float) -> Perturbation:
    """What was ``found`` in ``batch`` since ``began`` (`time.perf_counter`), certified."""
    delta, losses = certified(attack.threat, batch.clean, found.delta), found.losses
    nobody = torch.zeros(len(delta), dtype=torch.int64)
    return Perturbation(
        images=(batch.clean + delta).to(torch.uint8),
        delta=delta,
        losses=torch.stack([*losses]) if losses else delta.new_zeros(0, len(delta)),
        gradients=attack.gradients,
        seconds=time.perf_counter() - began,
        asked=nobody if found.asked is None else found.asked,
        prior_gradients=found.prior_gradients,
        rise=found.rise,
    )


@final
@dataclass(frozen=True)
class Slope:
    """The gradient at one change, means over the views."""

    grad: Tensor
    """With respect to pixels, ``(B, 3, H, W)``."""

    value: Tensor
    """The objective, ``(B,)``."""

    first: Tensor
    """``grad`` of the first view alone."""

    @property
    def rise(self) -> Tensor:
        """What one level along the sign of ``grad`` adds to the objective, ``(B,)``.

        To first order, ‖grad‖₁ / 255. Where it is below the rounding of the objective itself, the
        sign is noise.
        """
        return self.grad.flatten(1).abs().sum(1) / LEVELS


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """A batch, bound: clean levels, the loss to climb, the threat, the views, the randomness."""

    clean: Levels
    loss: Loss
    search: Loss | None = None
    """The same loss in less precision, for the search (`Victim.searcher`)."""
    threat: Threat
    views: tuple[View, ...]
    names: Sequence[str]
    seed: int
    restart: int = 0
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "draw", self._generators("views"))

    def start(self, kind: Start, threat: Threat | None = None) -> Levels:
        """The change to begin with; what is random is drawn from (seed, name).

        It lies within ``threat``, or else within the problem's own.
        """
        threat = threat or self.threat
        if kind == "clean":
            return torch.zeros_like(self.clean)
        if kind == "sample":
            return threat.sample(self.clean, self._generators("start"))
        return threat.project(self._signs, self.clean)

    @cached_property
    def _signs(self) -> Levels:
        """One level up or down in every value."""
        shape = tuple(self.clean.shape[1:])
        rngs = self._generators("start")
        signs = np.stack([2 * rng.integers(0, 2, shape, dtype=np.int8) - 1 for rng in rngs])
        return torch.from_numpy(signs).to(self.clean)

    def fork(self) -> Problem:
        """The same problem, whose views draw on from here without a word to these."""
        twin = copy.copy(self)
        object.__setattr__(twin, "draw", copy.deepcopy(self.draw))
        return twin

    def project(self, delta: Levels) -> Levels:
        """The nearest allowed change."""
        return self.threat.project(delta, self.clean)

    def slope(
        self, delta: Levels, surrogate: Surrogate | None = None, *, exact: bool = True
    ) -> Slope:
        """The gradient at ``delta``; it costs one pass back per view.

        ``surrogate`` changes how gradients pass; its schedules have their numbers (`steps.now`).
        It is taken of ``search``, where there is one, unless it is to be ``exact``.
        """
        loss = self.loss if exact or self.search is None else self.search
        count, own = len(self.views), torch.empty(0)
        total, first, value = own, own, torch.zeros_like(self.clean[:, 0, 0, 0])
        with surrogate() if surrogate else nullcontext():
            for number, view in enumerate(self.views):  # one at a time: one graph in memory
                pixels = (self.clean + delta).div_(LEVELS).requires_grad_()
                per_sample = loss(view(pixels, self.draw))  # (B,)
                if not per_sample.requires_grad:
                    raise ArgumentError(
                        "no gradient reaches the pixels: the victim's network breaks the graph "
                        "(torch.no_grad, detach, or NumPy); `uturn doctor` finds where to look"
                    )
                own = torch.autograd.grad(per_sample.sum(), pixels)[0]
                first = own if number == 0 else first
                total = total + own if number else own
                value += per_sample.detach()
        return Slope(total if count == 1 else total / count, value / count, first)

    @torch.no_grad()
    def value(self, delta: Levels) -> Tensor:
        """The objective ``(B,)`` at ``delta``, mean over the views."""
        pixels = (self.clean + delta) / LEVELS
        return torch.stack([self.loss(view(pixels, self.draw)) for view in self.views]).mean(0)

    def _generators(self, purpose: str) -> list[np.random.Generator]:
        again = (self.restart,) if self.restart else ()
        return [generator(self.seed, name, purpose, *again) for name in self.names]


def certified(threat: Threat, clean: Levels, delta: Levels) -> Levels:
    """Round ``delta`` inside the threat, and never trust it: whole levels, inside 0 … 255.

    Raises:
        BudgetError: the threat's own project or round is wrong.
    """
    delta = threat.round(delta, clean)
    pixels, size = clean + delta, threat.size(delta)
    whole = bool((delta == delta.round()).all())
    inside = bool(((pixels >= 0) & (pixels <= LEVELS)).all())
    if not (whole and inside and bool(threat.allows(size).all())):
        raise BudgetError(
            f"an attack left its threat {threat} (size {size.max():g} levels, whole: "
            f"{whole}, in range: {inside}); the threat's project or round is wrong"
        )
    return delta


def better(delta: Levels, value: Tensor, best: Levels, best_value: Tensor) -> tuple[Levels, Tensor]:
    """Per picture the change of larger value, and that value."""
    improved = value > best_value  # (B,)
    return (
        torch.where(improved[:, None, None, None], delta, best),
        torch.where(improved, value, best_value),
    )


def _keys(images: Tensor, names: Sequence[str] | None) -> Sequence[str]:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ArgumentError(
            f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}; "
            "8-bit pictures are attacked, so pass them undivided and un-normalised"
        )
    if names is not None and len(names) != len(images):
        raise ArgumentError(f"{len(images)} images but {len(names)} names; give one per picture")
    if names is not None:
        return names
    return [hashlib.sha256(i.cpu().contiguous().numpy().tobytes()).hexdigest() for i in images]
