"""Pictures with labels, and how one is decoded. Nothing here resizes: that is the victim's job."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from uturn.errors import ArgumentError, DataError
from uturn.rng import generator
from uturn.storage import write

Picture = npt.NDArray[np.uint8]
"""A decoded picture: ``(H, W, 3)`` RGB, uint8."""

IntArray = npt.NDArray[np.int64]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
"""What is decoded. Pillow reads more, some of it by starting other programs."""

LARGEST = 89_478_485
"""Pixels beyond which a picture is refused: 256 MiB as RGB, where Pillow begins to warn."""

_BITS, _BLACK, _TILE_WIDTH, _TILE_LENGTH = 258, 262, 322, 323
"""TIFF's tags BitsPerSample, PhotometricInterpretation (1: zero is black) and of its tiles."""


class Source(Protocol):
    """Where pictures come from: a name in, a decoded picture out."""

    def read(self, name: str) -> Picture: ...

    def stamp(self, name: str) -> str:
        """Identify the content: a changed picture has another stamp."""
        ...


def decode(path: Path) -> Picture:
    """Decode one picture file to ``(H, W, 3)`` RGB uint8.

    As in the published pipelines this is Pillow's ``open(path).convert("RGB")``: transparency is
    dropped and not composited, EXIF orientation and colour profiles are ignored, an animation
    gives its first frame, CMYK becomes ``R = (255 − C)(255 − K) / 255`` and so on. One thing
    differs: Pillow clips 16-bit grey to white above 255; here 16 bits give their high byte, in
    grey as in colour, so that 65535 becomes 255, and 257·v as well as 256·v become v.

    Raises:
        DataError: the file is missing, empty, damaged, not one of `FORMATS`, larger than `LARGEST`,
            or its values have no fixed white (floats, 32 bits); the message names it.
    """
    try:
        if not path.is_file():  # a folder, or a pipe on which one would wait for ever
            raise FileNotFoundError
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
            tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)  # allocated in any case
            if max(image.width * image.height, tile) > LARGEST:
                raise Image.DecompressionBombError
            if image.mode[0] in "IF":
                plain = (image.mode[:4], tags.get(_BITS), tags.get(_BLACK)) == ("I;16", (16,), 1)
                if not plain and image.format != "PNG":
                    raise ValueError("its grey is not of 8 or 16 bits from black to white")
                return _high_byte(image)
            image.info.pop("transparency", None)  # it is dropped, and Pillow would say so each time
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError:
        raise DataError(f"there is no picture at {path}") from None
    except Exception as error:  # a damaged file can make Pillow raise anything
        why = str(error) or type(error).__name__
        if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            why = f"it claims more than {LARGEST:,} pixels"
        elif isinstance(error, UnidentifiedImageError) and not path.stat().st_size:
            why = "it is empty (0 bytes)"
        raise DataError(
            f"cannot read the picture {path}: {why}; replace it or take it out of the data set"
        ) from error


def _high_byte(image: Image.Image) -> Picture:
    """A 16-bit greyscale picture as its high byte, three times: ``(H, W, 3)``."""
    grey = (np.asarray(image) >> 8).astype(np.uint8)  # (H, W)
    return np.repeat(grey[..., None], 3, axis=2)


def encode(path: Path, picture: Picture) -> None:
    """Write a picture as an 8-bit PNG: lossless, quick rather than small; whole or not at all."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    write(path, buffer.getvalue())


@dataclass(frozen=True)
class FileSource:
    """Pictures in files below ``root``; a name is a path relative to it, less ``suffix``."""

    root: Path
    suffixes: dict[str, str]
    """The file ending of every name (``.jpg``)."""

    def path(self, name: str) -> Path:
        return self.root / f"{name}{self.suffixes[name]}"

    def read(self, name: str) -> Picture:
        return decode(self.path(name))

    def stamp(self, name: str) -> str:
        return hashlib.blake2b(self.path(name).read_bytes(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        return f"FileSource({str(self.root)!r}, {len(self.suffixes)} pictures)"


Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels of the whole photograph."""


@final
@dataclass(frozen=True)
class Cropped:
    """Pictures of ``source``, each cut to its box: only that is seen, attacked and scored.

    As in the published pipelines the cut is Pillow's ``crop`` of the box as it stands: each side
    is rounded to the nearest pixel edge (halves to even), and what lies outside is black.
    """

    source: Source
    boxes: Mapping[str, Box]

    def read(self, name: str) -> Picture:
        picture = self.source.read(name)  # (H, W, 3)
        left, top, right, bottom = box = self.boxes[name]
        height, width = picture.shape[:2]
        if not (_near(left, right, width) and _near(top, bottom, height)):
            raise DataError(
                f"the box {box} of query {name} lies outside its picture of {width}x{height}; "
                "the lists belong to other pictures"
            )
        return np.array(Image.fromarray(picture).crop(box))

    def stamp(self, name: str) -> str:
        return f"{self.source.stamp(name)} {self.boxes[name]}"

    def __repr__(self) -> str:
        return f"Cropped({self.source!r})"


def _near(low: float, high: float, size: int) -> bool:
    """Whether low to high meets 0 to ``size`` and leaves it by less than ``size`` on a side."""
    return -size < low < size and 0 < high < 2 * size


@dataclass(frozen=True, eq=False)
class Pictures:
    """``N`` named pictures with labels: identities ``(N,)`` and cameras ``(N,)``, int64.

    Names are unique: they key the randomness, the run folder's files and its tables.
    """

    source: Source
    names: tuple[str, ...]
    identities: IntArray
    cameras: IntArray

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.identities) == len(self.cameras):
            raise DataError(
                f"{len(self.names)} names, {len(self.identities)} identities and "
                f"{len(self.cameras)} cameras: there must be one of each per picture"
            )
        if len(set(self.names)) != len(self.names):
            twice = Counter(self.names).most_common(1)[0][0]
            raise DataError(f"two pictures share the name {twice!r}; rename one of them")

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return (
            f"Pictures({len(self)} of {len(np.unique(self.identities))} identities "
            f"from {self.source!r})"
        )

    def read(self, index: int) -> Picture:
        """Decode picture ``index``."""
        return self.source.read(self.names[index])

    def subset(self, indices: npt.NDArray[np.integer]) -> Pictures:
        """The pictures at ``indices``, in that order."""
        return Pictures(
            self.source,
            tuple(self.names[i] for i in indices),
            self.identities[indices],
            self.cameras[indices],
        )

    def sample(self, count: int | None, seed: int, *key: str) -> Pictures:
        """``count`` of the pictures (None: all), ordered by (seed, key).

        Raises:
            ArgumentError: more than there are, or none.
        """
        count = len(self) if count is None else count
        if not 0 < count <= len(self):
            raise ArgumentError(
                f"{count} {' '.join(key)} asked for, but there are 1 to {len(self)}"
            )
        return self.subset(generator(seed, *key).permutation(len(self))[:count])
