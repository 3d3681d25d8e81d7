"""Reading and writing weights. A checkpoint is hostile until proven otherwise: nothing runs."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError
from uturn.types import Similarity
from uturn.victims.victim import Preprocessing


@dataclass(frozen=True)
class Card:
    """What must live with the weights: how pictures go in and how features are compared."""

    preprocessing: Preprocessing
    similarity: Similarity

    def __post_init__(self) -> None:
        if self.similarity not in get_args(Similarity):
            raise ArgumentError(f"unknown similarity {self.similarity!r}")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by key, the card that was stored with them, and a hash of the file."""

    path: Path
    tensors: Mapping[str, Tensor]
    card: Card | None
    fingerprint: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key starts with ``prefix.``, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def without(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key does not start with ``prefix.``."""
        return {k: v for k, v in self.tensors.items() if not k.startswith(f"{prefix}.")}

    def load_into(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Fill ``network``; every key and shape must match.

        Raises:
            CheckpointError: lists missing and unexpected keys and differing shapes.
        """
        own = network.state_dict()
        # Checkpoints from before PyTorch 0.4.1 lack the counters of batch norm.
        missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
        unexpected = [k for k in tensors if k not in own]
        shapes = [
            f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in tensors and tensors[k].shape != own[k].shape
        ]
        problems = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in (
                ("missing keys", missing),
                ("unexpected keys", unexpected),
                ("differing shapes", shapes),
            )
            if keys
        ]
        if problems:
            raise CheckpointError(
                f"{self.path} does not fit {type(network).__name__}: {'; '.join(problems)}; "
                "choose the architecture these weights were trained for (uturn list victims)"
            )
        network.load_state_dict(dict(tensors), strict=False)


def read(path: Path) -> Checkpoint:
    """Read ``.safetensors``, or a PyTorch file with the ``weights_only`` unpickler.

    A wrapping ``state_dict`` entry and DataParallel's ``module.`` prefixes are taken off.

    Raises:
        CheckpointError: missing, unreadable, unsafe, or no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weights file at {path}; check weights=PATH")
    content: Any
    content, card = (
        _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path), None)
    )
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} holds no state dict, but a {type(content).__name__}")
    tensors = {
        str(key).removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    return Checkpoint(path, tensors, card, fingerprint)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, and reading it could run foreign "
            "code, so it was refused; ask its author for a state dict or a safetensors file"
        ) from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint ({error!r}); it may be truncated: "
            "compare its size or checksum with the original"
        ) from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Card | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}") from error
    if "uturn" not in metadata:
        return tensors, None
    try:
        stored = json.loads(metadata["uturn"])
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in stored["preprocessing"].items()
        }
        return tensors, Card(Preprocessing(**given), stored["similarity"])
    except (TypeError, ValueError, AttributeError, KeyError) as error:  # ArgumentError too
        raise CheckpointError(f"{path} carries an unreadable card: {error!r}") from error


def require_writable(path: Path) -> None:
    """Raise `CheckpointError` if `write` could not write there, before hours are spent."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors, the format that is written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def write(path: Path, tensors: Mapping[str, Tensor], card: Card) -> None:
    """Write a safetensors file that carries its card; check ``path`` with `require_writable`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    safetensors.torch.save_file(
        {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
        temporary,
        {"uturn": json.dumps(asdict(card))},
    )
    temporary.replace(path)
