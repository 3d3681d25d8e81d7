"""Picture files that a data set lists, and the lists: each line is checked and can be named."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np

from uturn.data.pictures import FileSource, Pictures
from uturn.data.split import Split
from uturn.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


@final
@dataclass(frozen=True)
class Item:
    """A picture and its labels."""

    path: str
    """Relative to the data set's folder, with ``/`` between folders."""
    identity: int
    camera: int = 0
    where: str = ""
    """Where it is listed (``images.txt, line 3``), for errors."""


def official(title: str, root: str, inside: Sequence[str], holds: Sequence[str]) -> Path:
    """The folder that holds ``holds``: ``root``, or one of ``inside`` that archives unpack to.

    Raises:
        DataError: there is no such folder, or something in it is missing.
    """
    base = Path(root).expanduser()
    if base.is_file():
        raise DataError(f"{base} is a file; unpack it and give {title}'s folder")
    if not base.is_dir():
        raise DataError(f"there is no folder {base} to read {title} from")
    for folder in (base, *(base / name for name in inside)):
        if all((folder / name).exists() for name in holds):
            return folder
    missing = [name for name in holds if not (base / name).exists()]
    lacks = [name if Path(name).suffix else f"folder {name}" for name in missing]
    raise DataError(
        f"{base} is not {title} in its official layout: no {_few(lacks)}; "
        f"it must hold {_few(holds)}"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) < 6 else (*names[:3], "…", names[-1]))


def files_below(folder: Path) -> list[str]:
    """Paths of all pictures below ``folder``, relative to it, sorted.

    Links are followed. Hidden files and folders are left out: what macOS, editors and version
    control leave behind.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = sorted(_walk(folder, "", frozenset()))
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
    return found


def _walk(folder: Path, before: str, above: frozenset[Path]) -> Iterator[str]:
    real = folder.resolve()
    if real in above:  # a link back
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{before}{entry.name}/", above | {real})
            elif entry.name.lower().endswith(ENDINGS):
                yield f"{before}{entry.name}"


def read_text(file: Path) -> str:
    """The text of a list, UTF-8 with or without a byte order mark.

    Raises:
        DataError: the file is missing or not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8; save it as UTF-8 text") from None


def listed(
    file: Path, columns: str, separator: str | None = None, header: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """The lines of a list as (``file, line n``, fields); empty lines are left out.

    ``columns`` names the fields, apart by spaces; ``separator`` None is any white space.

    Raises:
        DataError: the file cannot be read, or a line has another number of fields.
    """
    for n, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip() or (header and n == 1):
            continue
        fields = [field.strip() for field in line.split(separator)]
        if len(fields) != len(columns.split()):
            raise DataError(
                f"{file}, line {n}: {line.strip()!r} does not read as {columns!r}; correct it"
            )
        yield f"{file}, line {n}", fields


def integer(where: str, text: str) -> int:
    """``text`` as a number; otherwise a `DataError` that names the line."""
    if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        raise DataError(f"{where}: {text!r} is not a whole number; correct it")
    return int(text)


def pictures_of(root: Path, parts: Mapping[str, Sequence[Item]]) -> dict[str, Pictures]:
    """The pictures of every part of a data set, named by their path below ``root``.

    The name lacks the file ending, unless two files differ in nothing else.

    Raises:
        DataError: a part is empty, or a file is missing, empty, listed twice, outside
            ``root``, or named in something else than Unicode.
    """
    items = {item.path: item for part in parts.values() for item in part}
    for path, item in items.items():
        _check(root, path, item.where or str(root))
    names = {path: _split(path) for path in items}
    stems = Counter(stem for stem, _ in names.values())
    names |= {path: (path, "") for path, (stem, _) in names.items() if stems[stem] > 1}
    return {
        part: _pictures(root, [names[item.path] for item in items], items, part)
        for part, items in parts.items()
    }


def leave_one_out(name: str, test: Pictures, train: Pictures | None) -> Split:
    """Every picture of ``test`` asks for the others of its identity."""
    return Split(name=name, query=test, gallery=test, train=train, protocol="same-identity")


def open_set(name: str, root: Path, items: Sequence[Item], last: int) -> Split:
    """Identities up to ``last`` are learned from, those after it left out one by one.

    Raises:
        DataError: as `pictures_of`.
    """
    read = pictures_of(
        root,
        {
            "train": [item for item in items if item.identity <= last],
            "test": [item for item in items if item.identity > last],
        },
    )
    return leave_one_out(name, read["test"], read["train"])


def _pictures(
    root: Path, names: list[tuple[str, str]], items: Sequence[Item], part: str
) -> Pictures:
    if not items:
        raise DataError(f"{root} holds no {part} pictures; is it complete?")
    if len(set(names)) != len(names):
        (((stem, ending), _),) = Counter(names).most_common(1)
        twice = [item.where for item in items if item.path == stem + ending]
        raise DataError(f"{' and '.join(twice)}: {stem}{ending} is listed twice; keep one")
    return Pictures(
        FileSource(root, dict(names)),
        tuple(name for name, _ in names),
        np.array([item.identity for item in items], dtype=np.int64),
        np.array([item.camera for item in items], dtype=np.int64),
    )


def _split(path: str) -> tuple[str, str]:
    stem, dot, ending = path.rpartition(".")
    return (stem, dot + ending) if f".{ending.lower()}" in ENDINGS else (path, "")


def _check(root: Path, path: str, where: str) -> None:
    # Names become file names of a run folder.
    if path.startswith("/") or ".." in path.split("/") or not path:
        raise DataError(f"{where}: the path {path!r} leads out of {root}; correct it")
    try:
        path.encode()
        found = (root / path).stat()
        size = found.st_size if stat.S_ISREG(found.st_mode) else None
    except UnicodeEncodeError:
        raise DataError(f"{where}: the file name {path!r} is not Unicode; rename it") from None
    except (OSError, ValueError):
        size = None
    if not size:
        raise DataError(
            f"{where}: the picture {root / path} is "
            f"{'missing' if size is None else 'empty (0 bytes)'}; replace it or take it out"
        )
