"""Things to buy: Stanford Online Products, and the Grocery Store Dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from uturn.data.files import (
    Item,
    integer,
    leave_one_out,
    listed,
    official,
    open_set,
    pictures_of,
)
from uturn.data.split import Split


def sop(root: str) -> Split:
    """Stanford Online Products: 60,502 pictures of 11,316 unseen products, leave-one-out.

    Official layout: ``Ebay_train.txt`` and ``Ebay_test.txt`` with the header ``image_id class_id
    super_class_id path`` and paths such as ``bicycle_final/111085122871_0.JPG``.

    Source: Oh Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding",
    CVPR 2016.

    Raises:
        DataError: a list or a picture is missing, or a line does not parse.
    """
    lists = {"train": "Ebay_train.txt", "test": "Ebay_test.txt"}
    inside = ("Stanford_Online_Products",)
    base = official("Stanford Online Products", root, inside, list(lists.values()))
    read = pictures_of(base, {part: _ebay(base / file) for part, file in lists.items()})
    return leave_one_out("sop", read["test"], read["train"])


def _ebay(file: Path) -> list[Item]:
    columns = "image_id class_id super_class_id path"
    return [
        Item(path, integer(where, product), where=where)
        for where, (_, product, _, path) in listed(file, columns, header=True)
    ]


def grocery(root: str, classes: Literal["unseen", "all"] = "unseen") -> Split:
    """Grocery Store Dataset: photos of 81 fine classes, leave-one-out over the unseen or all.

    ``unseen`` is an open set, halved like CUB-200-2011: fine classes 0–40 train, 41–80 are asked
    and ranked, with every photo of all three lists. ``all`` is the closed set that classifiers
    are scored on: ``test.txt`` is asked and ranked, ``train.txt`` and ``val.txt`` train.

    Official layout: ``train.txt``, ``val.txt`` and ``test.txt`` with lines of path, fine and
    coarse class, apart by commas. The iconic pictures are in no list and are left out.

    Source: Klasson et al., "A Hierarchical Grocery Store Image Dataset with Visual and Semantic
    Labels", WACV 2019. The halves are ours.

    Raises:
        DataError: a list or a picture is missing, or a line does not parse.
    """
    lists = ("train.txt", "val.txt", "test.txt")
    inside = ("dataset", "GroceryStoreDataset/dataset", "GroceryStoreDataset-master/dataset")
    base = official("the Grocery Store Dataset", root, inside, lists)
    train, val, test = (
        [
            Item(path, integer(where, fine), where=where)
            for where, (path, fine, _) in listed(base / file, "path fine coarse", separator=",")
        ]
        for file in lists
    )
    if classes == "unseen":
        return open_set("grocery-unseen", base, [*train, *val, *test], last=40)
    read = pictures_of(base, {"train": [*train, *val], "test": test})
    return leave_one_out("grocery-all", read["test"], read["train"])
