"""Attacking a search system from outside: pictures in, adversarial PNGs out, answers kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from uturn.attacks.blackbox import BlackBox
from uturn.data.pictures import decode, encode
from uturn.sweep.plan import CLEAN
from uturn.types import Oracle, Scene
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import At, Victim, to_picture


@final
@dataclass(frozen=True)
class Told:
    """What came of one picture."""

    path: Path
    """The adversarial PNG."""
    worth: float
    """What its answer is worth to the attacker (`uturn.attacks.relevance`)."""
    asked: int
    """Pictures asked, those of an earlier run that are in the journal included."""


def attack_outside(
    attack: BlackBox,
    oracle: Oracle,
    pictures: Sequence[Path],
    out: Path,
    *,
    victim: Victim,
    at: At,
    seed: int = 0,
    batch_size: int = 32,
) -> Iterator[Told]:
    """Attack ``pictures`` by asking ``oracle``; write ``out/NAME.png`` and ``out/clean/NAME.png``.

    ``victim`` is asked for its pixel grid at the most.

    Raises:
        OracleError: the system fails for good. What was written stays, and so does what a
            `uturn.retrieval.oracle.Journal` around ``oracle`` holds.
    """
    for begin in range(0, len(pictures), batch_size):
        part = pictures[begin : begin + batch_size]
        told = dict[int, Told]()
        for which, clean in by_shape(victim.canvas(decode(path), at) for path in part):
            names = [part[i].stem for i in which]
            found = attack(victim, clean, Scene(oracle=oracle), names=names, seed=seed)
            for n, (i, name) in enumerate(zip(which, names, strict=True)):
                path = out / f"{name}.png"
                encode(out / CLEAN / path.name, to_picture(clean[n]))
                encode(path, to_picture(found.images[n]))
                told[i] = Told(path, float(found.losses[-1, n]), int(found.asked[n]))
        yield from (told[i] for i in range(len(part)))
