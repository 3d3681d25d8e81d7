"""Folders of pictures that are not a data set of their own: a user's pictures and lists."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from uturn.data.files import files_below
from uturn.data.pictures import FileSource, Pictures
from uturn.data.split import Split
from uturn.data.table import Row, absolute, part_of, read_table, split_of
from uturn.errors import DataError

_METADATA = ("metadata.csv", "metadata.jsonl")
_LISTS = (".csv", ".tsv", ".txt", ".jsonl")


def folder(root: str, csv: str | None = None) -> Split:
    """Your own pictures: class folders, query/ and gallery/, CSV, Hugging Face imagefolder.

    The first that fits is read:

    1. A list: ``folder:PATH/labels.csv``, or ``folder:PATH,csv=labels.csv`` (``.jsonl`` too). It
       needs the columns path and identity; camera, and split (query, gallery, train, or test) are
       optional. See `uturn.data.table` for what is read.
    2. ``PATH/metadata.csv`` or ``.jsonl`` with file_name and label, or one in each of
       ``PATH/train``, ``PATH/test`` (Hugging Face).
    3. ``PATH/query/<class>/`` and ``PATH/gallery/<class>/``, with or without
       ``PATH/train/<class>/``; other folders are left out.
    4. ``PATH/train/<class>/`` and ``PATH/test/<class>/`` (or validation), and nothing else
       beside them: the test pictures are asked and ranked, leaving one out.
    5. ``PATH/<class>/``: all pictures are asked and ranked, leaving one out.

    Folders in a class folder belong to it; hidden files are left out. Classes are numbered
    as sorted by name over all parts. A class of one picture is kept: that query has no match.
    Pictures are named by their path below PATH, less the ending.

    Raises:
        DataError: there are no pictures, or a file, folder or line does not fit; it is named.
    """
    base = absolute(Path(root))
    if base.is_file() and csv is None:
        base, csv = base.parent, base.name
    if csv is not None:
        file = absolute(base / csv)
        if file.suffix.lower() not in _LISTS:
            raise DataError(
                f"{file} is a file; unpack it, or name a list that ends in {', '.join(_LISTS)}"
            )
        return split_of(f"folder:{file.name}", base, read_table(file))
    lists = _metadata(base)
    if lists:
        rows = [row for file in lists for row in read_table(file, base)]
        return split_of(f"folder:{base.name}", base, rows)
    return split_of(f"folder:{base.name}", base, _classes(base), ordinal=True)


def _metadata(base: Path) -> list[Path]:
    """The lists of a Hugging Face imagefolder: one for all, or one per part."""
    found = [base / name for name in _METADATA if (base / name).is_file()]
    if not found and base.is_dir():
        found = [
            inner / name
            for inner in sorted(base.iterdir())
            for name in _METADATA
            if part_of(inner.name) and (inner / name).is_file()
        ]
    for first, second in itertools.pairwise(found):
        if first.parent == second.parent:
            raise DataError(f"{first} and {second} both list pictures; remove one")
    return found


def _classes(base: Path) -> list[Row]:
    """The pictures of class folders."""
    paths = files_below(base)
    tops = {path.split("/")[0] for path in paths if "/" in path}
    if "bounding_box_test" in tops:
        raise DataError(
            f"{base} holds bounding_box_test, a re-identification data set; read it with its own "
            "name, such as market1501:PATH (see `uturn list data`)"
        )
    known = {part_of(top) for top in tops}
    if {"query", "gallery"} <= tops:
        wanted = {top: top for top in tops & {"query", "gallery", "train"}}
    elif known <= {"train", "validation", "test"}:
        wanted = {top: str(part_of(top)) for top in tops}
    elif known & {"query", "gallery"} or {"train", "test"} <= known:
        raise DataError(
            f"{base} holds {', '.join(sorted(tops)[:6])}: parts of a data set are query and "
            "gallery, or train and test with nothing beside them; bring it to that, or list "
            "the pictures in a CSV"
        )
    else:
        wanted = {}
    rows = []
    for path in paths:
        top, *inside = path.split("/")
        if wanted and top not in wanted:
            continue
        label, *file = inside if wanted else (top, *inside)
        if not file:
            raise DataError(
                f"{base / path} lies in no class folder; move it into one, or list the pictures "
                f"in a CSV with path and identity: folder:{base}/labels.csv"
            )
        rows.append(Row(base / path, label, None, (wanted.get(top, "test"),), str(base)))
    return rows


def files_by_name(folder: Path) -> dict[str, Path]:
    """Every picture below ``folder``, keyed by its relative path without the ending.

    Raises:
        DataError: no such folder, no picture in it, or two files of one name.
    """
    found: dict[str, Path] = {}
    for relative in files_below(folder):
        path = folder / relative
        name = Path(relative).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{found[name]} and {path} share the name {name}; remove one")
        found[name] = path
    return found


def replace_queries(query: Pictures, folder: Path) -> Pictures:
    """The queries whose picture lies in ``folder`` under their name, read from there.

    This scores any folder of changed queries, whoever made them: labels come from ``query``.

    Raises:
        DataError: a picture in the folder has the name of no query.
    """
    found = files_by_name(folder)
    position = {name: i for i, name in enumerate(query.names)}
    strangers = sorted(set(found) - set(position))
    if strangers:
        raise DataError(
            f"{found[strangers[0]]} (and {len(strangers) - 1} more) has the name of no query; "
            f"name pictures after the data set's queries, such as {query.names[0]}.png"
        )
    kept = np.array([position[name] for name in found])
    source = FileSource(folder, {name: path.suffix for name, path in found.items()})
    return replace(query.subset(kept), source=source)
