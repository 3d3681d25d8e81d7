"""Folders of pictures that are not a data set of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from uturn.data.pictures import FileSource, Pictures
from uturn.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def files_by_name(folder: Path) -> dict[str, Path]:
    """Every picture below ``folder``, keyed by its relative path without the ending.

    Raises:
        DataError: no such folder, no picture in it, or two files of one name.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file():
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in found:
                raise DataError(f"{found[name]} and {path} share the name {name}; remove one")
            found[name] = path
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")
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
    chosen = query.subset(kept)
    return Pictures(source, chosen.names, chosen.identities, chosen.cameras)
