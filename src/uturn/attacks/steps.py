"""Steps: how to climb. Pure functions of the gradient and a state, chained as in optax."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.types import Levels


@final
@dataclass(frozen=True)
class Info:
    """Where in the attack a step is, and what the loop knows beside the mean gradient."""

    index: int
    total: int
    """Step ``index`` of ``total``, from 0."""

    views: int = 1
    first: Tensor | None = None
    """The gradient is a mean over ``views``; that of the first view alone is ``first``."""


class Step(Protocol):
    """A frozen value that turns one gradient-like tensor ``(B, 3, H, W)`` into another.

    The last one of a chain returns a change in levels.
    """

    def init(self, delta: Levels) -> Any:
        """The state before the first step."""
        ...

    def update(self, grad: Tensor, state: Any, info: Info) -> tuple[Tensor, Any]:
        """The update, and the state after it."""
        ...


# -- sizes -----------------------------------------------------------------------------------------


class Schedule(Protocol):
    """A step size that changes on the way."""

    def __call__(self, info: Info) -> float: ...


Size: TypeAlias = "float | Schedule"


@final
@dataclass(frozen=True)
class Cosine:
    """From ``start`` to ``end`` along half a cosine: quick, then fine."""

    start: float
    end: float

    def __call__(self, info: Info) -> float:
        done = info.index / max(1, info.total - 1)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2


@final
@dataclass(frozen=True)
class Linear:
    """From ``start`` to ``end`` in a straight line."""

    start: float
    end: float

    def __call__(self, info: Info) -> float:
        return self.start + (self.end - self.start) * info.index / max(1, info.total - 1)


def at(size: Size, info: Info) -> float:
    """``size`` at this step."""
    return size(info) if callable(size) else size


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
        return at(self.size, info) * grad.sign(), None


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
        return at(self.size, info) * grad / norm[:, None, None, None], None


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
        return at(self.size, info) * direction, (first, second)


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
