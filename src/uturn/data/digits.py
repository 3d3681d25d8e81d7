"""Digits: ten classes that everybody knows, drawn on the spot, nothing to download.

The glyphs' twelve faces, colours, light, noise and positions, but a closed set: the same ten digits
are learned and tested, each time drawn anew. What CIFAR-10 is to photographs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from uturn.data.files import leave_one_out
from uturn.data.glyphs import FACES, GlyphSource
from uturn.data.pictures import Pictures
from uturn.data.split import Split

CLASSES = tuple("0123456789")
"""In the order of a classifier's logits."""


def digits() -> Split:
    """The ten digits in twelve faces: 1,200 test pictures, leave-one-out; 6,000 train.

    The identity is the digit itself, the camera the face. Names are ``0037_DejaVuSans_04``: code
    point in hex, face, and which of the draws of this digit in this face.
    """
    test, train = _drawn("test", 10), _drawn("train", 50)
    return replace(leave_one_out("digits", test, train), classes=CLASSES)


def _drawn(part: str, times: int) -> Pictures:
    digit, face, draw = np.indices((len(CLASSES), len(FACES), times)).reshape(3, -1)
    return Pictures(
        GlyphSource(f"digits/{part}"),
        tuple(
            f"{ord(CLASSES[d]):04x}_{FACES[f]}_{n:02d}"
            for d, f, n in zip(digit, face, draw, strict=True)
        ),
        digit.astype(np.int64),
        face.astype(np.int64),
    )
