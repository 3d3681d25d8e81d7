"""What is fuzzed: a parser, its refusals, and where its first inputs come from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from fuzz.mutate import edited

CORPUS = Path(__file__).parent / "corpus"
"""Kept inputs: a folder for each target."""

Parser = Callable[[bytes, Path], None]
Mutator = Callable[[bytes, random.Random], bytes]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """One parser under test."""

    name: str
    parse: Parser
    """Hands the bytes to the parser. The folder is empty, and the only place that may be written
    to or read from. What comes out is held against what the parser promises, by assertions."""
    refusals: tuple[type[Exception], ...]
    """What the parser may raise. Any other exception is a finding."""
    seeds: Callable[[], Iterable[bytes]]
    """Small inputs of every kind; the first is sound, and is parsed before the guards are up, so
    that what is imported on first use is imported then."""
    mutate: Mutator = field(default=edited, repr=False)
    """How an input is changed where nothing knows better; it may know the input's structure."""
    largest: int = 1 << 13
    """Bytes of an input."""
    memory: int = 1 << 29
    """Bytes by which the process may grow in one execution."""
    seconds: float = 5.0
    """Of the processor's time, in one execution."""

    @property
    def kept(self) -> list[Path]:
        """The files of its corpus."""
        return sorted((CORPUS / self.name).glob("*"))
