"""Counting: how many scores of a row reach each of its thresholds, without sorting the row."""

from __future__ import annotations

import torch
from torch import Tensor

_CACHED, _HELD = 1 << 19, 1 << 24
"""Comparisons held at a time: on a CPU what its caches hold, which is several times as fast; no
more than 2²⁴ anywhere, up to which float32 counts exactly."""

_FEW = 128
"""Thresholds up to which it is cheaper to compare all with all than to look every score up."""


def at_least(scores: Tensor, thresholds: Tensor, widths: Tensor) -> Tensor:
    """How many of ``scores`` ``(Q, G)`` are ≥ each of ``thresholds`` ``(Q, P)``: ``(Q, P)`` int64.

    Of row q the first ``widths[q]`` thresholds count, in descending order; the numbers of others
    mean nothing.
    """
    counts = torch.zeros(thresholds.shape, dtype=torch.int64, device=scores.device)
    cells = _CACHED if scores.device.type == "cpu" else _HELD
    kind = torch.promote_types(scores.dtype, torch.float32)
    held = torch.empty(cells, dtype=kind, device=scores.device)
    size = max(1, cells // max(1, scores.shape[1] * min(thresholds.shape[1], _FEW)))
    wide = [int(part.max()) for part in torch.split(widths.cpu(), size)] if len(widths) else []
    for begin, width in zip(range(0, len(scores), size), wide, strict=True):
        rows = slice(begin, begin + size)
        row, limits = scores[rows], thresholds[rows, :width]
        counts[rows, :width] = _compared(row, limits, held) if width <= _FEW else _seen(row, limits)
    return counts


def _compared(scores: Tensor, thresholds: Tensor, held: Tensor) -> Tensor:
    """Each threshold with every score, strip by strip of the gallery."""
    rows, width = thresholds.shape
    counts = torch.zeros(rows, width, dtype=torch.int64, device=scores.device)
    strip = len(held) // max(1, rows * width)
    for part in torch.split(scores, max(1, strip), dim=1):
        # Numbers, as torch compares into them many at a time, and adds them so; truth values not.
        ones = held[: rows * width * part.shape[1]].view(rows, width, part.shape[1])
        torch.ge(part[:, None], thresholds[:, :, None], out=ones)
        counts += ones.sum(2).long()
    return counts


def _seen(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many thresholds each score reaches; then, how many scores reach as many."""
    rows, width = thresholds.shape
    reached = torch.searchsorted(thresholds.flip(1), scores, right=True)  # (q, G)
    reached += torch.arange(rows, device=scores.device)[:, None] * (width + 1)
    histogram = torch.bincount(reached.flatten(), minlength=rows * (width + 1))
    return histogram.view(rows, width + 1).flip(1).cumsum(1)[:, :width]
