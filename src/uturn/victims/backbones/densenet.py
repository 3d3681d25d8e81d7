"""DenseNet-121 (Huang et al., "Densely Connected Convolutional Networks", CVPR 2017).

State dicts are compatible with torchvision's and torchreid's ``densenet121`` without their
``classifier``.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

FEATURES = 1024

_GROWTH = 32
_LAYERS = (6, 12, 24, 16)
_OLD_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class DenseNet(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, 1024)``: ReLU, then the mean.

    ``last_stride`` 1 leaves the last block at a sixteenth of the input's size.
    """

    dim = FEATURES

    def __init__(self, *, last_stride: int = 2) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv0=nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            norm0=nn.BatchNorm2d(64),
            relu0=nn.ReLU(inplace=True),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels = 64
        for i, (count, stride) in enumerate(zip(_LAYERS, (2, 2, last_stride, 0), strict=True), 1):
            layers[f"denseblock{i}"] = _Block(channels, count)
            channels += count * _GROWTH
            if stride:  # the last block has no transition
                layers[f"transition{i}"] = _transition(channels, stride)
                channels //= 2
        layers["norm5"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(layers)

    def maps(self, x: Tensor) -> Tensor:
        """The last feature maps ``(B, 1024, H/32, W/32)``, before the last ReLU."""
        maps: Tensor = self.features(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).relu_().mean((2, 3))  # (B, 1024)


def adapt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of PyTorch 0.2 (``denselayer1.norm.1.weight``), as in torchvision's file, → ours."""
    return {_OLD_KEY.sub(r"\1\2", key): tensor for key, tensor in tensors.items()}


def _transition(channels: int, stride: int) -> nn.Sequential:
    """Half the channels, and at ``stride`` 2 half the height and width."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
            pool=nn.AvgPool2d(2, stride),
        )
    )


class _Block(nn.Sequential):
    """Layers that each see the outputs of all before them."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__(
            OrderedDict(
                (f"denselayer{i + 1}", _Layer(channels + i * _GROWTH)) for i in range(count)
            )
        )


class _Layer(nn.Module):
    """``(B, C, H, W)`` → ``(B, C + 32, H, W)``: what came in, and 32 new channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * _GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * _GROWTH)
        self.conv2 = nn.Conv2d(4 * _GROWTH, _GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.norm1(x).relu_())
        return torch.cat([x, self.conv2(self.norm2(y).relu_())], dim=1)
