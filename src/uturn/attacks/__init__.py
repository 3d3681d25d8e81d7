"""Attacks: objective × threat × step × views."""

from uturn.attacks.loop import Attack
from uturn.attacks.presets import PRESETS, basic, fast, least_likely, load_attack, odfa

__all__ = ["PRESETS", "Attack", "basic", "fast", "least_likely", "load_attack", "odfa"]
