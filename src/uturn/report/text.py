"""Result rows as a text table for the terminal. Reads nothing, imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COLUMNS = (
    ("attack", "attack"),
    ("ε", "eps"),
    ("R@1", "recall@1"),
    ("95 %", "ci95"),
    ("R@5", "recall@5"),
    ("R@10", "recall@10"),
    ("mAP", "map"),
    ("cosine", "cosine"),
    ("gradients", "gradients"),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of ``results.json`` under one heading, numbers aligned."""
    channels = list(rows[0].get("survive") or ())
    cells = [[title for title, _ in _COLUMNS] + [f"R@1 {channel}" for channel in channels]]
    cells += [
        [_cell(row, key) for _, key in _COLUMNS]
        + [_cell(row["survive"][channel], "recall@1") for channel in channels]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    notes = [f"  {row['attack']} ε={row['eps']:g}: {f}" for row in rows for f in row["flags"]]
    return "\n".join(lines + (["flags:", *notes] if notes else []))


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "ci95":
        interval = (value or {}).get("recall@1")
        return f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"
    if value is None:
        return "–"
    if key in ("eps", "gradients"):
        return f"{value:g}"
    return value if isinstance(value, str) else f"{value:.4f}"
