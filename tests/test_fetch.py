"""Fetching data sets: from a local server that breaks as servers do, and hostile archives."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from uturn.cli import main
from uturn.data import fetch as fetching
from uturn.data import releases
from uturn.data.archives import Bounds, unpack
from uturn.data.catalog import CATALOG
from uturn.data.fetch import Patience, download, fetch
from uturn.data.releases import RELEASES, Release, RemoteFile
from uturn.errors import ArgumentError, DataError
from uturn.specs import Spec

QUICK = Patience(timeout=2, attempts=3, pause=0.01)
NOISE = random.Random(0).randbytes(300_000)


# A server whose faults are set by the test.


@dataclass
class Site:
    """What the server does. ``breaks`` are the bytes after which the next answers are cut off."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    if_range: bool = True
    """Whether If-Range is heeded."""
    breaks: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    """What the next requests are answered with, before anything else."""
    claims: int | None = None
    """A Content-Length that is not true."""
    chunked: bool = False
    redirects: dict[str, str] = field(default_factory=dict)
    slow: float = 0.0
    """Seconds between blocks of 10 kB."""
    asked: list[dict[str, str]] = field(default_factory=list)

    def file(self, name: str, content: bytes, **known: object) -> RemoteFile:
        self.files[f"/{name}"] = content
        return RemoteFile(url=f"{self.url}/{name}", **known)  # type: ignore[arg-type]

    @property
    def starts(self) -> list[str]:
        """Where each request began."""
        return [asked.get("Range", "start") for asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        site = self.site
        site.asked.append(dict(self.headers))
        self.close_connection = True
        if self.path in site.redirects:
            self._head(302, {"Location": site.redirects[self.path], "Content-Length": "0"})
            return
        if site.statuses or self.path not in site.files:
            self._head(site.statuses.pop(0) if site.statuses else 404, {"Content-Length": "0"})
            return
        content, start = site.files[self.path], 0
        headers = {"ETag": site.etag} if site.etag else {}
        headers |= {"Last-Modified": site.modified} if site.modified else {}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, site.etag, site.modified)
        if wanted and site.ranges and (same or not site.if_range):
            start = int(wanted[1])
            if start >= len(content):
                self._head(416, {"Content-Length": "0"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        if site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if site.claims is None else site.claims)
        self._head(206 if start else 200, headers)
        broken = bool(site.breaks)
        body = body[: site.breaks.pop(0)] if broken else body
        for i in range(0, len(body), 10_000):
            block = body[i : i + 10_000]
            if site.chunked:
                block = b"%x\r\n%s\r\n" % (len(block), block)
            try:
                self.wfile.write(block)
            except OSError:
                return  # the client was killed
            time.sleep(site.slow)
        if site.chunked and not broken:
            self.wfile.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    handler = type("Served", (Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=lambda: server.serve_forever(0.01))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def release(*files: RemoteFile) -> Release:
    return Release(
        name="birds",
        title="Birds, a data set",
        homepage="http://127.0.0.1/birds",
        terms="for research only",
        files=files,
        use="birds:{}/pictures",
    )


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(*members: tuple[str | tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else info.size
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def get(file: RemoteFile, folder: Path, patience: Patience = QUICK) -> bytes:
    return download(file, folder, patience=patience, show=False).read_bytes()


# The whole way.


def test_a_data_set_of_several_files_is_fetched_checked_and_unpacked(
    site: Site, tmp_path: Path
) -> None:
    pictures = zipped({"pictures/a.jpg": NOISE, "pictures/b.jpg": b"b", "empty/": b""})
    lists = tarred(("./lists/good.txt", b"a"))
    data_set = release(
        site.file("pictures.zip", pictures, checksum=md5(pictures), size=len(pictures)),
        site.file("lists.tgz", lists, into="gt"),
        site.file("gnd.pkl", b"truth", into="gt"),
    )
    to = tmp_path / "deep" / "birds"
    received = fetch(data_set, to, patience=QUICK, show=False)
    assert tree(to) == {
        "pictures/a.jpg": NOISE,
        "pictures/b.jpg": b"b",
        "gt/lists/good.txt": b"a",
        "gt/gnd.pkl": b"truth",
    }
    assert (to / "empty").is_dir()
    assert received["lists.tgz"] == hashlib.sha256(lists).hexdigest()
    assert [path.name for path in to.parent.iterdir()] == ["birds"], "nothing is left beside it"
    with pytest.raises(DataError, match="is there already"):
        fetch(data_set, to, patience=QUICK, show=False)
    assert len(site.asked) == 3, "a target that is taken is refused before anything is asked"


def test_an_empty_target_is_taken_and_its_mode_is_a_folders(site: Site, tmp_path: Path) -> None:
    to = tmp_path / "birds"
    to.mkdir()
    usual = stat.S_IMODE(to.stat().st_mode)
    fetch(release(site.file("a.zip", zipped({"a": b"a"}))), to, patience=QUICK, show=False)
    assert tree(to) == {"a": b"a"}
    assert stat.S_IMODE(to.stat().st_mode) == usual


# Transfers that break.


def test_a_broken_transfer_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.breaks = [100_000, 50_000]
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert site.starts == ["start", "bytes=100000-", "bytes=150000-"]
    assert [asked.get("If-Range") for asked in site.asked] == [None, '"one"', '"one"']
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_later_call_resumes_by_the_date_where_the_etag_is_weak(
    site: Site, tmp_path: Path
) -> None:
    site.etag, site.modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    site.breaks = [100_000]
    file = site.file("a.bin", NOISE)
    with pytest.raises(DataError, match=r"does not arrive.*100,000 of 300,000 bytes.*goes on"):
        get(file, tmp_path, replace(QUICK, attempts=1))
    assert get(file, tmp_path) == NOISE
    assert site.starts == ["start", "bytes=100000-"]
    assert site.asked[1]["If-Range"] == site.modified


def test_without_any_mark_of_the_version_nothing_is_resumed(site: Site, tmp_path: Path) -> None:
    site.etag = ""
    site.breaks = [100_000]
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert site.starts == ["start", "start"]


def test_a_server_that_ignores_ranges_sends_it_all_again(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.breaks = [100_000]
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert site.starts == ["start", "bytes=100000-"]


@pytest.mark.parametrize("heeded", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(
    site: Site, tmp_path: Path, heeded: bool
) -> None:
    """Also from a server that sends the rest of the new file after the old beginning."""
    site.breaks = [100_000]
    site.if_range = heeded
    file = site.file("a.bin", NOISE)
    with pytest.raises(DataError, match="does not arrive"):
        get(file, tmp_path, replace(QUICK, attempts=1))
    site.etag, site.files["/a.bin"] = '"two"', NOISE[::-1]
    assert get(file, tmp_path) == NOISE[::-1]


def test_a_file_that_grew_under_the_same_mark_is_fetched_anew(site: Site, tmp_path: Path) -> None:
    site.breaks = [100_000]
    file = site.file("a.bin", NOISE[:200_000])
    with pytest.raises(DataError, match="does not arrive"):
        get(file, tmp_path, replace(QUICK, attempts=1))
    site.files["/a.bin"] = NOISE[::-1]
    assert get(file, tmp_path) == NOISE[::-1]


@pytest.mark.parametrize("length", [50_000, 100_000])
def test_a_file_that_shrank_below_the_part_is_fetched_anew(
    site: Site, tmp_path: Path, length: int
) -> None:
    site.breaks = [100_000]
    site.if_range = False
    file = site.file("a.bin", NOISE)
    with pytest.raises(DataError, match="does not arrive"):
        get(file, tmp_path, replace(QUICK, attempts=1))
    site.files["/a.bin"] = NOISE[:length]
    assert get(file, tmp_path) == NOISE[:length]


def test_a_transfer_that_gets_further_is_not_given_up(site: Site, tmp_path: Path) -> None:
    site.breaks = [20_000] * 14
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert len(site.asked) == 15 > QUICK.attempts


def test_a_transfer_that_gets_no_further_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.breaks = [20_000] * 9
    with pytest.raises(DataError, match=r"20,000 of 300,000 bytes"):
        get(site.file("a.bin", NOISE), tmp_path)
    assert len(site.asked) == 1 + QUICK.attempts - 1


def test_a_content_length_that_never_comes_true(site: Site, tmp_path: Path) -> None:
    site.claims = 400_000
    site.ranges = False
    with pytest.raises(DataError, match=r"300,000 of 400,000 bytes"):
        get(site.file("a.bin", NOISE), tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_a_stalled_server_is_waited_for_and_asked_again(site: Site, tmp_path: Path) -> None:
    site.slow = 0.6
    file = site.file("a.bin", NOISE[:30_000])
    with pytest.raises(DataError, match="timed out"):
        get(file, tmp_path, Patience(timeout=0.2, attempts=1))
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("breaks", [[], [100_000]])
def test_chunks_without_a_length(site: Site, tmp_path: Path, breaks: list[int]) -> None:
    site.chunked, site.breaks = True, list(breaks)
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert site.starts == ["start", *(f"bytes={here}-" for here in breaks)]


def test_passing_statuses_are_retried_and_lasting_ones_are_not(site: Site, tmp_path: Path) -> None:
    site.statuses = [503, 429]
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert len(site.asked) == 3
    site.asked.clear()
    with pytest.raises(DataError, match=r"/gone\.zip answers 404 .*see its homepage"):
        get(RemoteFile(url=f"{site.url}/gone.zip"), tmp_path)
    assert len(site.asked) == 1


def test_no_server_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match=r"127.0.0.1:1/a.zip does not arrive.*refused"):
        get(RemoteFile(url="http://127.0.0.1:1/a.zip"), tmp_path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process as POSIX does")
def test_kill_and_resume(site: Site, tmp_path: Path) -> None:
    archive = zipped({"a.jpg": NOISE})
    file = site.file("a.zip", archive, checksum=md5(archive))
    site.slow = 0.05
    code = f"""
from pathlib import Path
from uturn.data.fetch import fetch
from uturn.data.releases import Release, RemoteFile
file = RemoteFile(url={file.url!r}, checksum={file.checksum!r})
data_set = Release(name="birds", title="", homepage="", terms="", files=(file,))
fetch(data_set, Path({str(tmp_path / "birds")!r}), show=False)
"""
    part = tmp_path / "birds.download" / "a.zip.part"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        for _ in range(500):
            if part.exists() and part.stat().st_size:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    here = part.stat().st_size
    assert 0 < here < len(archive)
    assert not (tmp_path / "birds").exists()
    site.slow = 0.0
    fetch(release(file), tmp_path / "birds", patience=QUICK, show=False)
    assert site.starts == ["start", f"bytes={here}-"]
    assert tree(tmp_path / "birds") == {"a.jpg": NOISE}


def test_what_a_killed_run_had_unpacked_is_thrown_away(site: Site, tmp_path: Path) -> None:
    archive = zipped({"a.jpg": NOISE})
    half = tmp_path / "birds.download" / "unpacked" / "a.jpg"
    half.parent.mkdir(parents=True)
    half.write_bytes(NOISE[:1000])
    (tmp_path / "birds.download" / "a.zip").write_bytes(archive)
    fetch(release(site.file("a.zip", archive)), tmp_path / "birds", patience=QUICK, show=False)
    assert tree(tmp_path) == {"birds/a.jpg": NOISE}
    assert not site.asked, "the archive was here, whole"


def test_killed_between_the_last_byte_and_the_renaming(site: Site, tmp_path: Path) -> None:
    file = site.file("a.bin", NOISE)
    (tmp_path / "a.bin.part").write_bytes(NOISE)
    notes = {"url": file.url, "marks": {"ETag": '"one"'}, "total": len(NOISE)}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(notes))
    assert get(file, tmp_path) == NOISE
    assert not site.asked


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"url": "http://other/", "marks": {}}'])
def test_a_part_without_usable_notes_is_not_trusted(site: Site, tmp_path: Path, notes: str) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"of something else")
    (tmp_path / "a.bin.part.json").write_text(notes)
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE
    assert site.starts == ["start"]


# What is not accepted.


@pytest.mark.parametrize("pinned", [False, True])
def test_a_wrong_checksum_is_kept_aside_and_never_unpacked(
    site: Site, tmp_path: Path, pinned: bool
) -> None:
    archive = zipped({"a.jpg": b"a"})
    good = hashlib.sha256(archive).hexdigest()
    file = site.file("a.zip", b"not the archive", checksum="" if pinned else md5(archive))
    to, pins = tmp_path / "birds", (good.upper(),) if pinned else ()
    algorithm = "sha256" if pinned else "md5"
    with pytest.raises(DataError, match=rf"a\.zip has {algorithm} \w+ but should have .*\.bad"):
        fetch(release(file), to, sha256=pins, patience=QUICK, show=False)
    assert not to.exists()
    assert tree(tmp_path) == {"birds.download/a.zip.bad": b"not the archive"}
    site.files["/a.zip"] = archive
    assert fetch(release(file), to, sha256=pins, patience=QUICK, show=False) == {"a.zip": good}
    assert tree(to) == {"a.jpg": b"a"}


@pytest.mark.parametrize(
    ("pins", "message"),
    [(("0" * 64,), r"1 SHA-256 given for 2 files.*a\.zip, b\.zip"), (("0" * 64, "xyz"), "'xyz'")],
)
def test_pins_that_cannot_be_are_refused_first(
    site: Site, tmp_path: Path, pins: tuple[str, ...], message: str
) -> None:
    files = [site.file(name, b"") for name in ("a.zip", "b.zip")]
    with pytest.raises(ArgumentError, match=message):
        fetch(release(*files), tmp_path / "birds", sha256=pins, show=False)
    assert not site.asked
    assert not tree(tmp_path)


def test_sizes_are_bounded(site: Site, tmp_path: Path) -> None:
    file = site.file("a.bin", NOISE)
    with pytest.raises(DataError, match=r"300,000 bytes where 299,999 are published"):
        get(replace(file, size=299_999), tmp_path)
    with pytest.raises(DataError, match=r"300,000 bytes, more than the 200,000 allowed"):
        get(replace(file, limit=200_000), tmp_path)
    site.chunked = True  # says no length
    with pytest.raises(DataError, match=r"sends more than 200,000 bytes"):
        get(replace(file, limit=200_000), tmp_path)
    assert not tree(tmp_path)


def test_a_full_disk_is_noticed_before_the_download(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=400_000))
    with pytest.raises(DataError, match=r"a\.zip needs 660\.0 kB in .* and 400\.0 kB are free"):
        get(site.file("a.zip", NOISE), tmp_path)
    assert get(site.file("a.bin", NOISE), tmp_path) == NOISE, "it need not be unpacked"


def test_redirects_are_followed_within_http(site: Site, tmp_path: Path) -> None:
    file = site.file("a.bin", NOISE)
    site.redirects = {
        "/moved.bin": "/a.bin",
        "/ftp.bin": "ftp://127.0.0.1/a.bin",
        "/file.bin": "file:///etc/passwd",
        "/loop.bin": "/loop.bin",
    }
    assert get(RemoteFile(url=f"{site.url}/moved.bin"), tmp_path) == NOISE
    for name in ("ftp", "file", "loop"):
        with pytest.raises(DataError, match=f"{name}.bin"):
            get(RemoteFile(url=f"{site.url}/{name}.bin"), tmp_path)
    for url in ("file:///etc/passwd", "ftp://127.0.0.1/a.zip", "data:,a"):
        with pytest.raises(DataError, match="neither http nor https"):
            get(replace(file, url=url), tmp_path)
    assert tree(tmp_path) == {"moved.bin": NOISE}


def test_https_is_not_left_for_http() -> None:
    secure = fetching.request.Request("https://example.org/a.zip")
    redirects = fetching._Redirects()
    answer = io.BytesIO()
    with pytest.raises(DataError, match="from https that is not followed"):
        redirects.redirect_request(secure, answer, 302, "Found", {}, "http://example.org/a.zip")
    new = redirects.redirect_request(secure, answer, 302, "Found", {}, "https://example.org/b.zip")
    assert new is not None
    assert new.full_url == "https://example.org/b.zip"


# Archives that are not what they should be.


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zip_link(name: str, target: str) -> bytes:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, target)
        archive.writestr(f"{name}/passwd", b"pwned")
    return buffer.getvalue()


ESCAPES = ["../evil", "a/../../evil", "/tmp/uturn-evil", "a\\..\\..\\evil", "C:/evil", "c:evil"]
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    **{f"zip {name}": (".zip", zipped({"ok": b"", name: b"x"}), "outside") for name in ESCAPES},
    **{f"tar {name}": (".tgz", tarred(("ok", b""), (name, b"x")), "outside") for name in ESCAPES},
    "zip link": (".zip", zip_link("a", "/etc"), "'a': it is a link"),
    "tar symlink": (
        ".tar.gz",
        tarred((link("a", "/etc", tarfile.SYMTYPE), b""), ("a/passwd", b"pwned")),
        "'a': it is a link",
    ),
    "tar link inside": (".tgz", tarred((link("a", "b", tarfile.SYMTYPE), b"")), "it is a link"),
    "tar hard link": (
        ".tgz",
        tarred((link("a", "/etc/passwd", tarfile.LNKTYPE), b"")),
        "it is a link",
    ),
    "tar device": (".tgz", tarred((link("a", "", tarfile.CHRTYPE), b"")), "no plain file"),
    "tar fifo": (".tgz", tarred((link("a", "", tarfile.FIFOTYPE), b"")), "no plain file"),
    "lzma": (".zip", zipped({"a": b"a"}, zipfile.ZIP_LZMA), "compressed in an unusual way"),
    "deep": (".zip", zipped({"a/" * 40 + "b": b""}), "folders deep"),
    "file twice": (".tgz", tarred(("a", b"1"), ("a", b"2")), "another one has its place"),
    "file as folder": (".tgz", tarred(("a", b"1"), ("a/b", b"2")), "another one has its place"),
    "truncated tar": (".tgz", tarred(("a", NOISE))[:-5000], "is damaged"),
    "truncated zip": (".zip", zipped({"a": NOISE})[:-5000], "is damaged"),
    "no zip": (".zip", b"<html>404</html>", "is damaged"),
    "no tar": (".tgz", b"<html>404</html>", "is damaged"),
    "empty": (".tgz", b"", "is damaged"),
    "gzip of no tar": (".tgz", gzip.compress(NOISE), "is damaged"),
    "tar that ends early": (
        ".tgz",
        gzip.compress(
            gzip.decompress(tarred(("a", b"")))[:512] + b"x" * 512 + NOISE,
        ),
        "is damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_leaves_nothing(site: Site, tmp_path: Path, name: str) -> None:
    suffix, content, message = HOSTILE[name]
    to = tmp_path / "inner" / "birds"
    file = site.file(f"x{suffix}", content)
    with pytest.raises(DataError, match=message) as caught:
        fetch(release(file), to, patience=QUICK, show=False)
    assert f"x{suffix}" in str(caught.value)
    assert tree(tmp_path) == {f"inner/birds.download/x{suffix}": content}
    assert not to.exists()
    assert not Path("/tmp/uturn-evil").exists()


TIGHT = Bounds(members=10, total=1 << 20, free=100_000)


def bomb(suffix: str, size: int) -> bytes:
    return zipped({"0": bytes(size)}) if suffix == ".zip" else tarred(("0", bytes(size)))


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_bombs_are_stopped_while_they_unpack(tmp_path: Path, suffix: str) -> None:
    archive = tmp_path / f"bomb{suffix}"
    out = tmp_path / "out"
    out.mkdir()
    archive.write_bytes(bomb(suffix, 5_000_000))
    with pytest.raises(DataError, match=r"bomb.*'0': with it, it unpacks to more than it may"):
        unpack(archive, out, bounds=TIGHT, show=False)
    assert sum(len(content) for content in tree(out).values()) <= TIGHT.free
    archive.write_bytes(bomb(suffix, 90_000))
    shutil.rmtree(out)
    unpack(archive, out, bounds=TIGHT, show=False)
    assert tree(out) == {"0": bytes(90_000)}


def test_a_zip_that_lies_about_its_sizes_is_no_way_round(tmp_path: Path) -> None:
    content = bomb(".zip", 5_000_000).replace(
        (5_000_000).to_bytes(4, "little"), (5).to_bytes(4, "little")
    )
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"bomb\.zip is damaged"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out", bounds=TIGHT, show=False)
    assert sum(map(len, tree(tmp_path / "out").values())) <= TIGHT.free


def test_many_small_parts_of_a_bomb_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({str(i): bytes(20_000) for i in range(9)}))
    with pytest.raises(DataError, match="'5': with it, it unpacks to more"):
        unpack(tmp_path / "a.zip", tmp_path / "out", bounds=TIGHT, show=False)


@pytest.mark.parametrize("suffix", [".zip", ".tgz"])
def test_too_many_members(tmp_path: Path, suffix: str) -> None:
    names = [f"{i}/" if i % 2 else str(i) for i in range(11)]
    archive = tmp_path / f"many{suffix}"
    if suffix == ".zip":
        archive.write_bytes(zipped(dict.fromkeys(names, b"")))
    else:
        folders = [link(name, "", tarfile.DIRTYPE if "/" in name else b"0") for name in names]
        archive.write_bytes(tarred(*((info, b"") for info in folders)))
    with pytest.raises(DataError, match=r"'10': it is beyond the 10th"):
        unpack(archive, tmp_path / "out", bounds=TIGHT, show=False)


def test_a_header_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A pax header is read at once, so its claimed 50 MB, 50 kB in the archive, are refused."""
    info = tarfile.TarInfo("a")
    info.pax_headers = {"comment": "x" * 50_000_000}
    (tmp_path / "a.tgz").write_bytes(tarred((info, b"")))
    with pytest.raises(DataError, match="full of headers"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", show=False)


def test_headers_are_added_up(tmp_path: Path) -> None:
    members = []
    for name in "abc":
        info = tarfile.TarInfo(name)
        info.pax_headers = {"comment": "x" * 600_000}
        members.append((info, b""))
    (tmp_path / "a.tgz").write_bytes(tarred(*members))
    with pytest.raises(DataError, match="full of headers"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", bounds=TIGHT, show=False)
    unpack(tmp_path / "a.tgz", tmp_path / "with the usual bounds", show=False)


def test_modes_and_times_of_the_archive_are_ignored(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.mode, info.mtime, info.uid = 0o6777, 0, 12345
    (tmp_path / "a.tgz").write_bytes(tarred((info, b"#!/bin/sh")))
    unpack(tmp_path / "a.tgz", tmp_path / "out", show=False)
    found = (tmp_path / "out" / "a").stat()
    assert not found.st_mode & 0o7111
    assert found.st_uid == os.getuid()
    assert found.st_mtime > 1e9


@pytest.mark.parametrize("make", [".zip", ".tgz"])
def test_damaged_archives_raise_one_kind_of_error(tmp_path: Path, make: str) -> None:
    """Bytes are flipped at random: it unpacks below the folder, or a DataError says why not."""
    members = {f"a/{i}.jpg": NOISE[i * 50 : i * 60] for i in range(8)}
    whole = zipped(members) if make == ".zip" else tarred(*members.items())
    draw, refused = random.Random(1), 0
    archive = tmp_path / f"a{make}"
    for trial in range(120):
        content = bytearray(whole if make == ".zip" else gzip.decompress(whole))
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        archive.write_bytes(content if make == ".zip" else gzip.compress(content, 1))
        try:
            unpack(archive, tmp_path / str(trial), show=False)
        except DataError:
            refused += 1
    assert refused > 10
    assert {path.name for path in tmp_path.iterdir()} <= {archive.name, *map(str, range(120))}


# The command.


@pytest.fixture
def birds(site: Site, monkeypatch: pytest.MonkeyPatch) -> Release:
    archive = zipped({"pictures/a.jpg": NOISE})
    data_set = release(site.file("birds.zip", archive))
    monkeypatch.setitem(RELEASES, "birds", data_set)
    return data_set


def call(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(main, ["data", "get", *arguments], input=answer)


def test_the_terms_come_first_and_no_is_an_answer(
    site: Site, birds: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for answer in ("n\n", ""):
        result = call("birds", answer=answer)
        assert result.exit_code == 1
        for shown in (birds.title, birds.homepage, birds.terms, birds.files[0].url):
            assert shown in result.output
    assert not site.asked
    assert not list(tmp_path.iterdir())
    shown_before = dict[str, bool]()
    monkeypatch.setattr(fetching, "fetch", lambda *_, **__: shown_before.update(called=True) or {})
    result = call("birds", "--yes")
    assert result.output.index(birds.terms) < result.output.index("use it as")
    assert shown_before == {"called": True}


def test_get(site: Site, birds: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(site.files["/birds.zip"]).hexdigest()
    result = call("birds", answer="y\n")
    assert result.exit_code == 0, result.output
    assert f"birds.zip: sha256 {digest}" in result.output
    assert f"to get the same again, add --sha256 {digest}\n" in result.output
    assert f"--data birds:{Path('data/birds/pictures')}" in result.output
    assert tree(tmp_path) == {"data/birds/pictures/a.jpg": NOISE}
    pinned = call("birds", "--yes", "--quiet", "--to", "again", "--sha256", digest)
    assert pinned.exit_code == 0, pinned.output
    wrong = call("birds", "--yes", "--to", "wrong", "--sha256", "0" * 64)
    assert wrong.exit_code == 1
    assert "was not unpacked" in wrong.output
    assert not (tmp_path / "wrong").exists()


def test_what_a_person_must_fetch_is_explained() -> None:
    by_hand = [name for name, known in RELEASES.items() if not known.files]
    assert {"market1501", "dukemtmc", "msmt17"} <= set(by_hand)
    for name in by_hand:
        result = call(name)
        assert result.exit_code == 1
        assert RELEASES[name].homepage in result.output
        assert RELEASES[name].by_hand in result.output


def test_every_option_has_help() -> None:
    assert isinstance(main, click.Group)
    group = main.commands["data"]
    assert isinstance(group, click.Group)
    for parameter in group.commands["get"].params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None)


def test_an_unknown_name_lists_the_known_ones() -> None:
    result = call("cub")
    assert result.exit_code == 1
    assert "cub200" in result.output


def test_the_releases_are_well_formed() -> None:
    digits = {"md5": 32, "sha256": 64}
    for name, known in RELEASES.items():
        assert name == known.name
        assert known.homepage.startswith(("https://", "http://"))
        assert known.terms
        assert bool(known.files) != bool(known.by_hand)
        assert bool(known.files) == ("{}" in known.use)
        assert len({file.name for file in known.files}) == len(known.files)
        for file in known.files:
            assert re.fullmatch(r"https?://[\w./~-]+/[\w.-]+", file.url)
            algorithm, _, value = file.checksum.partition(":")
            assert not file.checksum or re.fullmatch(f"[0-9a-f]{{{digits[algorithm]}}}", value)
            assert file.size is None or file.checksum, "an exact size goes with a checksum"
            assert not Path(file.into).is_absolute()
    assert releases.size_of(999) == "999 bytes"


def test_every_release_says_which_data_spec_reads_it() -> None:
    assert set(CATALOG) - {"digits", "folder", "glyphs"} <= set(RELEASES)
    for release in RELEASES.values():
        assert not release.use or Spec.parse(release.use).name in CATALOG
