"""CUB-200-2011 (Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011)."""

from __future__ import annotations

from uturn.data.files import Item, integer, listed, official, open_set
from uturn.data.split import Split
from uturn.errors import DataError


def cub200(root: str) -> Split:
    """CUB-200-2011 as an open set: bird species 1–100 train, 101–200 leave-one-out.

    Official layout: ``images.txt`` (number, path below ``images``), ``image_class_labels.txt``
    (number, class). 5,864 pictures to learn from, 5,924 to be asked and ranked.

    Source of the split: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature
    Embedding", CVPR 2016; the U-turn paper scores the same.

    Raises:
        DataError: a list or a picture is missing, or a line does not parse.
    """
    holds = ("images.txt", "image_class_labels.txt", "images")
    base = official("CUB-200-2011", root, ("CUB_200_2011",), holds)
    labels = {
        number: integer(where, label)
        for where, (number, label) in listed(base / "image_class_labels.txt", "image class")
    }
    items = []
    for where, (number, path) in listed(base / "images.txt", "image path"):
        if number not in labels:
            raise DataError(f"{where}: image {number} has no line in image_class_labels.txt")
        items.append(Item(path, labels[number], where=where))
    return open_set("cub200", base / "images", items, last=100)
