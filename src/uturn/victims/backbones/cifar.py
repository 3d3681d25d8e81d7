"""Small residual networks for small pictures (He et al., CVPR 2016, section 4.2).

With ``widths`` (16, 32, 64) and n ``blocks`` they are ResNet-(6n + 2): ResNet-20 … ResNet-56. State
dicts are compatible with akamaster/pytorch_resnet_cifar10 without its ``linear``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CifarResNet(nn.Module):
    """A 3×3 stem, three stages of which two halve the resolution, global average pooling.

    Normalised pictures ``(B, 3, H, W)`` → features ``(B, D)``, D = widths[2]. With ``neck`` the
    features pass a batch norm (Luo et al., "Bag of Tricks", CVPRW 2019), which centres them:
    only then can they point in opposite directions. With ``features`` a linear layer brings them
    to that many dimensions; 2 can be drawn, and no ReLU keeps −f from being reached.
    """

    def __init__(
        self,
        widths: tuple[int, int, int],
        blocks: int,
        *,
        stem_stride: int = 1,
        neck: bool = False,
        features: int | None = None,
    ) -> None:
        super().__init__()
        w1, w2, w3 = widths
        self.conv1 = nn.Conv2d(3, w1, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w1)
        self.layer1 = _stage(w1, w1, blocks, stride=1)
        self.layer2 = _stage(w1, w2, blocks, stride=2)
        self.layer3 = _stage(w2, w3, blocks, stride=2)
        self.neck = nn.BatchNorm1d(w3) if neck else nn.Identity()
        self.feature = nn.Identity() if features is None else nn.Linear(w3, features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu_()
        x = self.layer3(self.layer2(self.layer1(x)))
        features: Tensor = self.feature(self.neck(x.mean((2, 3))))  # (B, D)
        return features


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = _Block(c_in, c_out, stride)
    return nn.Sequential(first, *(_Block(c_out, c_out, 1) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """Two 3×3 convolutions around a parameter-free shortcut ("option A")."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.widen = stride, c_out - c_in
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        if self.stride > 1 or self.widen:
            low = self.widen // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, low, self.widen - low))
        out: Tensor = (y + x).relu_()
        return out
