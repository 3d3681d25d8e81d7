"""Pickles as data: what plain ones hold, and what hostile ones cannot do."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from uturn.data import pickles
from uturn.data.pickles import read_pickle
from uturn.data.split import Split
from uturn.errors import DataError

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
plain = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text() | st.integers(), inner, max_size=4),
        st.sets(st.integers() | st.text(), max_size=4),
    ),
    max_leaves=12,
)
protocols = st.integers(0, pickle.HIGHEST_PROTOCOL)
quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

ARRAYS = [
    np.arange(6).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array([True, False]),
    np.array(["ab", "é"]),
    np.array([b"ab", b"c"]),
    np.zeros((0, 4)),
    np.array(7, dtype=np.uint8),
    np.array([[1, 2], None, "x"], dtype=object),
]


def written(folder: Path, data: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(data)
    return path


@quick
@given(plain, protocols)
def test_plain_data_comes_back(tmp_path: Path, data: Any, protocol: int) -> None:
    assert read_pickle(written(tmp_path, pickle.dumps(data, protocol))) == data


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_numbers_come_back(tmp_path: Path, protocol: int) -> None:
    numbers = [np.float32(1.5), np.int64(-3), np.bool_(True)]
    file = written(tmp_path, pickle.dumps([ARRAYS, numbers, ARRAYS[0]], protocol))
    arrays, read, again = read_pickle(file)
    for array, known in zip(arrays, ARRAYS, strict=True):
        np.testing.assert_array_equal(array, known)
        assert (array.dtype, array.shape) == (known.dtype, known.shape)
        assert array.flags.writeable
    assert [(type(n), n) for n in read] == [(type(n), n) for n in numbers]
    assert again is arrays[0]


def test_python_2_wrote_bytes_as_strings(tmp_path: Path) -> None:
    # {"data": array([[1, 255]], uint8), "é" in latin-1: [1]} as Python 2 with NumPy wrote it
    data = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86"
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x01\xfftbU\x01\xe9]K\x01au."
    )
    read = read_pickle(written(tmp_path, data), encoding="latin-1")
    assert read["é"] == [1]
    assert read["data"].dtype == np.uint8
    assert read["data"].tolist() == [[1, 255]]
    with pytest.raises(DataError, match=r"cannot read the pickle .* it is damaged"):
        read_pickle(written(tmp_path, data))


class Calls:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self) -> tuple[Any, ...]:
        call = (self.function, self.arguments)
        return call if self.state is None else (*call, self.state)


CANARY = "uturn-canary"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "hostile",
    [
        Calls(os.system, f"touch {CANARY}"),
        Calls(eval, f"open('{CANARY}', 'w')"),
        Calls(exec, f"open('{CANARY}', 'w')"),
        Calls(open, CANARY, "w"),
        Calls(__import__, "os"),
        Calls(np.save, CANARY, 1),
        Calls(np.load, CANARY),
        Calls(Path, CANARY),
        Split,
        Counter("uturn"),
        Calls(np.ndarray, (1 << 40,)),
        np.zeros(1, dtype=[("a", "i4")]),
        np.zeros(1, dtype="M8[s]"),
    ],
)
def test_nothing_named_in_a_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, pickle.dumps({"gnd": [hostile]}, protocol))
    with pytest.raises(DataError, match=r"data\.pkl .* so it is not read"):
        read_pickle(file)
    assert not (tmp_path / f"{CANARY}.npy").exists()
    assert not (tmp_path / CANARY).exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def array_of(shape: bytes, dtype: str, raw: bytes) -> bytes:
    """``numpy.ndarray`` of a shape (instructions), a type's code and bytes (an instruction)."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + text(dtype)
        + b"\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + raw
        + b"tb."
    )


HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x10"  # 2**44

BOMBS = {
    "long": b"\x8b\xff\xff\xff\x7f.",
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b".",
    "text": b"\x8d" + struct.pack("<Q", 1 << 62) + b".",
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62),
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "array": array_of(HUGE + b"\x85", "i8", b"C\x00"),
    "array of nothing": array_of(HUGE + b"K\x00\x86", "S9999999", b"C\x00"),
    "array of objects": array_of(HUGE + b"\x85", "O", b"]"),
    "product": array_of(b"(" + HUGE * 3000 + b"t", "i8", b"C\x00"),
    "character": array_of(b"K\x01\x85", "U1", b"C\x04\xff\xff\xff\x7f"),
    "key": b"}" + b")" + b"\x85" * 20_000 + b"K\x01s.",
    "shared key": b"})" + b"2\x86" * 60 + b"K\x01s.",
    "member": b"\x8f()" + b"2\x86" * 60 + b"\x90.",
    "name": b")" + b"2\x86" * 60 + b"2\x93.",
    "itself": b"\x80\x02]q\x00h\x00ah\x00}h\x00K\x01s.",
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_neither_fill_the_memory_nor_end_the_process(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"data\.pkl"):
            read_pickle(file)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_far_memo_is_no_table_of_its_size(tmp_path: Path) -> None:
    tracemalloc.start()
    assert read_pickle(written(tmp_path, b"K\x01r\xfe\xff\xff\xff0j\xfe\xff\xff\xff.")) == 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_deep_and_shared_lists_are_as_small_as_their_file(tmp_path: Path) -> None:
    tracemalloc.start()
    deep = read_pickle(written(tmp_path, b"]" + b"\x85" * 20_000 + b"."))
    shared = read_pickle(written(tmp_path, b"]" + b"2\x86" * 100 + b"."))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert isinstance(deep, tuple)
    assert shared[0] is shared[1]


@pytest.mark.parametrize(
    "code",
    [
        b"(ios\nsystem\n.",  # INST
        b"(cbuiltins\nset\no.",  # OBJ
        b"cbuiltins\nset\n)\x81.",  # NEWOBJ
        b"\x82\x01.",  # EXT1
        b"Pname\n.",  # PERSID
        b"]Q.",  # BINPERSID
        b"\x97.",  # NEXT_BUFFER
        b"]}X\x01\x00\x00\x00aK\x01sb.",  # BUILD on a list
        b"cnumpy\nndarray\n}X\x07\x00\x00\x00__new__K\x01sb.",  # BUILD on a name
        b"cbuiltins\nset\n)R)R.",  # a call of a result
        b"cnumpy.core.multiarray\nset_string_function\n.",
        b"cuturn\nload_victim\n.",
        b"c__builtin__\nbuiltins.eval\n.",
        b"S'\\q'\n.",  # no escape of Python's
    ],
)
def test_other_instructions_are_refused(tmp_path: Path, code: bytes) -> None:
    with pytest.raises(DataError, match=r"data\.pkl"):
        read_pickle(written(tmp_path, code))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_truncation_is_an_error(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"a": [1, "b", (2.5, None)], "n": ARRAYS[0], "s": {1}}, protocol)
    for end in range(len(data)):
        with pytest.raises(DataError, match=r"data\.pkl"):
            read_pickle(written(tmp_path, data[:end]))


SEED = pickle.dumps([{"a": (1, 2.0, "b"), "n": np.arange(3), "o": ARRAYS[-1]}, {1}, b"c"], 2)


@settings(quick, max_examples=500)
@given(st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.integers(0, 255)), max_size=6))
@example([])
def test_a_damaged_file_is_read_or_an_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SEED)
    for position, value in changes:
        data[position] = value
    with suppress(DataError):  # and nothing else
        read_pickle(written(tmp_path, bytes(data)))


def test_what_is_no_file_or_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"there is no pickle at .*none\.pkl"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(DataError, match="there is no pickle"):
        read_pickle(tmp_path)
    file = written(tmp_path, pickle.dumps(list(range(2000))))
    monkeypatch.setattr(pickles, "_MAX_INSTRUCTIONS", 1000)
    with pytest.raises(DataError, match="more than 1,000 instructions"):
        read_pickle(file)
    monkeypatch.setattr(pickles, "_MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"data\.pkl has more than"):
        read_pickle(file)
