"""The run folder: what is on disk, written so that a kill at any moment loses one batch at most.

A finished batch is one file below ``parts/``, which appears whole or not at all (written aside,
then renamed) and names its pictures by their hashes. When every batch is there, the parts become
``queries.parquet``, ``results.json`` and ``ranklists.json``, and are removed; ``run.json`` then
holds the hashes of these files, and one of its own.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import io
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet

from uturn.data.pictures import Picture, encode
from uturn.errors import RunFolderError
from uturn.parallel import threaded
from uturn.progress import say
from uturn.storage import commit, inside, json_of, remove, sweep_aside
from uturn.sweep.lock import NAME, locked
from uturn.sweep.plan import Job

SCHEMA = 1
Row = dict[str, Any]

TABLES = ("queries.parquet", "results.json", "ranklists.json")
"""What a finished run says."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@final
class RunFolder:
    """One sweep on disk.

    ``defaults`` are what a run from before an option was made had for it.

    Raises:
        RunFolderError: the folder holds something else, or a run of another configuration.
    """

    def __init__(
        self,
        path: Path,
        configuration: dict[str, Any],
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.parts = path / "parts"
        header = path / "run.json"
        if header.exists():
            self.header = _read_json(header)
            for key in ("configuration", "versions"):
                if not isinstance(self.header.get(key, {}), dict):
                    raise RunFolderError(f"{header} is damaged: its {key} is no object")
            there, now = {**(defaults or {}), **self.header.get("configuration", {})}, configuration
            if not self.finished:  # what is half done must be finished by the same software
                there, now = there | self.header.get("versions", {}), now | _versions()
            if differing := _differences(there, now):
                raise RunFolderError(
                    f"{path} holds a run of another configuration; it differs in\n{differing}\n"
                    "Choose another --out, or repeat the command that began the run to resume it."
                )
        else:
            _require_run(path)
            self.header = {
                "schema": SCHEMA,
                "configuration": configuration,
                "versions": _versions(),
                "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
                "started": _now(),
                "finished": None,
            }
            self.write_json("run.json", self.header)

    @classmethod
    @contextmanager
    def alone(
        cls, path: Path, configuration: dict[str, Any], defaults: Mapping[str, Any]
    ) -> Iterator[RunFolder]:
        """Open a run as the one process that drives it, as long as this lasts; workers `join`.

        What somebody who was killed has left half written is removed, and what is committed is
        held against its pictures.

        Raises:
            RunFolderError: as of the class, or another process is at work there.
        """
        _require_run(path)
        with locked(path):
            folder = cls(path, configuration, defaults)
            if isinstance(path, Path) and not folder.finished:
                sweep_aside(path)
                folder._require_pictures()
            yield folder

    @classmethod
    def join(
        cls,
        path: Path,
        header: dict[str, Any],
        configuration: dict[str, Any],
        defaults: Mapping[str, Any],
    ) -> RunFolder:
        """Open the run that another process has begun, to help with it.

        ``header`` is what that process finds there, ``configuration`` what this one would run.

        Raises:
            RunFolderError: this machine sees another folder there, or would run something else:
            other pictures, weights or versions.
        """
        seen, node = dict[str, Any](), platform.node()
        with suppress(RunFolderError):
            seen = _read_json(path / "run.json")
        if seen != json.loads(json.dumps(header)):
            raise RunFolderError(
                f"{node} does not see the run in {path}; choose an --out on storage that all "
                "nodes share, under the same path"
            )
        there = {**defaults, **seen["configuration"], **seen["versions"]}
        if differing := _differences(there, configuration | _versions()):
            raise RunFolderError(
                f"{node} would not do the run in {path}; it differs in\n{differing}\n"
                "Every node needs the same software, weights and pictures."
            )
        return cls(path, configuration, defaults)

    @property
    def finished(self) -> bool:
        """Whether the tables are written."""
        return self.header.get("finished") is not None

    # -- pictures ---------------------------------------------------------------------------

    def picture(self, job: Job, query: str) -> Path:
        """Where the picture that is scored for ``query`` lies."""
        return self._inside(self.path / "images" / job.folder, f"{query}.png")

    def write_picture(self, job: Job, query: str, picture: Picture) -> None:
        """Write the picture that is scored for ``query``.

        Raises:
            RunFolderError: the disk refuses it.
        """
        path = self.picture(job, query)
        with _to_disk(path):
            encode(path, picture)

    def digest(self, job: Job, query: str) -> str:
        """The SHA-256 of the file of the picture that is scored for ``query``."""
        return digest(self.picture(job, query))

    def thumbnail(self, name: str) -> Path:
        """Where a gallery picture that a rank list shows lies."""
        return self._inside(self.path / "thumbnails", f"{name}.png")

    def write_thumbnail(self, name: str, picture: Picture) -> None:
        """Write a gallery picture that a rank list shows.

        Raises:
            RunFolderError: the disk refuses it.
        """
        path = self.thumbnail(name)
        with _to_disk(path):
            encode(path, picture)

    def _inside(self, base: Path, name: str) -> Path:
        if name.startswith("/") or ".." in Path(name).parts:
            raise RunFolderError(f"the picture name {name!r} would be written outside {base}")
        return base / name

    # -- parts ------------------------------------------------------------------------------

    def has_part(self, job: Job, batch: int) -> bool:
        """Whether a batch of a job is done."""
        return self._part(job, batch).exists()

    def part(self, job: Job, batch: int) -> dict[str, Any]:
        """What `add_part` stored for a batch of a job."""
        return _read_json(self._part(job, batch))

    def add_part(self, job: Job, batch: int, part: dict[str, Any]) -> None:
        """Commit one batch of one job: its pictures are written already.

        They may not have reached the disk when power is lost: `alone` looks at them.
        """
        path = self._part(job, batch)
        with _to_disk(path):
            commit(path, json.dumps(part).encode())

    def _require_pictures(self) -> None:
        """Drop parts whose pictures are not what was scored: those batches are done again."""
        parts = _files(self.parts, "*.json")
        whole = threaded(self._whole, parts)
        lost = [part for part, sound in zip(parts, whole, strict=True) if not sound]
        for part in lost:
            part.unlink()
        if lost:
            say(f"{len(lost)} batches are done again: their pictures in {self.path} are damaged")

    def _whole(self, part: Path) -> bool:
        """Whether a committed part can be read and its pictures are there as they were scored."""
        images = self.path / "images" / part.parent.relative_to(self.parts)
        try:
            content = _read_json(part)
            if "scores" not in content:
                return True  # measured, without pictures of its own
            rows = content["scores"][0]["rows"]
            return all(
                inside(row["query"]) and digest(images / f"{row['query']}.png") == row["sha256"]
                for row in rows
            )
        except (OSError, RunFolderError, LookupError, TypeError, ValueError):
            return False  # a name of which there can be no file is a ValueError

    def _part(self, job: Job, batch: int) -> Path:
        return self.parts / job.folder / f"{batch:05d}.json"

    # -- the end ----------------------------------------------------------------------------

    def finish(
        self, queries: list[Row], results: list[Row], ranklists: list[Row], facts: dict[str, Any]
    ) -> None:
        """Write the tables, mark the run as finished, and drop the parts."""
        self.write_json("ranklists.json", {"schema": SCHEMA, "queries": ranklists})
        self.close({"queries.parquet": queries}, results, facts)

    def close(
        self, tables: Mapping[str, list[Row]], results: list[Row], facts: dict[str, Any]
    ) -> None:
        """Write ``tables`` under their files' names, mark the run as finished, drop the parts.

        Before the parts go, everything has reached the disk.
        """
        for name, rows in tables.items():
            buffer = io.BytesIO()
            # Only some attacks have a goal; pyarrow takes the columns from the first row.
            columns = dict.fromkeys(key for row in rows for key in row)
            full = [{key: row.get(key) for key in columns} for row in rows]
            pa.parquet.write_table(pa.Table.from_pylist(full), buffer)
            with _to_disk(self.path / name):
                commit(self.path / name, buffer.getvalue())
        self.write_json("results.json", {"schema": SCHEMA, "rows": results})
        thumbnails = _files(self.path / "thumbnails", "*.png")
        written = [self.path / name for name in dict.fromkeys((*tables, *TABLES))]
        files = [*(file for file in written if file.exists()), *thumbnails]
        names = [file.relative_to(self.path).as_posix() for file in files]
        self.header |= {**facts, "files": dict(zip(names, threaded(digest, files), strict=True))}
        self.header |= {"finished": _now()}
        self.header["seal"] = seal(self.header)
        if hasattr(os, "sync"):
            os.sync()  # the pictures: one by one they would cost more than all at once
        self.write_json("run.json", self.header)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the parts; the tables hold everything."""
        remove(self.parts)

    def results(self) -> list[Row]:
        """The rows of ``results.json``."""
        rows: list[Row] = _read_json(self.path / "results.json")["rows"]
        return rows

    def write_json(self, name: str, content: Any) -> None:
        with _to_disk(self.path / name):
            commit(self.path / name, (json.dumps(content, indent=1) + "\n").encode())


def digest(file: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` says it."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def seal(header: dict[str, Any]) -> str:
    """The SHA-256 of all that ``run.json`` says of a finished run, with the hashes of its files.

    It is of the content and not of the bytes: sorted, and without white space.
    """
    content = {key: value for key, value in header.items() if key != "seal"}
    plain = json.loads(json.dumps(content))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _to_disk(path: Path) -> Iterator[None]:
    """While ``path`` is written: a disk that refuses it is one sentence.

    Raises:
        RunFolderError: it does.
    """
    try:
        yield
    except OSError as error:
        way = "make room there" if error.errno in _FULL else "see that it can be written to"
        raise RunFolderError(
            f"cannot write {path}: {error.strerror or error}; {way} and repeat the command to "
            "resume from the finished batches"
        ) from error


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files below, sorted: a folder may be called like one, by an attack's ``guard=FILE.json``."""
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def _require_run(path: Path) -> None:
    """Raise `RunFolderError` where something else is than a run, or nothing."""
    if not path.exists() or (path / "run.json").exists() or _is_blank(path):
        return
    raise RunFolderError(
        f"{path} exists and is not a run folder (it has no run.json); "
        "choose another --out, or empty it"
    )


def _is_blank(path: Path) -> bool:
    """An empty folder, or one in which a run was killed while it wrote its first file."""
    return path.is_dir() and all(
        entry.name == NAME or (entry.name.startswith(".run.json.") and entry.name.endswith(".tmp"))
        for entry in path.iterdir()
    )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What differs, a line for each key."""
    new = json.loads(json.dumps(new))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "\n".join(
        f"  {key}: {_short(old.get(key))} there, {_short(new.get(key))} now"
        for key in differing
        if key != "jobs" or differing == ["jobs"]
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} is damaged: expected an object")
    return content


def _versions() -> dict[str, str]:
    wanted = ("uturn", "torch", "numpy", "pillow", "matplotlib")
    return {"python": platform.python_version()} | {n: metadata.version(n) for n in wanted}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
