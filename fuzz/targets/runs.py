"""Run folders of strangers: what report, verify, compare, serve, guard and resume make of them.

An input is a bundle of files that take the place of a sound run's.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from fuzz.bundle import bundle, each_by, files_of
from fuzz.mutate import changed_json
from fuzz.target import Parser, Target
from uturn.errors import RunFolderError, UturnError
from uturn.explorer.desk import Desk
from uturn.explorer.runs import RunBook
from uturn.report import html, turn
from uturn.retrieval.oracle import Journal
from uturn.sweep import Plan, run
from uturn.sweep.compare import compare
from uturn.sweep.loaded import Loaded
from uturn.sweep.plan import Job
from uturn.sweep.store import RunFolder
from uturn.verify import verify

_TABLES = ("run.json", "results.json", "queries.parquet", "ranklists.json")
_PLAN = Plan(
    victim="glyph_net", data="glyphs", attacks=("fast", "odfa"), eps=(8.0,), queries=2, seed=1
)


@cache
def sound() -> dict[str, bytes]:
    """The files of a run of two queries, as a sweep writes them."""
    with tempfile.TemporaryDirectory() as folder:
        run(_PLAN, Path(folder) / "run", progress=False)
        out = Path(folder) / "run"
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        return {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in files
            if path.name != ".lock"
        }


def _lay(folder: Path, data: bytes, names: tuple[str, ...] = ()) -> None:
    """A run in ``folder``: the sound one's files, those of the bundle in the place of theirs."""
    given = files_of(data)
    for name, content in {**sound(), **{n: given[n] for n in given.keys() & _NAMES}}.items():
        if not names or name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


_NAMES = {*_TABLES, "turn.json", "parts/odfa/eps8/00000.json", "answers.jsonl"}


def _reported(data: bytes, folder: Path) -> None:
    _lay(folder, data)
    page = html.write(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def _verified(data: bytes, folder: Path) -> None:
    _lay(folder, data)
    found = verify(folder, files_only=True, progress=False)
    changed = {name: body for name, body in files_of(data).items() if name in _TABLES}
    same = all(sound()[name] == body for name, body in changed.items())
    assert found.text()
    assert json.dumps(found.as_dict())
    if same:
        assert not found.findings, found.findings


def _compared(data: bytes, folder: Path) -> None:
    for name, content in (("first", b""), ("other", data)):
        (folder / name).mkdir()
        _lay(folder / name, content, _TABLES)
    found = compare([folder / "first", folder / "other"])
    assert found.text()
    assert found.markdown()
    assert "<script>alert" not in found.html()


def _leafed(data: bytes, folder: Path) -> None:
    """Every view of the explorer; what is wrong with a file is a sentence in it."""
    _lay(folder, data)
    book = RunBook.open(folder)
    desk, run = Desk((), (book,), folder), str(folder)
    shown = desk.overview(run)
    for attack in desk.attacks_of(run)[-2:]:
        for eps in book.budgets[:2]:
            listed, names = desk.leaf(run, attack, eps, "hardest", "", "")
            shown += listed + "".join(desk.fallen(run, name, attack, eps) for name in names[:1])
    assert "<script>alert" not in shown


@cache
def _configuration() -> dict[str, object]:
    return Loaded.of(_PLAN).configuration()


def _resumed(data: bytes, folder: Path) -> None:
    _lay(folder, data)
    with RunFolder.alone(folder, _configuration(), Plan.defaults()) as opened:
        if opened.finished:
            assert isinstance(opened.results(), list)
        elif opened.has_part(Job("odfa", 8), 0):
            opened.part(Job("odfa", 8), 0)


def _journal(data: bytes, folder: Path) -> None:
    path = folder / "answers.jsonl"
    path.write_bytes(data)
    journal = Journal(path, lambda pictures, k: [], "somebody")
    assert all(isinstance(answer.items, tuple) for answer in journal.kept.values())
    assert path.read_bytes().endswith(b"\n")


def _turned(data: bytes, folder: Path) -> None:
    path = folder / "turn.json"
    path.write_bytes(data)
    turn.read(path)


def _bundles() -> Iterator[bytes]:
    """The tables one by one, and with names and texts that are up to no good."""
    files = sound()
    for name in ("run.json", "results.json", "ranklists.json"):
        yield bundle({name: json.dumps(json.loads(files[name])).encode()})
    yield bundle({"queries.parquet": _short(files["queries.parquet"])})
    evil = "<script>alert(1)</script><img src=x>"
    results, header = json.loads(files["results.json"]), json.loads(files["run.json"])
    for row in results["rows"]:
        row["flags"] = [evil]
    header["configuration"] |= {"victim": f"os:system,command=touch {evil}", evil: evil}
    yield bundle({"results.json": json.dumps(results).encode()})
    yield bundle({"run.json": json.dumps(header).encode()})
    header["configuration"] |= {"victim": "glyph_net", "attacks": ["square:prior=[os:getcwd]"]}
    yield bundle({"run.json": json.dumps(header).encode()})
    header["files"] = {"../../outside": "0" * 64, "/etc/passwd": "0" * 64}
    yield bundle({"run.json": json.dumps(header).encode()})
    for column, value in (("query", "../../outside"), ("attack", evil), ("eps", None)):
        table = pa.parquet.read_table(io.BytesIO(files["queries.parquet"])).to_pylist()
        table[-1][column] = value
        buffer = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(table), buffer)
        yield bundle({"queries.parquet": buffer.getvalue()})


def _short(parquet: bytes) -> bytes:
    """The table without dictionaries and statistics: more of an input is content."""
    buffer = io.BytesIO()
    pa.parquet.write_table(
        pa.parquet.read_table(io.BytesIO(parquet)),
        buffer,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    return buffer.getvalue()


def _unfinished() -> Iterator[bytes]:
    header = json.loads(sound()["run.json"])
    yield bundle({"run.json": json.dumps(header).encode()})
    for key in ("finished", "seal", "files"):
        header.pop(key, None)
    rows = [{"query": "../../outside", "sha256": "0"}]
    part = {"scores": [{"rows": rows, "victim": "glyph_net"}]}
    whole = {"run.json": json.dumps(header).encode()}
    yield bundle(whole)
    yield bundle({**whole, "parts/odfa/eps8/00000.json": json.dumps(part).encode()})


def _journals() -> Iterator[bytes]:
    lines = [{"system": "somebody"}, {"asked": "00", "items": [1, "b"], "scores": [0.5, 0.25]}]
    yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    yield b'{"system": null}\n{"asked": "00", "items": [], "scores": null}\n{"ask'


def _turns() -> Iterator[bytes]:
    walk = {"name": "a", "label": 1, "highest": 1.0, "lowest": -1.0, "walks": {"odfa": [[0, 1]]}}
    panel = {"eps": 8, "features": [[0, 1]], "angle": 3.0, "by_class": [1.0], "top1": 0.5}
    known = {"data": "d", "victim": "v", "attack": "a", "classes": ["x"], "directions": [[1, 0]]}
    yield json.dumps({**known, "labels": [0], "panels": [panel], "paths": [walk]}).encode()


_mutate = each_by((".json", changed_json))


def _finished(name: str, parse: Parser, refusal: type[Exception] = RunFolderError) -> Target:
    """A target that takes finished runs of strangers."""
    return Target(
        name=name,
        parse=parse,
        refusals=(refusal,),
        seeds=_bundles,
        mutate=_mutate,
        largest=1 << 15,
    )


TARGETS = (
    _finished("run_report", _reported),
    _finished("run_verify", _verified),
    _finished("run_compare", _compared, UturnError),
    _finished("run_serve", _leafed),
    Target(
        name="run_resume",
        parse=_resumed,
        refusals=(RunFolderError,),
        seeds=_unfinished,
        mutate=_mutate,
        largest=1 << 15,
    ),
    Target(
        name="journal",
        parse=_journal,
        refusals=(UturnError,),
        seeds=_journals,
    ),
    Target(
        name="turn",
        parse=_turned,
        refusals=(RunFolderError,),
        seeds=_turns,
        mutate=changed_json,
    ),
)
