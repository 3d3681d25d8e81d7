"""Surrogate gradients: another way back through the victim. The way forward stays its own.

Scores, losses and everything that is reported come from the victim as it is; only the direction
in which an attack climbs is taken from a kinder backward pass.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from uturn.attacks.steps import Size, number


class Surrogate(Protocol):
    """A frozen value; inside the context it returns, gradients pass another way.

    What changes on the way is a `steps.Schedule` in a field, whose number is put in before.
    """

    def __call__(self) -> AbstractContextManager[Any]: ...


@final
@dataclass(frozen=True)
class LeakyReLU:
    """Going back, a closed ReLU (or ReLU6) lets the share ``slope`` of the gradient through.

    The true gradient knows nothing of units that a small change could open. 0 is the true one,
    1 treats the units as linear. Networks without ReLUs are not touched.

    Source: Guo et al., "Backpropagating Linearly Improves Transferability of Adversarial
    Examples", NeurIPS 2020 (slope 1); the falling slope is ours (docs/attacks/uturn.md).
    """

    slope: Size = 0.1

    def __call__(self) -> AbstractContextManager[Any]:
        slope = number(self.slope)
        return _Leaking(slope) if slope else nullcontext()


_RELUS = (torch.relu, torch.relu_, F.relu, Tensor.relu, Tensor.relu_)
_IN_PLACE = (torch.relu_, Tensor.relu_)


@final
class _Leaking(TorchFunctionMode):
    """Replaces ReLUs wherever the network calls them; modules and weights stay as they are."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        highest = _highest(func, args, kwargs)
        if highest is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        # A ReLU in place may be meant to change what a skip connection sees.
        inplace = func in _IN_PLACE or bool(kwargs.get("inplace", False))
        x = args[0] if args else kwargs["input"]
        return _Leak.apply(x, self.slope, highest, inplace)  # type: ignore[no-untyped-call]


def _highest(func: Any, args: Any, kwargs: dict[str, Any]) -> float | None:
    """Where a call stops rising: infinity for a ReLU, 6 for a ReLU6; None if it is neither."""
    if func in _RELUS:
        return torch.inf
    if func is F.relu6:
        return 6.0
    if func is F.hardtanh:  # what nn.ReLU6 calls
        low, high = (*args[1:3], *(kwargs.get(k) for k in ("min_val", "max_val")))[:2]
        return float(high) if low == 0 and high is not None else None
    return None


@final
class _Leak(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, highest: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        found = x.clamp_(0, highest) if inplace else x.clamp(0, highest)
        ctx.save_for_backward(found)
        ctx.slope, ctx.highest = slope, highest
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (found,) = ctx.saved_tensors
        if ctx.highest == torch.inf and ctx.slope >= 0:
            # Many values at a time, which a choice by truth values is not.
            passed = torch.ops.aten.leaky_relu_backward(grad, found, ctx.slope, True)
        else:
            open_ = (found > 0) & (found < ctx.highest)
            passed = torch.where(open_, grad, ctx.slope * grad)
        return passed, None, None, None
