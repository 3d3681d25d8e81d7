"""The data sets that are at hand, for real: what they hold, and own lists of the same pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from uturn import load_data
from uturn.data.pictures import Pictures
from uturn.data.split import Split

pytestmark = pytest.mark.slow


def found(shared_data: Path, folder: str) -> Path:
    root = shared_data / folder
    if not root.is_dir():
        pytest.skip(f"UTURN_TEST_DATA holds no {folder}/")
    return root


def count(pictures: Pictures | None) -> tuple[int, int]:
    """Pictures, and identities."""
    assert pictures is not None
    return len(pictures), len(np.unique(pictures.identities))


def same(one: Pictures | None, other: Pictures | None) -> bool:
    assert one is not None
    assert other is not None
    return np.array_equal(one.identities, other.identities) and np.array_equal(
        one.cameras, other.cameras
    )


def unseen(split: Split) -> bool:
    assert split.train is not None
    return not set(split.query.identities) & set(split.train.identities)


def test_market1501_and_a_csv_of_it(shared_data: Path, tmp_path: Path) -> None:
    root = found(shared_data, "market1501")
    split = load_data(f"market1501:{root}")
    assert count(split.query) == (3368, 750)
    assert count(split.gallery) == (19732, 752)  # with junk and the distractors
    assert count(split.train) == (12936, 751)
    assert unseen(split)
    parts = {"query": "query", "gallery": "bounding_box_test", "train": "bounding_box_train"}
    with (tmp_path / "market.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "identity", "camera", "split"])
        for part, folder in parts.items():
            pictures: Pictures = getattr(split, part)
            rows = zip(pictures.names, pictures.identities, pictures.cameras, strict=True)
            for name, identity, camera in rows:
                writer.writerow([root / folder / f"{name}.jpg", identity, camera, part])
    listed = load_data(f"folder:{tmp_path}/market.csv")
    assert listed.protocol == split.protocol
    for part in parts:
        assert same(getattr(listed, part), getattr(split, part))


def test_grocery(shared_data: Path) -> None:
    root = found(shared_data, "grocery_store")
    split = load_data(f"grocery:{root}")
    assert count(split.query) == count(split.gallery) == (2370, 40)
    assert count(split.train) == (3051, 41)
    assert unseen(split)
    closed = load_data(f"grocery:{root},classes=all")
    assert count(closed.query) == (2485, 81)
    assert count(closed.train) == (2936, 81)
    assert closed.query.read(0).shape[2] == 3


def test_cifar10(shared_data: Path) -> None:
    root = found(shared_data, "cifar10_jpeg")
    split = load_data(f"cifar10:{root}")
    assert count(split.query) == (10000, 10)
    assert count(split.train) == (50000, 10)
    assert split.query.read(0).shape == (32, 32, 3)
    folders = load_data(f"folder:{root}")  # sorted by name is the official order
    assert folders.query.names == split.query.names
    assert same(folders.query, split.query)
    assert same(folders.train, split.train)
