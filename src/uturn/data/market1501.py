"""Market-1501 (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

Official layout: ``query``, ``bounding_box_test`` and ``bounding_box_train`` with names such as
``0002_c1s1_000451_03.jpg``: identity, camera, sequence, frame, detection. In the gallery,
identity -1 is junk (ignored) and 0000 a distractor (never relevant).
"""

from __future__ import annotations

from uturn.data.files import official
from uturn.data.reid import FOLDERS, three_folders
from uturn.data.split import Split

# One query of the official archive ends in ".jpg.jpg".
_NAME = r"(-1|\d{4,})_c(\d+)s\d+_\d+_\d+(\.jpg)?"


def market1501(root: str) -> Split:
    """Market-1501: 3,368 queries, 19,732 gallery pictures, 6 cameras.

    Raises:
        DataError: a folder is missing, a file is empty, or a name does not parse; it is named.
    """
    title = "Market-1501"
    base = official(title, root, ("Market-1501-v15.09.15",), FOLDERS)
    return three_folders("market1501", title, base, _NAME, "0002_c1s1_000451_03.jpg")
