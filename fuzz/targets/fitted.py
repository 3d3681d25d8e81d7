"""Other files that were computed once: guards, universal perturbations, features."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fuzz.mutate import changed_json, edited
from fuzz.target import Target
from uturn.attacks.universal import read as read_universal
from uturn.errors import ArgumentError, CheckpointError
from uturn.guard.detector import SIGNS, Guard
from uturn.retrieval.cache import Shelf
from uturn.victims.load import load_victim

_VICTIM = load_victim("glyph_net")
_GALLERY = torch.eye(64)


def _guard(data: bytes, folder: Path) -> None:
    path = folder / "guard.json"
    path.write_bytes(data)
    assert set(Guard.load(path, _VICTIM, _GALLERY).usual) == set(SIGNS)


def _universal(data: bytes, folder: Path) -> None:
    """``data`` as the header of a safetensors file whose numbers are all 0."""
    path = folder / "change.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(96))
    found = read_universal(path, 8)
    assert found.delta.shape[:2] == (1, 3)
    assert found.delta.isfinite().all()


def _features(data: bytes, folder: Path) -> None:
    stamps = ("a", "b", "c")
    shelf = Shelf(folder, _VICTIM)
    shelf.add(stamps, torch.zeros(3, 4))
    (path,) = folder.rglob("*.npy")
    path.write_bytes(data)
    found = shelf.find(stamps)
    assert found is None or (len(found) == 3 and found.dtype == torch.float32)


def _guards() -> Iterator[bytes]:
    usual = {name: {"mean": -3.5, "spread": 0.5} for name in SIGNS}
    about = f"{_VICTIM.fingerprint}, {_VICTIM.preprocessing!r}, {_VICTIM.test_time!r}"
    fixed = {"schema": 1, "victim": about, "fpr": 0.01, "pictures": 500, "threshold": 3.25}
    yield json.dumps({**fixed, "signs": usual}).encode()


def _perturbations() -> Iterator[bytes]:
    delta = {"dtype": "I16", "shape": [1, 3, 4, 4], "data_offsets": [0, 96]}
    card = json.dumps({"eps": 8, "source": "somebody"})
    yield json.dumps({"__metadata__": {"uturn-universal": card}, "delta": delta}).encode()


def _arrays() -> Iterator[bytes]:
    for array in (
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.zeros((3, 2, 2)),
        np.array([{}, [], None], dtype=object),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=True)
        yield buffer.getvalue()


TARGETS = (
    Target(
        name="guards",
        parse=_guard,
        refusals=(CheckpointError,),
        seeds=_guards,
        mutate=changed_json,
    ),
    Target(
        name="perturbations",
        parse=_universal,
        refusals=(CheckpointError, ArgumentError),
        seeds=_perturbations,
        mutate=changed_json,
    ),
    Target(
        name="kept_features",
        parse=_features,
        refusals=(),
        seeds=_arrays,
        mutate=edited,
    ),
)
