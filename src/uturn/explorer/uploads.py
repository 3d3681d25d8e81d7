"""A stranger's file: bounded before it is decoded, and an error is a sentence about it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from uturn.data.pictures import FORMATS, Picture, decode
from uturn.errors import DataError

BYTES = 20 * 2**20
"""The largest file that is taken."""

PIXELS = 32_000_000
"""The largest picture that is taken: what telephones take, and 92 MiB once it is decoded."""


def read(path: Path) -> Picture:
    """Decode an uploaded file to ``(H, W, 3)`` RGB uint8, whatever it claims to be.

    Raises:
        DataError: it has too many bytes or pixels, or is no picture; the message names it.
    """
    name, size = path.name, path.stat().st_size
    if size > BYTES:
        raise DataError(
            f"{name} has {size / 2**20:.0f} MiB, and {BYTES // 2**20} MiB are taken; "
            "make it smaller"
        )
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads the head alone
            fits = image.width * image.height <= PIXELS
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        fits = False
    except Exception as error:  # a damaged file can make Pillow raise anything
        raise DataError(
            f"{name} is no picture that can be read here; take a PNG, JPEG, BMP, WEBP or TIFF"
        ) from error
    if not fits:
        raise DataError(
            f"{name} has more than {PIXELS / 1e6:.0f} megapixels; make it smaller and try again"
        )
    try:
        return decode(path)
    except DataError as error:
        raise DataError(
            f"{name} is damaged, or holds values without a white; save it as PNG or JPEG anew"
        ) from error
