"""Channels: what a saved picture goes through before a retrieval system sees it."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from uturn.data.pictures import Picture

PAPER_QUALITY = 75
"""Pillow's own default, with which the original implementation saved its queries."""


def jpeg(picture: Picture, quality: int) -> Picture:
    """Saved as JPEG (4:2:0, as cameras and web sites do) and decoded again."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(buffer))


def resize(picture: Picture) -> Picture:
    """Shrunk to half its sides and enlarged again, bilinearly."""
    height, width = picture.shape[:2]
    small = (max(1, width // 2), max(1, height // 2))
    image = Image.fromarray(picture).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


CHANNELS: dict[str, Callable[[Picture], Picture]] = {
    "jpeg95": partial(jpeg, quality=95),
    "jpeg75": partial(jpeg, quality=75),
    "resize": resize,
}
