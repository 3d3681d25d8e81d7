"""An experiment: what of the paper it repeats, its steps at every size, tables and claims."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final, get_args

from uturn.errors import ArgumentError
from uturn.reproduce.claims import Cell, Claim
from uturn.reproduce.place import GIVEN, NEEDS, VICTIMS
from uturn.reproduce.steps import Circle, Draw, Step, Sweep, Train

Preset = Literal["cpu", "gpu", "paper"]
PRESETS: tuple[Preset, ...] = get_args(Preset)

RETRIEVAL = ("recall@1", "recall@10", "map")
CLASSIFICATION = ("top1", "top5")


_MADE = re.compile(rf"{{{VICTIMS}}}/\w+\.safetensors")
"""A spec of what a step makes."""


@final
@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a sweep, by one victim's scores, beside the paper's."""

    title: str
    run: str
    published: str | None = None
    """A key of `published`; None where the paper has nothing to set beside it."""
    metrics: tuple[str, ...] = RETRIEVAL
    victim: str | None = None
    """Who scored; None is who the gradients were taken of."""
    called: tuple[tuple[str, str], ...] = ()
    """What the paper calls attacks that have another name here."""


@final
@dataclass(frozen=True)
class Line:
    """One number of ours and where the paper's stands in `published`."""

    what: str
    ours: Cell
    published: tuple[str, str, str]


@final
@dataclass(frozen=True, kw_only=True)
class Beside:
    """Single numbers beside the paper's, where whole tables do not correspond."""

    title: str
    note: str
    lines: tuple[Line, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A frozen value; `uturn.reproduce.run` does it.

    Raises:
        ArgumentError: a step uses what no step before it makes, or two steps share a key.
    """

    name: str
    title: str
    repeats: str
    """What of the paper, in a sentence or two."""
    presets: Mapping[str, tuple[Step, ...]]
    tables: tuple[Table, ...] = ()
    beside: Beside | None = None
    claims: tuple[Claim, ...] = ()
    differs: tuple[str, ...] = ()
    """What differs from the paper's protocol and why, a sentence each."""
    traps: tuple[str, ...] = ()
    """What one must know of the published numbers, a sentence each."""

    def __post_init__(self) -> None:
        for preset, steps in self.presets.items():
            keys = [step.key for step in steps]
            if len(set(keys)) != len(keys):
                raise ArgumentError(f"{self.name}, {preset}: two steps share a name in {keys}")
            stating = [step.name for step in steps if not isinstance(step, (Sweep, Draw))]
            if len(set(stating)) != len(stating):  # their facts are told apart by name
                raise ArgumentError(f"{self.name}, {preset}: two steps share a name in {stating}")
            made: set[str] = set()
            for step in steps:
                unknown = step.needs - NEEDS.keys() - GIVEN
                if unknown:
                    raise ArgumentError(f"{self.name}, {step.key}: unknown names {unknown}")
                for used in self._used(step):
                    if used not in made:
                        raise ArgumentError(
                            f"{self.name}, {step.key} uses {used} before it is made"
                        )
                made.add(step.key)

    def _used(self, step: Step) -> list[str]:
        """The keys of the steps whose products a step uses; of a file that none makes, its spec."""
        if isinstance(step, Draw):
            return [each.key for each in step.of]
        steps = itertools.chain.from_iterable(self.presets.values())
        makers = {each.spec: each.key for each in steps if isinstance(each, (Train, Circle))}
        own = step.spec if isinstance(step, (Train, Circle)) else None
        used = dict.fromkeys(_MADE.findall(repr(step)))
        return [makers.get(spec, spec) for spec in used if spec != own]

    def needs(self, preset: str) -> list[str]:
        """The data sets and weights that a preset's steps read."""
        names = frozenset[str]().union(*(step.needs for step in self.presets[preset]))
        return sorted(names - GIVEN)

    def sweeps(self, preset: str) -> list[Sweep]:
        """Its sweeps."""
        return [step for step in self.presets[preset] if isinstance(step, Sweep)]
