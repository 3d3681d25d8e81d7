"""The data sets that uturn knows by name, and how a spec becomes a split."""

from __future__ import annotations

from collections.abc import Callable

from uturn import specs
from uturn.data.glyphs import glyphs
from uturn.data.market1501 import market1501
from uturn.data.split import Split

CATALOG: dict[str, Callable[..., Split]] = {"glyphs": glyphs, "market1501": market1501}


def load_data(spec: str) -> Split:
    """Load a split from a spec such as ``glyphs`` or ``market1501:PATH``.

    Raises:
        SpecError: unknown name or option. DataError: the data set is incomplete.
    """
    parsed = specs.Spec.parse(spec)
    factory = CATALOG[specs.choose("data set", parsed.name, CATALOG)]
    split: Split = specs.call("data set", factory, parsed)
    return split
