"""CIFAR-10 (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009)."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from uturn.data.files import Item, files_below, leave_one_out, official, pictures_of
from uturn.data.pickles import read_pickle
from uturn.data.pictures import Picture, Pictures
from uturn.data.split import Split
from uturn.errors import DataError

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""In the official order, which is that of a classifier's logits."""

_BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
_VALUES = 3 * 32 * 32
_INSIDE = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar10_jpeg")

Batch = tuple[npt.NDArray[np.uint8], list[int]]
"""Pixels ``(N, 3072)``, planes red, green, blue by rows, and ``N`` classes."""


def cifar10(root: str) -> Split:
    """CIFAR-10: 10,000 test pictures of 10 classes, leave-one-out; 50,000 train.

    The identity is the class by its official number, so that a classifier's logits line up. All
    forms are read, the first that is there: the Python version (``data_batch_1`` … ``test_batch``;
    nothing in the pickles is run), the binary version (``data_batch_1.bin`` …), and folders
    ``train/<class>`` and ``test/<class>`` of pictures (``train`` may be left out).

    Names are ``test/cat/0042``; the first two versions number a class's pictures from 0000 in
    the official order.

    Raises:
        DataError: a file is missing, truncated or more than plain data.
    """
    base = official("CIFAR-10", root, _INSIDE, ())
    for folder in (base, *(base / name for name in _INSIDE)):
        for ending, read in (("", _python), (".bin", _binary)):
            if (folder / f"test_batch{ending}").is_file():
                parts = {
                    part: _batches(part, [read(folder / f"{name}{ending}") for name in names])
                    for part, names in _BATCHES.items()
                }
                return _closed(parts["test"], parts["train"])
        if (folder / "test").is_dir():
            return _folders(folder)
    raise DataError(
        f"{base} is not CIFAR-10 in a known form: it must hold test_batch and data_batch_1 to 5, "
        "the same with .bin, or test/<class>/ with pictures"
    )


def _closed(test: Pictures, train: Pictures | None) -> Split:
    return replace(leave_one_out("cifar10", test, train), classes=CLASSES)


def _python(file: Path) -> Batch:
    batch = read_pickle(file, "latin-1")
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise DataError(f"{file} is no batch of CIFAR-10: it lacks data or labels; get it again")
    pixels, labels = batch["data"], batch["labels"]
    if (
        not isinstance(pixels, np.ndarray)
        or not isinstance(labels, list)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(labels), _VALUES)
    ):
        raise DataError(
            f"{file}: data must be uint8 (N, {_VALUES}) with a label each; get it again"
        )
    return pixels, _classes(file, labels)


def _binary(file: Path) -> Batch:
    if not file.is_file():
        raise DataError(f"there is no {file}; the data set is incomplete")
    values = np.fromfile(file, dtype=np.uint8)
    if not values.size or values.size % (_VALUES + 1):
        raise DataError(
            f"{file} has {values.size} bytes, no multiple of {_VALUES + 1} (class and pixels); "
            "it is truncated, get it again"
        )
    records = values.reshape(-1, _VALUES + 1)
    return records[:, 1:], _classes(file, records[:, 0].tolist())


def _classes(file: Path, labels: list[int]) -> list[int]:
    for label in labels:
        if type(label) is not int or not 0 <= label < len(CLASSES):
            raise DataError(f"{file} has the class {label!r}; CIFAR-10 has 0 to 9, get it again")
    return labels


def _batches(part: str, batches: list[Batch]) -> Pictures:
    pixels = np.concatenate([pixels for pixels, _ in batches])
    labels = [label for _, labels in batches for label in labels]
    names, seen = [], Counter[int]()
    for label in labels:
        names.append(f"{part}/{CLASSES[label]}/{seen[label]:04d}")
        seen[label] += 1
    source = ArraySource(pixels, {name: i for i, name in enumerate(names)})
    identities = np.array(labels, dtype=np.int64)
    return Pictures(source, tuple(names), identities, np.zeros_like(identities))


def _folders(base: Path) -> Split:
    parts: dict[str, list[Item]] = {}
    for part in ("test", "train"):
        paths = files_below(base / part) if (base / part).is_dir() else []
        for path in paths:
            name = path.split("/")[0]
            if name not in CLASSES or "/" not in path:
                raise DataError(
                    f"{base / part / path} lies in no class folder; the classes are "
                    f"{', '.join(CLASSES)}"
                )
            parts.setdefault(part, []).append(Item(f"{part}/{path}", CLASSES.index(name)))
    read = pictures_of(base, {"test": [], **parts})
    return _closed(read["test"], read.get("train"))


@final
@dataclass(frozen=True, eq=False)
class ArraySource:
    """Pictures of 32 × 32 pixels in memory: rows of ``(N, 3072)``, planes red, green, blue."""

    pixels: npt.NDArray[np.uint8]
    rows: dict[str, int]

    def read(self, name: str) -> Picture:
        planes = self.pixels[self.rows[name]].reshape(3, 32, 32)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    def stamp(self, name: str) -> str:
        return hashlib.blake2b(self.pixels[self.rows[name]].tobytes(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        return f"ArraySource({len(self.rows)} pictures)"
