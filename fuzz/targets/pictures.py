"""Pictures: of data sets, uploads of the explorer, and those of a stranger's run folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fuzz.mutate import mended_png
from fuzz.target import Target
from uturn.data.pictures import LARGEST, Picture, decode
from uturn.errors import DataError, RunFolderError
from uturn.explorer import uploads
from uturn.report.folder import Run


def _sound(picture: Picture, most: int) -> None:
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert 0 < picture.shape[0] * picture.shape[1] <= most


def _decode(data: bytes, folder: Path) -> None:
    path = folder / "picture.png"
    path.write_bytes(data)
    try:
        _sound(decode(path), LARGEST)
    except DataError as error:
        assert "picture.png" in str(error)  # noqa: PT017 — either outcome is right
        raise


def _upload(data: bytes, folder: Path) -> None:
    path = folder / "upload"
    path.write_bytes(data)
    _sound(uploads.read(path), uploads.PIXELS)


def _of_a_run(data: bytes, folder: Path) -> None:
    (folder / "images").mkdir()
    (folder / "images" / "query.png").write_bytes(data)
    assert Run(folder, {}, []).picture("images", "query").mode == "RGB"


def seeds() -> Iterator[bytes]:
    """Small pictures of every kind that is decoded."""
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    picture, deep = Image.fromarray(rgb), Image.fromarray(rgb[..., 0].astype(np.uint16))
    exif = Image.Exif()
    exif[0x010E] = "text"
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "PNG", {}),
        (picture, "PNG", {"save_all": True, "append_images": [picture.rotate(180)]}),
        (picture.convert("P"), "PNG", {"transparency": b"\0\1"}),
        (picture.convert("RGBA"), "PNG", {"icc_profile": b"profile", "exif": exif}),
        (picture.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "WEBP", {}),
        (picture, "WEBP", {"lossless": True, "exif": exif}),
        (picture, "BMP", {}),
        (picture.convert("P"), "BMP", {}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (picture, "TIFF", {"compression": "jpeg"}),
        (picture.convert("CMYK"), "TIFF", {"compression": "packbits"}),
        (deep, "TIFF", {}),
    ]
    for image, form, how in kinds:
        buffer = io.BytesIO()
        image.save(buffer, form, **how)
        yield buffer.getvalue()


TARGETS = (
    Target(
        name="pictures",
        parse=_decode,
        refusals=(DataError,),
        seeds=seeds,
        mutate=mended_png,
        memory=3 << 29,  # 90 megapixels, decoded, converted and copied
    ),
    Target(
        name="uploads",
        parse=_upload,
        refusals=(DataError,),
        seeds=seeds,
        mutate=mended_png,
        memory=3 << 28,
    ),
    Target(
        name="run_pictures",
        parse=_of_a_run,
        refusals=(RunFolderError,),
        seeds=seeds,
        mutate=mended_png,
        memory=3 << 29,
    ),
)
