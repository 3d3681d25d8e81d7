"""Servers of data sets, and what an earlier download has left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fuzz.bundle import bundle, each_by, files_of
from fuzz.mutate import changed_json, worded
from fuzz.target import Target
from fuzz.wire import answered_by
from uturn.data.fetch import Patience, download
from uturn.data.releases import RemoteFile
from uturn.errors import DataError

_FILE = RemoteFile(url="http://data.invalid/set.bin", size=5)


def _download(data: bytes, folder: Path) -> None:
    """A bundle: the server's ``answer``, and what is ``kept`` of before, with its ``notes``."""
    given = files_of(data)
    for name, file in (("kept", "set.bin.part"), ("notes", "set.bin.part.json")):
        if name in given:
            (folder / file).write_bytes(given[name])
    with answered_by(given.get("answer", b"")):
        found = download(_FILE, folder, patience=Patience(attempts=1, pause=0), show=False)
    assert found == folder / "set.bin"
    assert found.stat().st_size <= 5 or "kept" in given


def seeds() -> Iterator[bytes]:
    """A file in one piece, and the rest of one."""
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "a"\r\n\r\nhello'
    yield bundle({"answer": whole})
    notes = b'{"url": "http://data.invalid/set.bin", "marks": {"ETag": "\\"a\\""}, "total": 5}'
    rest = b'HTTP/1.1 206 Partial\r\nContent-Range: bytes 2-4/5\r\nETag: "a"\r\n\r\nllo'
    yield bundle({"answer": rest, "kept": b"he", "notes": notes})
    yield bundle({"answer": b"HTTP/1.1 302 F\r\nLocation: http://x.invalid/y\r\n\r\n"})
    yield bundle({"answer": b"HTTP/1.1 416 No\r\n\r\n", "kept": b"hello!", "notes": notes})


_WORDS = (
    *(b"\r\n", b"HTTP/1.1 ", b"200", b"206", b"301", b"302", b"404", b"416", b"503", b"Location: "),
    *(b"Content-Range: bytes ", b"0-4/5", b"/*", b"Content-Length: ", b"-1", b"99999999999999999"),
    *(b"Transfer-Encoding: chunked", b"ffffffff\r\n", b"file:///etc/passwd", b"ftp://x", b"//x/y"),
)

TARGETS = (
    Target(
        name="downloads",
        parse=_download,
        refusals=(DataError,),
        seeds=seeds,
        mutate=each_by(("notes", changed_json), ("", worded(*_WORDS))),
    ),
)
