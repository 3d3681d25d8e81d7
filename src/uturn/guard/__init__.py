"""The guard: a detector that stands before an index. It knows no attack, and no run.

>>> from uturn.guard import Guard
"""

from uturn.guard.detector import Guard, Look

__all__ = ["Guard", "Look"]
