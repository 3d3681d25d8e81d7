"""The first convolution's way back, which an attack takes at every step.

Networks begin with a strided convolution of three channels (7×7 by 2, or patches of 16×16 by 16).
Of its gradient with respect to the picture libraries make a scatter over channels that fill no
register. Seen from the picture it is one small plain convolution for each place within a stride,
all of them together one convolution with c·s² channels, whose pixels are shuffled into place
(Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016): it takes less
than half of the time (docs/speed.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW = 4
"""Channels of a picture, at the most."""


def suits(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution that `Strided` can stand for."""
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str):
        return False
    plain = layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"
    stride = layer.stride[0]
    return plain and layer.in_channels <= FEW and stride > 1 and layer.stride == (stride, stride)


class Strided(nn.Module):
    """A frozen strided convolution ``(B, c, H, W)`` → ``(B, C, H′, W′)`` of few channels.

    What it says is the layer's to the bit; the gradient with respect to its input is the same up
    to the order of the sums. None reaches its weights.
    """

    weight: Tensor
    bias: Tensor | None
    back: Tensor
    """The kernel of the way back, ``(c · s², C, ⌈kH / s⌉, ⌈kW / s⌉)``."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.stride, self.padding = layer.stride[0], tuple(layer.padding)
        weight = layer.weight.detach()
        self.register_buffer("weight", weight, persistent=False)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        missing = [-side % self.stride for side in weight.shape[2:]]
        whole = F.pad(weight, (0, missing[1], 0, missing[0]))
        back = F.pixel_unshuffle(whole, self.stride).flip(2, 3).transpose(0, 1)
        self.register_buffer("back", back.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Convolved.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Strided) -> Tensor:
        ctx.layer, ctx.size = layer, x.shape[2:]
        return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer, (height, width) = ctx.layer, ctx.size
        (top, left), (high, wide) = layer.padding, layer.back.shape[2:]
        spread = F.conv2d(grad, layer.back, padding=(high - 1, wide - 1))
        found = F.pixel_shuffle(spread, layer.stride)
        # Where the stride does not come out even, the last rows and columns were not looked at.
        lacking = (top + height - found.shape[2], left + width - found.shape[3])
        found = F.pad(found, (0, max(0, lacking[1]), 0, max(0, lacking[0])))
        return found[:, :, top : top + height, left : left + width], None
