"""``torchreid:MODEL``: the networks of torchreid (Zhou and Xiang, deep-person-reid)."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from torch import nn

from uturn.errors import SpecError
from uturn.victims import checkpoints
from uturn.victims.adapters import lifting, require
from uturn.victims.victim import Victim

_SIZES = {"hacnn": (160, 64)}
"""(H, W) where it is not 256×128; torchreid's model zoo."""


def build(model: str, weights: str) -> Victim:
    """torchreid:MODEL,weights=PATH, for person re-identification; 256×128, size= for others.

    Raises:
        SpecError: no such model. CheckpointError: the weights do not fit.
    """
    require("torchreid", "zoo")
    # PyPI's package keeps in `reid` what the one from git has at its top.
    home = "torchreid.reid" if importlib.util.find_spec("torchreid.reid") else "torchreid"
    models = require(f"{home}.models", "zoo")
    name = f"torchreid:{model}"
    checkpoint = checkpoints.read(Path(weights).expanduser())
    classes = _classes(checkpoint)
    try:
        network: Any = models.build_model(model, classes or 1, pretrained=False, use_gpu=False)
    except KeyError as error:
        raise SpecError(f"torchreid: {error.args[0]}") from error
    if classes is None:
        network.classifier = nn.Identity()
    checkpoint.load_into(network, checkpoint.tensors)
    height, width = _SIZES.get(model, (256, 128))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it builds
        transforms = require(f"{home}.data.transforms", "zoo")
        _, transform = transforms.build_transforms(height, width)
    head = network.classifier if hasattr(network, "classifier") else None
    return lifting.proven(
        Victim(
            name=name,
            network=network,
            preprocessing=lifting.of_torchvision(transform, name),
            classifier=head if isinstance(head, nn.Linear) else None,
            # As torchreid's configurations score them (test.dist_metric).
            similarity="cosine" if model.startswith("osnet_ain") else "euclidean",
            own_transform=transform,
            fingerprint=checkpoint.fingerprint,
        )
    )


def _classes(checkpoint: checkpoints.Checkpoint) -> int | None:
    """How many identities the stored classifiers tell apart; None without any.

    Models by parts have several, such as ``classifier.0`` or ``classifier_global``.
    """
    for key, tensor in checkpoint.tensors.items():
        if key.startswith("classifier") and key.endswith("weight") and tensor.ndim == 2:
            return int(tensor.shape[0])
    return None
