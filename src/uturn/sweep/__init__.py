"""Sweeps: attacks × ε on a victim and a split, into one resumable run folder."""

from uturn.sweep.plan import Plan
from uturn.sweep.run import run

__all__ = ["Plan", "run"]
