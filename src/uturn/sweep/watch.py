"""What an attacker sees who knows the guard: its signs, by views through which gradients pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from uturn.attacks.views import Flip, Jpeg, Resample, View
from uturn.guard import Guard
from uturn.guard.detector import Shown
from uturn.types import Pixels
from uturn.victims.victim import Victim

WAYS: dict[Shown, View] = {"flip": Flip(), "jpeg75": Jpeg(75), "resize": Resample()}
"""The guard's own ways of showing a picture, as an attacker can climb them."""


def watch(
    guard: str, victim: Victim, gallery: Tensor, left_out: Tensor
) -> Callable[[Pixels], Tensor]:
    """Pixels ``(B, 3, H, W)`` → the signs ``(B, S)`` of the guard saved at ``guard``.

    ``gallery`` are raw features ``(G, D)``; ``left_out`` ``(B, G)`` as in `Guard.look`.

    Raises:
        CheckpointError: the guard cannot be read, or is of another victim.
    """
    known = _loaded(guard, victim, gallery)

    def signs(pixels: Pixels) -> Tensor:
        shown = {way: victim.features(view(pixels, ())) for way, view in WAYS.items()}
        return known.signs({"query": victim.features(pixels), **shown}, left_out)

    return signs


@lru_cache(maxsize=1)
def _loaded(guard: str, victim: Victim, gallery: Tensor) -> Guard:
    return Guard.load(Path(guard).expanduser(), victim, gallery)
