"""The run folder: what is on disk, written so that a kill at any moment loses one batch at most.

A finished batch is one file below ``parts/``, which appears whole or not at all (written aside,
then renamed). When every batch is there, the parts become ``queries.parquet``, ``results.json``
and ``ranklists.json``, and are removed.
"""

from __future__ import annotations

import datetime
import io
import json
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, final

import pyarrow as pa
import pyarrow.parquet

from uturn.data.pictures import Picture, encode
from uturn.errors import RunFolderError
from uturn.sweep.plan import Job

SCHEMA = 1
Row = dict[str, Any]


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
            there, now = {**(defaults or {}), **self.header.get("configuration", {})}, configuration
            if not self.finished:  # what is half done must be finished by the same software
                there, now = there | self.header.get("versions", {}), now | _versions()
            _require_same(path, there, now)
        elif path.exists() and not _is_blank(path):
            raise RunFolderError(
                f"{path} exists and is not a run folder (it has no run.json); "
                "choose another --out, or empty it"
            )
        else:
            self.header = {
                "schema": SCHEMA,
                "configuration": configuration,
                "versions": _versions(),
                "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
                "started": _now(),
                "finished": None,
            }
            self.write_json("run.json", self.header)

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
        try:
            encode(path, picture)
        except OSError as error:
            raise RunFolderError(
                f"cannot write {path}: {error}; make room for it and repeat the command to resume"
            ) from error

    def thumbnail(self, name: str) -> Path:
        """Where a gallery picture that a rank list shows lies."""
        return self._inside(self.path / "thumbnails", f"{name}.png")

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
        """Commit one batch of one job: its pictures are on disk already."""
        self._write(self._part(job, batch), json.dumps(part).encode())

    def _part(self, job: Job, batch: int) -> Path:
        return self.parts / job.folder / f"{batch:05d}.json"

    # -- the end ----------------------------------------------------------------------------

    def finish(
        self, queries: list[Row], results: list[Row], ranklists: list[Row], facts: dict[str, Any]
    ) -> None:
        """Write the tables, mark the run as finished, and drop the parts."""
        buffer = io.BytesIO()
        # Only some attacks have a goal; pyarrow takes the columns from the first row.
        columns = dict.fromkeys(key for row in queries for key in row)
        full = [{key: row.get(key) for key in columns} for row in queries]
        pa.parquet.write_table(pa.Table.from_pylist(full), buffer)
        self._write(self.path / "queries.parquet", buffer.getvalue())
        self.write_json("results.json", {"schema": SCHEMA, "rows": results})
        self.write_json("ranklists.json", {"schema": SCHEMA, "queries": ranklists})
        self.header |= {**facts, "finished": _now()}
        self.write_json("run.json", self.header)
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the parts; the tables hold everything."""
        shutil.rmtree(self.parts, ignore_errors=True)

    def results(self) -> list[Row]:
        """The rows of ``results.json``."""
        rows: list[Row] = _read_json(self.path / "results.json")["rows"]
        return rows

    def write_json(self, name: str, content: Any) -> None:
        self._write(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)


def _is_blank(path: Path) -> bool:
    """An empty folder, or one in which a run was killed while it wrote its first file."""
    return path.is_dir() and all(entry.name == ".run.json.tmp" for entry in path.iterdir())


def _require_same(path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    new = json.loads(json.dumps(new))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if differing:
        changes = "\n".join(
            f"  {key}: {_short(old.get(key))} there, {_short(new.get(key))} now"
            for key in differing
            if key != "jobs" or differing == ["jobs"]
        )
        raise RunFolderError(
            f"{path} holds a run of another configuration; it differs in\n{changes}\n"
            "Choose another --out, or repeat the command that began the run to resume it."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
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
