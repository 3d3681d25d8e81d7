"""``oml:MODEL``: the extractors of open-metric-learning, by the names of its pretrained ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from uturn.errors import SpecError
from uturn.victims import checkpoints
from uturn.victims.adapters import lifting, require
from uturn.victims.victim import Victim


def build(model: str, weights: str) -> Victim:
    """oml:MODEL,weights=PATH: extractors of open-metric-learning, such as vits16_dino.

    MODEL names the architecture, its options and its transform, as in OML's model zoo; the
    weights may be those of the zoo, or of your own training.

    Raises:
        SpecError: no such model, or a transform that cannot be followed.
        CheckpointError: the weights do not fit.
    """
    registry = require("oml.registry", "oml")
    name = f"oml:{model}"
    makers = [
        maker
        for maker in registry.EXTRACTORS_REGISTRY.values()
        if model in getattr(maker, "pretrained_models", {})
    ]
    transforms: dict[str, Any] = require("oml.registry.transforms", "oml").TRANSFORMS_FOR_PRETRAINED
    if not makers or model not in transforms:
        raise SpecError(
            f"open-metric-learning has no model {model!r}; known: {', '.join(sorted(transforms))}"
        )
    transform = transforms[model]
    prepared = lifting.of_torchvision(transform, name)
    options = dict(makers[0].pretrained_models[model]["init_args"])
    creator = options.pop("extractor_creator", None)
    if creator is not None:
        options["extractor"] = creator()
    extractor = makers[0](weights=None, **options)
    checkpoint = checkpoints.read(Path(weights).expanduser())
    inner: nn.Module = getattr(extractor, "model", extractor)
    checkpoint.load_into(inner, _own(checkpoint, inner))
    return lifting.proven(
        Victim(
            name=name,
            network=extractor,
            preprocessing=prepared,
            own_transform=transform,
            fingerprint=checkpoint.fingerprint,
        )
    )


def _own(checkpoint: checkpoints.Checkpoint, network: nn.Module) -> dict[str, Any]:
    """The network's tensors, without the names of what it was trained in, and the criterion's.

    OML's trainings store ``model.model.…``; its criterion, and a classifier that the extractor
    is told to drop, are left out.
    """
    first = next(iter(network.state_dict()))
    found = [key for key in checkpoint.tensors if key == first or key.endswith(f".{first}")]
    prefix = min(found, key=len).removesuffix(first) if found else ""
    dropped = "fc." if isinstance(getattr(network, "fc", None), nn.Identity) else "criterion."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in checkpoint.without("criterion").items()
        if not key.removeprefix(prefix).startswith(dropped)
    }
