"""Kept features: the same as made anew, and never those of other weights, pictures or code."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from uturn.data.pictures import FileSource, Pictures, encode
from uturn.errors import DataError
from uturn.retrieval import cache, extract
from uturn.retrieval.cache import Shelf
from uturn.retrieval.extract import extract_all
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.test_time import TestTime
from uturn.victims.victim import Victim

COUNT = 7


class Counting(nn.Module):
    """Features that are sums over the picture, and how many pictures were looked at."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen = 0
        self.power = 1

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.weight * x.flatten(2).sum(2) ** self.power


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("UTURN_CACHE", str(folder))
    small = extract.chunks
    monkeypatch.setattr(extract, "chunks", lambda total: small(total, 3))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    draw = np.random.default_rng(0)
    names = tuple(f"p{i}" for i in range(COUNT))
    for name in names:
        encode(tmp_path / f"{name}.png", draw.integers(0, 256, (6, 5, 3), dtype=np.uint8))
    source = FileSource(tmp_path, dict.fromkeys(names, ".png"))
    zeros = np.zeros(COUNT, dtype=np.int64)
    return Pictures(source, names, zeros, zeros)


def victim(weight: float = 1.0, **changes: object) -> Victim:
    given = {
        "name": "counting",
        "network": Counting(weight),
        "preprocessing": Preprocessing(size=(4, 4)),
        "fingerprint": f"w={weight}",
    }
    return Victim(**given | changes)


def embed(asked: Victim, pictures: Pictures) -> tuple[Tensor, int]:
    """The features, and how many pictures the network looked at for them."""
    asked.network.seen = 0
    found = extract_all(asked, pictures, "gallery", progress=False)
    return found, asked.network.seen


def test_features_are_kept_and_one_picture_of_each_chunk_is_tried(pictures: Pictures) -> None:
    first, looked = embed(victim(), pictures)
    assert looked == COUNT
    again, looked = embed(victim(), pictures)
    assert torch.equal(first, again)
    assert looked == 3  # of the chunks of 3, 3 and 1
    assert torch.equal(first, embed(victim(), pictures.subset(np.arange(COUNT)))[0])


@pytest.mark.parametrize(
    "other",
    [
        victim(2.0),
        victim(preprocessing=Preprocessing(size=(4, 3))),
        victim(preprocessing=Preprocessing(size=(4, 4), mean=(0.0, 0.0, 0.0))),
        victim(test_time=TestTime(flip=True)),
    ],
)
def test_another_victim_has_features_of_its_own(pictures: Pictures, other: Victim) -> None:
    embed(victim(), pictures)
    found, looked = embed(other, pictures)
    assert looked == COUNT * other.test_time.count
    os.environ["UTURN_CACHE"] = ""
    assert torch.equal(found, embed(other, pictures)[0])


def test_a_changed_picture_is_looked_at_anew(pictures: Pictures, tmp_path: Path) -> None:
    before, _ = embed(victim(), pictures)
    encode(tmp_path / "p4.png", np.zeros((6, 5, 3), dtype=np.uint8))
    after, looked = embed(victim(), pictures)
    assert looked == 3 + 1 + 1  # its chunk, and one of each of the others
    assert [i for i in range(COUNT) if not torch.equal(before[i], after[i])] == [4]


def test_code_that_says_something_else_is_noticed(pictures: Pictures) -> None:
    embed(victim(), pictures)
    changed = victim()
    changed.network.power = 2  # nothing in weights or structure tells
    found, _ = embed(changed, pictures)
    os.environ["UTURN_CACHE"] = ""
    assert torch.equal(found, embed(changed, pictures)[0])


def test_damaged_files_and_a_full_disk_are_no_reason_to_stop(
    pictures: Pictures, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, _ = embed(victim(), pictures)
    for file in kept.rglob("*.npy"):
        file.write_bytes(file.read_bytes()[:-5])
    after, looked = embed(victim(), pictures)
    assert torch.equal(before, after)
    assert looked == COUNT

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert torch.equal(embed(victim(3.0), pictures)[0], 3 * before)


def test_nothing_is_kept_where_it_is_off_or_the_weights_are_unknown(
    pictures: Pictures, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Shelf.of(victim(fingerprint="")) is None
    embed(victim(fingerprint=""), pictures)
    monkeypatch.setenv("UTURN_CACHE", "")
    embed(victim(), pictures)
    assert not kept.exists()


def test_what_was_not_used_for_the_longest_time_goes_first(
    pictures: Pictures, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(victim(), pictures)
    old = sorted(kept.rglob("*.npy"))
    size = old[0].stat().st_size
    for age, file in enumerate(old):
        os.utime(file, (age, age))
    monkeypatch.setattr(cache, "LARGEST", 4 * max(f.stat().st_size for f in old))
    embed(victim(2.0), pictures)
    left = set(kept.rglob("*.npy"))
    assert len(left - set(old)) == 3
    assert old[0] not in left
    assert size > 0


def test_an_unreadable_picture_is_named_and_what_was_done_stays(
    pictures: Pictures, tmp_path: Path
) -> None:
    (tmp_path / "p5.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"p5\.png"):
        embed(victim(), pictures)
    encode(tmp_path / "p5.png", np.zeros((6, 5, 3), dtype=np.uint8))
    _, looked = embed(replace(victim()), pictures)
    assert looked == 1 + 3 + 1
