"""Steps: how to climb. Pure functions of the gradient and a state, as in optax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

from torch import Tensor

from uturn.types import Levels


@final
@dataclass(frozen=True)
class Info:
    """Where in the attack a step is: ``index`` of ``total``, from 0."""

    index: int
    total: int


class Step(Protocol):
    """A frozen value. ``update`` turns a gradient ``(B, 3, H, W)`` into a change in levels."""

    def init(self, delta: Levels) -> Any: ...

    def update(self, grad: Tensor, state: Any, info: Info) -> tuple[Levels, Any]: ...


@final
@dataclass(frozen=True)
class Sign:
    """``size`` levels in the direction of the sign of the gradient; whole sizes stay whole.

    Source: Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015.
    """

    size: float = 1.0

    def init(self, delta: Levels) -> None:
        return None

    def update(self, grad: Tensor, state: None, info: Info) -> tuple[Levels, None]:
        return self.size * grad.sign(), None
