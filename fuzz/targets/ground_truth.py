"""Pickles of data sets: on their own, as a landmark ground truth, as a batch of CIFAR-10."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.mutate import worded
from fuzz.target import Target
from uturn.data.cifar10 import cifar10
from uturn.data.landmarks import roxford5k
from uturn.data.pickles import read_pickle
from uturn.errors import DataError

_PLAIN = (type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset)
_NUMPY = (np.ndarray, np.generic, np.dtype)


def _plain(data: bytes, folder: Path) -> None:
    path = folder / "truth.pkl"
    path.write_bytes(data)
    rest, seen = [read_pickle(path, "latin-1")], set[int]()
    while rest:
        here = rest.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        assert isinstance(here, (*_PLAIN, *_NUMPY)) or type(here).__name__ == "_Global", type(here)
        if isinstance(here, dict):
            rest += [*here, *here.values()]
        elif isinstance(here, (list, tuple, set, frozenset)):
            rest += here


def _landmarks(data: bytes, folder: Path) -> None:
    (folder / "jpg").mkdir()
    for name in ("a", "b", "c", "d"):
        (folder / "jpg" / f"{name}.jpg").write_bytes(b"")
    (folder / "gnd_roxford5k.pkl").write_bytes(data)
    split = roxford5k(str(folder))
    for listing in (split.listings or {}).values():
        assert all(0 <= place < len(split.gallery) for place in listing.relevant.tolist())


def _cifar(data: bytes, folder: Path) -> None:
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        (folder / name).write_bytes(_BATCH)
    (folder / "test_batch").write_bytes(data)
    split = cifar10(str(folder))
    assert split.query.read(0).shape == (32, 32, 3)


_BATCH = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}, protocol=2)


def _batches() -> Iterator[bytes]:
    yield _BATCH
    yield pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, protocol=2)
    yield pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [3]}, protocol=4)


def _truths() -> Iterator[bytes]:
    lists: dict[str, Any] = {"easy": [0], "hard": [1], "junk": [2], "bbx": [0.0, 1, 20, 30.5]}
    truth = {"imlist": ["a", "b", "c"], "qimlist": ["d"], "gnd": [lists]}
    arrays = {**lists, "easy": np.array([0, 1]), "junk": np.array([]), "bbx": np.ones(4)}
    for protocol in (2, 0, 4, 5):
        yield pickle.dumps(truth, protocol=protocol)
    yield pickle.dumps({**truth, "gnd": [arrays], "imlist": np.array(["a", "b"])}, protocol=3)


def _anything() -> Iterator[bytes]:
    content: dict[Any, Any] = {
        **{"a": [1, -(2**70), 1.5, True, None, "é", b"\xff"], 3: (1, (2,), {4})},
        **{"f": np.arange(3.0), "s": np.array(["ab"]), "o": np.array([[1], None], dtype=object)},
        **{"z": np.float32(3), "F": np.ones((2, 2), order="F")},
    }
    for protocol in range(6):
        yield pickle.dumps(content, protocol=protocol)
    yield b"cos\nsystem\n(S'touch canary'\ntR."
    yield b"(lp0\ng0\na."


_WORDS = (
    *(b"cos\nsystem\n", b"c__builtin__\neval\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"R"),
    *(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"b", b"("),
    *(b"cnumpy._core.numeric\n_frombuffer\n", b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"t."),
    *(b"\x93", b"\x94", b"]", b"}", b")", b"\x8f", b"\x91", b"h\x00", b"q\x00", b"e", b"u", b"2"),
    *(b"J\xff\xff\xff\x7f", b"\x8a\x08" + b"\xff" * 8, b"\x8e" + b"\xff" * 8, b"X\xff\xff\xff\x7f"),
    *(b"F1e999\n", b"I1000000000000\n", b"S'U4'\n", b"S'O8'\n", b"Vlatin1\n", b"S'V8'\n", b"K\x04"),
)

TARGETS = (
    Target(
        name="pickles",
        parse=_plain,
        refusals=(DataError,),
        seeds=_anything,
        mutate=worded(*_WORDS),
    ),
    Target(
        name="landmarks",
        parse=_landmarks,
        refusals=(DataError,),
        seeds=_truths,
        mutate=worded(*_WORDS),
    ),
    Target(
        name="cifar_batches",
        parse=_cifar,
        refusals=(DataError,),
        seeds=_batches,
        mutate=worded(*_WORDS),
    ),
)
