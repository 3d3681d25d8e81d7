"""Are features the same? Distances measured by how far features of other pictures are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.types import Similarity

SAME = 1e-3
"""Of the way to another picture: what rounding in another order or batch may move a feature by."""

TIE = 1e-6
"""1 − cosine below which float32 similarities tie."""


def spread(found: Tensor) -> float:
    """The median distance between different rows of features ``(B, D)``.

    At least a thousandth of their length: below that it is rounding that is measured.
    """
    found = found.double()
    distances, length = torch.pdist(found), float(found.norm(dim=1).median())
    return max([1e-3 * length, 1e-30, *([float(distances.median())] if len(distances) else [])])


def apart(a: Tensor, b: Tensor, unit: float | None = None) -> float:
    """How far features ``(B, D)`` moved, in median distances between pictures; NaN is a value.

    ``unit`` is that distance where it is known from more pictures than these.
    """
    a, b = a.nan_to_num().double(), b.nan_to_num().double()
    return float((a - b).norm(dim=1).max()) / (spread(a) if unit is None else unit)


def widest(found: Tensor, similarity: Similarity) -> float:
    """1 − cosine of the two pictures that are least alike, of finite features ``(B, D)``.

    Without cancellation. Where lengths tell pictures apart, too, it is the same of their distance
    by length. At most `TIE`: all similarities tie.
    """
    found = found.double()
    if similarity == "euclidean":
        length = max(float(found.norm(dim=1).max()), 1e-30)
        return (float(torch.pdist(found).max()) / length) ** 2 / 2
    return float((torch.pdist(F.normalize(found, dim=1)).square() / 2).max())
