"""The re-identification baselines of layumi/Person_reID_baseline_pytorch, with its key names.

``ft_net`` and ``ft_net_dense`` (Zheng et al., "A Discriminatively Learned CNN Embedding", TOMM
2017) and PCB (Sun et al., "Beyond Part Models", ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from uturn.victims.backbones.densenet import DenseNet
from uturn.victims.backbones.mobilenet import MobileNetV2
from uturn.victims.backbones.resnet import ResNet


class Body(Protocol):
    """A network that can be asked for its last maps ``(B, dim, h, w)``."""

    dim: int

    def maps(self, x: Tensor) -> Tensor: ...


Backbone = Literal["resnet18", "resnet50", "densenet121", "mobilenet_v2"]

BODIES: dict[Backbone, Callable[..., ResNet | DenseNet | MobileNetV2]] = {
    "resnet18": lambda last_stride: ResNet(18, last_stride=last_stride),
    "resnet50": lambda last_stride: ResNet(50, last_stride=last_stride),
    "densenet121": lambda last_stride: DenseNet(last_stride=last_stride),
    "mobilenet_v2": lambda last_stride: MobileNetV2(last_stride=last_stride),
}
"""What the baselines can stand on, by the name of its own weights in the zoo."""


class Baseline(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, features)``.

    The maps of ``model`` (for DenseNet before its last ReLU), averaged, pass the bottleneck block:
    a linear layer and a batch norm. Checkpoints trained with the block's ReLU have a ``slope`` of
    0.1 for what is negative; 1 is none.
    """

    def __init__(self, model: Body, *, features: int = 512, slope: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.classifier = _Bottleneck(model.dim, features, slope)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.classifier(self.model.maps(x).mean((2, 3)))  # (B, features)
        return features


class PCB(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features by parts ``(B, parts, dim)``.

    The maps of a network whose last stage does not stride, averaged over horizontal stripes from
    top to bottom. Published with ResNet-50 and pictures of 384×192: each of 6 stripes is 4 high.
    """

    def __init__(self, model: Body, parts: int = 6) -> None:
        super().__init__()
        self.parts = parts
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        stripes = F.adaptive_avg_pool2d(self.model.maps(x), (self.parts, 1))  # (B, dim, parts, 1)
        return stripes.squeeze(3).transpose(1, 2)


def adapt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint without the body's ImageNet classifier, which it stores and never uses."""
    unused = ("model.fc.", "model.classifier.")
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(unused)}


class _Bottleneck(nn.Module):
    def __init__(self, c_in: int, c_out: int, slope: float) -> None:
        super().__init__()
        self.add_block = nn.Sequential(nn.Linear(c_in, c_out), nn.BatchNorm1d(c_out))
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.add_block(x), self.slope)
