"""Attacks: objective × threat × step × views."""

from uturn.attacks.loop import Attack
from uturn.attacks.presets import (
    PRESETS,
    basic,
    fast,
    label_smooth,
    least_likely,
    load_attack,
    momentum,
    odfa,
    pire,
    sma,
    tma,
    uturn,
)

__all__ = [
    "PRESETS",
    "Attack",
    "basic",
    "fast",
    "label_smooth",
    "least_likely",
    "load_attack",
    "momentum",
    "odfa",
    "pire",
    "sma",
    "tma",
    "uturn",
]
