"""Heads that turn raw features into logits over the training classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn.errors import CheckpointError
from uturn.victims.checkpoints import Checkpoint


@final
class CosineClassifier(nn.Module):
    """``scale · cos(feature, class weight)``: features ``(B, D)`` → logits ``(B, C)``.

    Features by parts ``(B, P, D)`` give ``(B, P, C)``. Normalised softmax (Wang et al.,
    "NormFace", ACM MM 2017): what is trained is what retrieval uses, the direction of the feature.
    """

    def __init__(self, features: int, classes: int, scale: float = 20.0) -> None:
        super().__init__()
        weight = torch.empty(classes, features)
        if not weight.is_meta:  # there a random number loads torch's compiler, for a second
            weight.normal_().div_(features**0.5)
        self.weight = nn.Parameter(weight)
        self.register_buffer("scale", torch.tensor(scale))

    scale: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=1).T


@final
class PartClassifiers(nn.ModuleList):
    """A classifier of its own for each part: features ``(B, P, D)`` → logits ``(B, P, C)``.

    Each has a linear layer to ``bottleneck`` numbers, a batch norm and a linear layer to the
    classes, as PCB (Sun et al., ECCV 2018) has them; keys are layumi's, ``0.add_block.0.weight`` ….
    """

    def __init__(self, parts: int, features: int, bottleneck: int, classes: int) -> None:
        super().__init__(_PartClassifier(features, bottleneck, classes) for _ in range(parts))

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack(
            [head(part) for head, part in zip(self, features.unbind(1), strict=True)], 1
        )


class _PartClassifier(nn.Module):
    def __init__(self, features: int, bottleneck: int, classes: int) -> None:
        super().__init__()
        self.add_block = nn.Sequential(nn.Linear(features, bottleneck), nn.BatchNorm1d(bottleneck))
        self.classifier = nn.Sequential(nn.Linear(bottleneck, classes))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.add_block(features))
        return logits


def shaped_like(tensors: Mapping[str, Tensor]) -> nn.Module:
    """The head whose keys and shapes these tensors have, not filled with them yet.

    ``weight`` ``(C, D)`` with a ``scale`` is a `CosineClassifier`, without one a linear layer;
    ``0.add_block.0.weight`` … are `PartClassifiers`.

    Raises:
        CheckpointError: the tensors belong to none of these.
    """
    matrices = {key: value.shape for key, value in tensors.items() if value.ndim == 2}
    if {"0.add_block.0.weight", "0.classifier.0.weight"} <= matrices.keys():
        bottleneck, features = matrices["0.add_block.0.weight"]
        parts = len({key.split(".")[0] for key in tensors})
        return PartClassifiers(parts, features, bottleneck, matrices["0.classifier.0.weight"][0])
    if "weight" not in matrices:
        found = ", ".join(f"{key} {tuple(value.shape)}" for key, value in tensors.items())
        raise CheckpointError(
            f"these weights have a classifier without a (C, D) weight ({found}); "
            "remove it from the file to use the features alone"
        )
    classes, features = matrices["weight"]
    if "scale" in tensors:
        return CosineClassifier(features, classes)
    return nn.Linear(features, classes, bias="bias" in tensors)


def restored(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> nn.Module | None:
    """The head that these tensors of a checkpoint fill, by the head's own keys; None of none.

    Raises:
        CheckpointError: they are no head.
    """
    if not tensors:
        return None
    with torch.device("meta"):  # two small tensors can claim a head of terabytes
        checkpoint.require_fit(shaped_like(tensors), tensors)
    head = shaped_like(tensors)
    checkpoint.load_into(head, tensors)
    return head
