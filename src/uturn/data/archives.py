"""Unpack archives that nobody vouches for: plain files only, below one folder, within bounds.

Nothing that a header claims is relied on: bytes and members are counted while they come.
"""

from __future__ import annotations

import contextlib
import gzip
import stat
import tarfile
import zipfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, final

from uturn.errors import DataError
from uturn.progress import bar

T = TypeVar("T")

_BLOCK = 1 << 18
_HEADERS = 1 << 20  # bytes of tar headers and padding before a member; tarfile holds them in memory
_DEPTH = 32  # folders above a file


@final
@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What an archive may unpack to. Pictures hardly compress, so real data sets stay far below."""

    members: int = 250_000
    total: int = 64 << 30
    """Bytes, whatever the archive's size."""
    ratio: int = 20
    """Unpacked bytes per byte of the archive, above the first ``free`` bytes."""
    free: int = 64 << 20

    def room(self, packed: int) -> int:
        """Bytes that an archive of ``packed`` bytes may unpack to."""
        return min(self.total, max(self.free, self.ratio * packed))


def is_archive(name: str) -> bool:
    """Whether a file of this name is one that `unpack` reads."""
    return name.lower().endswith(tuple(_READERS))


def unpack(archive: Path, folder: Path, *, bounds: Bounds | None = None, show: bool = True) -> None:
    """Unpack a ``.zip``, ``.tgz`` or ``.tar.gz`` into ``folder``, where nobody else writes.

    Modes, owners and times in the archive are ignored. On an error, what was written so far stays:
    the caller unpacks into a folder that it throws away.

    Raises:
        DataError: a member would leave the folder, is neither file nor folder (links are never
            followed nor made), comes twice, or unpacks to more than ``bounds``; or the archive is
            damaged. The message names the archive and the member.
    """
    bounds = bounds or Bounds()
    packed = archive.stat().st_size
    room, left = bounds.room(packed), bounds.members
    reader = next(read for end, read in _READERS.items() if archive.name.lower().endswith(end))
    with (
        contextlib.closing(reader(archive, room)) as members,
        bar(packed, f"unpack {archive.name}", "byte", show=show) as progress,
    ):
        while (member := _reading(archive, lambda: next(members, None))) is not None:
            left -= 1
            if left < 0:
                raise _refusal(archive, member.name, f"it is beyond the {bounds.members:,}th")
            path = folder.joinpath(*_parts(archive, member.name))
            try:
                (path if member.read is None else path.parent).mkdir(parents=True, exist_ok=True)
                room -= _write(archive, member, path, room)
            except (FileExistsError, NotADirectoryError):
                raise _refusal(archive, member.name, "another one has its place") from None
            progress.update(member.position - progress.n)


def _reading(archive: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except DataError:
        raise
    except Exception as error:  # odd headers lead tarfile and zipfile to nearly any
        raise DataError(
            f"{archive} is damaged or no {archive.suffix} archive ({error}); remove it and fetch "
            "it again"
        ) from error


class _Member(NamedTuple):
    name: str
    read: Callable[[int], bytes] | None
    """None for a folder."""
    position: int
    """Bytes of the archive that lie before, for the progress bar."""


def _write(archive: Path, member: _Member, path: Path, room: int) -> int:
    """Write a member and return its size, at most ``room`` bytes; a folder has none."""
    if (read := member.read) is None:
        return 0
    written = 0
    with path.open("xb") as file:
        while block := _reading(archive, lambda: read(_BLOCK)):
            written += len(block)
            if written > room:
                raise _refusal(archive, member.name, "with it, it unpacks to more than it may")
            file.write(block)
    return written


def _parts(archive: Path, name: str) -> list[str]:
    """The pieces of a member's path; none of them leads out or up on any system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or any(c in name for c in "\\:\0"):
        raise _refusal(archive, name, "it would be written outside the target")
    if len(parts) > _DEPTH:
        raise _refusal(archive, name, f"it lies more than {_DEPTH} folders deep")
    return parts


def _refusal(archive: Path, name: str, why: str) -> DataError:
    short = name if len(name) <= 200 else f"{name[:200]}…"
    return DataError(
        f"{archive.name} is not to be trusted: member {short!r}: {why}; nothing was kept of what "
        "was unpacked, tell the publisher"
    )


class _Metered:
    """A stream of which only so much may be read as was allowed last, and ``left`` in all."""

    def __init__(self, source: gzip.GzipFile, left: int) -> None:
        self.source = source
        self.left = left
        self.allowed = _HEADERS

    def read(self, size: int) -> bytes:
        block = self.source.read(size)
        self.left -= len(block)
        self.allowed -= len(block)
        if min(self.left, self.allowed) < 0:
            raise tarfile.ReadError("it is full of headers")
        return block


def _tar(archive: Path, room: int) -> Generator[_Member, None, None]:
    with archive.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
        metered = _Metered(stream, 2 * room + _HEADERS)
        with tarfile.open(fileobj=metered, mode="r|") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                if not (info.isreg() or info.isdir()):
                    kind = "a link" if info.issym() or info.islnk() else "no plain file"
                    raise _refusal(archive, info.name, f"it is {kind}, which is never unpacked")
                file = None if info.isdir() else tar.extractfile(info)
                metered.allowed = info.size + _HEADERS
                yield _Member(info.name, file and file.read, raw.tell())
                metered.allowed = _HEADERS
        # tarfile takes a broken header for the end, and gzip checks its sum at the real one.
        while block := metered.read(_BLOCK):
            if block.strip(b"\0"):
                raise tarfile.ReadError("there is more after what looks like its end")


def _zip(archive: Path, room: int) -> Generator[_Member, None, None]:
    position = 0
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                what = "a link" if kind == stat.S_IFLNK else "no plain file"
                raise _refusal(archive, info.filename, f"it is {what}, which is never unpacked")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _refusal(archive, info.filename, "it is compressed in an unusual way")
            position += info.compress_size
            if info.is_dir():
                yield _Member(info.filename, None, position)
            else:
                with opened.open(info) as file:
                    yield _Member(info.filename, file.read, position)


_READERS: dict[str, Callable[[Path, int], Generator[_Member, None, None]]] = {
    ".tar.gz": _tar,
    ".tgz": _tar,
    ".zip": _zip,
}
