"""Threats: what the attacker may change. Everything here counts in levels of 1/255."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import torch
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.types import LEVELS, Levels


class Threat(Protocol):
    """A set of allowed changes of a picture."""

    def project(self, delta: Levels, clean: Levels) -> Levels:
        """The nearest allowed change that keeps ``clean + delta`` in 0 … 255."""
        ...

    def round(self, delta: Levels, clean: Levels) -> Levels:
        """An allowed change by whole levels near ``delta``, so that 8 bits hold it exactly."""
        ...

    def sample(self, clean: Levels, rngs: list[np.random.Generator]) -> Levels:
        """A random allowed change, one generator per picture."""
        ...

    def size(self, delta: Levels) -> Tensor:
        """How much of the budget is used: ``(B,)``, in levels."""
        ...

    def allows(self, size: Tensor) -> Tensor:
        """Whether changes of this size are within the budget: ``(B,)`` booleans."""
        ...


@final
@dataclass(frozen=True)
class LInf:
    """No channel of any pixel changes by more than ``eps`` levels."""

    eps: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and 1 <= self.eps <= LEVELS):
            raise ArgumentError(
                f"eps must lie between 1 and 255 levels, got {self.eps}; levels are steps of an "
                "8-bit picture, so what is 8/255 elsewhere is eps=8 here"
            )

    def project(self, delta: Levels, clean: Levels) -> Levels:
        # In place on the first copy: every step of every attack passes here.
        return delta.clamp(-self.eps, self.eps).add_(clean).clamp_(0, LEVELS).sub_(clean)

    def round(self, delta: Levels, clean: Levels) -> Levels:
        whole = math.floor(self.eps)
        return (clean + delta.round().clamp(-whole, whole)).clamp(0, LEVELS) - clean

    def sample(self, clean: Levels, rngs: list[np.random.Generator]) -> Levels:
        whole = math.floor(self.eps)
        shape = tuple(clean.shape[1:])
        drawn = np.stack([rng.integers(-whole, whole + 1, shape) for rng in rngs])
        return self.project(torch.from_numpy(drawn).to(clean), clean)

    def size(self, delta: Levels) -> Tensor:
        return delta.abs().amax((1, 2, 3))

    def allows(self, size: Tensor) -> Tensor:
        return size <= self.eps


@final
@dataclass(frozen=True)
class L2:
    """The Euclidean length of the change of all values together is at most ``eps`` levels.

    A change of one level in every value of a 32×32 picture has length √3072 ≈ 55.
    """

    eps: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 1):
            raise ArgumentError(f"an L2 eps must be at least 1 level, got {self.eps}")

    def project(self, delta: Levels, clean: Levels) -> Levels:
        length = self.size(delta).to(delta).clamp_min(torch.finfo(delta.dtype).tiny)
        shrunk = delta * (self.eps / length).clamp(max=1)[:, None, None, None]
        # Clipping to the box only shortens, so the result is in both sets.
        return (clean + shrunk).clamp(0, LEVELS) - clean

    def round(self, delta: Levels, clean: Levels) -> Levels:
        """Round to the nearest levels, after shrinking by the least that keeps the length."""
        low = delta.new_zeros(len(delta), 1, 1, 1)
        high = torch.ones_like(low)
        whole = self._whole(delta, high, clean)
        for _ in range(24):
            middle = (low + high) / 2
            inside = self.allows(self.size(self._whole(delta, middle, clean)))[:, None, None, None]
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        fits = self.allows(self.size(whole))[:, None, None, None]
        return torch.where(fits, whole, self._whole(delta, low, clean))

    @staticmethod
    def _whole(delta: Levels, scale: Tensor, clean: Levels) -> Levels:
        return (clean + (scale * delta).round()).clamp(0, LEVELS) - clean

    def sample(self, clean: Levels, rngs: list[np.random.Generator]) -> Levels:
        drawn = np.stack([rng.standard_normal(tuple(clean.shape[1:])) for rng in rngs])
        direction = torch.from_numpy(drawn).to(clean)
        count = direction[0].numel()
        reach = torch.tensor([rng.random() ** (1 / count) for rng in rngs]).to(clean) * self.eps
        scale = (reach / self.size(direction).to(reach))[:, None, None, None]
        return self.project(direction * scale, clean)

    def size(self, delta: Levels) -> Tensor:
        # In float64, because the squares of a large picture do not fit into float32 exactly.
        length: Tensor = torch.linalg.vector_norm(delta.double().flatten(1), dim=1)
        return length

    def allows(self, size: Tensor) -> Tensor:
        return size <= self.eps


@final
@dataclass(frozen=True)
class Patch:
    """Any values inside one rectangle, given in pixels; nothing outside it.

    Source: Brown et al., "Adversarial Patch", NeurIPS-W 2017.
    """

    top: int
    left: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if min(self.top, self.left) < 0 or min(self.height, self.width) < 1:
            raise ArgumentError(f"{self} is no rectangle inside a picture")

    def project(self, delta: Levels, clean: Levels) -> Levels:
        return (clean + delta * self._mask(delta)).clamp(0, LEVELS) - clean

    def round(self, delta: Levels, clean: Levels) -> Levels:
        return self.project(delta.round(), clean)

    def sample(self, clean: Levels, rngs: list[np.random.Generator]) -> Levels:
        shape = tuple(clean.shape[1:])
        drawn = np.stack([rng.integers(0, LEVELS + 1, shape) for rng in rngs])
        return self.project(torch.from_numpy(drawn).to(clean) - clean, clean)

    def size(self, delta: Levels) -> Tensor:
        """The largest change, in levels; infinite if anything outside the rectangle changed."""
        outside = (delta * (1 - self._mask(delta))).abs().amax((1, 2, 3)) > 0
        return delta.abs().amax((1, 2, 3)).masked_fill(outside, math.inf)

    def allows(self, size: Tensor) -> Tensor:
        return size <= LEVELS

    def _mask(self, delta: Levels) -> Tensor:
        mask = torch.zeros_like(delta[:1, :1])
        rows = slice(self.top, self.top + self.height)
        mask[..., rows, self.left : self.left + self.width] = 1
        return mask
