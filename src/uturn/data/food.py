"""UEC Food-256 (Kawano and Yanai, "Automatic Expansion of a Food Image Dataset", ECCVW 2014)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from uturn.data.files import Item, integer, leave_one_out, listed, official, pictures_of
from uturn.data.pictures import Box, Cropped
from uturn.data.split import Split
from uturn.errors import DataError

_CLASSES = range(1, 257)
_TRAINED = 224
_SMALLEST = 10  # pixels; the original code leaves out what is smaller


def food256(
    root: str, queries: int | None = None, region: Literal["box", "whole"] = "box"
) -> Split:
    """UEC Food-256 as an open set: dishes 1–224 train, 225–256 are asked and ranked.

    ``queries=N`` asks the first N pictures of every dish for the rest of it (the U-turn paper:
    16); without it, every picture is left out once. ``region=whole`` takes photos uncropped.

    Official layout: folders ``1`` to ``256``, each with ``<number>.jpg`` and ``bb_info.txt``
    (header ``img x1 y1 x2 y2``). A photo with several dishes lies in several folders, each with a
    box for its dish; pictures are named ``<dish>/<number>``.

    The split is that of the U-turn paper's code. As there, the last of two boxes for one dish in
    one photo counts, and a box under 10 pixels leaves the photo out. That code moves boxes by a
    pixel, here they stand as they are; it asks 16 in the file system's order, here by number.

    Raises:
        DataError: a folder, list or photo is missing, or a line does not parse.
    """
    holds = [str(dish) for dish in _CLASSES]
    base = official("UEC Food-256", root, ("UECFOOD256",), holds)
    boxes = {f"{dish}/{number}": box for dish in _CLASSES for number, box in _boxes(base, dish)}
    parts: dict[str, list[Item]] = {"train": [], "test": []}
    for name in sorted(boxes, key=lambda name: tuple(map(int, name.split("/")))):
        dish = int(name.split("/")[0])
        part = "train" if dish <= _TRAINED else "test"
        parts[part].append(Item(f"{name}.jpg", dish, where=str(base / str(dish))))
    read = pictures_of(base, parts)
    if region == "box":
        read = {part: replace(p, source=Cropped(p.source, boxes)) for part, p in read.items()}
    split = leave_one_out("food256", read["test"], read["train"])
    return split if queries is None else _first(split, queries)


def _boxes(base: Path, dish: int) -> list[tuple[int, Box]]:
    found: list[tuple[int, Box]] = []
    file = base / str(dish) / "bb_info.txt"
    for where, fields in listed(file, "img x1 y1 x2 y2", header=True):
        number, left, top, right, bottom = (integer(where, field) for field in fields)
        if right - left >= _SMALLEST and bottom - top >= _SMALLEST:
            found.append((number, (left, top, right, bottom)))
    return found


def _first(split: Split, queries: int) -> Split:
    """The first ``queries`` pictures of every identity ask; the rest is ranked."""
    seen: Counter[int] = Counter()
    asked = np.zeros(len(split.query), dtype=bool)
    for i, identity in enumerate(split.query.identities.tolist()):
        asked[i] = seen[identity] < queries
        seen[identity] += 1
    scarce = [identity for identity, count in seen.items() if count <= queries]
    if queries < 1 or scarce:
        raise DataError(
            f"{queries} queries of every dish leave nothing to rank or to ask; "
            f"the smallest dish has {min(seen.values())} pictures, choose fewer"
        )
    return replace(
        split,
        query=split.query.subset(np.flatnonzero(asked)),
        gallery=split.gallery.subset(np.flatnonzero(~asked)),
    )
