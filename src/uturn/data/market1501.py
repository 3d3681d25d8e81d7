"""Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

Official layout: ``query``, ``bounding_box_test`` and ``bounding_box_train`` with names such as
``0002_c1s1_000451_03.jpg``: identity, camera, sequence, frame, detection. In the gallery,
identity -1 is junk (ignored) and 0000 a distractor (never relevant).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from uturn.data.pictures import FileSource, Pictures
from uturn.data.split import JUNK, Split
from uturn.errors import DataError

# One query of the official archive ends in ".jpg.jpg".
_NAME = re.compile(r"(-1|\d{4,})_c(\d+)s\d+_\d+_\d+(\.jpg)?")
_FOLDERS = ("query", "bounding_box_test", "bounding_box_train")


def market1501(root: str) -> Split:
    """Read the data set below ``root``: 3,368 queries, 19,732 gallery pictures, 6 cameras.

    Raises:
        DataError: a folder is missing, a file is empty, or a name does not parse; it is named.
    """
    base = Path(root).expanduser()
    missing = [name for name in _FOLDERS if not (base / name).is_dir()]
    if missing:
        raise DataError(
            f"{base} is not Market-1501 in its official layout: no folder {', '.join(missing)}; "
            f"it must hold {', '.join(_FOLDERS)}"
        )
    query, gallery, train = (_folder(base / name) for name in _FOLDERS)
    stray = query.identities < 1
    if stray.any():
        raise DataError(
            f"query {query.names[int(stray.argmax())]} is junk or a distractor; "
            "those belong in bounding_box_test"
        )
    known = train.subset(np.flatnonzero(train.identities != JUNK))
    return Split(name="market1501", query=query, gallery=gallery, train=known)


def _folder(folder: Path) -> Pictures:
    # Windows leaves a Thumbs.db in the official archive, so only pictures are looked at.
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise DataError(f"{folder} holds no pictures (.jpg, .jpeg or .png)")
    identities, cameras = [], []
    for file in files:
        match = _NAME.fullmatch(file.stem)
        if match is None:
            raise DataError(
                f"the file name {file} does not parse; Market-1501 names are like "
                "0002_c1s1_000451_03.jpg (identity, camera and sequence, frame, detection)"
            )
        if not file.is_file() or file.stat().st_size == 0:
            raise DataError(
                f"the picture {file} is empty (0 bytes) or no file; replace or remove it"
            )
        identities.append(int(match[1]))
        cameras.append(int(match[2]))
    return Pictures(
        FileSource(folder, {file.stem: file.suffix for file in files}),
        tuple(file.stem for file in files),
        np.array(identities, dtype=np.int64),
        np.array(cameras, dtype=np.int64),
    )
