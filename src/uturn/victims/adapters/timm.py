"""``timm:MODEL``: the networks of timm (PyTorch Image Models)."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from uturn.errors import SpecError
from uturn.victims import checkpoints
from uturn.victims.adapters import fingerprint, lifting, require
from uturn.victims.classifiers import restored
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim


def build(model: str, weights: str | None = None, pretrained: bool = False) -> Victim:
    """timm:MODEL,weights=PATH, or with pretrained=yes timm's own weights (a download).

    The feature is what feeds the model's classifier; preprocessing is that of the model's
    published weights, as ``timm.data.resolve_model_data_config`` has it.

    Raises:
        SpecError: no such model, no weights, or a preprocessing that cannot be followed.
        CheckpointError: the weights do not fit.
    """
    timm, name = require("timm", "zoo"), f"timm:{model}"
    if (weights is None) != pretrained:
        raise SpecError(
            f"{name} needs trained weights; write either {name},weights=PATH, or "
            f"{name},pretrained=yes to let timm download its own"
        )
    # hf-hub:… is timm's own way to name a model with its weights.
    if not (pretrained and model.startswith("hf-hub:")):
        _require_known(timm, model)
    if weights is None:
        network = _made(timm, model, pretrained=True)
        mark = fingerprint(network)
    else:
        checkpoint = checkpoints.read(Path(weights).expanduser())
        card = checkpoint.card
        if card is not None and (card.architecture or "").startswith("timm:"):
            return _trained(untrained(model)[0], name, checkpoint, card)
        network = _made(timm, model, num_classes=_classes(timm, model, checkpoint))
        checkpoint.load_into(network, checkpoint.tensors)
        mark = checkpoint.fingerprint
    transform = _transform(timm, network, name)
    return lifting.proven(
        Victim(
            name=name,
            network=Headless(network, name),
            preprocessing=lifting.of_torchvision(transform, name),
            classifier=_head(network),
            own_transform=transform,
            fingerprint=mark,
        )
    )


def untrained(model: str) -> tuple[nn.Module, Preprocessing]:
    """The network of timm:MODEL with random weights, and how its published weights take pictures.

    Raises:
        SpecError: no such model, or a preprocessing that cannot be followed.
    """
    timm, name = require("timm", "zoo"), f"timm:{model}"
    _require_known(timm, model)
    network = _made(timm, model, num_classes=0)
    prepared = lifting.of_torchvision(_transform(timm, network, name), name)
    return Headless(network, name), prepared


HEAD = "classifier."
"""What the keys of the head begin with that `uturn train` stores beside `Headless`'s own."""


def _trained(
    network: nn.Module, name: str, checkpoint: checkpoints.Checkpoint, card: checkpoints.Card
) -> Victim:
    """What `uturn train` made of a timm model: its card knows how pictures go in."""
    tensors = checkpoint.tensors
    checkpoint.load_into(network, {k: t for k, t in tensors.items() if not k.startswith(HEAD)})
    head = {k.removeprefix(HEAD): t for k, t in tensors.items() if k.startswith(HEAD)}
    return Victim(
        name=name,
        network=network,
        preprocessing=card.preprocessing,
        similarity=card.similarity,
        classifier=restored(checkpoint, head),
        fingerprint=checkpoint.fingerprint,
    )


@final
class Headless(nn.Module):
    """What a timm model feeds its classifier with: ``(B, D)``."""

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        return found.flatten(1)


def _require_known(timm: Any, model: str) -> None:
    if model.startswith("local-dir:"):
        raise SpecError(
            f"timm:{model} would have timm unpickle what it finds; write timm:MODEL,weights=PATH, "
            "which reads tensors only"
        )
    if not timm.is_model(model.partition(".")[0]):
        near = difflib.get_close_matches(model, timm.list_models()) or ["resnet50"]
        raise SpecError(
            f"timm {timm.__version__} has no model {model!r}; near: {', '.join(near)}; all: "
            "timm.list_models() in Python"
        )


def _transform(timm: Any, network: Any, name: str) -> Any:
    config = timm.data.resolve_model_data_config(network)
    if config["input_size"][0] != 3:
        raise SpecError(
            f"{name} takes {config['input_size'][0]} channels; uturn's pictures are RGB"
        )
    return timm.data.create_transform(**config, is_training=False)


def _made(timm: Any, model: str, **options: Any) -> Any:
    try:
        return timm.create_model(model, **options)
    except Exception as error:  # the network's, the Hub's and timm's own
        first = str(error).strip().partition("\n")[0]
        raise SpecError(
            f"timm cannot make {model} ({first}); where pretrained=yes finds no connection, write "
            "weights=PATH with a file that was downloaded elsewhere"
        ) from error


def _head(network: Any) -> nn.Module | None:
    """The classifier on our feature; None if there is none, or several that are averaged."""
    head = network.get_classifier()
    if not isinstance(network.pretrained_cfg.get("classifier"), str):
        return None
    if isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1):
        return nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), head, nn.Flatten())
    return head if isinstance(head, nn.Linear) else None


def _classes(timm: Any, model: str, checkpoint: checkpoints.Checkpoint) -> int:
    """How many classes the checkpoint's classifier has; 0 without one."""
    named = timm.get_pretrained_cfg_value(model.partition(".")[0], "classifier") or ()
    for name in (named,) if isinstance(named, str) else named:
        weight = checkpoint.tensors.get(f"{name}.weight")
        if weight is not None:
            return int(weight.shape[0])
    return 0
