"""Data sets in their official layouts, as miniature trees, and a user's own folders and lists."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from uturn import load_data
from uturn.cli import main
from uturn.data.catalog import CATALOG
from uturn.data.cifar10 import CLASSES
from uturn.data.folder import files_by_name, replace_queries
from uturn.data.pictures import encode
from uturn.data.split import Split
from uturn.errors import DataError, SpecError
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.judge import Labels, judge_for
from uturn.sweep import Plan, run
from uturn.victims.victim import Victim


def colour(path: Path) -> tuple[int, int, int]:
    """A colour of its own for every file name, so that a mixed-up source is noticed."""
    red, green, blue = np.random.default_rng(list(path.name.encode())).integers(0, 256, 3)
    return int(red), int(green), int(blue)


def picture(path: Path) -> Path:
    """A small file of one colour; what its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 9), colour(path)).save(path)
    return path


def pictures(root: Path, *paths: str) -> Path:
    for path in paths:
        picture(root / path)
    return root


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def relevant(split: Split) -> dict[str, set[str]]:
    """For every query the names that count as right."""
    device = torch.device("cpu")
    found, _ = judge_for(split)(
        Labels.of(split.query, device), Labels.of(split.gallery, device)
    ).masks()
    return {
        name: {split.gallery.names[i] for i in row.nonzero().flatten().tolist()}
        for name, row in zip(split.query.names, found, strict=True)
    }


def labels(split: Split, part: str = "gallery") -> dict[str, int]:
    chosen = getattr(split, part)
    return dict(zip(chosen.names, chosen.identities.tolist(), strict=True))


def readable(split: Split) -> None:
    """Every name reads the picture of its own file."""
    for part in (split.query, split.gallery, split.train):
        for i in range(len(part) if part else 0):
            assert part is not None
            assert part.read(i).ndim == 3
            assert part.source.stamp(part.names[i])


# -- re-identification ----------------------------------------------------------------------

DUKE = {
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg", "7139_c1_f0000001.jpg"],
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c6_f0050000.jpg"],
}
CUHK = {
    "query": ["0003_c1_21.png", "0003_c2_27.png"],
    "bounding_box_test": ["0003_c1_22.png", "0003_c2_26.png", "0006_c1_51.png"],
    "bounding_box_train": ["0001_c1_1.png", "0001_c2_6.png"],
}


def tree(root: Path, folders: dict[str, list[str]]) -> Path:
    return pictures(
        root, *(f"{folder}/{name}" for folder, names in folders.items() for name in names)
    )


@pytest.mark.parametrize("inside", ["", "DukeMTMC-reID"])
def test_dukemtmc(tmp_path: Path, inside: str) -> None:
    tree(tmp_path / inside, DUKE)
    split = load_data(f"dukemtmc:{tmp_path}")
    assert split.protocol == "cross-camera"
    assert labels(split) == {
        "0005_c2_f0046985": 5,
        "0005_c5_f0051781": 5,
        "7139_c1_f0000001": 7139,
    }
    assert split.gallery.cameras.tolist() == [2, 5, 1]
    assert relevant(split) == {"0005_c2_f0046985": {"0005_c5_f0051781"}}
    assert labels(split, "train") == {"0001_c2_f0046182": 1, "0001_c6_f0050000": 1}
    readable(split)


def test_cuhk03np(tmp_path: Path) -> None:
    tree(tmp_path / "cuhk03-np" / "detected", CUHK)
    tree(tmp_path / "cuhk03-np" / "labeled", {**CUHK, "query": ["0006_c2_60.png"]})
    split = load_data(f"cuhk03np:{tmp_path}")
    assert relevant(split) == {
        "0003_c1_21": {"0003_c2_26"},
        "0003_c2_27": {"0003_c1_22"},
    }
    by_hand = load_data(f"cuhk03np:{tmp_path / 'cuhk03-np'},kind=labeled")
    assert relevant(by_hand) == {"0006_c2_60": {"0006_c1_51"}}
    assert by_hand.name != split.name
    readable(split)
    with pytest.raises(SpecError, match="kind must be one of detected, labeled"):
        load_data(f"cuhk03np:{tmp_path},kind=both")


def msmt(root: Path, train: str = "train", test: str = "test") -> Path:
    lists = {
        "train": [
            "0000/0000_000_01_0303morning_0008_0.jpg 0",
            "0001/0001_000_05_0303noon_0040_0.jpg 1",
        ],
        "val": ["0000/0000_001_14_0303morning_0011_2_ex.jpg 0"],
        "query": ["0000/0000_000_01_0303morning_0015_0.jpg 0"],
        "gallery": [
            "0000/0000_001_01_0303morning_0016_0.jpg 0",
            "0000/0000_002_12_0114afternoon_0016_1.jpg 0",
            "0001/0001_000_12_0302noon_0016_0.jpg 1",
        ],
    }
    for part, lines in lists.items():
        write(root / f"list_{part}.txt", *lines)
        folder = test if part in ("query", "gallery") else train
        pictures(root / folder, *(line.split()[0] for line in lines))
    return root


@pytest.mark.parametrize(
    ("inside", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")],
)
def test_msmt17(tmp_path: Path, inside: str, train: str, test: str) -> None:
    msmt(tmp_path / inside, train, test)
    for root in (tmp_path, tmp_path / inside):
        split = load_data(f"msmt17:{root}")
        assert relevant(split) == {
            "0000/0000_000_01_0303morning_0015_0": {"0000/0000_002_12_0114afternoon_0016_1"}
        }
        assert split.gallery.cameras.tolist() == [1, 12, 12]
    assert split.train is not None
    assert split.train.cameras.tolist() == [1, 5, 14]  # the validation list is learned from too
    # Both sets count from 0; nobody is in both.
    assert split.train.identities.tolist() == [2, 3, 2]
    readable(split)


# -- open sets ------------------------------------------------------------------------------


def cub(root: Path) -> Path:
    paths = [
        "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg",
        "100.Brown_Pelican/Brown_Pelican_0122_94022.jpg",
        "101.White_Pelican/White_Pelican_0025_97097.jpg",
        "101.White_Pelican/White_Pelican_0026_96320.jpg",
        "200.Common_Yellowthroat/Common_Yellowthroat_0003_190521.jpg",
    ]
    write(root / "images.txt", *(f"{n} {path}" for n, path in enumerate(paths, 1)))
    # In another order: lines are joined by their number.
    write(root / "image_class_labels.txt", *("5 200", "1 1", "2 100", "4 101", "3 101"))
    return pictures(root, *(f"images/{path}" for path in paths))


def test_cub200(tmp_path: Path) -> None:
    cub(tmp_path / "CUB_200_2011")
    split = load_data(f"cub200:{tmp_path}")
    first, second = (f"101.White_Pelican/White_Pelican_{n}" for n in ("0025_97097", "0026_96320"))
    alone = "200.Common_Yellowthroat/Common_Yellowthroat_0003_190521"
    assert relevant(split) == {first: {second}, second: {first}, alone: set()}
    assert split.query is split.gallery
    assert sorted(labels(split, "train").values()) == [1, 100]
    readable(split)


def test_sop(tmp_path: Path) -> None:
    root = tmp_path / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    write(
        root / "Ebay_train.txt",
        header,
        "1 1 1 bicycle_final/111085122871_0.JPG",
        "2 1 1 bicycle_final/111085122871_1.JPG",
    )
    write(
        root / "Ebay_test.txt",
        header,
        "59552 11319 1 bicycle_final/251952414262_0.JPG",
        "59553 11319 1 bicycle_final/251952414262_1.JPG",
        "59554 11320 12 toaster_final/2_0.JPG",
    )
    for number in ("111085122871_0", "111085122871_1", "251952414262_0", "251952414262_1"):
        picture(root / "bicycle_final" / f"{number}.JPG")
    picture(root / "toaster_final" / "2_0.JPG")
    split = load_data(f"sop:{tmp_path}")
    first, second = (f"bicycle_final/251952414262_{n}" for n in (0, 1))
    assert relevant(split) == {first: {second}, second: {first}, "toaster_final/2_0": set()}
    assert labels(split, "train") == {f"bicycle_final/111085122871_{n}": 1 for n in (0, 1)}
    readable(split)


def grocery(root: Path) -> Path:
    lines = {
        "train": ["train/Fruit/Apple/Golden-Delicious/Golden-Delicious_001.jpg, 0, 0"],
        "val": ["val/Packages/Milk/Oatly/Oatly_001.jpg, 41, 20"],
        "test": [
            "test/Fruit/Avocado/Avocado_001.jpg, 40, 1",
            "test/Packages/Milk/Oatly/Oatly_001.jpg, 41, 20",
            "test/Vegetables/Zucchini/Zucchini_001.jpg, 80, 42",
        ],
    }
    for part, listed in lines.items():
        write(root / f"{part}.txt", *listed)
        pictures(root, *(line.split(",")[0] for line in listed))
    picture(root / "iconic-images-and-descriptions" / "Fruit" / "Avocado_Iconic.jpg")
    return root


def test_grocery(tmp_path: Path) -> None:
    grocery(tmp_path / "dataset")
    unseen = load_data(f"grocery:{tmp_path}")
    milk = [f"{part}/Packages/Milk/Oatly/Oatly_001" for part in ("val", "test")]
    zucchini = "test/Vegetables/Zucchini/Zucchini_001"
    assert relevant(unseen) == {milk[0]: {milk[1]}, milk[1]: {milk[0]}, zucchini: set()}
    assert sorted(labels(unseen, "train").values()) == [0, 40]
    everything = load_data(f"grocery:{tmp_path / 'dataset'},classes=all")
    assert sorted(labels(everything, "query").values()) == [40, 41, 80]
    assert labels(everything, "train")[milk[0]] == 41
    readable(unseen)


def food(root: Path) -> Path:
    for dish in range(1, 257):
        write(root / str(dish) / "bb_info.txt", "img x1 y1 x2 y2")
    write(root / "category.txt", "id\tname", "1\trice", "256\tcrepe")
    gradient = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)
    for dish, lines in {
        1: ["1 0 0 20 20"],
        225: ["7 0 3 40 30", "11 5 4 25 24", "100 0 0 40 30", "12 0 0 9 30"],
        # Photo 7 again, with the box of another dish; of two boxes the last counts.
        256: ["7 0 0 12 12", "7 20 0 40 30", "9 10 10 50 40"],
    }.items():
        write(root / str(dish) / "bb_info.txt", "img x1 y1 x2 y2", *lines)
        for line in lines:
            encode(root / str(dish) / f"{line.split()[0]}.png", gradient)
            png = root / str(dish) / f"{line.split()[0]}.png"
            png.rename(png.with_suffix(".jpg"))  # keeps the pixels
    return root


def test_food256(tmp_path: Path) -> None:
    food(tmp_path / "UECFOOD256")
    split = load_data(f"food256:{tmp_path}")
    assert labels(split) == {
        **{f"225/{n}": 225 for n in (7, 11, 100)},  # 12 is narrower than ten pixels
        **{f"256/{n}": 256 for n in (7, 9)},
    }
    assert list(labels(split))[:3] == ["225/7", "225/11", "225/100"]  # as numbers
    assert labels(split, "train") == {"1/1": 1}
    whole = load_data(f"food256:{tmp_path},region=whole")
    frame = whole.query.read(0)
    assert frame.shape == (30, 40, 3)
    for i, (left, top, right, bottom) in {
        0: (0, 3, 40, 30),
        1: (5, 4, 25, 24),
        3: (20, 0, 40, 30),
    }.items():
        assert np.array_equal(split.query.read(i), frame[top:bottom, left:right])
    outside = split.query.read(4)  # this box goes on outside
    assert outside.shape == (30, 40, 3)
    assert np.array_equal(outside[:20, :30], frame[10:, 10:])
    assert not outside[20:].any()
    assert not outside[:, 30:].any()
    stamps = {split.query.source.stamp(name) for name in ("225/7", "256/7")}
    assert len(stamps) == 2  # one photo, two boxes
    assert split.fingerprint() != whole.fingerprint()


def test_food256_as_the_paper_asks(tmp_path: Path) -> None:
    food(tmp_path)
    split = load_data(f"food256:{tmp_path},queries=1")
    assert relevant(split) == {"225/7": {"225/11", "225/100"}, "256/7": {"256/9"}}
    assert not set(split.query.names) & set(split.gallery.names)
    for queries in (0, 2):
        with pytest.raises(DataError, match="smallest dish has 2 pictures, choose fewer"):
            load_data(f"food256:{tmp_path},queries={queries}")


# -- CIFAR-10 -------------------------------------------------------------------------------


def cifar_arrays(seed: int, count: int) -> tuple[npt.NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()


def cifar(root: Path, form: str) -> dict[str, tuple[npt.NDArray[np.uint8], list[int]]]:
    """The same random pictures in the python or the binary form."""
    root.mkdir(parents=True, exist_ok=True)
    batches = {f"data_batch_{n}": cifar_arrays(n, 4) for n in range(1, 6)}
    batches["test_batch"] = cifar_arrays(0, 30)
    for name, (pixels, classes) in batches.items():
        if form == "python":
            batch = {
                "batch_label": name,
                "labels": classes,
                "data": pixels,
                "filenames": [f"x_s_{n:06}.png" for n in range(len(classes))],
            }
            (root / name).write_bytes(pickle.dumps(batch, 2))
        else:
            rows = zip(classes, pixels, strict=True)
            (root / f"{name}.bin").write_bytes(b"".join(bytes([c]) + bytes(p) for c, p in rows))
    return batches


def python2_pickle(pixels: npt.NDArray[np.uint8], classes: list[int]) -> bytes:
    """A batch as Python 2 wrote the official ones: byte strings, and numpy.core's names."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    raw = pixels.tobytes()
    shape = b"".join(b"M" + struct.pack("<H", n) for n in pixels.shape)
    dtype = (
        b"cnumpy\ndtype\n(" + text("u1") + b"K\0K\1tR"
        b"(K\3" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85" + text("b") + b"tR"
        b"(K\1(" + shape + b"t" + dtype + b"I00\nT" + struct.pack("<I", len(raw)) + raw + b"tb"
    )
    numbers = b"".join(b"K" + bytes([c]) for c in classes)
    labels = b"](" + numbers + b"e"
    return b"\x80\x02}(" + text("data") + array + text("labels") + labels + b"u."


@pytest.mark.parametrize(
    ("form", "inside"),
    [("python", "cifar-10-batches-py"), ("binary", "cifar-10-batches-bin"), ("python", "")],
)
def test_cifar10_batches(tmp_path: Path, form: str, inside: str) -> None:
    batches = cifar(tmp_path / inside, form)
    split = load_data(f"cifar10:{tmp_path}")
    pixels, classes = batches["test_batch"]
    assert split.query is split.gallery
    assert split.query.identities.tolist() == classes
    for i in range(len(classes)):
        assert np.array_equal(split.query.read(i), np.moveaxis(pixels[i].reshape(3, 32, 32), 0, 2))
        name, number = split.query.names[i].split("/")[1:]
        assert name == CLASSES[classes[i]]
        assert int(number) == classes[:i].count(classes[i])
    assert split.train is not None
    assert split.train.identities.tolist() == [
        label for n in range(1, 6) for label in batches[f"data_batch_{n}"][1]
    ]
    assert len({split.query.source.stamp(name) for name in split.query.names}) == len(classes)


def test_cifar10_forms_agree(tmp_path: Path) -> None:
    batches = cifar(tmp_path / "python", "python")
    cifar(tmp_path / "binary", "binary")
    for name, batch in batches.items():
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / name).write_bytes(python2_pickle(*batch))
        assert pickle.loads((tmp_path / "two" / name).read_bytes(), encoding="latin-1")
    prints = {
        load_data(f"cifar10:{tmp_path / f}").fingerprint() for f in ("python", "binary", "two")
    }
    assert len(prints) == 1


def test_cifar10_folders(tmp_path: Path) -> None:
    pictures(tmp_path, "test/truck/0000.jpg", "test/cat/0000.jpg", "test/cat/0001.jpg")
    split = load_data(f"cifar10:{tmp_path}")
    assert labels(split) == {"test/cat/0000": 3, "test/cat/0001": 3, "test/truck/0000": 9}
    assert split.train is None
    picture(tmp_path / "train" / "airplane" / "0000.jpg")
    assert labels(load_data(f"cifar10:{tmp_path}"), "train") == {"train/airplane/0000": 0}
    picture(tmp_path / "test" / "tank" / "0000.jpg")
    with pytest.raises(DataError, match=r"tank/0000\.jpg lies in no class folder; the classes are"):
        load_data(f"cifar10:{tmp_path}")


class Hostile:
    """What a pickle can be: a program."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def test_a_hostile_batch_is_refused_and_not_run(tmp_path: Path) -> None:
    root, canary = tmp_path / "data", tmp_path / "canary"
    cifar(root, "python")
    hostile = pickle.dumps({"labels": [0], "data": Hostile(canary)}, 2)
    pickle.loads(hostile)
    assert canary.exists()  # the bait works
    canary.unlink()
    for name in ("test_batch", "data_batch_3"):
        kept = (root / name).read_bytes()
        (root / name).write_bytes(hostile)
        with pytest.raises(DataError, match=rf"{name} names '(posix|nt)\.system'"):
            load_data(f"cifar10:{root}")
        (root / name).write_bytes(kept)
    assert not canary.exists()


def damage_batch(**changes: Any) -> Callable[[Path], object]:
    pixels, classes = cifar_arrays(0, 3)
    content = {"data": pixels, "labels": classes, **changes}
    return lambda root: (root / "test_batch").write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "data_batch_2").unlink(), "data_batch_2"),
        (lambda root: (root / "test_batch").write_bytes(b"\x80\x02}"), "test_batch"),
        (lambda root: (root / "test_batch").write_bytes(pickle.dumps([1])), "no batch of CIFAR-10"),
        (damage_batch(labels=[0, 1]), "a label each"),
        (damage_batch(labels=[0, 1, 10]), "has the class 10"),
        (damage_batch(labels="abc"), "a label each"),
        (damage_batch(data=np.zeros((3, 3072))), "must be uint8"),
        (lambda root: (root / "test_batch").unlink(), "known form: it must hold test_batch"),
    ],
)
def test_broken_cifar10_batches(tmp_path: Path, break_it, message: str) -> None:
    cifar(tmp_path, "python")
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "truncated"), (b"\0" * 3000, "no multiple of 3073"), (b"\x0a" * 3073, "class 10")],
)
def test_broken_cifar10_binaries(tmp_path: Path, content: bytes, message: str) -> None:
    cifar(tmp_path, "binary")
    (tmp_path / "data_batch_5.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_5\.bin.*{message}"):
        load_data(f"cifar10:{tmp_path}")
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"no .*data_batch_5\.bin"):
        load_data(f"cifar10:{tmp_path}")


# -- what is wrong is named -----------------------------------------------------------------


def append(file: str, line: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / file).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")

    return change


MAKERS: dict[str, Callable[[Path], Path]] = {
    "dukemtmc": lambda root: tree(root, DUKE),
    "cuhk03np": lambda root: tree(root / "detected", CUHK).parent,
    "msmt17": msmt,
    "cub200": cub,
    "grocery": grocery,
    "food256": food,
}


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        (
            "dukemtmc",
            lambda root: picture(root / "query" / "0005_c2s1_000451_03.jpg"),
            r"0005_c2s1_000451_03\.jpg does not parse; DukeMTMC-reID names .* 0005_c2_f0046985",
        ),
        (
            "dukemtmc",
            lambda root: (root / "query").rename(root / "probe"),
            "DukeMTMC-reID in its official layout: no folder query; it must hold query, bounding",
        ),
        (
            "cuhk03np",
            lambda root: (root / "detected").rename(root / "labeled"),
            "no folder detected/query, folder detected/bounding_box_test",
        ),
        (
            "msmt17",
            append("list_query.txt", "0000/0000_000.jpg 0"),
            r"list_query\.txt, line 2: the name 0000/0000_000\.jpg does not parse",
        ),
        (
            "msmt17",
            append("list_gallery.txt", "0009/0009_000_01_0303morning_0015_0.jpg 9"),
            r"list_gallery\.txt, line 4: .*0009_000_01_0303morning_0015_0\.jpg is missing",
        ),
        (
            "msmt17",
            append("list_query.txt", "0000/0000_000_01_0303morning_0015_0.jpg nobody"),
            "line 2: 'nobody' is not a whole number",
        ),
        ("msmt17", lambda root: (root / "test").rename(root / "t"), "no folder test or mask_test"),
        (
            "cub200",
            append("images.txt", "6 101.White_Pelican/x.jpg"),
            "line 6: image 6 has no line",
        ),
        ("cub200", append("images.txt", "six"), r"images\.txt, line 6: 'six' does not read as"),
        (
            "cub200",
            lambda root: write(root / "images.txt", "1 ../../etc/passwd.jpg"),
            "line 1: the path .* leads out of",
        ),
        (
            "cub200",
            lambda root: write(root / "images.txt", "1 /etc/passwd.jpg"),
            "line 1: the path .* leads out of",
        ),
        ("cub200", lambda root: (root / "images.txt").write_bytes(b"1 \xff\n"), "is not UTF-8"),
        (
            "cub200",
            lambda root: write(root / "image_class_labels.txt", *(f"{n} 101" for n in range(1, 6))),
            "holds no train pictures",
        ),
        (
            "grocery",
            append("test.txt", "test/Fruit/Avocado/Avocado_001.jpg, 41, 1"),
            r"test\.txt, line 1 and .*test\.txt, line 4: .*Avocado_001\.jpg is listed twice",
        ),
        (
            "grocery",
            lambda root: (root / "test/Fruit/Avocado/Avocado_001.jpg").write_bytes(b""),
            r"test\.txt, line 1: .*Avocado_001\.jpg is empty",
        ),
        (
            "food256",
            lambda root: (root / "100" / "bb_info.txt").rename(root / "100.txt"),
            r"cannot read .*100.bb_info\.txt: No such file",
        ),
        (
            "food256",
            lambda root: (root / "225" / "7.jpg").unlink(),
            r"225: the picture .*7\.jpg is missing",
        ),
        (
            "food256",
            lambda root: (root / "1").rename(root / "one"),
            "no folder 1; it must hold 1, 2, 3, …, 256",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, break_it, message: str) -> None:
    root = MAKERS[name](tmp_path / "data")
    options = ",classes=all" if name == "grocery" else ""
    load_data(f"{name}:{root}{options}")
    break_it(root)
    with pytest.raises(DataError, match=message):
        load_data(f"{name}:{root}{options}")


@pytest.mark.parametrize("name", [*MAKERS, "market1501", "sop", "cifar10", "folder"])
def test_a_missing_or_packed_data_set_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        load_data(f"{name}:{tmp_path / 'nowhere'}")
    (tmp_path / "packed.zip").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"packed\.zip is a file; unpack it"):
        load_data(f"{name}:{tmp_path / 'packed.zip'}")


# -- folders --------------------------------------------------------------------------------


def test_class_folders(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "cats/1.jpg",
        "cats/indoors/sofa/2.PNG",
        "dogs/1.jpeg",
        "dogs/2.webp",
        "Übergröße 猫/foto mit leerzeichen.v2.jpg",
    )
    for hidden in (".git/x.jpg", "cats/._1.jpg", "__MACOSX/cats/1.jpg", "cats/.thumbs/1.jpg"):
        picture(tmp_path / hidden)
    write(tmp_path / "cats" / "Thumbs.db", "not a picture")
    write(tmp_path / "readme.txt", "pets")
    split = load_data(f"folder:{tmp_path}")
    assert split.protocol == "same-identity"
    assert split.train is None
    assert split.query is not split.gallery or split.query.names == split.gallery.names
    assert labels(split) == {
        "cats/1": 0,
        "cats/indoors/sofa/2": 0,
        "dogs/1": 1,
        "dogs/2": 1,
        "Übergröße 猫/foto mit leerzeichen.v2": 2,
    }
    assert relevant(split) == {
        "cats/1": {"cats/indoors/sofa/2"},
        "cats/indoors/sofa/2": {"cats/1"},
        "dogs/1": {"dogs/2"},
        "dogs/2": {"dogs/1"},
        "Übergröße 猫/foto mit leerzeichen.v2": set(),
    }
    readable(split)


def test_links_are_followed_and_end(tmp_path: Path) -> None:
    pictures(tmp_path / "store", "tabby/1.jpg", "tabby/2.jpg")
    root = pictures(tmp_path / "root", "dogs/1.jpg")
    (root / "cats").symlink_to(tmp_path / "store" / "tabby", target_is_directory=True)
    (root / "dogs" / "again").symlink_to(root, target_is_directory=True)
    (tmp_path / "store" / "tabby" / "dogs").symlink_to(root / "dogs", target_is_directory=True)
    names = set(load_data(f"folder:{root}").query.names)
    assert {"cats/1", "cats/2", "dogs/1"} <= names
    assert len(names) < 20
    linked = tmp_path / "link"
    linked.symlink_to(root, target_is_directory=True)
    assert set(load_data(f"folder:{linked}").query.names) == names


def test_files_that_differ_in_the_ending_are_two_pictures(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data", "a/1.jpg", "a/1.png", "a/2.jpg", "b/1.jpg")
    split = load_data(f"folder:{root}")
    assert labels(split) == {"a/1.jpg": 0, "a/1.png": 0, "a/2": 0, "b/1": 1}
    for name, file in (("a/1.jpg", "a/1.jpg"), ("a/1.png", "a/1.png"), ("a/2", "a/2.jpg")):
        seen = split.query.read(split.query.names.index(name))[0, 0].astype(int)
        assert np.abs(seen - colour(root / file)).max() <= 4  # JPEG
    # Pictures written under these names stand in for these queries.
    for i, name in enumerate(split.query.names):
        encode(tmp_path / "changed" / f"{name}.png", split.query.read(i))
    assert set(replace_queries(split.query, tmp_path / "changed").names) == set(split.query.names)
    with pytest.raises(DataError, match=r"1\.jpg and .*1\.png share the name a/1"):
        files_by_name(root)


def test_query_and_gallery_folders(tmp_path: Path) -> None:
    pictures(
        tmp_path,
        "query/cats/1.jpg",
        "query/eels/1.jpg",
        "gallery/cats/1.jpg",  # another picture of the same name: it counts
        "gallery/cats/2.jpg",
        "gallery/dogs/1.jpg",
        "train/ants/1.jpg",
        "notes/figure.jpg",
    )
    split = load_data(f"folder:{tmp_path}")
    assert relevant(split) == {
        "query/cats/1": {"gallery/cats/1", "gallery/cats/2"},
        "query/eels/1": set(),
    }
    assert labels(split, "train") == {"train/ants/1": 0}
    assert labels(split) == {"gallery/cats/1": 1, "gallery/cats/2": 1, "gallery/dogs/1": 2}
    readable(split)


@pytest.mark.parametrize("test", ["test", "Testing", "validation", "dev"])
def test_hugging_face_folders(tmp_path: Path, test: str) -> None:
    pictures(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg")
    pictures(tmp_path, f"{test}/cat/1.jpg", f"{test}/cat/2.jpg", f"{test}/dog/1.jpg")
    split = load_data(f"folder:{tmp_path}")
    assert labels(split) == {f"{test}/cat/1": 0, f"{test}/cat/2": 0, f"{test}/dog/1": 1}
    assert relevant(split)[f"{test}/cat/1"] == {f"{test}/cat/2"}
    assert split.train is not None
    assert split.train.names == ("train/cat/1", "train/dog/1")


def test_validation_gives_way_to_test(tmp_path: Path) -> None:
    pictures(tmp_path, "val/cat/1.jpg", "val/dog/1.jpg", "test/cat/2.jpg", "test/dog/2.jpg")
    split = load_data(f"folder:{tmp_path}")
    assert split.query.names == split.gallery.names == ("test/cat/2", "test/dog/2")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("per_part", [False, True])
def test_hugging_face_metadata(tmp_path: Path, form: str, per_part: bool) -> None:
    rows = {
        "train": [("a.jpg", "cat")],
        "test": [("a.jpg", "cat"), ("b.jpg", "cat"), ("c.jpg", "dog")],
    }
    pictures(tmp_path, *(f"{part}/{file}" for part in rows for file, _ in rows[part]))
    picture(tmp_path / "test" / "unlisted.jpg")

    def lines(listed: list[tuple[str, str]]) -> list[str]:
        if form == "csv":
            return ["file_name,text,label", *(f"{path},a pet,{label}" for path, label in listed)]
        return [json.dumps({"file_name": p, "label": x, "objects": {"n": [1]}}) for p, x in listed]

    if per_part:
        for part, listed in rows.items():
            write(tmp_path / part / f"metadata.{form}", *lines(listed))
    else:
        everything = [(f"{part}/{file}", x) for part in rows for file, x in rows[part]]
        write(tmp_path / f"metadata.{form}", *lines(everything))
    split = load_data(f"folder:{tmp_path}")
    assert relevant(split) == {"test/a": {"test/b"}, "test/b": {"test/a"}, "test/c": set()}
    assert labels(split, "train") == {"train/a": 0}


def test_the_order_in_which_layouts_are_tried(tmp_path: Path) -> None:
    """A list that is named, then metadata, then folders."""
    pictures(tmp_path, "query/cat/1.jpg", "gallery/cat/1.jpg", "gallery/dog/1.jpg")
    assert load_data(f"folder:{tmp_path}").query.names == ("query/cat/1",)
    write(tmp_path / "metadata.csv", "file_name,label", "gallery/cat/1.jpg,0", "query/cat/1.jpg,1")
    assert labels(load_data(f"folder:{tmp_path}"), "query") == {"query/cat/1": 1}
    write(tmp_path / "own.csv", "path,identity", "gallery/dog/1.jpg,3", "gallery/cat/1.jpg,4")
    assert labels(load_data(f"folder:{tmp_path},csv=own.csv")) == {
        "gallery/dog/1": 3,
        "gallery/cat/1": 4,
    }


# -- lists ----------------------------------------------------------------------------------


def test_csv_with_cameras(tmp_path: Path) -> None:
    pictures(tmp_path, *(f"img/{n}.jpg" for n in range(6)))
    write(
        tmp_path / "labels.csv",
        "path,identity,camera,split",
        "img/0.jpg,7,1,query",
        "img/1.jpg,7,1,gallery",
        "img/2.jpg,7,2,gallery",
        "img/3.jpg,-1,2,gallery",
        "img/4.jpg,8,2,gallery",
        "img/5.jpg,9,1,train",
    )
    for spec in (f"folder:{tmp_path}/labels.csv", f"folder:{tmp_path},csv=labels.csv"):
        split = load_data(spec)
        assert split.protocol == "cross-camera"
        assert relevant(split) == {"img/0": {"img/2"}}
        assert labels(split) == {"img/1": 7, "img/2": 7, "img/3": -1, "img/4": 8}
        assert split.gallery.cameras.tolist() == [1, 2, 2, 2]
        assert labels(split, "train") == {"img/5": 9}
    readable(split)


def test_csv_as_people_write_it(tmp_path: Path) -> None:
    """Excel's mark and semicolons, Windows' paths and line ends, capitals, spaces, empty lines."""
    pictures(tmp_path, "Fotos/Bär eins.jpg", "Fotos/bär zwei.jpg", "Fotos/c, d.jpg", "e.jpg")
    text = (
        "\ufeffFile_Name ; Label;Note;\r\n"
        "Fotos\\Bär eins.jpg; Bär ;;\r\n"
        '"Fotos\\bär zwei.jpg";Bär;"two\r\nlines"\r\n'
        "\r\n"
        ";;;\r\n"
        "Fotos\\c, d.jpg;猫;x\r\n"
        ".\\Fotos\\..\\e.jpg;猫\r\n"
    )
    (tmp_path / "liste.csv").write_bytes(text.encode("utf-8"))
    split = load_data(f"folder:{tmp_path},csv=liste.csv")
    assert split.protocol == "same-identity"
    assert labels(split) == {
        "Fotos/Bär eins": 0,
        "Fotos/bär zwei": 0,
        "Fotos/c, d": 1,
        "e": 1,
    }
    readable(split)


def test_text_labels_are_numbered_as_sorted_and_numbers_kept(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for given_labels, expected in (
        (("10", "9", "-1"), [10, 9, -1]),
        (("10.0", "9.0", "9.0"), [10, 9, 9]),  # by pandas
        (("10", "9", "nine"), [0, 1, 2]),
        (("b", "a", "b"), [1, 0, 1]),
        (("9" * 30, "8", "8"), [1, 0, 0]),  # no 64-bit number
    ):
        rows = [f"{p},{x}" for p, x in zip(("a.jpg", "b.jpg", "c.jpg"), given_labels, strict=True)]
        split = ["query", "gallery", "gallery"] if "-1" in given_labels else [""] * 3
        lines = [f"{row},{part}" for row, part in zip(rows, split, strict=True)]
        if "-1" in given_labels:
            picture(tmp_path / "d.jpg")
            lines.append("d.jpg,10,gallery")
        write(tmp_path / "l.csv", "path,identity,split", *lines)
        found = load_data(f"folder:{tmp_path}/l.csv")
        both = labels(found, "query") | labels(found)
        assert [both[name] for name in "abc"] == expected


def test_a_folder_called_train_means_nothing_to_a_csv(tmp_path: Path) -> None:
    """As in many a competition: train.csv lists what lies in train/, and that is all there is."""
    pictures(tmp_path, "train/1.jpg", "train/2.jpg", "train/3.jpg")
    write(tmp_path / "train.csv", "path,label", *(f"train/{n}.jpg,{n // 2}" for n in (1, 2, 3)))
    split = load_data(f"folder:{tmp_path}/train.csv")
    assert relevant(split) == {"train/1": set(), "train/2": {"train/3"}, "train/3": {"train/2"}}


def test_csv_of_open_metric_learning(tmp_path: Path) -> None:
    pictures(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg")
    write(
        tmp_path / "df.csv",
        "label,path,split,is_query,is_gallery,category",
        "0,1.jpg,train,,,toy",
        "1,2.jpg,validation,True,False,toy",
        "1,3.jpg,validation,False,True,toy",
        "2,4.jpg,validation,True,True,toy",
        "2,5.jpg,validation,False,False,toy",
    )
    split = load_data(f"folder:{tmp_path}/df.csv")
    assert split.query.names == ("2", "4")
    assert split.gallery.names == ("3", "4")
    assert relevant(split) == {"2": {"3"}, "4": set()}


def test_lists_may_point_elsewhere(tmp_path: Path) -> None:
    pictures(tmp_path, "store/a/1.jpg", "store/b/1.jpg", "lists/own.jpg")
    write(
        tmp_path / "lists" / "labels.csv",
        "path,identity",
        f"{tmp_path}/store/a/1.jpg,x",
        "../store/b/1.jpg,x",
        "own.jpg,y",
    )
    split = load_data(f"folder:{tmp_path}/lists/labels.csv")
    # Named from the folder that holds them all, so that no name leads out of a run folder.
    assert split.query.names == ("store/a/1", "store/b/1", "lists/own")
    readable(split)
    write(tmp_path / "lists" / "inside.csv", "path,identity", "own.jpg,1", "../store/a/1.jpg,2")
    inside = load_data(f"folder:{tmp_path},csv=lists/inside.csv")
    assert inside.query.names == ("lists/own", "store/a/1")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label", "1.jpg,"], r"l\.csv, line 2: the identity is missing"),
        (["path,label", "1.jpg,a", ",b"], r"l\.csv, line 3: the path is missing"),
        (["path,label,camera", "1.jpg,a,1", "2.jpg,b,"], r"line 3: the camera is missing"),
        (["path,label,split", "1.jpg,a,probe"], "line 2: unknown split 'probe'; known: train,"),
        (["path,label", "1.jpg,a", "9.jpg,b"], r"line 3: the picture .*9\.jpg is missing"),
        (["path,label", "1.jpg,a", "1.jpg,b"], r"line 2 and .*line 3: 1\.jpg is listed twice"),
        (
            ["path,label", "a,b,c.jpg,1"],
            "line 2 has 4 cells, the header 2; put a path .* in quotes",
        ),
        (["path,label", '1.jpg,"a'], r"line 2: unexpected end of data"),
        (["path,label", "1\0.jpg,a", "2.jpg,b"], r"l\.csv, line 2: .* is missing"),
        (["path,identity"], r"l\.csv has no rows"),
        ([], r"l\.csv has no rows"),
        (["1.jpg,a"], r"l\.csv has no column path or file_name or filename, only 1\.jpg, a"),
        (["path,colour", "1.jpg,a"], "no column identity or label"),
        (["path,label,split", "1.jpg,a,train"], "no query and no gallery pictures, only train"),
        (["path,label,split", "1.jpg,a,query"], "no gallery pictures, only query"),
        (["path,label,split", "1.jpg,-1,query", "2.jpg,1,test"], "query 1 has identity -1"),
        (["path,label", "1.jpg,a", "2.jpg,a"], "single identity to rank, so that every"),
        (["path,label,camera", "1.jpg,a,1", "2.jpg,b,1"], "single camera"),
        (["path,label,split,is_query", "1.jpg,a,test,maybe"], "line 2: is_query is 'maybe'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    pictures(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "l.csv", *lines)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}/l.csv")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"file_name": "1.jpg", "label": 0}', "{"], r"jsonl, line 2 is not JSON"),
        (['["1.jpg", 0]'], "line 1 is no JSON object"),
        (['{"file_name": "1.jpg", "label": [0]}'], "no column identity or label"),
        (['{"file_name": "1.jpg", "label": null}'], "line 1: the identity is missing"),
        (["[" * 100_000], "line 1 is not JSON"),
        (
            [
                '{"file_name": "1.jpg", "label": 0, "camera": 1}',
                '{"file_name": "2.jpg", "label": 1}',
            ],
            "line 2: the camera is missing, others have one",
        ),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, lines: list[str], message: str) -> None:
    pictures(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "metadata.jsonl", *lines)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["1.jpg", "cats/1.jpg"], r"1\.jpg lies in no class folder; .* or list the pictures"),
        (["images/1.jpg", "images/cats/2.jpg"], "single identity .*holds the class folders"),
        (["query/1.jpg", "gallery/a/1.jpg"], r"query.1\.jpg lies in no class folder"),
        (["query/a/1.jpg", "galery/a/1.jpg"], "holds galery, query: parts of a data set are"),
        (["train/a/1.jpg", "test/a/1.jpg", "extra/1.jpg"], "train and test with nothing beside"),
        (["train/a/1.jpg", "train/b/1.jpg"], "no query and no gallery pictures, only train"),
        (["bounding_box_test/a.jpg", "query/b.jpg"], r"read it with its own name, such as market"),
        (["cats/.1.jpg"], "holds no pictures"),
    ],
)
def test_folders_that_fit_no_layout(tmp_path: Path, paths: list[str], message: str) -> None:
    pictures(tmp_path, *paths)
    with pytest.raises(DataError, match=message):
        load_data(f"folder:{tmp_path}")


def test_two_metadata_files_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "metadata.csv", "file_name,label")
    write(tmp_path / "metadata.jsonl")
    with pytest.raises(DataError, match="both list pictures; remove one"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.skipif(os.name == "nt", reason="Windows' names are Unicode")
def test_names_that_are_no_unicode_are_refused(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.jpg", "b/1.jpg")
    try:
        (tmp_path / "a" / "1.jpg").rename(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes Unicode only")
    with pytest.raises(DataError, match="is not Unicode; rename it"):
        load_data(f"folder:{tmp_path}")


cells = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\\u2028\u2029\x85"),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip() and text.strip(".") and len(text.encode()) < 100)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(cells, cells, min_size=2, max_size=6), st.sampled_from(",;\t"))
def test_any_table_is_read_as_written(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, str], separator: str
) -> None:
    """Names and labels of any script survive; the same labels stay the same identity."""
    root = tmp_path_factory.mktemp("table")
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator)
    writer.writerow(["path", "identity"])
    for name, label in table.items():
        (root / f"{name}.jpg").write_bytes(b"not decoded here")
        writer.writerow([f"{name}.jpg", label])
    (root / "l.csv").write_text(stream.getvalue(), encoding="utf-8", newline="")
    if len(set(table.values())) == 1:
        with pytest.raises(DataError, match="single identity"):
            load_data(f"folder:{root}/l.csv")
        return
    if "-1" in table.values():
        return
    found = labels(load_data(f"folder:{root}/l.csv"))
    assert list(found) == list(table)
    for one in table:
        for other in table:
            assert (found[one] == found[other]) == (table[one] == table[other])


# -- from folder to score -------------------------------------------------------------------


def shapes(root: Path) -> Path:
    """Two classes that any network tells apart, and a class of one picture."""
    rng = np.random.default_rng(0)
    for name, count in (("bright", 3), ("dark", 3), ("alone", 1)):
        for i in range(count):
            base = np.full((32, 32, 3), {"bright": 220, "dark": 20, "alone": 120}[name])
            base[:, :16] = {"bright": 200, "dark": 230, "alone": 0}[name]
            noise = rng.integers(-3, 4, base.shape)
            encode(root / name / "sub folder" / f"{i}.png", (base + noise).astype(np.uint8))
    return root


def test_a_folder_is_scored_attacked_and_scored_again(tmp_path: Path, glyph_victim: Victim) -> None:
    data = f"folder:{shapes(tmp_path / 'data')}"
    values = evaluate(glyph_victim, load_data(data), progress=False)
    assert values["queries"] == values["gallery"] == 7
    assert values["no-match queries"] == 1
    assert values["recall@1"] == 1
    plan = Plan(victim="glyph_net", data=data, attacks=("odfa",), eps=(8,), seed=0)
    rows = run(plan, tmp_path / "run", progress=False)
    (attacked,) = (row for row in rows if row["attack"] == "odfa")
    written = tmp_path / "run" / "images" / "odfa" / "eps8"
    assert (written / "dark" / "sub folder" / "0.png").is_file()
    split = load_data(data)
    again = replace(split, query=replace_queries(split.query, written))
    assert set(again.query.names) == set(split.query.names)
    scored = evaluate(glyph_victim, again, progress=False)
    assert scored["recall@1"] == pytest.approx(attacked["recall@1"])
    assert scored["map (plain)"] == pytest.approx(attacked["map"])
    arguments = ["eval", "--victim", "glyph_net", "--data", data, "--query-dir", str(written)]
    result = CliRunner().invoke(main, [*arguments, "--json", "--quiet", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["recall@1"] == pytest.approx(attacked["recall@1"])


def test_the_catalogue_says_what_each_is() -> None:
    result = CliRunner().invoke(main, ["list", "data"])
    for name, factory in CATALOG.items():
        assert factory.__doc__ is not None
        summary = factory.__doc__.partition("\n")[0]
        assert f"{name} " in result.output
        assert summary in result.output
        assert len(summary) < 90


def test_a_column_that_is_nearly_known_is_not_passed_over(tmp_path: Path) -> None:
    """Without a camera the protocol would be another, and nobody would notice."""
    (tmp_path / "labels.csv").write_text("path,identity,cam\na.png,1,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="a column 'cam' that is not read; if it is the camera"):
        load_data(f"folder:{tmp_path}/labels.csv")


def test_a_bare_path_is_no_data_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is a path; write folder:"):
        load_data(str(tmp_path))
