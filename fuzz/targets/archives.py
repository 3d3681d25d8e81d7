"""Archives of data sets: as they come, and built from members of any name and kind."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fuzz.bundle import bundle, each_by, files_of
from fuzz.mutate import edited
from fuzz.target import Target
from uturn.data.archives import Bounds, unpack
from uturn.errors import DataError

_BOUNDS = Bounds(members=64, total=1 << 20, ratio=20, free=1 << 16)


def _unpacked(archive: Path) -> None:
    """Unpack beside the archive; plain files alone may appear, no more than is allowed."""
    folder = archive.parent / "unpacked"
    folder.mkdir()
    try:
        unpack(archive, folder, bounds=_BOUNDS, show=False)
    finally:
        found = [*folder.rglob("*")]
        kinds = [path.lstat() for path in found]
        assert all(stat.S_ISREG(kind.st_mode) or stat.S_ISDIR(kind.st_mode) for kind in kinds)
        assert not any(kind.st_mode & (stat.S_ISUID | stat.S_ISGID) for kind in kinds)
        size = sum(kind.st_size for kind in kinds if stat.S_ISREG(kind.st_mode))
        assert size <= _BOUNDS.room(archive.stat().st_size) + (1 << 18)
        assert {path.name for path in archive.parent.iterdir()} == {archive.name, "unpacked"}


def _zip(data: bytes, folder: Path) -> None:
    (folder / "data.zip").write_bytes(data)
    _unpacked(folder / "data.zip")


def _tar(data: bytes, folder: Path) -> None:
    """``data`` as the tar in a sound gzip, whose sum would else stop every change."""
    (folder / "data.tar.gz").write_bytes(gzip.compress(data, 1))
    _unpacked(folder / "data.tar.gz")


def _gzip(data: bytes, folder: Path) -> None:
    (folder / "data.tgz").write_bytes(data)
    _unpacked(folder / "data.tgz")


def _members(data: bytes, folder: Path) -> None:
    """A bundle as a sound archive. The first byte of a member says of what kind it is."""
    if data[:1] == b"Z":
        with zipfile.ZipFile(folder / "data.zip", "w") as archive:
            for name, body in files_of(data[1:]).items():
                info = zipfile.ZipInfo(name.encode("utf-8", "replace").decode())
                info.external_attr = (body[0] if body else 0) << 24
                archive.writestr(info, body[1:], zipfile.ZIP_DEFLATED)
        _unpacked(folder / "data.zip")
        return
    with tarfile.open(folder / "data.tar.gz", "w:gz", compresslevel=1) as tar:
        for name, body in files_of(data).items():
            member = tarfile.TarInfo(name)
            member.type, content = body[:1] or b"0", body[1:]
            member.mode = 0o7777
            member.linkname = content[:100].decode("latin-1")
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    _unpacked(folder / "data.tar.gz")


def _tars() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, kind, body in (
                ("set", tarfile.DIRTYPE, b""),
                ("set/a.txt", tarfile.REGTYPE, b"hello"),
                ("set/" + 30 * "long/" + "b.txt", tarfile.REGTYPE, b"x"),
                *([("../out", tarfile.SYMTYPE, b"")] if form == tarfile.GNU_FORMAT else []),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.size, member.linkname = kind, len(body), ""
                tar.addfile(member, io.BytesIO(body))
        yield buffer.getvalue().rstrip(b"\0") + bytes(1024)


def _zips() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            archive.writestr("set/a.txt", b"hello" * 20)
            archive.writestr("set/é/", b"")
            archive.comment = b"by nobody"
        yield buffer.getvalue()


def _bundles() -> Iterator[bytes]:
    names = {"set/a.txt": b"0hello", "set/b": b"5", "set/c/d": b"0" + bytes(100)}
    hostile = {"../out": b"0x", "/abs": b"0x", "l": b"2../..", "l/x": b"0x", "a": b"1l", "p": b"6"}
    for content in (
        names,
        hostile,
        {"a/": b"0", "a": b"0", "A": b"0x", "a:b": b"0", "..\\x": b"0"},
    ):
        yield bundle(content)
        yield b"Z" + bundle(content)


TARGETS = (
    Target(name="zip", parse=_zip, refusals=(DataError,), seeds=_zips),
    Target(name="tar", parse=_tar, refusals=(DataError,), seeds=_tars, largest=1 << 14),
    Target(
        name="gzip",
        parse=_gzip,
        refusals=(DataError,),
        seeds=lambda: (gzip.compress(tar) for tar in _tars()),
    ),
    Target(
        name="members",
        parse=_members,
        refusals=(DataError,),
        seeds=_bundles,
        mutate=each_by(("", edited)),
    ),
)
