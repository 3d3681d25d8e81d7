"""OSNet (Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019).

State dicts are compatible with torchreid's ``osnet_x0_25`` … ``osnet_x1_0``.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

FEATURES = 512


class OSNet(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, 512)``.

    ``width`` scales the channels (0.25, 0.5, 0.75, 1.0). The features end in a ReLU, as
    published: they are never negative, so no two of them are further apart than 90°.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        c0, c1, c2, c3 = (int(width * channels) for channels in (64, 256, 384, 512))
        self.conv1 = _conv(3, c0, 7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(_OmniScale(c0, c1), _OmniScale(c1, c1), _halve(c1))
        self.conv3 = nn.Sequential(_OmniScale(c1, c2), _OmniScale(c2, c2), _halve(c2))
        self.conv4 = nn.Sequential(_OmniScale(c2, c3), _OmniScale(c3, c3))
        self.conv5 = _conv(c3, c3, 1)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c3, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        features: Tensor = self.fc(self.global_avgpool(x).flatten(1))  # (B, 512)
        return features


class _ConvBN(nn.Module):
    """Convolution, batch norm, and a ReLU unless ``linear``."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, linear: bool = False) -> _ConvBN:
    return _ConvBN(c_in, c_out, kernel, stride, linear)


def _halve(channels: int) -> nn.Sequential:
    return nn.Sequential(_conv(channels, channels, 1), nn.AvgPool2d(2, stride=2))


class _Lite3x3(nn.Module):
    """1×1 convolution, then a depthwise 3×3 (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv2(self.conv1(x))))
        return y


class _Average(torch.autograd.Function):
    """The mean over a map, ``(B, C, 1, 1)``, with a gradient in the layout of the map.

    That of `Tensor.mean` is contiguous whatever the map is. In the gates it meets gradients that
    are channels_last, and adding two layouts would take a third of the whole way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if channels_last else torch.contiguous_format
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        each = grad / (ctx.shape[2] * ctx.shape[3])
        found: Tensor = each.expand(ctx.shape).contiguous(memory_format=ctx.layout)
        return found


class _Gate(nn.Module):
    """The aggregation gate, shared by the four streams (section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = _Average.apply(x)  # type: ignore[no-untyped-call]
        weight: Tensor = self.fc2(self.relu(self.fc1(pooled))).sigmoid()
        return x * weight


class _OmniScale(nn.Module):
    """The residual block with streams of 1, 2, 3 and 4 light 3×3 convolutions."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        middle = c_out // 4
        self.conv1 = _conv(c_in, middle, 1)
        self.conv2a = _Lite3x3(middle)
        self.conv2b = nn.Sequential(*(_Lite3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_Lite3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_Lite3x3(middle) for _ in range(4)))
        self.gate = _Gate(middle)
        self.conv3 = _conv(middle, c_out, 1, linear=True)
        self.downsample = _conv(c_in, c_out, 1, linear=True) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        y = self.conv3(functools.reduce(torch.add, [self.gate(stream(y)) for stream in streams]))
        skip = x if self.downsample is None else self.downsample(x)
        out: Tensor = y.add_(skip).relu_()
        return out
