"""Networks for landmarks: a ResNet's maps, one pooling, learned whitening.

Radenović, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.
State dicts are compatible with filipradenovic/cnnimageretrieval-pytorch ("cirtorch").
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError
from uturn.victims.backbones.resnet import ResNet

Pooling = Literal["gem", "mac", "spoc"]

_TINY = 1e-6


class Landmarks(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, D)`` of unit length.

    ``whitened`` networks end in a linear layer, learned with them or from data (weight P and bias
    −P·m for whitening ``P(f − m)``), and have unit length before and after it.

    Raises:
        ArgumentError: an unknown pooling, or a depth that ResNet does not have.
    """

    def __init__(self, depth: int, *, pooling: Pooling = "gem", whitened: bool = False) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ArgumentError(
                f"pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}"
            )
        body = ResNet(depth)
        stem = (body.conv1, body.bn1, body.relu, body.maxpool)
        self.features = nn.Sequential(*stem, body.layer1, body.layer2, body.layer3, body.layer4)
        self.pool: nn.Module = {"gem": GeM, "mac": MAC, "spoc": SPoC}[pooling]()
        self.whiten = nn.Linear(body.dim, body.dim) if whitened else None

    def forward(self, x: Tensor) -> Tensor:
        features = _unit(self.pool(self.features(x)))  # (B, D)
        return features if self.whiten is None else _unit(self.whiten(features))


class GeM(nn.Module):
    """Generalised mean: maps ``(B, C, H, W)`` → ``(B, C)``, ``(mean max(x, 1e-6)^p)^(1/p)``.

    At p = 1 it is `SPoC`, towards p = ∞ `MAC`; p is learned, and ``(1,)``.
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.clamp(min=_TINY)
        # Out of the mean, where it cancels: 1e-6^p underflows, and then the slope is not a number.
        largest = maps.detach().amax((2, 3), keepdim=True)
        means = (maps / largest).pow(self.p).mean((2, 3))
        return largest[:, :, 0, 0] * means.pow(1 / self.p)


class MAC(nn.Module):
    """Maximum activations of convolutions (Tolias et al., ICLR 2016): the maximum over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax((2, 3))


class SPoC(nn.Module):
    """Sum-pooled convolutions (Babenko and Lempitsky, ICCV 2015), as the mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


def _unit(features: Tensor) -> Tensor:
    """Unit length, with the published networks' guard against zero."""
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / (lengths + _TINY)
