"""The kept corpus through every target, a brief burst of changes, and guards that fire.

The long runs are `make fuzz`; what they have found and how it was mended says docs/security.md.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("memory and time are bounded by Linux's means", allow_module_level=True)

from fuzz import engine
from fuzz.bundle import bundle, files_of
from fuzz.guards import Breach, room
from fuzz.target import CORPUS, Target
from fuzz.targets import TARGETS

from uturn.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and PyTorch's, of odd files

BURST = 40
"""Executions of a target; of run folders, each of which takes long, none."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_read_or_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    target, rng = TARGETS[name], random.Random(0)
    seeds = [*target.seeds()]
    with room(target) as run:
        assert run(seeds[0]) == "read"
        for content in (*seeds[1:], *(path.read_bytes() for path in target.kept)):
            run(content)
        for _ in range(0 if name.startswith("run_re") or name.startswith("run_v") else BURST):
            run(target.mutate(rng.choice(seeds), rng)[: target.largest])
    capfd.readouterr()  # libtiff prints what it finds


def test_the_corpus_is_small_and_of_known_targets() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {path.parent.name for path in files} <= TARGETS.keys()


DEEP = b"[" * 100_000
HUGE = b"1" + b"0" * 400
FOUND: list[tuple[str, bytes]] = [
    ("specs", b"k-reciprocal:k1=" + HUGE),
    ("specs", b"aqe:n=5+k-reciprocal:k2=" + HUGE),
    ("guards", DEEP),
    ("guards", b'{"schema": 1, "signs": {"flip": {"mean": ' + HUGE + b', "spread": 1}}}'),
    ("perturbations", json.dumps({"__metadata__": {"uturn-universal": DEEP.decode()}}).encode()),
    ("safetensors", json.dumps({"__metadata__": {"uturn": DEEP.decode()}}).encode()),
    ("kept_features", b"\x93NUMPY\x01\x00\x0c\x00{'descr': ('"),
    ("kept_features", b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 118),
    ("answers", b'{"answers": [{"items": ["a", "b"], "scores": [1, ' + HUGE + b"]}]}"),
    ("answers", DEEP),
    ("endpoint", b"HTTP/1.1 307 M\r\nLocation: http://elsewhere.invalid/\r\n\r\n"),
    (
        "endpoint",
        b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    ("downloads", bundle({"answer": b"HTTP/1.1 200 OK\r\n\r\nlonger than it is", "kept": b""})),
    *(
        ("downloads", bundle({"answer": b"", "kept": b"he", "notes": notes}))
        for notes in (
            DEEP,
            b'{"url": "http://data.invalid/set.bin", "marks": "none", "total": 5}',
            b'{"url": "http://data.invalid/set.bin", "marks": {"ETag": "\\u2603"}, "total": 5}',
            b'{"url": "http://data.invalid/set.bin", "marks": {"ETag": "a\\r\\nb: c"}, "total": 5}',
        )
    ),
    ("run_compare", bundle({"run.json": b'{"finished": "now"}'})),
    ("run_compare", bundle({"run.json": b'{"finished": "now", "configuration": {}}'})),
    ("run_resume", bundle({"run.json": b'{"configuration": 3}'})),
    ("run_resume", bundle({"run.json": b'{"versions": "3"}'})),
    (
        "downloads",
        bundle({"answer": b"HTTP/1.1 302 F\r\nLocation: http://x\xef\xbf\xbd/\r\n\r\n"}),
    ),
    ("specs", b"apgd\n:"),
    ("journal", DEEP + b"\n"),
    ("turn", DEEP),
    *((f"run_{by}", bundle({f"{table}.json": DEEP})) for by in ("serve", "resume", "compare")
      for table in ("run", "results")),
    ("run_serve", bundle({"queries.parquet": b"PAR1" + bytes(20) + b"\x08\0\0\0PAR1"})),
    ("run_compare", bundle({"queries.parquet": b"PAR1" + bytes(20) + b"\x08\0\0\0PAR1"})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content"), FOUND, ids=lambda value: value[:12])
def test_what_was_found_is_refused(name: str, content: bytes) -> None:
    with room(TARGETS[name]) as run:
        run(content)


def planted(parse: Callable[[bytes, Path], None]) -> Target:
    """A target whose first input is harmless."""

    def begun(data: bytes, folder: Path) -> None:
        if data:
            parse(data, folder)

    return Target(
        name="planted",
        parse=begun,
        refusals=(DataError,),
        seeds=lambda: [b""],
        memory=1 << 26,
        seconds=0.5,
    )


def swallowing(data: bytes, folder: Path) -> None:
    try:
        (folder.parent / "outside").write_bytes(data)
    except BaseException:
        raise DataError("it is damaged") from None


def called(data: bytes, folder: Path) -> None:
    pickle.loads(b"cos\ngetcwd\n(tR.")


def swollen(data: bytes, folder: Path) -> None:
    try:
        bytearray(b"x") * (1 << 27)
    finally:
        raise DataError("it is damaged")


def connected(data: bytes, folder: Path) -> None:
    with socket.socket() as line:
        line.connect(("127.0.0.1", 9))


def endless(data: bytes, folder: Path) -> None:
    while True:
        pass


def linked(data: bytes, folder: Path) -> None:
    (folder / "link").symlink_to("/etc/passwd")


BAD: dict[str, tuple[Callable[[bytes, Path], object], str]] = {
    "writes outside": (lambda data, folder: (folder.parent / "x").write_bytes(data), "writes"),
    "climbs out": (lambda data, folder: (folder / "../x").write_bytes(data), "writes"),
    "swallows": (swallowing, "writes"),
    "reads outside": (lambda data, folder: Path("/etc/passwd").read_bytes(), "reads /etc/passwd"),
    "makes a folder": (lambda data, folder: (folder.parent / "y").mkdir(), "os.mkdir"),
    "removes": (lambda data, folder: Path("/nowhere").unlink(), "os.remove"),
    "links": (linked, "os.symlink"),
    "begins a process": (lambda data, folder: subprocess.run(["true"]), "subprocess"),
    "asks a shell": (lambda data, folder: os.system("true"), "os.system"),
    "evaluates": (lambda data, folder: eval("1 + 1"), "runs code of <string>"),
    "unpickles": (called, "pickle.find_class"),
    "connects": (connected, "socket.connect"),
    "looks a name up": (lambda data, folder: socket.getaddrinfo("a.invalid", 1), "socket.getaddr"),
    "hangs": (endless, "too long"),
    "swells": (swollen, "takes more than 64 MiB"),
}


@pytest.mark.parametrize("what", BAD)
def test_guards_catch_a_bad_parser(what: str) -> None:
    parse, says = BAD[what]
    with room(planted(parse)) as run, pytest.raises(Breach, match=says):  # type: ignore[arg-type]
        run(b"x")


def test_other_errors_and_broken_promises_are_no_refusals() -> None:
    def missing(data: bytes, folder: Path) -> None:
        {}["key"]

    with room(planted(missing)) as run, pytest.raises(KeyError):
        run(b"x")


def test_refusals_and_work_inside_are_fine() -> None:
    def careful(data: bytes, folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / "b").write_bytes(data)
        raise DataError("no")

    with room(planted(careful)) as run:
        assert run(b"x") == run(b"y") == "DataError"
        assert [*run.folder.iterdir()] == []


def test_a_killed_or_frozen_child_tells_its_last_input(tmp_path: Path) -> None:
    slate = engine.Slate(tmp_path / "slate", 100)
    slate.note(7, b"the last")
    dies = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"])
    assert engine._watch(dies, slate) == "exit status -11"
    assert slate.read() == (7, b"the last")


def test_a_target_is_fuzzed_in_a_process_of_its_own(tmp_path: Path) -> None:
    told = engine.fuzz("json_lines", executions=200, seconds=60, corpus=tmp_path / "corpus")
    assert told.executions >= 200
    assert told.findings == ()
    assert any((tmp_path / "corpus").iterdir())


def test_bundles() -> None:
    files = {"a.json": b"{}", "b/c": b"\n=\0"}
    assert files_of(bundle(files)) == files
    assert files_of(b"nothing") == {}
