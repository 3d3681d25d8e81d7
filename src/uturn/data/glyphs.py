"""Glyphs: real typography as a retrieval problem, rendered on the spot, nothing to download.

The twelve DejaVu text faces that matplotlib ships stand for cameras, code points for
identities: given a letter in one face, find it in the others. Train and test identities are
disjoint (open set), and the camera rule of re-identification applies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageFont, features

from uturn.data.pictures import Picture, Pictures
from uturn.data.split import Split
from uturn.rng import generator

SIZE = 32
"""Height and width of a picture, in pixels."""

FACES = tuple(
    f"DejaVu{family}{style}"
    for family, styles in (
        ("Sans", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("SansMono", ("", "-Bold", "-Oblique", "-BoldOblique")),
        ("Serif", ("", "-Bold", "-Italic", "-BoldItalic")),
    )
    for style in styles
)
_KEPT = Path(__file__).with_name("glyphs.json")
_POINTS = 23  # pixels per em of the drawn glyph; wider or taller glyphs are shrunk to fit
_FIT = SIZE - 6
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_Y, _X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]


def glyphs() -> Split:
    """Letters in twelve typefaces, drawn when asked: a quarter queried, the rest learned.

    A gallery picture and the query of the same identity and face differ in colours, light,
    noise and position; the camera rule ignores that pair.
    """
    identities = _identities()
    order = generator(0, "glyphs", "open set").permutation(len(identities))
    test, train = np.split(order, [len(identities) // 4])
    return Split(
        name="glyphs",
        query=_pictures("query", np.sort(test)),
        gallery=_pictures("gallery", np.sort(test)),
        train=_pictures("train", np.sort(train)),
    )


def _pictures(part: str, identities: npt.NDArray[np.integer]) -> Pictures:
    points = _identities()
    names = tuple(f"{points[i]:04x}_{face}" for i in identities for face in FACES)
    return Pictures(
        GlyphSource(part),
        names,
        np.repeat(identities, len(FACES)).astype(np.int64),
        np.tile(np.arange(len(FACES), dtype=np.int64), len(identities)),
    )


@dataclass(frozen=True)
class GlyphSource:
    """Renders ``<code point in hex>_<face>``, drawn anew for every ending ``_<anything>``.

    ``part`` and the name vary colours, light, noise and shift.
    """

    part: str

    def read(self, name: str) -> Picture:
        point, face, *_ = name.split("_")
        draw = generator(0, "glyphs", self.part, name)
        mask = _mask(int(point, 16), face)
        height, width = mask.shape
        down, right = draw.integers(-2, 3, 2).tolist()
        top = min(max((SIZE - height) // 2 + down, 0), SIZE - height)
        left = min(max((SIZE - width) // 2 + right, 0), SIZE - width)
        alpha = np.zeros((SIZE, SIZE))
        alpha[top : top + height, left : left + width] = mask
        alpha /= 255

        paper, ink = _colours(draw)
        angle = draw.uniform(0, 2 * np.pi)
        light = draw.uniform(0.0, 0.12) * (math.cos(angle) * _X + math.sin(angle) * _Y)
        # In place: a gallery is thousands of them.
        picture = alpha[..., None] * (ink - paper)
        picture += paper
        picture += light[..., None]
        picture += draw.normal(0, 0.02, picture.shape)
        picture *= 255
        rounded: Picture = np.rint(picture, out=picture).clip(0, 255).astype(np.uint8)
        return rounded

    def stamp(self, name: str) -> str:
        return f"{self.part} {name}, {_renderer()}"


@functools.cache
def _renderer() -> str:
    """What the pixels depend on besides this file: the typefaces and who draws them."""
    fonts = hashlib.blake2b(digest_size=16)
    for face in FACES:
        fonts.update(_font_path(face).read_bytes())
    return (
        f"pillow {PIL.__version__}, freetype {features.version('freetype2')}, {fonts.hexdigest()}"
    )


def _colours(draw: np.random.Generator) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Paper and ink, at least 0.4 apart in luminance, so that the glyph can be read."""
    while True:
        paper, ink = draw.uniform(0.05, 0.95, (2, 3))
        if abs((paper - ink) @ _LUMINANCE) >= 0.4:
            return paper, ink


@functools.cache
def _identities() -> tuple[int, ...]:
    """The code points that stand for an identity, ascending: as kept, if the typefaces are those.

    To find them anew takes more than a second, in which nobody sees anything.
    """
    kept = json.loads(_KEPT.read_bytes())
    return tuple(kept["identities"]) if kept["typefaces"] == _typefaces() else _distinct()


def keep() -> None:
    """Write the identities of the typefaces that are installed beside this module."""
    found = {"typefaces": _typefaces(), "identities": _distinct()}
    _KEPT.write_text(json.dumps(found) + "\n", encoding="utf-8")


def _typefaces() -> str:
    digest = hashlib.sha256()
    for face in FACES:
        digest.update(_font_path(face).read_bytes())
    return digest.hexdigest()


def _distinct() -> tuple[int, ...]:
    """The code points that stand for an identity, ascending.

    Letters, numbers, symbols and punctuation that all twelve faces hold. Code points drawn
    with the same shape in any face (Latin A, Greek Alpha) cannot be told apart there and are
    one identity, named by the smallest.
    """
    from matplotlib.ft2font import FT2Font

    charmaps = [FT2Font(str(_font_path(face))).get_charmap() for face in FACES]
    points = sorted(
        point
        for point in set.intersection(*(set(charmap) for charmap in charmaps))
        if unicodedata.category(chr(point))[0] in "LNSP"
    )
    parent = {point: point for point in points}

    def root(point: int) -> int:
        while parent[point] != point:
            point = parent[point]
        return point

    for face in FACES:
        first: dict[tuple[tuple[int, int], bytes], int] = {}
        for point, shape in _shapes(points, face):
            low, high = sorted((root(first.setdefault(shape, point)), root(point)))
            parent[high] = low
    return tuple(point for point in points if root(point) == point)


def _shapes(points: list[int], face: str) -> Iterator[tuple[int, tuple[tuple[int, int], bytes]]]:
    font = _font(face, SIZE)
    for point in points:
        mask = font.getmask(chr(point), mode="L")
        yield point, (mask.size, bytes(mask))


def _mask(point: int, face: str) -> npt.NDArray[np.uint8]:
    """Coverage of the glyph, ``(h, w)`` with ``h, w ≤ 26``."""
    mask = _font(face, _POINTS).getmask(chr(point), mode="L")
    if max(mask.size) > _FIT:
        mask = _font(face, int(_POINTS * _FIT / max(mask.size))).getmask(chr(point), mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    return np.asarray(image)[:_FIT, :_FIT]


@functools.lru_cache(maxsize=256)
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_path(face)), size, layout_engine=ImageFont.Layout.BASIC)


def _font_path(face: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"
