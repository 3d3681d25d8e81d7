"""Tables of labelled pictures (CSV, JSON lines), and how labelled pictures become a split."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from uturn.data.files import Item, pictures_of, read_text
from uturn.data.split import JUNK, Split
from uturn.errors import DataError

COLUMNS = {
    "path": ("path", "file_name", "filename"),
    "identity": ("identity", "label", "class", "pid"),
    "camera": ("camera", "camera_id", "camid"),
    "split": ("split",),
    "is_query": ("is_query",),
    "is_gallery": ("is_gallery",),
}
"""What is read of a table, and the names it goes by; the first that is there counts."""

PARTS = {
    "train": ("train", "training"),
    "query": ("query",),
    "gallery": ("gallery",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The parts of a data set, and the names they go by (those of Hugging Face's datasets)."""

_PART = {name: part for part, names in PARTS.items() for name in names}
_YES = ("true", "1", "1.0", "yes")
_NO = ("false", "0", "0.0", "no", "", "nan", "none")


@final
@dataclass(frozen=True)
class Row:
    """A picture with labels as they were written."""

    path: Path
    """Absolute, without ``..``."""
    identity: str
    camera: str | None
    """None: the data set has no cameras."""
    parts: tuple[str, ...]
    where: str


def part_of(name: str) -> str | None:
    """The part of a data set that ``name`` means, if any."""
    return _PART.get(name.lower())


def read_table(file: Path, base: Path | None = None) -> list[Row]:
    """The rows of a ``.csv`` or ``.jsonl`` file, by the columns in `COLUMNS`.

    CSV may be separated by commas, semicolons or tabs; the names of columns may be in capitals.
    Paths start at the file's folder unless they are absolute, and may be in Windows' spelling.
    A row without a split belongs to ``test``; if ``base`` is given, to the part in whose folder
    (``train``, ``test`` …) below it the picture lies.

    Raises:
        DataError: the file cannot be read, lacks a column, or a line is bad; it is named.
    """
    records = _json_lines(file) if file.suffix.lower() == ".jsonl" else _csv(file)
    rows = [_row(file, where, record, base) for where, record in records]
    if not rows:
        raise DataError(f"{file} has no rows; list a picture per line")
    return rows


def _csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    text = read_text(file)
    header = text.lstrip().partition("\n")[0]
    separator = max(",;\t", key=header.count)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            where = f"{file}, line {reader.line_num}"
            if not any(cells):
                continue
            if columns is None:
                columns = [cell.lower() for cell in cells]
                _require_columns(file, columns)
                continue
            if any(cells[len(columns) :]):
                raise DataError(
                    f"{where} has {len(cells)} cells, the header {len(columns)}; "
                    "put a path that holds the separator in quotes"
                )
            cells += [""] * (len(columns) - len(cells))
            # Of two columns of one name the first counts.
            yield where, dict(reversed(list(zip(columns, cells, strict=False))))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}; correct it") from None


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for n, line in enumerate(read_text(file).split("\n"), 1):
        where = f"{file}, line {n}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}; correct it") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} is no JSON object; write one with file_name and label")
        plain = {
            key.lower(): "" if value is None else str(value).strip()
            for key, value in record.items()
            if value is None or isinstance(value, str | int | float)
        }
        _require_columns(file, plain)
        yield where, plain


def _require_columns(file: Path, columns: Iterable[str]) -> None:
    names = list(columns)
    for column in ("path", "identity"):
        if not set(COLUMNS[column]) & set(names):
            raise DataError(
                f"{file} has no column {' or '.join(COLUMNS[column])}, only "
                f"{', '.join(names) or 'nothing'}; add it, or name another list with csv=FILE"
            )
    known = {name for several in COLUMNS.values() for name in several}
    for column in ("camera", "split"):  # without them another protocol would be followed
        meant = difflib.get_close_matches(column, set(names) - known, n=1, cutoff=0.6)
        if meant and not set(COLUMNS[column]) & set(names):
            raise DataError(
                f"{file} has a column {meant[0]!r} that is not read; if it is the {column}, "
                f"call it {column}, if not, something less alike"
            )


def _row(file: Path, where: str, record: dict[str, str], base: Path | None) -> Row:
    def cell(column: str) -> str | None:
        return next((record[name] for name in COLUMNS[column] if name in record), None)

    for column in ("path", "identity", "camera"):
        if cell(column) == "":
            raise DataError(f"{where}: the {column} is missing; fill it in")
    path = absolute(file.parent / (cell("path") or "").replace("\\", "/"))
    split = cell("split")
    if split:
        part = part_of(split)
    elif base is not None and path.is_relative_to(base):
        part = part_of(path.relative_to(base).parts[0]) or "test"
    else:
        part = "test"
    if part is None:
        known = ", ".join(PARTS)
        raise DataError(f"{where}: unknown split {split!r}; known: {known}")
    flags = {name: _flag(where, name, cell(f"is_{name}")) for name in ("query", "gallery")}
    parts: tuple[str, ...] = (part,)
    if part in ("test", "validation") and set(flags.values()) != {None}:
        parts = tuple(name for name, said in flags.items() if said)
    return Row(path, cell("identity") or "", cell("camera"), parts, where)


def absolute(path: Path) -> Path:
    """``path`` from the root, without ``..``, links as they are."""
    return Path(os.path.normpath(path.expanduser().absolute()))


def _flag(where: str, name: str, text: str | None) -> bool | None:
    if text is None:
        return None
    if text.lower() not in _YES + _NO:
        raise DataError(f"{where}: is_{name} is {text!r}; write true or false")
    return text.lower() in _YES


def split_of(name: str, root: Path, rows: Sequence[Row], *, ordinal: bool = False) -> Split:
    """Rows as a split, named by their paths below ``root``, or below what holds them all.

    Rows of ``query`` ask, rows of ``gallery`` are ranked, rows of ``test`` do both, leave one
    out; ``validation`` stands in where there is nothing else to score. With cameras the protocol
    is cross-camera, else same-identity. Identities, and cameras, that are all whole numbers are
    taken as they are (-1 is junk); others, or all if ``ordinal``, are numbered from 0 as sorted.

    Raises:
        DataError: nothing to ask or to rank, one identity only, or as `pictures_of`.
    """
    root = _holding(root, rows)
    blind = [row.where for row in rows if row.camera is None]
    if 0 < len(blind) < len(rows):
        raise DataError(f"{blind[0]}: the camera is missing, others have one; fill it in")
    identities = _numbers((row.identity for row in rows), ordinal)
    cameras = _numbers((row.camera for row in rows if row.camera is not None), ordinal)
    parts: dict[str, list[Item]] = {}
    for row in rows:
        camera = 0 if row.camera is None else cameras[row.camera]
        path = row.path.relative_to(root).as_posix()
        for part in row.parts:
            item = Item(path, identities[row.identity], camera, row.where)
            parts.setdefault(part, []).append(item)
    _share(root, parts)
    read = pictures_of(root, parts)
    query, gallery, train = read["query"], read["gallery"], read.get("train")
    if (query.identities == JUNK).any():
        which = query.names[int((query.identities == JUNK).argmax())]
        raise DataError(f"the query {which} has identity {JUNK}, which is junk; rank it only")
    known = gallery.identities[gallery.identities != JUNK]
    if len(np.unique(np.concatenate([query.identities, known]))) < 2:
        raise DataError(
            f"{root} has pictures of a single identity to rank, so that every ranking is right; "
            "give the folder that holds the class folders, or add pictures of others"
        )
    if cameras and len(np.unique(np.concatenate([query.cameras, gallery.cameras]))) < 2:
        raise DataError(
            f"{root} has a single camera, and no query is asked in its own; leave the column out"
        )
    return Split(
        name=name,
        query=query,
        gallery=gallery,
        train=train and train.subset(np.flatnonzero(train.identities != JUNK)),
        protocol="cross-camera" if cameras else "same-identity",
    )


def _share(root: Path, parts: dict[str, list[Item]]) -> None:
    """Give the test pictures, or those for validation, to both the query and the gallery."""
    validation = parts.pop("validation", [])
    both = parts.pop("test", [])
    if not both and not {"query", "gallery"} & parts.keys():
        both = validation
    for part in ("query", "gallery") if both else ():
        parts[part] = parts.get(part, []) + both
    missing = [part for part in ("query", "gallery") if part not in parts]
    if missing:
        raise DataError(
            f"{root} has no {' and no '.join(missing)} pictures, only {', '.join(parts)}; "
            "add them, or a test part (asked and ranked, leaving one out), or give the folder "
            "of one part"
        )


def _holding(root: Path, rows: Sequence[Row]) -> Path:
    if all(row.path.is_relative_to(root) for row in rows):
        return root
    try:
        return Path(os.path.commonpath([row.path.parent for row in rows]))
    except ValueError:
        raise DataError(
            f"the pictures listed below {root} lie on several drives; bring them to one"
        ) from None


def _numbers(labels: Iterable[str], ordinal: bool) -> dict[str, int]:
    names = sorted(set(labels))
    # pandas writes whole numbers as 3.0 where a column has gaps.
    if not ordinal and all(re.fullmatch(r"-?\d{1,18}(\.0+)?", n, re.ASCII) for n in names):
        return {name: int(name.split(".")[0]) for name in names}
    return {name: number for number, name in enumerate(names)}
