"""Tables of a user's pictures: CSV and JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fuzz.mutate import worded
from fuzz.target import Target
from uturn.data.folder import folder as read_folder
from uturn.errors import DataError

_WORDS = (
    *(b",", b";", b"\t", b'"', b"\r\n", b"\n", b"a.png", b"b.png", b"../x.png", b"/etc/passwd"),
    *(b"path", b"identity", b"camera", b"split", b"is_query", b"true", b"query", b"gallery"),
    *(b"-1", b"nan", b"3.0", b"99999999999999999999", b"\xef\xbb\xbf", b"\0", b"\xff", b"~/x"),
    *(b'{"file_name": "a.png", "label": 1}\n', b"{", b"[", b"null", b"1e999", b"C:\\x.png", b".."),
)


def _read(data: bytes, folder: Path, name: str) -> None:
    for picture in ("a.png", "b.png", "query/c.png"):
        (folder / picture).parent.mkdir(exist_ok=True)
        (folder / picture).write_bytes(b"x")
    (folder / name).write_bytes(data)
    split = read_folder(str(folder / name))
    for pictures in (split.query, split.gallery):
        for each in pictures.names:
            assert not each.startswith("/")
            assert ".." not in each.split("/")


def _csv(data: bytes, folder: Path) -> None:
    _read(data, folder, "labels.csv")


def _lines(data: bytes, folder: Path) -> None:
    _read(data, folder, "labels.jsonl")


def _csvs() -> Iterator[bytes]:
    yield b"path,identity\na.png,1\nb.png,2\n"
    yield (
        b"file_name;label;camera;split\na.png;x;1;query\nb.png;x;2;gallery\nquery/c.png;y;2;gallery"
    )
    yield b'\xef\xbb\xbfPath\tIdentity\tis_query\tis_gallery\r\n"a.png"\t1.0\tTrue\t0\r\n'
    yield b"path,identity\n../../a.png,1\n/etc/passwd,2\n"


def _jsonl() -> Iterator[bytes]:
    yield b'{"file_name": "a.png", "label": 1}\n{"file_name": "b.png", "label": 2}\n'
    yield b'{"path": "a.png", "identity": "x", "camera": 1, "split": "query"}\n{"path": "b.png"}'
    yield b'{"path": null, "identity": [[]]}\n'


TARGETS = (
    Target(name="csv", parse=_csv, refusals=(DataError,), seeds=_csvs, mutate=worded(*_WORDS)),
    Target(
        name="json_lines", parse=_lines, refusals=(DataError,), seeds=_jsonl, mutate=worded(*_WORDS)
    ),
)
