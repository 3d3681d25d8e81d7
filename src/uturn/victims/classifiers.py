"""Heads that turn raw features into logits over the training classes."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class CosineClassifier(nn.Module):
    """``scale · cos(feature, class weight)``: features ``(B, D)`` → logits ``(B, C)``.

    Normalised softmax (Wang et al., "NormFace", ACM MM 2017): what is trained is what
    retrieval uses, the direction of the feature.
    """

    def __init__(self, features: int, classes: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, features) / features**0.5)
        self.register_buffer("scale", torch.tensor(scale))

    scale: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T
