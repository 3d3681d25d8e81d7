"""Reading pickled data without running anything in it.

A pickle is a program, and Python's own reader runs it. Here its instructions are taken one by
one, and only those that build plain data have a meaning: containers, strings, numbers and NumPy's
arrays and scalars. Nothing named in the file is imported or called. Memory stays within a small
multiple of the file's size: sizes it claims are checked against the bytes it has.

Source: ``pickletools`` of the standard library, which documents every instruction.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
import numpy.typing as npt

from uturn.errors import DataError

_MAX_BYTES = 1 << 29
_MAX_INSTRUCTIONS = 4_000_000
_KEYS = (str, bytes, int, float, bool, type(None))
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,3}|O[48]?")


def read_pickle(path: Path | str, encoding: str = "ASCII") -> Any:
    """The plain data pickled in the file at ``path``, protocols 0 to 5.

    ``encoding`` decodes the byte strings of Python 2, as in ``pickle.load``: files with NumPy
    arrays that Python 2 wrote need ``latin-1``.

    Raises:
        DataError: there is no such file, it is truncated or too large, or holds anything but
            plain data; the message names what. Nothing of it has been run.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no pickle at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"the pickle {path} has more than {_MAX_BYTES >> 20} MiB; is it the file?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of escapes that no one writes
            return _Machine(encoding).run(path.read_bytes())
    except _RefusedError as error:
        raise DataError(
            f"the pickle {path} {error}, so it is not read; get the data set's own file"
        ) from None
    except (ValueError, TypeError, LookupError, OverflowError, OSError, Warning) as error:
        raise DataError(
            f"cannot read the pickle {path}: {error}; it is damaged, get it again"
        ) from error


class _RefusedError(Exception):
    """The file asks for more than plain data."""


@final
@dataclass(frozen=True)
class _Global:
    """A name in the file. It stays a name."""

    name: str


@final
@dataclass(eq=False)
class _Unbuilt:
    """An array or dtype whose contents the next instructions bring."""

    build: Callable[[Any], Any]
    memo: list[int] = field(default_factory=list)
    """Where it was remembered, to be replaced there."""


class _Machine:
    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (code, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count == _MAX_INSTRUCTIONS:
                raise _RefusedError(f"has more than {_MAX_INSTRUCTIONS:,} instructions")
            if code.name == "STOP":
                break
            self._do(code.name, argument)
        return self._pop()

    def _do(self, code: str, argument: Any) -> None:
        stack = self._stack
        match code:
            case "PROTO" | "FRAME":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case (
                ("INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4")
                | ("FLOAT" | "BINFLOAT")
                | ("UNICODE" | "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8")
                | ("SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8")
            ):
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument.encode("latin-1").decode(self._encoding))
            case "STRING":  # only in protocol 0
                stack.append(argument)
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(set())
            case "MARK":
                self._marks.append(len(stack))
            case "LIST":
                stack.append(self._since_mark())
            case "TUPLE":
                stack.append(tuple(self._since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(code[-1]))]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = self._since_mark()
                stack.append({})
                self._set_items(items)
            case "FROZENSET":
                stack.append(frozenset(map(_key, self._since_mark())))
            case "APPEND":
                item = self._pop()
                self._top(list).append(item)
            case "APPENDS":
                items = self._since_mark()
                self._top(list).extend(items)
            case "ADDITEMS":
                items = self._since_mark()
                self._top(set).update(map(_key, items))
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._since_mark())
            case "POP":
                self._pop()
            case "POP_MARK":
                self._since_mark()
            case "DUP":
                item = self._pop()
                stack += [item, item]
            case "MEMOIZE":
                self._remember(len(self._memo))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                if not isinstance(name, str) or not isinstance(module, str):
                    raise ValueError("a name is no string")
                stack.append(_global(module, name))
            case "REDUCE":
                arguments, name = self._pop(), self._pop()
                if not isinstance(name, _Global) or not isinstance(arguments, tuple):
                    raise _RefusedError("calls something that has no name")
                stack.append(_GLOBALS[name.name](*arguments))
            case "BUILD":
                state = self._pop()
                unbuilt = self._stack.pop()
                if not isinstance(unbuilt, _Unbuilt):
                    raise _RefusedError("sets the state of an object that is no NumPy array")
                built = unbuilt.build(state)
                stack.append(built)
                self._memo.update(dict.fromkeys(unbuilt.memo, built))
            case _:
                raise _RefusedError(f"holds more than plain data (instruction {code})")

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("an item is missing")
        item = self._stack.pop()
        if isinstance(item, _Unbuilt):
            raise ValueError("an array lacks its contents")
        return item

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        if any(isinstance(item, _Unbuilt) for item in items):
            raise ValueError("an array lacks its contents")
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"items are put into what is no {kind.__name__}")
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def _remember(self, where: int) -> None:
        item = self._stack[-1]
        self._memo[where] = item
        if isinstance(item, _Unbuilt):
            item.memo.append(where)


def _key(item: Any) -> Any:
    # Hashing a tuple that nests deeply enough ends the process, or takes forever.
    if not isinstance(item, _KEYS):
        raise ValueError(f"a key is a {type(item).__name__}, no string or number")
    return item


def _global(module: str, name: str) -> _Global:
    module = re.sub(r"^numpy\.core\b", "numpy._core", module).replace("__builtin__", "builtins")
    if f"{module}.{name}" not in _GLOBALS:
        raise _RefusedError(f"names {f'{module}.{name}'[:80]!r}, which is no plain data")
    return _Global(f"{module}.{name}")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[Any]:
    if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or order not in ("C", "F"):
        raise ValueError("an array's type or shape is malformed")
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise ValueError("an array's shape is malformed")
    if dtype.hasobject:
        items = np.empty(len(raw) if isinstance(raw, list) else 0, dtype=object)
        for i, item in enumerate(raw):
            items[i] = item
        return items.reshape(shape, order=order)
    raw = raw.encode("latin-1") if isinstance(raw, str) else raw  # by Python 2
    if not isinstance(raw, bytes | bytearray) or len(raw) != math.prod(shape) * dtype.itemsize:
        raise ValueError("an array's bytes do not fit its shape")
    # A copy of its own that may be written to.
    flat = np.frombuffer(raw, dtype).copy() if raw else np.empty(0, dtype)
    if dtype.kind == "U" and (flat.view(f"{dtype.byteorder}u4") > sys.maxunicode).any():
        raise ValueError("an array holds characters that do not exist")
    return flat.reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Unbuilt:
    if kind != _Global("numpy.ndarray"):
        raise ValueError("an array of an unknown class")

    def build(state: Any) -> npt.NDArray[Any]:
        _, shape, dtype, fortran, raw = state
        return _array(raw, dtype, shape, "F" if fortran else "C")

    return _Unbuilt(build)


def _dtype(code: Any, align: Any = False, copy: Any = False) -> _Unbuilt:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise _RefusedError("holds an array of something else than numbers, strings or plain data")
    plain: np.dtype[Any] = np.dtype("O" if code[0] == "O" else code)

    def build(state: Any) -> np.dtype[Any]:
        _, byteorder, *parts = state
        if byteorder not in ("<", ">", "=", "|") or any(part is not None for part in parts[:3]):
            raise ValueError("an array's type is malformed")
        return plain.newbyteorder(byteorder)

    return _Unbuilt(build)


def _scalar(dtype: Any, raw: Any) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise ValueError("a number's type is malformed")
    return _array(raw, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("a byte string is malformed")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _set(items: Any) -> set[Any]:
    return set(map(_key, items))


def _not_called(*arguments: Any) -> NoReturn:
    raise _RefusedError("calls numpy.ndarray")


_GLOBALS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _not_called,
    "numpy.dtype": _dtype,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.numeric._frombuffer": _array,
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "builtins.set": _set,
}
"""Every name that may stand in a file, and what stands in for it here."""
