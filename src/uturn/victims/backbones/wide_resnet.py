"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016) for 32×32 pictures.

State dicts are compatible with those of TRADES and RobustBench without their ``fc``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from uturn.errors import ArgumentError


class WideResNet(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, 64 · width)``, not negative.

    WRN-``depth``-``width``: three groups of (depth − 4) / 6 blocks, batch norm first.

    Raises:
        ArgumentError: a depth that is not 6n + 4.
    """

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise ArgumentError(f"a wide ResNet has 10, 16, 22, 28, … layers, not {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = _Group(16, 16 * width, blocks, stride=1)
        self.block2 = _Group(16 * width, 32 * width, blocks, stride=2)
        self.block3 = _Group(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        features: Tensor = self.bn1(x).relu_().mean((2, 3))  # (B, 64 · width)
        return features


def adapt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint without the group ``sub_block1``, which TRADES stores and never uses."""
    return {key: value for key, value in tensors.items() if not key.startswith("sub_block1.")}


class _Group(nn.Module):
    def __init__(self, c_in: int, c_out: int, blocks: int, stride: int) -> None:
        super().__init__()
        rest = (_Block(c_out, c_out, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(_Block(c_in, c_out, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class _Block(nn.Module):
    """Batch norm, ReLU and 3×3 convolution, twice, around a shortcut.

    Where the shortcut is a convolution, it sees what the first norm and ReLU have made.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x).relu_()
        skip = x if self.convShortcut is None else self.convShortcut(y)
        out: Tensor = self.conv2(self.bn2(self.conv1(y)).relu_()) + skip
        return out
