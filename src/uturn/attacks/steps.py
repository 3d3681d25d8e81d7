"""Steps: how to climb. Pure functions of the gradient and a state, chained as in optax.

How far an attack has come is a matter of schedules alone: `now` puts their numbers in, and what is
left knows nothing of how many steps there are. Attacks of different lengths can thus be seen to
do the same at one step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeAlias, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.types import Levels


@final
@dataclass(frozen=True)
class Info:
    """What the loop knows at one step beside the mean gradient."""

    index: int
    """Of the step, from 0."""

    views: int = 1
    first: Tensor | None = None
    """The gradient is a mean over ``views``; that of the first view alone is ``first``."""


class Step(Protocol):
    """A frozen value that turns one gradient-like tensor ``(B, 3, H, W)`` into another.

    The last one of a chain returns a change in levels. What changes on the way is a `Schedule`
    in a field of a frozen dataclass. Nothing that is passed in may be changed in place: attacks
    that go together share it.
    """

    def init(self, delta: Levels) -> Any:
        """The state before the first step."""
        ...

    def update(self, grad: Tensor, state: Any, info: Info) -> tuple[Tensor, Any]:
        """The update, and the state after it."""
        ...


# -- sizes -----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class When:
    """Step ``index`` of ``total``, from 0."""

    index: int
    total: int


class Schedule(Protocol):
    """A number that changes on the way, such as a step size."""

    def __call__(self, when: When) -> float: ...


Size: TypeAlias = "float | Schedule"


@final
@dataclass(frozen=True)
class Cosine:
    """From ``start`` to ``end`` along half a cosine: quick, then fine."""

    start: float
    end: float

    def __call__(self, when: When) -> float:
        done = when.index / max(1, when.total - 1)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@final
@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in a straight line."""

    start: float
    end: float

    def __call__(self, when: When) -> float:
        return self.start + (self.end - self.start) * when.index / max(1, when.total - 1)


Piece = TypeVar("Piece")


def now(piece: Piece, when: When) -> Piece:
    """``piece`` as it is at one step: in its fields, at any depth, numbers in place of schedules.

    >>> now(chain(Momentum(), Sign(Linear(3, 1))), When(2, 5))
    Chain(steps=(Momentum(decay=1.0, nesterov=False), Sign(size=2.0)))
    """
    if isinstance(piece, tuple):
        return tuple(now(part, when) for part in piece)  # type: ignore[return-value]
    if not is_dataclass(piece):
        return piece
    values = {field.name: getattr(piece, field.name) for field in fields(piece)}
    settled = {n: v(when) if callable(v) else now(v, when) for n, v in values.items()}
    changed = {name: value for name, value in settled.items() if value is not values[name]}
    return replace(piece, **changed) if changed else piece  # type: ignore[type-var]


def number(size: Size) -> float:
    """``size`` where every schedule has its number by now.

    Raises:
        ArgumentError: it is a schedule still; a loop takes its steps from `now`.
    """
    if callable(size):
        raise ArgumentError(f"{size} is no number at any step: take the step as now(step, When(…))")
    return size


# -- the last of a chain: how far ------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Sign:
    """``size`` levels in the direction of the sign of the gradient; whole sizes stay whole.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015.
    """

    size: Size = 1.0

    def init(self, delta: Levels) -> None:
        return None

    def update(self, grad: Tensor, state: None, info: Info) -> tuple[Levels, None]:
        size = number(self.size)
        return grad.sign() if size == 1 else grad.sign().mul_(size), None


@final
@dataclass(frozen=True)
class UnitL2:
    """``size`` levels (Euclidean, over the whole picture) along the gradient.

    Source: Rony et al., "Decoupling Direction and Norm", CVPR 2019 (and PGD in L2).
    """

    size: Size

    def init(self, delta: Levels) -> None:
        return None

    def update(self, grad: Tensor, state: None, info: Info) -> tuple[Levels, None]:
        norm = grad.flatten(1).norm(dim=1).clamp_min(torch.finfo(grad.dtype).tiny)
        return number(self.size) * grad / norm[:, None, None, None], None


@final
@dataclass(frozen=True)
class Adam:
    """Adam's direction, ``size`` levels per unit of it; PIRE and TMA climb with it.

    Source: Kingma and Ba, ICLR 2015; Liu et al., "Who's Afraid of Adversarial Queries?",
    ICMR 2019; Tolias et al., "Targeted Mismatch Adversarial Attack", ICCV 2019.
    """

    size: Size = 1.0
    beta1: float = 0.9
    beta2: float = 0.999

    def init(self, delta: Levels) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(delta), torch.zeros_like(delta)

    def update(
        self, grad: Tensor, state: tuple[Tensor, Tensor], info: Info
    ) -> tuple[Levels, tuple[Tensor, Tensor]]:
        first = self.beta1 * state[0] + (1 - self.beta1) * grad
        second = self.beta2 * state[1] + (1 - self.beta2) * grad.square()
        t = info.index + 1
        unbiased = first / (1 - self.beta1**t), second / (1 - self.beta2**t)
        # Relative, because gradients of embeddings span many orders of magnitude.
        floor = 1e-8 * unbiased[1].amax((1, 2, 3), keepdim=True).sqrt()
        direction = unbiased[0] / (unbiased[1].sqrt() + floor + torch.finfo(grad.dtype).tiny)
        return number(self.size) * direction, (first, second)


@final
@dataclass(frozen=True)
class PerChannel:
    """Multiply each channel's change, behind a step: ``chain(Sign(), PerChannel((…)))``."""

    factors: tuple[float, float, float]

    def init(self, delta: Levels) -> None:
        return None

    def update(self, grad: Tensor, state: None, info: Info) -> tuple[Tensor, None]:
        return grad * grad.new_tensor(self.factors)[:, None, None], None


# -- before it: which direction --------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Momentum:
    """Accumulate gradients, each scaled to mean magnitude 1 per picture (MI-FGSM).

    ``m ← decay · m + g / mean|g|``. With ``nesterov`` the update is ``decay · m + g``, the
    form of NI-FGSM that needs no look-ahead point.

    Source: Dong et al., CVPR 2018; Lin et al., ICLR 2020.
    """

    decay: float = 1.0
    nesterov: bool = False

    def init(self, delta: Levels) -> Tensor:
        return torch.zeros_like(delta)

    def update(self, grad: Tensor, state: Tensor, info: Info) -> tuple[Tensor, Tensor]:
        mean = grad.abs().mean((1, 2, 3), keepdim=True)
        unit = grad / mean.clamp_min(torch.finfo(grad.dtype).tiny)
        state = self.decay * state + unit
        return (self.decay * state + unit if self.nesterov else state), state


@final
@dataclass(frozen=True)
class Variance:
    """Steady the gradient by how it varied around the last iterate (VMI, VNI).

    With the picture as the first view and ``Neighbour`` views behind it, ``g + v`` is passed
    on, where ``g`` is the gradient of the first view and ``v`` the mean gradient of the others
    less that of the first, both one step before.

    Source: Wang and He, "Enhancing the Transferability of Adversarial Attacks through
    Variance Tuning", CVPR 2021.
    """

    def init(self, delta: Levels) -> Tensor:
        return torch.zeros_like(delta)

    def update(self, grad: Tensor, state: Tensor, info: Info) -> tuple[Tensor, Tensor]:
        if info.first is None or info.views < 2:
            raise ArgumentError(
                "Variance compares the first view with the others: give the attack "
                "views=(Identity(), Neighbour(), …)"
            )
        others = (info.views * grad - info.first) / (info.views - 1)
        return info.first + state, others - info.first


@final
@dataclass(frozen=True)
class Smooth:
    """Blur the gradient with a Gaussian of ``sigma`` pixels (TI-FGSM): it transfers better.

    Source: Dong et al., "Evading Defenses to Transferable Adversarial Examples by
    Translation-Invariant Attacks", CVPR 2019.
    """

    sigma: float = 3.0

    def init(self, delta: Levels) -> None:
        return None

    def update(self, grad: Tensor, state: None, info: Info) -> tuple[Tensor, None]:
        kernel = _gaussian(self.sigma).to(grad)  # (k,)
        channels, side = grad.shape[1], len(kernel) // 2
        down = kernel[None, None, :, None].expand(channels, 1, -1, 1)
        across = kernel[None, None, None, :].expand(channels, 1, 1, -1)
        grad = F.conv2d(grad, down, padding=(side, 0), groups=channels)
        return F.conv2d(grad, across, padding=(0, side), groups=channels), None


@functools.cache
def _gaussian(sigma: float) -> Tensor:
    side = max(1, math.ceil(3 * sigma))
    weights = torch.exp(-torch.arange(-side, side + 1).square() / (2 * sigma**2))
    return weights / weights.sum()


@final
@dataclass(frozen=True)
class Chain:
    """Several steps, each working on what the one before returns."""

    steps: tuple[Step, ...]

    def init(self, delta: Levels) -> tuple[Any, ...]:
        return tuple(step.init(delta) for step in self.steps)

    def update(
        self, grad: Tensor, state: tuple[Any, ...], info: Info
    ) -> tuple[Tensor, tuple[Any, ...]]:
        states = []
        for step, before in zip(self.steps, state, strict=True):
            grad, after = step.update(grad, before, info)
            states.append(after)
        return grad, tuple(states)


def chain(*steps: Step) -> Chain:
    """``chain(Momentum(), Sign())``: first accumulate, then step.

    >>> chain(Momentum(0.9), Sign())
    Chain(steps=(Momentum(decay=0.9, nesterov=False), Sign(size=1.0)))
    """
    return Chain(steps)
