"""What a scorer says of some gallery pictures asked again, beside what its run ranks by."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from uturn.data.split import Split
from uturn.retrieval.extract import extract_decoded
from uturn.rng import generator
from uturn.victims.same import apart, spread, widest
from uturn.victims.victim import Victim

ASKED = 4
"""Gallery pictures that are shown once more."""

COMPARED = 64
"""Gallery features that are held against each other."""


@final
@dataclass(frozen=True, kw_only=True)
class Looks:
    """How far features of the same pictures are from each other, in median distances between
    different ones; and whether different ones differ."""

    again: float
    """Shown alone, twice: a victim that is random moves."""
    together: float
    """Alone, and beside the others: one that depends on the batch moves."""
    used: float
    """Beside the others, and as the run ranks by: what is kept of another network differs."""
    widest: float | None
    """1 − cosine of the two gallery pictures least alike (`uturn.victims.same.widest`); None where
    features are not finite, or of one picture."""

    @classmethod
    def of(cls, victim: Victim, split: Split, features: Tensor, seed: int) -> Looks:
        """Ask ``victim`` again; ``features`` ``(G, D)`` are what the gallery is ranked by."""
        count = len(features)
        draw = generator(seed, split.name, "looked at again")
        asked = sorted(draw.choice(count, min(ASKED, count), replace=False).tolist())
        others = features[draw.choice(count, min(COMPARED, count), replace=False)]
        unit = spread(others.nan_to_num())
        shown = [victim.preprocessing.on_grid(split.gallery.read(i)) for i in asked]
        once, twice = (
            torch.cat([extract_decoded(victim, [each]) for each in shown]) for _ in range(2)
        )
        beside = extract_decoded(victim, shown)
        told = len(others) > 1 and bool(others.isfinite().all())
        return cls(
            again=apart(once, twice, unit),
            together=apart(once, beside, unit),
            used=apart(beside, features[asked], unit),
            widest=widest(others, victim.similarity) if told else None,
        )

    @classmethod
    def read(cls, told: dict[str, Any]) -> Looks:
        """What `as_dict` wrote."""
        return cls(**told)

    def as_dict(self) -> dict[str, float | None]:
        """As ``run.json`` holds them."""
        return asdict(self)
