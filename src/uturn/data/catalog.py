"""The data sets that uturn knows by name, and how a spec becomes a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from uturn import specs
from uturn.data.cifar10 import cifar10
from uturn.data.cub import cub200
from uturn.data.digits import digits
from uturn.data.folder import folder
from uturn.data.food import food256
from uturn.data.glyphs import glyphs
from uturn.data.landmarks import oxford5k, paris6k, roxford5k, rparis6k
from uturn.data.market1501 import market1501
from uturn.data.products import grocery, sop
from uturn.data.reid import cuhk03np, dukemtmc, msmt17
from uturn.data.split import Split
from uturn.errors import SpecError

CATALOG: dict[str, Callable[..., Split]] = {
    "glyphs": glyphs,
    "digits": digits,
    "folder": folder,
    "market1501": market1501,
    "dukemtmc": dukemtmc,
    "msmt17": msmt17,
    "cuhk03np": cuhk03np,
    "cub200": cub200,
    "food256": food256,
    "sop": sop,
    "grocery": grocery,
    "oxford5k": oxford5k,
    "paris6k": paris6k,
    "roxford5k": roxford5k,
    "rparis6k": rparis6k,
    "cifar10": cifar10,
}


def load_data(spec: str) -> Split:
    """Load a split from a spec such as ``glyphs`` or ``market1501:PATH``.

    Raises:
        SpecError: unknown name or option. DataError: the data set is incomplete.
    """
    if Path(spec).expanduser().exists() and spec not in CATALOG:
        raise SpecError(f"{spec} is a path; write folder:{spec}, or the data set's name before it")
    parsed = specs.Spec.parse(spec)
    factory = CATALOG[specs.choose("data set", parsed.name, CATALOG)]
    split: Split = specs.call("data set", factory, parsed)
    return split
