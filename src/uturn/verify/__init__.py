"""A finished run held against itself: files, distances, numbers, and the victim asked again."""

from uturn.verify.verify import Verification, verify

__all__ = ["Verification", "verify"]
