"""Fetch a data set from its official address: resume, check, unpack; all of it or nothing.

Everything happens in a folder beside the target, which is renamed when it is complete. What is
fetched where, and on which terms, says `uturn.data.releases`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, final
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from tqdm import tqdm

from uturn._version import __version__
from uturn.data.archives import Bounds, is_archive, unpack
from uturn.data.releases import Release, RemoteFile, size_of
from uturn.errors import ArgumentError, DataError
from uturn.progress import bar
from uturn.storage import json_of

_BLOCK = 1 << 18
_SCHEMES = ("http", "https")
_MARKS = ("ETag", "Last-Modified")  # what tells two versions of a file apart
_PASSING = (408, 425, 429)  # with 5xx, the statuses that are worth another attempt
_NUMBER = "[0-9]{1,18}"
_UNPACKED = 1.2  # pictures hardly compress


@final
@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is waited for, in seconds, and how often it is asked in vain."""

    timeout: float = 30.0
    attempts: int = 5
    """In a row, that bring the file no further."""
    pause: float = 1.0
    """Before the second attempt; doubled for each further one."""


def fetch(
    release: Release,
    to: Path,
    *,
    sha256: tuple[str, ...] = (),
    bounds: Bounds | None = None,
    patience: Patience | None = None,
    show: bool = True,
) -> dict[str, str]:
    """Download, check and unpack ``release`` into the folder ``to``, which must not exist yet.

    A call that was stopped, even killed, is resumed by the same call. ``sha256`` pins the files,
    one for each, in their order.

    Returns:
        The SHA-256 of every file as it was received, by name.

    Raises:
        DataError: a person must fetch it; ``to`` is taken; the server does not deliver; a file is
            not the published one (it is kept beside as ``.bad`` and never unpacked); an archive
            is not to be trusted. Nothing is at ``to`` then. ArgumentError: ``sha256`` does not fit.
    """
    if not release.files:
        raise DataError(f"{release.name} cannot be fetched by a program: {release.by_hand}")
    pins = [pin.lower() for pin in sha256]
    if pins and len(pins) != len(release.files):
        names = ", ".join(file.name for file in release.files)
        raise ArgumentError(
            f"{len(pins)} SHA-256 given for {len(release.files)} files; give one each, in the "
            f"order {names}"
        )
    for pin in pins:
        if not re.fullmatch("[0-9a-f]{64}", pin):
            raise ArgumentError(f"{pin!r} is no SHA-256; that is 64 hexadecimal digits")
    to = to.expanduser().absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise DataError(f"{to} is there already; use it, remove it, or fetch to another folder")
    store = to.with_name(f"{to.name}.download")
    store.mkdir(parents=True, exist_ok=True)
    patience = patience or Patience()
    received = {}
    for i, file in enumerate(release.files):
        path = download(file, store, patience=patience, show=show)
        checksums = [*filter(None, [file.checksum]), *(f"sha256:{pin}" for pin in pins[i : i + 1])]
        received[file.name] = verify(path, *checksums, show=show)
    staged = store / "unpacked"
    shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
    try:
        for file in release.files:
            folder = staged / file.into
            folder.mkdir(parents=True, exist_ok=True)
            if is_archive(file.name):
                unpack(store / file.name, folder, bounds=bounds, show=show)
            else:
                shutil.copyfile(store / file.name, folder / file.name)
        if to.exists():
            to.rmdir()
        staged.rename(to)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(store)
    return received


def verify(path: Path, *checksums: str, show: bool = True) -> str:
    """Return the SHA-256 of a file that has all ``checksums``, such as ``md5:…`` or ``sha256:…``.

    Raises:
        DataError: it has another one, and was renamed to ``….bad``.
    """
    known = [checksum.split(":") for checksum in checksums]
    digests = {name: hashlib.new(name, usedforsecurity=False) for name, _ in known}
    digests["sha256"] = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file, bar(size, f"check {path.name}", "byte", show=show) as progress:
        while block := file.read(_BLOCK):
            for digest in digests.values():
                digest.update(block)
            progress.update(len(block))
    for name, expected in known:
        found = digests[name].hexdigest()
        if found != expected:
            bad = path.with_name(f"{path.name}.bad")
            path.replace(bad)
            raise DataError(
                f"{path.name} has {name} {found} but should have {expected}: it was damaged on "
                f"its way, or another version is published now; it is kept as {bad} and was not "
                "unpacked; the same command fetches it anew"
            )
    return digests["sha256"].hexdigest()


def download(file: RemoteFile, folder: Path, *, patience: Patience, show: bool = True) -> Path:
    """Download ``file`` into ``folder`` and return its path; resume what an earlier call began.

    A transfer that breaks is taken up where it broke if the server can do that and still has the
    same file, else from the beginning.

    Raises:
        DataError: the server has no such file, or a larger one than expected, or gives up for
            good; or the disk is too small. What was received is kept for the next call.
    """
    part = _Part(folder / f"{file.name}.part")
    if part.target.exists():
        return part.target
    in_vain, furthest = 0, part.size
    while True:
        try:
            _transfer(file, part, patience.timeout, show)
            return part.finish()
        except _TransferError as broken:
            in_vain = 1 if part.size > furthest else in_vain + 1
            furthest = max(furthest, part.size)
            if in_vain >= patience.attempts:
                raise DataError(
                    f"{file.url} does not arrive ({broken}); {size_of(part.size)} are kept in "
                    f"{part.path}, and the same command goes on from there"
                ) from broken
            pause = patience.pause * 2 ** (in_vain - 1)
            if show:
                tqdm.write(f"{file.name}: {broken}; again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)


class _TransferError(Exception):
    """A transfer broke in a way that may pass."""


class _Part:
    """A file that is not complete yet, and beside it what the server said of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.target = path.with_suffix("")
        self.notes = path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, url: str, marks: dict[str, str], total: int | None) -> None:
        self.discard()
        self.notes.write_text(json.dumps({"url": url, "marks": marks, "total": total}))

    def said(self, url: str) -> tuple[dict[str, str], int | None]:
        """The marks and the total size of the version that is partly here; none, if nothing is."""
        try:
            notes = json_of(self.notes.read_bytes())
            marks = {name: notes["marks"][name] for name in _MARKS if name in notes["marks"]}
            total, sent = notes["total"], "".join(marks.values())  # as a header, which must be one
            if not (sent.isascii() and sent.isprintable() and type(total) in (int, type(None))):
                raise ValueError("nobody has written such notes")
            if notes["url"] == url and self.size:
                return marks, total
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the notes are gone or damaged: begin anew
        return {}, None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)

    def finish(self) -> Path:
        self.path.replace(self.target)
        self.notes.unlink(missing_ok=True)
        return self.target


def _transfer(file: RemoteFile, part: _Part, timeout: float, show: bool) -> None:
    """One attempt. Raises `_TransferError` if another one may bring more."""
    marks, total = part.said(file.url)
    start = part.size
    if total is not None and start == total:
        return  # it was stopped between the last byte and the renaming
    etag, modified = (marks.get(name, "") for name in _MARKS)
    version = etag if etag and not etag.startswith("W/") else modified
    headers = {"User-Agent": f"uturn/{__version__}", "Accept-Encoding": "identity"}
    if start and version:
        # A server whose file is another one by now ignores the range and sends all of it.
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    with _open(file.url, headers, part, timeout) as answer:
        if answer.status == 206:
            total = _continues(answer, start, marks, total, part)
        elif answer.status == 200:
            start, length = 0, answer.headers.get("Content-Length", "")
            total = int(length) if re.fullmatch(_NUMBER, length) else None
            said = {name: answer.headers[name] for name in _MARKS if answer.headers[name]}
            part.begin(file.url, said, total)
        else:
            raise DataError(f"{file.url} answers {answer.status}, with no file; see its homepage")
        _fits(file, part, start, total)
        received = _receive(answer, file, part, start, total, show)
    if total is not None and received != total:
        raise _TransferError(f"it broke off after {received:,} of {total:,} bytes")


def _continues(
    answer: Any, start: int, marks: dict[str, str], total: int | None, part: _Part
) -> int | None:
    """The total size by a partial answer, which must be the rest of the file that is here."""
    span = re.fullmatch(
        rf"bytes ({_NUMBER})-{_NUMBER}/({_NUMBER}|\*)", answer.headers.get("Content-Range", "")
    )
    now = int(span[2]) if span and span[2] != "*" else total
    changed = any(
        answer.headers[name] and name in marks and answer.headers[name] != marks[name]
        for name in _MARKS
    )
    if span is None or int(span[1]) != start or (total or now) != now or changed:
        part.discard()
        raise _TransferError("the server sent a part of another file")
    return now


def _fits(file: RemoteFile, part: _Part, start: int, total: int | None) -> None:
    """Refuse a file of the wrong size, or one that the disk cannot hold with what it unpacks to."""
    if file.size is not None and total is not None and total != file.size:
        part.discard()
        raise DataError(
            f"{file.url} has {total:,} bytes where {file.size:,} are published: it is another "
            "version or no data set at all; see its homepage"
        )
    if total is not None and total > file.limit:
        part.discard()
        raise DataError(f"{file.url} has {total:,} bytes, more than the {file.limit:,} allowed")
    needed = (total or 0) - start + (_UNPACKED * (total or 0) if is_archive(file.name) else 0)
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise DataError(
            f"{file.name} needs {size_of(int(needed))} in {part.path.parent} and "
            f"{size_of(free)} are free; make room, or fetch to another disk"
        )


def _receive(
    answer: Any, file: RemoteFile, part: _Part, start: int, total: int | None, show: bool
) -> int:
    """Append what comes to the part and return its size."""
    received = start
    most = min(file.limit, file.size or file.limit) if total is None else total
    with (
        part.path.open("ab") as out,
        bar(total or 0, f"fetch {file.name}", "byte", done=start, show=show) as progress,
    ):
        while total is None or received < total:
            with _network():
                block = answer.read1(_BLOCK)
            if not block:
                break
            received += len(block)
            if received > most:
                part.discard()
                raise DataError(f"{file.url} sends more than {most:,} bytes; it was given up")
            out.write(block)
            progress.update(len(block))
    return received


@contextlib.contextmanager
def _network() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # also an address that is none
        raise _TransferError(str(error) or type(error).__name__) from error


def _open(url: str, headers: dict[str, str], part: _Part, timeout: float) -> Any:
    """Ask for ``url`` over http or https and nothing else; follow no one elsewhere."""
    if urlsplit(url).scheme not in _SCHEMES:
        raise DataError(f"{url} is neither http nor https; nothing else is fetched")
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    try:
        with _network():
            return opener.open(request.Request(url, headers=headers), timeout=timeout)
    except _TransferError as broken:
        if not isinstance(broken.__cause__, HTTPError):
            raise
        with broken.__cause__ as error:
            if error.code == 416:  # the part is longer than the file is now
                part.discard()
            elif error.code not in _PASSING and error.code < 500:
                raise DataError(
                    f"{url} answers {error.code} ({error.reason}); it may have moved: see its "
                    "homepage"
                ) from None
        raise


class _Redirects(request.HTTPRedirectHandler):
    def redirect_request(
        self, req: request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in _SCHEMES or (old, new) == ("https", "http"):
            fp.close()
            raise DataError(f"{req.full_url} leads to {newurl}; from {old} that is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
