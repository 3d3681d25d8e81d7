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
        return (clean + delta.clamp(-self.eps, self.eps)).clamp(0, LEVELS) - clean

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
