"""The share card: one picture that tells one attack, query, change and rank lists. For people."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from uturn._version import __version__
from uturn.data.pictures import Picture
from uturn.explorer.climb import Frame, Order
from uturn.explorer.studio import Answer, Query, Studio, Verdict

WIDTH, HEIGHT = 1200, 675
"""Sixteen to nine, as most places show a shared picture."""

COLOURS: dict[Verdict, str] = {
    "right": "#0b7a4b",
    "wrong": "#c2410c",
    "ignored": "#8a8f99",
    "unknown": "#5a6375",
}
SIGNS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "ignored": "–", "unknown": "?"}
"""Beside the colours, for those who cannot tell them apart."""

_INK, _SOFT, _PAPER = "#1d2330", "#5a6375", "#ffffff"
_LEFT, _PICTURE, _THUMB = 40, 190, 82


def amplified(clean: Picture, attacked: Picture, eps: float) -> Picture:
    """The change around mid-grey, stretched so that ±ε fills the range."""
    change = attacked.astype(np.float64) - clean
    shown: Picture = np.clip(127.5 + change * 127.5 / eps, 0, 255).astype(np.uint8)
    return shown


def first_match(answer: Answer) -> str:
    """Where the first relevant item stands, in words."""
    return "–" if answer.first_match is None else f"{answer.first_match:,}"


def scored(score: float) -> str:
    """A score as short as it can be read: cosines have decimals, squared distances need none."""
    return f"{score:.2f}" if abs(score) < 10 else f"{score:.0f}"


def draw(studio: Studio, query: Query, order: Order, before: Frame, after: Frame) -> Image.Image:
    """The card of an attack that began at the frame ``before`` and came to ``after``."""
    card = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
    pen = ImageDraw.Draw(card)
    now, then = after.looks[0], before.looks[0]
    _write(pen, (_LEFT, 30), f"The same picture, found elsewhere: ε = {order.eps:g}", 30, bold=True)
    told = f"cosine to its own feature {now.cosine:+.2f}"
    if query.labelled is not None:
        told += f"   ·   first right picture: place {first_match(then.answer)} before, "
        told += f"{first_match(now.answer)} after"
    else:
        told += f"   ·   {now.answer.kept_from(then.answer)} of the first "
        told += f"{sum(p.rank is not None for p in then.answer.places)} pictures kept"
    _write(pen, (_LEFT, 74), told, 19, _SOFT)
    shown = (
        (before.picture, "query"),
        (
            amplified(before.picture, after.picture, order.eps),
            f"change × {127.5 / order.eps:.0f}",
        ),
        (after.picture, "adversarial"),
    )
    for number, (picture, caption) in enumerate(shown):
        left = _LEFT + number * (_PICTURE + 30)
        placed = _fitted(picture, _PICTURE)
        card.paste(placed, (left + (_PICTURE - placed.width) // 2, 122))
        _write(pen, (left + _PICTURE // 2, 122 + _PICTURE + 6), caption, 16, _SOFT, anchor="ma")
    facts = (
        f"{order.spec}",
        f"largest change {after.levels} of 255 levels",
        f"{after.gradients} gradients",
        f"victim {studio.spec}",
        f"data {studio.data}",
        f"query {query.name}",
    )
    for number, fact in enumerate(facts):
        _write(pen, (_LEFT + 3 * (_PICTURE + 30) + 10, 126 + 32 * number), fact, 18, _INK)
    _ranks(card, pen, studio, "before", then.answer, 358)
    _ranks(card, pen, studio, "after", now.answer, 498)
    _write(pen, (_LEFT, HEIGHT - 34), f"uturn {__version__}", 15, _SOFT)
    return card


def png(card: Image.Image) -> bytes:
    """The card as a file."""
    buffer = io.BytesIO()
    card.save(buffer, "PNG")
    return buffer.getvalue()


def _ranks(
    card: Image.Image,
    pen: ImageDraw.ImageDraw,
    studio: Studio,
    title: str,
    answer: Answer,
    top: int,
) -> None:
    """A row of the ranked items; the ignored take no place."""
    _write(pen, (_LEFT, top), title, 17, _INK, bold=True)
    ranked = [place for place in answer.places if place.rank is not None]
    for number, place in enumerate(ranked):
        left, colour = _LEFT + number * (_THUMB + 30), COLOURS[place.verdict]
        placed = _fitted(studio.split.gallery.read(place.item), _THUMB)
        at = (left + (_THUMB - placed.width) // 2, top + 28 + (_THUMB - placed.height) // 2)
        pen.rectangle(
            (at[0] - 4, at[1] - 4, at[0] + placed.width + 3, at[1] + placed.height + 3), fill=colour
        )
        card.paste(placed, at)
        told = f"{SIGNS[place.verdict]} {scored(place.score)}"
        _write(pen, (left + _THUMB // 2, top + 34 + _THUMB), told, 14, colour, anchor="ma")


def _fitted(picture: Picture, side: int) -> Image.Image:
    """Within a square of ``side``; small pictures grow by whole pixels, as they are."""
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, how)


def _write(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    points: int,
    colour: str = _INK,
    *,
    bold: bool = False,
    anchor: Literal["la", "ma"] = "la",
) -> None:
    """One line that ends where the card does, whatever strangers put into their names."""
    font, room = _font(points, bold), WIDTH - _LEFT - at[0]
    line = "".join(letter if letter.isprintable() else "�" for letter in text[:400])
    while pen.textlength(line, font) > room and line != "…":
        line = line[:-2] + "…"
    pen.text(at, line, font=font, fill=colour, anchor=anchor)


@cache
def _font(points: int, bold: bool) -> ImageFont.FreeTypeFont:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), points)
