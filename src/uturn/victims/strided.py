"""The first convolution's way back, which an attack takes at every step.

Networks begin with a strided convolution of three channels (7×7 by 2, or patches of 16×16 by 16).
Of its gradient with respect to the picture libraries make a scatter over channels that fill no
register. Seen from the picture it is one small plain convolution for each place within a stride,
all of them together one convolution with s²·c channels, whose pixels are shuffled into place
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
    """The kernel of the way back, ``(s · s · c, C, rows, columns)``: places within a stride, then
    channels, so that the values of a row of pixels come out side by side."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.stride, self.padding = layer.stride[0], tuple(layer.padding)
        weight = layer.weight.detach()
        self.register_buffer("weight", weight, persistent=False)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        stride, (kernel, wide), (top, left) = self.stride, weight.shape[2:], self.padding
        # With zeros in front the picture begins where a stride does; with zeros behind one ends.
        above, before = -top % stride, -left % stride
        below, behind = -(above + kernel) % stride, -(before + wide) % stride
        whole = F.pad(weight, (before, behind, above, below))
        # Where the picture's first value stands, in whole strides.
        self.begin = (top + above) // stride, (left + before) // stride
        back = F.pixel_unshuffle(whole, stride).flip(2, 3).transpose(0, 1)  # (c · s · s, C, …)
        count, channels, *sides = back.shape
        back = back.reshape(count // stride**2, stride**2, channels, *sides).transpose(0, 1)
        self.register_buffer("back", back.reshape(count, channels, *sides), persistent=False)

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
        layer, stride, (height, width) = ctx.layer, ctx.layer.stride, ctx.size
        (high, wide), (top, left) = layer.back.shape[2:], layer.begin
        rows, columns = -(-height // stride), -(-width // stride)  # of whole strides
        # As much padding as the picture's first and last need; what is too much is cut off.
        pad_rows = max(0, high - 1 - top, top + rows - grad.shape[2])
        pad_columns = max(0, wide - 1 - left, left + columns - grad.shape[3])
        spread = F.conv2d(grad, layer.back, padding=(pad_rows, pad_columns))
        first, second = top + pad_rows - (high - 1), left + pad_columns - (wide - 1)
        spread = spread[:, :, first : first + rows, second : second + columns].permute(0, 2, 3, 1)
        batch, channels = len(grad), layer.weight.shape[1]
        placed = spread.reshape(batch, rows, columns, stride, stride, channels).transpose(2, 3)
        found = placed.reshape(batch, rows * stride, columns * stride, channels)
        return found.permute(0, 3, 1, 2)[:, :, :height, :width], None
