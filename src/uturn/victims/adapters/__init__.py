"""Networks that come from elsewhere, each with its makers' own preprocessing. One file each.

An adapter is a function of a spec's argument and options that returns a `Victim`, or a `Bare`
network where nothing is known of its preprocessing. It imports its package when it is called,
and downloads nothing unless it is asked to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError
from uturn.optional import require as require
from uturn.victims.checkpoints import sha256
from uturn.victims.victim import Victim


@final
@dataclass(frozen=True, eq=False)
class Bare:
    """A network alone; the spec has to say ``size=HxW``, and mean and std if not ImageNet's."""

    name: str
    network: nn.Module
    fingerprint: str


Adapter: TypeAlias = Callable[..., Victim | Bare]


def fingerprint(network: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file that holds a program and its weights.

    Raises:
        CheckpointError: there is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sha256(file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error


def features_of(output: Any, name: str) -> Tensor:
    """The one tensor ``(B, D)`` among what a foreign network returns; ``(B, D, 1, 1)`` counts.

    Raises:
        ArgumentError: there is none, or more than one.
    """
    values = output.values() if isinstance(output, Mapping) else output
    listed = [values] if isinstance(values, Tensor) else list(values)
    found = [each.flatten(1) for each in listed if isinstance(each, Tensor) and _is_feature(each)]
    if len(found) != 1:
        shapes = [tuple(each.shape) for each in listed if isinstance(each, Tensor)]
        raise ArgumentError(
            f"{name} returns tensors of shape {shapes}, among which {len(found)} can be features "
            "(B, D); export a network that returns the features alone"
        )
    return found[0]


def _is_feature(tensor: Tensor) -> bool:
    return tensor.ndim == 2 or (tensor.ndim == 4 and tensor.shape[2:] == (1, 1))
