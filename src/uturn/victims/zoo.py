"""The architectures that uturn knows by name: plain torch, with weights by the usual keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from uturn import specs
from uturn.errors import CheckpointError, SpecError
from uturn.types import Similarity
from uturn.victims import checkpoints
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.backbones.osnet import OSNet
from uturn.victims.classifiers import CosineClassifier
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

_SHIPPED = Path(__file__).parent / "weights"


@final
@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network by name: how it is built and what it expects where the weights do not say."""

    summary: str
    build: Callable[[], nn.Module]
    features: int
    preprocessing: Preprocessing
    similarity: Similarity = "cosine"
    weights: Path | None = None
    """Weights that ship with the package, used where a spec names none."""

    @property
    def card(self) -> checkpoints.Card:
        """What holds for weights that do not carry a card of their own."""
        return checkpoints.Card(self.preprocessing, self.similarity)


def _osnet(width: float) -> Architecture:
    return Architecture(
        summary=f"OSNet ×{width:g} for person re-identification, torchreid's keys; weights=PATH",
        build=lambda: OSNet(width),
        features=512,
        preprocessing=Preprocessing(size=(256, 128)),
        # torchreid publishes its results by distance; by cosine the same weights score higher.
        similarity="euclidean",
    )


ZOO: dict[str, Architecture] = {
    "glyph_net": Architecture(
        summary="small residual network for glyphs; trained weights ship with uturn",
        build=lambda: CifarResNet((32, 64, 128), blocks=1, stem_stride=2, neck=True),
        features=128,
        preprocessing=Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        weights=_SHIPPED / "glyph_net.safetensors",
    ),
    "osnet_x0_25": _osnet(0.25),
    "osnet_x0_5": _osnet(0.5),
    "osnet_x0_75": _osnet(0.75),
    "osnet_x1_0": _osnet(1.0),
}


def architecture(name: str) -> Architecture:
    """Look an architecture up; an unknown name is an error that lists the known ones."""
    return ZOO[specs.choose("victim", name, ZOO)]


def builder(name: str) -> Callable[..., Victim]:
    """The function that builds an architecture's victim, with the options that a spec may give."""
    chosen = architecture(name)

    def build(weights: str | None = None) -> Victim:
        path = chosen.weights if weights is None else Path(weights).expanduser()
        if path is None:
            raise SpecError(f"{name} needs trained weights; write {name}:weights=PATH")
        return _assemble(name, chosen, checkpoints.read(path))

    return build


def _assemble(name: str, chosen: Architecture, checkpoint: checkpoints.Checkpoint) -> Victim:
    network = chosen.build()
    checkpoint.load_into(network, checkpoint.without("classifier"))
    card = checkpoint.card or chosen.card
    return Victim(
        name=name,
        network=network,
        preprocessing=card.preprocessing,
        similarity=card.similarity,
        classifier=_classifier(chosen, checkpoint),
        fingerprint=checkpoint.fingerprint,
    )


def _classifier(chosen: Architecture, checkpoint: checkpoints.Checkpoint) -> nn.Module | None:
    """The head stored under ``classifier.``: cosine if it has a scale, else linear."""
    tensors = checkpoint.part("classifier")
    if not tensors:
        return None
    if "weight" not in tensors or tensors["weight"].ndim != 2:
        raise CheckpointError(f"{checkpoint.path} has a classifier without a (C, D) weight")
    classes = tensors["weight"].shape[0]
    head: nn.Module
    if "scale" in tensors:
        head = CosineClassifier(chosen.features, classes)
    else:
        head = nn.Linear(chosen.features, classes, bias="bias" in tensors)
    checkpoint.load_into(head, tensors)
    return head
