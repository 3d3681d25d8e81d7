"""ResNets (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

State dicts are compatible with torchvision's ``resnet18`` … ``resnet101`` without their ``fc``,
and with torchreid's of the same names and ``resnet50_fc512`` without their ``classifier``.
"""

from __future__ import annotations

from torch import Tensor, nn

from uturn.errors import ArgumentError

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, dim)``: the maps, averaged.

    ``last_stride`` 1 leaves the last stage at a sixteenth of the input's size, as systems for
    persons do (Sun et al., "Beyond Part Models", ECCV 2018). ``reduced`` puts a linear layer,
    a batch norm and a ReLU behind the average, as torchreid's ``resnet50_fc512`` has them.
    Bottlenecks stride in their 3×3 convolution, as in torchvision, not in the first 1×1.

    Raises:
        ArgumentError: a depth other than 18, 34, 50, 101, or a ``last_stride`` other than 1, 2.
    """

    def __init__(self, depth: int, *, last_stride: int = 2, reduced: int | None = None) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ArgumentError(f"ResNet has {', '.join(map(str, _BLOCKS))} layers, not {depth}")
        if last_stride not in (1, 2):
            raise ArgumentError(f"last_stride must be 1 or 2, got {last_stride}")
        block = _Bottleneck if depth >= 50 else _Basic
        n1, n2, n3, n4 = _BLOCKS[depth]
        widths = [64, *(block.expansion * width for width in (64, 128, 256, 512))]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, widths[0], 64, n1, stride=1)
        self.layer2 = _stage(block, widths[1], 128, n2, stride=2)
        self.layer3 = _stage(block, widths[2], 256, n3, stride=2)
        self.layer4 = _stage(block, widths[3], 512, n4, stride=last_stride)
        self.fc = _reduce(widths[4], reduced) if reduced else nn.Identity()
        self.dim = reduced or widths[4]

    def maps(self, x: Tensor) -> Tensor:
        """The last feature maps, after their ReLU: ``(B, C, H/32, W/32)``; /16 at stride 1."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.fc(self.maps(x).mean((2, 3)))  # (B, dim)
        return features


def _reduce(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c_in, c_out), nn.BatchNorm1d(c_out), nn.ReLU(inplace=True))


def _stage(
    block: type[_Basic] | type[_Bottleneck], c_in: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    c_out = block.expansion * width
    rest = (block(c_out, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(c_in, width, stride), *rest)


def _shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The identity where shapes agree, else a strided 1×1 convolution ("option B")."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


class _Basic(nn.Module):
    """Two 3×3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(c_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        out: Tensor = y.add_(self.downsample(x)).relu_()
        return out


class _Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut; four times as wide outside as inside."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int) -> None:
        super().__init__()
        c_out = self.expansion * width
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = _shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu_()))
        out: Tensor = y.add_(self.downsample(x)).relu_()
        return out
