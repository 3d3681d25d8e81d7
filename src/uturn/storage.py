"""Where a run folder lies: in a path of this machine, or under a URL of storage that many share."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, cast

from uturn.errors import SpecError

_DIGITS = 300
"""Of a whole number; what has as many is below the largest float."""

ASIDE = ".tmp"
"""How the names of files end that are not whole yet; they begin with a dot."""


def place(text: str) -> Path:
    """A path, or for a URL such as ``s3://bucket/run`` what behaves like one, by fsspec.

    Listings are not kept: other machines write there, too.

    Raises:
        SpecError: a package is missing, or the storage is unknown or does not answer.

    >>> place("runs/one").as_posix()
    'runs/one'
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath
    except ImportError as error:
        raise SpecError(
            f"{text} needs universal_pathlib ({error}); pip install 'uturn[storage]'"
        ) from error
    try:
        found = cast("Path", UPath(text, use_listings_cache=False))
        found.exists()
    except Exception as error:  # every storage has its own
        raise SpecError(
            f"cannot use {text}: {error}; fsspec's documentation names each storage's package "
            "(s3fs for s3://) and how it is told who you are"
        ) from error
    return found


def json_of(content: bytes | str) -> Any:
    """What JSON from anywhere says.

    Raises:
        ValueError: it is none; so is what nests too deeply to be read, and what has whole numbers
            that no float holds.
    """
    try:
        return json.loads(content, parse_int=_integer)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number has {len(digits)} digits")
    return int(digits)


def anywhere(path: Path) -> str:
    """What `place` finds ``path`` by in a process with another working directory."""
    return str(path.absolute() if isinstance(path, Path) else path)


def write(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, whoever else writes the same one.

    It outlives a kill of the process at any moment. A machine that loses power can lose it.
    """
    with _whole(path) as aside:
        aside.write_bytes(content)


def commit(path: Path, content: bytes) -> None:
    """`write`, and it is on the disk when this returns: it outlives a loss of power, too."""
    if not isinstance(path, Path):
        write(path, content)  # what storage of many has taken, it keeps
        return
    with _whole(path) as aside, aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _sync(path.parent)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to be written, which takes the place of ``path`` once it is whole.

    What was begun and failed is removed: on a full disk it takes the room of what could be kept.
    """
    _make(path.parent)
    aside = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{ASIDE}")
    try:
        yield aside
        if isinstance(path, Path):
            aside.replace(path)
        else:
            aside.rename(path)  # which overwrites there; replace is missing
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _make(folder: Path) -> None:
    """Make a folder and those above it; who knows of their files must know of them."""
    if not isinstance(folder, Path):
        remote: Any = folder
        remote.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """See that what a folder lists is on the disk, where the system can be told to."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems know no such thing of folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_aside(folder: Path) -> None:
    """Remove what writers who were killed have left below ``folder``; nobody may write there."""
    for aside in list(folder.rglob(f".*{ASIDE}")):
        aside.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, or what can be removed of it."""
    remote: Any = folder
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif remote.exists():
        remote.rmdir(recursive=True)


def inside(name: str) -> bool:
    """Whether a name from a run's files stays within its folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
