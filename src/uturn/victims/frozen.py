"""Frozen blocks: several layers there and back as one function, written by hand.

PyTorch takes layers one by one, and on the way back makes a new map for every ReLU, every sum and
every gate. Where no weight learns, most of it can be done in place, a depthwise convolution's way
back is one more convolution, and a ReLU in 16 bits needs no floating point (docs/speed.md).

A module that knows such a form of itself is `Freezable`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import has_torch_function_unary

Pull: TypeAlias = Callable[[Tensor], Tensor]
"""The gradient with respect to what came out → that with respect to what went in.

It may write into maps of its own, never into the gradient that it is given; it is called once."""


class Freezable:
    """A module that knows a quicker form of itself for when no weight learns."""

    def frozen(self) -> Frozen | None:
        """That form; None while there are batch norms in it, which fold into convolutions."""
        raise NotImplementedError


def has_norms(module: nn.Module) -> bool:
    """Whether a batch norm is left in ``module``."""
    return any(isinstance(part, _NormBase) for part in module.modules())


class Frozen(nn.Module):
    """Stands for ``plain``: the same features, and the same gradients with respect to its input.

    None reaches its weights. ``plain`` itself answers where a surrogate gradient replaces ReLUs
    (`uturn.attacks.surrogates`; the attack ``uturn`` has one until its last step), which must see
    them called; where maps are not channels_last; and on a GPU, where none of this was measured.
    """

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def there(self, x: Tensor) -> tuple[Tensor, Pull]:
        """What comes out of ``x`` ``(B, C, H, W)``, which is left as it is, and the way back.

        The way back keeps no tensor that comes out, only a ``detach`` of it: that tensor's graph
        holds the way back, and the two would keep each other alive where nobody goes back.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        if has_torch_function_unary(x) or not (last and x.is_cpu):
            found: Tensor = self.plain(x)
        else:
            found = _There.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class _There(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Frozen) -> Tensor:
        found, ctx.pull = block.there(x)
        ctx.save_for_backward(found)  # who changes it in place is told, as by any layer
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        _ = ctx.saved_tensors  # looks whether they were changed, or let go
        pull, ctx.pull = ctx.pull, None  # its maps are let go while others are on their way back
        if pull is None:
            raise RuntimeError("a frozen block goes back once; ask it again before the next time")
        return pull(grad), None


class Convolution(nn.Module):
    """A convolution, there and back.

    Raises:
        TypeError: its padding is not of zeros, or is given by name.
    """

    back: Tensor | None
    """The kernel turned round, where the way back is a convolution with it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise TypeError(f"no way back for {layer}")
        self.layer, back = layer, None
        padding = tuple(int(side) for side in layer.padding)
        self.padding = tuple(k - 1 - p for k, p in zip(layer.kernel_size, padding, strict=True))
        weight = layer.weight.detach()
        if layer.stride == layer.dilation == (1, 1) and min(self.padding) >= 0:
            if layer.groups == layer.in_channels == layer.out_channels:
                back = weight.flip(2, 3)
            elif layer.groups == 1 and layer.kernel_size == (1, 1):
                back = weight.transpose(0, 1)
        own = None if back is None else back.contiguous()
        self.register_buffer("back", own, persistent=False)

    def there(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → ``(B, C′, H′, W′)``."""
        found: Tensor = self.layer(x)
        return found

    def pull(self, grad: Tensor, like: Tensor) -> Tensor:
        """The gradient with respect to what went in, which had the shape of ``like``."""
        layer = self.layer
        if self.back is not None:
            return F.conv2d(grad, self.back, padding=self.padding, groups=layer.groups)
        geometry = layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups
        whole = torch.ops.aten.convolution_backward.default
        found: Tensor = whole(grad, like, layer.weight, None, *geometry, (True, False, False))[0]
        return found


# -- ReLUs -----------------------------------------------------------------------------------------
# Of a bfloat16 number the sign is that of the integer with the same bits, so that the larger of it
# and 0 is the same integer. In floating point PyTorch widens each to 32 bits first and rounds it
# again. What is not a number mostly has a sign, too, and becomes 0: half precision searches only,
# and float32, which scores what was found, shows it.


def rectify_(x: Tensor) -> None:
    """max(x, 0), in place."""
    _whole(x).clamp_min_(0)


def closed(grad: Tensor, rectified: Tensor) -> Tensor:
    """``grad`` where ``rectified`` maps are above 0, else 0: the way back through a ReLU."""
    found: Tensor = torch.ops.aten.threshold_backward.default(_whole(grad), _whole(rectified), 0)
    return found.view(grad.dtype)


def close_(grad: Tensor, rectified: Tensor) -> None:
    """The same, in place."""
    whole = _whole(grad)
    torch.ops.aten.threshold_backward.grad_input(whole, _whole(rectified), 0, grad_input=whole)


def _whole(x: Tensor) -> Tensor:
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
