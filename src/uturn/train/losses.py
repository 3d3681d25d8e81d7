"""What training makes small: losses by name, on features and classes.

Class-based losses bring the head that is saved beside the features; metric losses are
pytorch-metric-learning's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch.nn.functional as F
from torch import Tensor, nn

from uturn import specs
from uturn.errors import ArgumentError, UturnError
from uturn.victims.classifiers import CosineClassifier, PartClassifiers

Head = Literal["cosine", "linear"]


@final
@dataclass(frozen=True)
class Shape:
    """Features are ``(B, parts, features)``; there are so many training classes."""

    parts: int
    features: int
    classes: int


class Loss(nn.Module):
    """Features ``(B, P, D)`` and classes ``(B,)`` → a scalar, times ``weight``."""

    weight: float = 1.0

    def head(self) -> nn.Module | None:
        """Features → logits over the training classes, if the loss learns that."""
        return None


@final
class _Identity(Loss):
    def __init__(self, head: nn.Module, smoothing: float, weight: float) -> None:
        super().__init__()
        self.classifier, self.smoothing, self.weight = head, smoothing, weight

    def head(self) -> nn.Module:
        return self.classifier

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        logits = self.classifier(features[:, 0] if features.shape[1] == 1 else features)
        if logits.ndim == 3:  # (B, P, C): the parts' mean
            classes = classes[:, None].expand(logits.shape[:2])
        return self.weight * F.cross_entropy(
            logits.flatten(0, -2), classes.flatten(), label_smoothing=self.smoothing
        )


@final
class _Metric(Loss):
    """One of pytorch-metric-learning's, on the parts' features side by side."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None, weight: float) -> None:
        super().__init__()
        self.loss, self.miner, self.weight = loss, miner, weight

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        joined = F.normalize(features, dim=2).flatten(1)
        pairs = None if self.miner is None else self.miner(joined, classes)
        value: Tensor = self.loss(joined, classes, pairs)
        return self.weight * value


@final
class _ArcFace(Loss):
    def __init__(self, loss: Any, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def head(self) -> nn.Module:
        directions = self.loss.W.detach().T  # (C, D)
        head = CosineClassifier(directions.shape[1], directions.shape[0], self.loss.scale)
        head.weight.data.copy_(directions)
        return head

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        value: Tensor = self.loss(features.flatten(1), classes)
        return self.weight * value


def identity(
    shape: Shape,
    *,
    smoothing: float = 0.0,
    head: Head = "cosine",
    bias: bool = True,
    scale: float = 20.0,
    bottleneck: int = 256,
    weight: float = 1.0,
) -> Loss:
    """Cross-entropy over the training classes, with label smoothing (Szegedy et al., CVPR 2016).

    ``head`` is the cosine softmax at ``scale``, or linear, with or without ``bias``. A network by
    parts has a classifier for each, behind a ``bottleneck``, and the mean of their losses.
    """
    if not (0 <= smoothing < 1 and scale > 0):
        raise ArgumentError("identity: smoothing is in [0, 1), scale positive")
    if shape.parts > 1:
        made: nn.Module = PartClassifiers(shape.parts, shape.features, bottleneck, shape.classes)
    elif head == "cosine":
        made = CosineClassifier(shape.features, shape.classes, scale)
    else:
        made = nn.Linear(shape.features, shape.classes, bias=bias)
        nn.init.normal_(made.weight, std=0.01)
    return _Identity(made, smoothing, weight)


def triplet(shape: Shape, *, margin: float = 0.3, weight: float = 1.0) -> Loss:
    """Triplets of unit features, for each picture the hardest of its batch; sampler ``pk``.

    Source: Hermans et al., "In Defense of the Triplet Loss", 2017.
    """
    losses, miners = _library("losses"), _library("miners")
    return _Metric(losses.TripletMarginLoss(margin=margin), miners.BatchHardMiner(), weight)


def arcface(
    shape: Shape, *, margin: float = 28.6, scale: float = 30.0, weight: float = 1.0
) -> Loss:
    """Cosine softmax with an angular ``margin`` in degrees (Deng et al., CVPR 2019)."""
    if shape.parts > 1:
        raise ArgumentError("arcface has one classifier; networks by parts need identity")
    loss = _library("losses").ArcFaceLoss(shape.classes, shape.features, margin=margin, scale=scale)
    return _ArcFace(loss, weight)


def multi_similarity(shape: Shape, *, weight: float = 1.0) -> Loss:
    """Pairs weighed by how they stand among the others (Wang et al., CVPR 2019); sampler ``pk``."""
    losses, miners = _library("losses"), _library("miners")
    return _Metric(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(), weight)


def _library(part: str) -> Any:
    try:
        import pytorch_metric_learning.losses
        import pytorch_metric_learning.miners
    except ImportError as error:
        raise UturnError(
            "metric losses need pytorch-metric-learning; pip install 'uturn[train]'"
        ) from error
    return getattr(pytorch_metric_learning, part)


LOSSES: dict[str, Callable[..., Loss]] = {
    f.__name__: f for f in (identity, triplet, arcface, multi_similarity)
}


def load_loss(spec: str, shape: Shape) -> Loss:
    """A loss from a spec such as ``identity:smoothing=0.1`` or ``triplet:margin=0.3``.

    Raises:
        SpecError: unknown name or option. ArgumentError: a value out of range.
    """
    parsed = specs.Spec.parse(spec)
    factory = LOSSES[specs.choose("loss", parsed.name, LOSSES)]
    loss: Loss = specs.call("loss", factory, parsed, shape=shape)
    return loss


def known(spec: str) -> None:
    """Raise `SpecError` unless ``spec`` names a loss, with options that it has."""
    load_loss(spec, Shape(1, 2, 2))
