"""A finished run folder, read: header, rows, queries, pictures. All of it may be a stranger's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import jinja2
import pyarrow.parquet
from PIL import Image

from uturn.errors import RunFolderError, UturnError
from uturn.storage import json_of

Row = dict[str, Any]
Job = tuple[str, float]
"""An attack and its ε."""
Columns = dict[str, list[Any]]
"""Values per query, by their column's name."""

CLEAN: Job = ("clean", 0)


@final
@dataclass(frozen=True, eq=False)
class Run:
    """What a sweep has written: the header of ``run.json`` and the rows of ``results.json``."""

    path: Path
    header: dict[str, Any]
    rows: list[Row]

    @classmethod
    def read(cls, path: Path) -> Run:
        """Read the folder ``path``.

        Raises:
            RunFolderError: it is no run, has not finished, or is damaged.
        """
        header = read_json(path, "run.json")
        if not header.get("finished"):
            raise RunFolderError(
                f"the run in {path} has not finished; repeat its command to resume it"
            )
        require_sweep(path, header)
        with fitting(path):
            return cls(path, header, read_json(path, "results.json")["rows"])

    @property
    def configuration(self) -> dict[str, Any]:
        """Everything that decides the numbers."""
        found: dict[str, Any] = self.header["configuration"]
        return found

    @property
    def victim(self) -> str:
        """The spec of the victim that was attacked."""
        return str(self.rows[0]["victim"])

    @property
    def own(self) -> list[Row]:
        """The rows of the victim that was attacked; the first is clean."""
        return [row for row in self.rows if row["victim"] == self.victim]

    @property
    def searching(self) -> set[str]:
        """The attacks that look for the smallest change themselves."""
        spelled = self.configuration.get("jobs", {})
        return {
            job.rpartition(" eps=")[0] for job, how in spelled.items() if how.startswith("Minimal(")
        }

    def queries(self, victim: str, *columns: str) -> dict[Job, Columns]:
        """By attack and ε, ``columns`` of what ``victim`` makes of each query, and ``query``.

        Every job has the same queries in the same order; of several seeds it is the first.

        Raises:
            RunFolderError: there is no such table. ValueError: it lacks something.
        """
        return {job: seeds[0] for job, seeds in self.repeats(victim, *columns).items()}

    def repeats(self, victim: str, *columns: str) -> dict[Job, list[Columns]]:
        """The same of every seed, one after another; an attack that draws nothing has one.

        Raises:
            RunFolderError: there is no such table. ValueError: it lacks something.
        """
        names = ["attack", "eps", "query", *columns]
        jobs: dict[Job, dict[int, Columns]] = {}
        for row in read_queries(self.path, names, victim=victim):
            seeds = jobs.setdefault((row["attack"], row["eps"]), {})
            job = seeds.setdefault(row["seed"], {name: [] for name in names[2:]})
            for name, column in job.items():
                column.append(row[name])
        (clean,) = jobs[CLEAN].values()
        for (attack, eps), seeds in jobs.items():
            if any(job["query"] != clean["query"] for job in seeds.values()):
                raise ValueError(f"{attack} at ε={eps:g} was asked other queries than clean")
        return {job: [*seeds.values()] for job, seeds in jobs.items()}

    def picture(self, *place: str) -> Image.Image:
        """A picture of the run. Names come from its files, so they may not lead out of it.

        Raises:
            RunFolderError: it lies outside, or cannot be read.
        """
        path = self.path.joinpath(*place[:-1], f"{place[-1]}.png")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise RunFolderError(f"{self.path} names a picture outside itself: {path}")
        try:
            with path.open("rb") as file, Image.open(file, formats=("PNG",)) as image:
                return image.convert("RGB")
        except Exception as error:  # a damaged file can make Pillow raise anything
            raise RunFolderError(f"cannot read the picture {path} of the run: {error}") from error


def read_queries(
    path: Path, columns: Sequence[str] | None = None, *, victim: str | None = None
) -> list[Row]:
    """The rows of ``queries.parquet`` of the run in ``path``, or some ``columns`` of them.

    ``victim``: of what this one scored only. ``seed`` is always there: 0 where a run had no other.

    Raises:
        RunFolderError: there is no table, it is damaged, or it claims more rows than it has bytes.
    """
    file = path / "queries.parquet"
    try:
        with file.open("rb") as opened:
            there, size = pyarrow.parquet.ParquetFile(opened), opened.seek(0, 2)
            if there.metadata.num_rows > size:  # of each query there is a hash or a number
                raise ValueError(f"it claims {there.metadata.num_rows:,} rows in {size:,} bytes")
            if columns is not None:
                columns = [*columns, *({"seed"} & set(there.schema_arrow.names))]
            opened.seek(0)
            table = pyarrow.parquet.read_table(
                opened,
                columns=columns,
                filters=None if victim is None else [("victim", "==", victim)],
            )
        rows: list[Row] = table.to_pylist()
    except FileNotFoundError:
        raise RunFolderError(f"{path} has no queries.parquet; repeat its sweep") from None
    except Exception as error:  # a damaged file can make pyarrow raise anything
        raise RunFolderError(
            f"the files of {path} do not fit together: cannot read {file}: {error}"
        ) from error
    return [{"seed": 0, **row} for row in rows]


def require_sweep(path: Path, header: dict[str, Any]) -> None:
    """Raise `RunFolderError` if the run is one of changed gallery pictures, or has no plan."""
    configuration = header.get("configuration")
    if not isinstance(configuration, dict):
        raise RunFolderError(
            f"the files of {path} do not fit together: the configuration in run.json is no object"
        )
    if "gallery side" in configuration:
        raise RunFolderError(
            f"{path} is of `uturn gallery`, whose table that command prints again; this needs a "
            "folder of `uturn sweep`"
        )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a run folder.

    Raises:
        RunFolderError: there is none.
    """
    try:
        content = json_of((path / name).read_bytes())
    except FileNotFoundError:
        raise RunFolderError(
            f"{path} has no {name}: it is no finished run folder; `uturn sweep` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path / name}: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path / name} is damaged: expected an object")
    return content


@contextmanager
def fitting(*paths: Path) -> Iterator[None]:
    """While the files of ``paths`` are made sense of: what goes wrong is one sentence.

    Raises:
        RunFolderError: they do not fit together.
    """
    try:
        yield
    except UturnError:
        raise  # which says more
    except (
        LookupError,
        TypeError,
        ValueError,  # pyarrow's errors, too
        AttributeError,
        ArithmeticError,
        RecursionError,
        jinja2.UndefinedError,
    ) as error:
        told = " and ".join(map(str, paths))
        raise RunFolderError(f"the files of {told} do not fit together: {error!r}") from error
