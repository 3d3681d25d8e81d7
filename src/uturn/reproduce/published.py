"""The paper's numbers, to stand beside ours: facts from its published result files."""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

from uturn.specs import choose

Row = dict[str, Any]


@functools.cache
def published() -> dict[str, Any]:
    """All of ``published.json``: source, protocol, traps, clean and attacked."""
    file = resources.files("uturn.reproduce") / "published.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def rows(key: str) -> list[Row]:
    """The rows of a victim such as ``market1501/resnet50``, the clean one first if it is known.

    Fractions, as in `results.json`. Rows with a ``note`` are of another protocol and left out.
    """
    attacked = published()["attacked"]
    found = attacked[choose("published victim", key, attacked)]
    clean = published()["clean"].get(key)
    first = [] if clean is None else [{"attack": "clean", "eps": 0, **clean}]
    return [*first, *(row for row in found if "note" not in row)]


def number(part: str, key: str, metric: str) -> float:
    """A single number, such as ``clean``, ``oxford5k/resnet101-gem``, ``map_single_scale``."""
    return float(published()[part][key][metric])
