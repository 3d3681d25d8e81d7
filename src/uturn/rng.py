"""Randomness keyed by meaning: (run seed, picture name, purpose), never by position or order.

Batch size, order, resume and the number of workers therefore cannot change what is drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """Return the generator that belongs to ``key`` under ``seed``.

    The same arguments give the same stream on every machine; any other key gives an
    independent one.

    >>> a = generator(0, "0001_c1s1_000151_00", "start").integers(0, 2, 8)
    >>> b = generator(0, "0001_c1s1_000151_00", "start").integers(0, 2, 8)
    >>> bool((a == b).all())
    True
    """
    parts = [str(int(seed)), *(f"{type(part).__name__}:{part}" for part in key)]
    # Length-prefixed, so that ("ab", "c") and ("a", "bc") are different keys.
    message = "".join(f"{len(part)}:{part}" for part in parts).encode()
    digest = hashlib.blake2b(message, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
