"""Features on disk, under a name that everything goes into that decides them.

The environment variable ``UTURN_CACHE`` is the folder (default: ``~/.cache/uturn``); empty, it
turns the cache off. It may be removed at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from uturn._version import __version__
from uturn.storage import commit
from uturn.victims.victim import Victim

LARGEST = 4 * 2**30
"""Bytes that are kept; beyond them, what was not used for the longest time is removed."""

NEAR = 1e-3
"""How far a kept feature may be from one that is made anew, relative to its length: what other
batches and libraries change by rounding is far below it, what another network says far above."""


@final
@dataclass(frozen=True)
class Shelf:
    """The features that one victim gave, some pictures to a file.

    Weights, preprocessing, looks, structure of the network, precision, device and versions are in
    the names of the files, and so is the content of the pictures. What is not is the source of
    the network's own code, so whoever asks tries one picture of each file (`believed`).
    """

    folder: Path
    victim: Victim

    @classmethod
    def of(cls, victim: Victim) -> Shelf | None:
        """None where nothing is kept: the cache is off, or nothing tells the weights."""
        named = os.environ.get("UTURN_CACHE", str(Path("~/.cache/uturn").expanduser()))
        if not (named and victim.fingerprint):
            return None
        return cls(Path(named) / "features", victim)

    def find(self, stamps: Sequence[str]) -> Tensor | None:
        """Features ``(n, D)`` of the pictures of these content stamps, or None."""
        file = self._file(stamps)
        try:
            found = np.load(file, allow_pickle=False)
            file.touch()
        except Exception:  # a damaged file can make NumPy raise anything
            return None
        whole = found.ndim == 2 and len(found) == len(stamps) and found.dtype == np.float32
        return torch.from_numpy(found) if whole else None

    def add(self, stamps: Sequence[str], features: Tensor) -> None:
        """Keep features ``(n, D)``; a disk that refuses them is no reason to stop."""
        file, buffer = self._file(stamps), io.BytesIO()
        np.save(buffer, features.cpu().numpy())
        with suppress(OSError):
            commit(file, buffer.getvalue())

    def tidy(self) -> None:
        """Remove what was used least recently, beyond `LARGEST`."""
        with suppress(OSError):
            files = [(f.stat().st_mtime, f.stat().st_size, f) for f in self.folder.rglob("*.npy")]
            left = sum(size for _, size, _ in files)
            for _, size, file in sorted(files):
                if left <= LARGEST:
                    break
                file.unlink(missing_ok=True)
                left -= size

    def _file(self, stamps: Sequence[str]) -> Path:
        name = _digest(*stamps)
        return self.folder / self._mark / f"{name}.npy"

    @cached_property
    def _mark(self) -> str:
        victim = self.victim
        return _digest(
            victim.fingerprint,
            repr(victim.network),
            repr(victim.preprocessing),
            repr(victim.test_time),
            repr(victim.whitening),
            victim.precision,
            str(victim.layout),
            victim.device.type,
            torch.__version__,
            __version__,
        )


def believed(kept: Tensor, anew: Tensor) -> bool:
    """Whether a kept feature ``(1, D)`` is what the victim says now."""
    if kept.shape != anew.shape:
        return False
    apart = (kept - anew.cpu()).norm()
    return bool(apart <= NEAR * anew.norm().cpu())


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()
