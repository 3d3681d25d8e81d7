"""Figures as SVG text: curves over ε, and the dial on which a feature turns round.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every attack also has
its own marker. Text and axes take the page's colour, so they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#7f7f7f")
_MARKERS = ("circle", "square", "triangle", "diamond")

_Scale = Callable[[float], float]

WIDTH, HEIGHT = 380, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 30, 40
_WIDE = 440
"""Figures with names at their left."""

_CIVIDIS = (
    (0, 34, 78),
    (0, 49, 112),
    (42, 63, 109),
    (67, 78, 108),
    (87, 93, 109),
    (106, 108, 113),
    (125, 124, 120),
    (145, 139, 120),
    (165, 156, 116),
    (187, 173, 109),
    (209, 191, 97),
    (233, 211, 78),
    (254, 232, 56),
)
"""matplotlib's map at thirteen even steps; loading matplotlib takes longer than making the page."""


@final
@dataclass(frozen=True)
class Point:
    """One measured value over ε, with its interval where there is one."""

    eps: float
    value: float
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True)
class Series:
    """One attack's line."""

    name: str
    colour: str
    marker: str
    points: Sequence[Point]


@final
@dataclass(frozen=True)
class Bars:
    """One histogram: how many queries are in each bin."""

    name: str
    colour: str
    counts: Sequence[int]

    @property
    def shares(self) -> list[float]:
        """Of all its queries; 0 where it has none."""
        return [each / (sum(self.counts) or 1) for each in self.counts]


def style(position: int) -> tuple[str, str]:
    """Colour and marker of the attack at ``position``; each round of colours shifts the markers."""
    shift = position // len(COLOURS)
    return COLOURS[position % len(COLOURS)], _MARKERS[(position + shift) % len(_MARKERS)]


def curves(
    title: str,
    series: Sequence[Series],
    clean: float | None,
    span: tuple[float, float] = (0.0, 1.0),
    percent: bool = True,
) -> str:
    """One line per attack over ε with its 95 % band; the clean value dashed."""
    ticks = sorted({0.0, *(point.eps for line in series for point in line.points)})
    right = max(ticks) or 1.0

    def x(eps: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * eps / right

    def y(value: float) -> float:
        share = (value - span[0]) / (span[1] - span[0])
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share

    parts = [_text(_LEFT, 18, title, "title", "start")]
    for quarter in range(5):
        level = span[0] + (span[1] - span[0]) * quarter / 4
        label = f"{100 * level:.0f} %" if percent else f"{level:+.1f}".replace("+0.0", "0")
        parts.append(_line(_LEFT, y(level), WIDTH - _RIGHT, y(level), "grid"))
        parts.append(_text(_LEFT - 6, y(level) + 4, label, "tick", "end"))
    for eps in ticks:
        parts.append(_text(x(eps), HEIGHT - _BOTTOM + 16, f"{eps:g}", "tick", "middle"))
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 6, "ε (levels of 255)", "tick", "middle"))
    if clean is not None:
        parts.append(_line(_LEFT, y(clean), WIDTH - _RIGHT, y(clean), "clean"))
    for line in series:
        parts.append(_band(line, x, y))
    for line in series:
        path = " ".join(f"{x(p.eps):.1f},{y(p.value):.1f}" for p in line.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"/>'
        )
        for point in line.points:
            shown = f"{100 * point.value:.1f} %" if percent else f"{point.value:+.2f}"
            if point.low is not None and point.high is not None:
                ends = (point.low, point.high)
                shown += " (95 %: " + " to ".join(f"{100 * end:.1f} %" for end in ends) + ")"
            parts.append(
                _marker(
                    line, x(point.eps), y(point.value), f"{line.name}, ε={point.eps:g}: {shown}"
                )
            )
    return _svg(WIDTH, HEIGHT, f"{title} against ε", parts, "curve")


def dial(
    means: Sequence[tuple[float, float]], cloud: Sequence[Sequence[float]], colour: str
) -> str:
    """A half circle on which the feature turns from 0° (its own place) to 180° (opposite).

    ``means`` are (ε, mean cosine), one arrow each; ``cloud`` the cosines of single queries
    per arrow, drawn as dots along the rim.
    """
    cx, cy, radius = 230.0, 205.0, 150.0

    def at(cosine: float, r: float) -> tuple[float, float]:
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        return cx + r * math.cos(angle), cy - r * math.sin(angle)

    rim = (
        f'<path d="M {cx + radius} {cy} A {radius} {radius} 0 0 0 {cx - radius} {cy}" class="rim"/>'
    )
    parts = [rim, _line(cx - radius, cy, cx + radius, cy, "grid")]
    for mark in (0, 45, 90, 135, 180):
        tx, ty = at(math.cos(math.radians(mark)), radius + 44)
        parts.append(_text(tx, ty + 4, f"{mark}°", "tick", "middle"))
    for ring, cosines in enumerate(cloud):
        for cosine in cosines:
            px, py = at(cosine, radius + 6 + 5 * ring)
            parts.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="1.6" fill="{colour}" '
                f'fill-opacity="{_fade(ring, len(cloud)):.2f}"/>'
            )
    fx, fy = at(1.0, radius)
    parts.append(_arrow(cx, cy, fx, fy, "currentColor", 1.0, "the clean feature f(x)"))
    parts.append(_text(cx + radius * 0.55, cy - 8, "f(x)", "label", "middle"))
    for position, (eps, cosine) in enumerate(means):
        tx, ty = at(cosine, radius * 0.96)
        degrees = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        says = f"ε={eps:g}: mean cosine {cosine:+.2f}, {degrees:.0f}°"
        parts.append(_arrow(cx, cy, tx, ty, colour, _fade(position, len(means)), says))
        # Neighbouring labels stand at different radii, so that close arrows stay readable.
        lx, ly = at(cosine, radius * (0.74 - 0.15 * (position % 3)))
        parts.append(_text(lx, ly - 5, f"ε={eps:g}", "label halo", "middle"))
    parts.append(_text(cx - radius, cy + 22, "−f(x), the opposite", "label", "middle"))
    parts.append(_text(cx + radius, cy + 22, "where it was", "label", "middle"))
    return _svg(460, 238, "Angle between the attacked and the clean feature", parts, "dial")


def ridges(
    title: str,
    ticks: Sequence[str],
    names: Sequence[str],
    rows: Sequence[Bars],
    axis: str,
    outline: Sequence[float] = (),
) -> str:
    """Histograms one below the other, over the same bins and at the same scale.

    ``ticks`` stand below the bins, ``names`` are what they are called in full. ``outline`` are
    shares that stand dashed behind every row. Above a bar is its share in percent.
    """
    gutter, tall = 92, 42
    step = (_WIDE - gutter - _RIGHT) / len(ticks)
    most = max((share for row in rows for share in (*row.shares, *outline)), default=0) or 1.0
    parts = [_text(8, 18, _short(title, 56), "title", "start")]

    def up(share: float) -> float:
        return (tall - 16) * share / most

    for number, row in enumerate(rows):
        base = _TOP + tall * (number + 1)
        parts.append(_line(gutter, base, _WIDE - _RIGHT, base, "grid"))
        parts.append(_text(gutter - 8, base - 4, _short(row.name, 13), "label", "end"))
        for place, (share, queries) in enumerate(zip(row.shares, row.counts, strict=True)):
            left, says = gutter + step * place, f"{100 * share:.1f} %, {queries} queries"
            if queries:
                parts.append(
                    f'<rect x="{left + 1:.1f}" y="{base - up(share):.1f}" width="{step - 2:.1f}" '
                    f'height="{up(share):.1f}" fill="{row.colour}">'
                    f"<title>{escape(f'{row.name}, {names[place]}: {says}')}</title></rect>"
                )
                high = base - up(share) - 3
                parts.append(_text(left + step / 2, high, _whole_percent(share), "value", "middle"))
        if outline and number:
            edge = [f"M {gutter:.1f} {base:.1f}"]
            for place, share in enumerate(outline):
                edge.append(f"V {base - up(share):.1f} H {gutter + step * (place + 1):.1f}")
            parts.append(f'<path d="{" ".join(edge)}" class="clean" fill="none"/>')
    base = _TOP + tall * len(rows)
    kind = "tick" if step > 26 else "tick value"
    for place, tick in enumerate(ticks):
        parts.append(_text(gutter + step * (place + 0.5), base + 15, tick, kind, "middle"))
    parts.append(_text((gutter + _WIDE - _RIGHT) / 2, base + 33, axis, "tick", "middle"))
    return _svg(_WIDE, base + 40, f"{title}, in percent of queries", parts, "ridges")


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    split: int = 0,
    framed: Collection[tuple[int, int]] = (),
) -> str:
    """Shares in cells, in percent; the lighter the more. None is a cell that nobody measured.

    After the first ``split`` rows there is a gap. ``framed`` are cells, (row, column), with a
    frame of their text's colour.
    """
    gutter, tall, gap = 106, 26, 6
    wide = min(96.0, (_WIDE - gutter - _RIGHT) / len(columns))
    parts = [_text(8, 18, _short(title, 56), "title", "start")]
    for place, name in enumerate(columns):
        middle = gutter + wide * (place + 0.5)
        parts.append(_text(middle, _TOP + 12, _short(name, int(wide / 6.5)), "tick", "middle"))
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        top = _TOP + 20 + tall * number + (gap if split and number >= split else 0)
        parts.append(_text(gutter - 8, top + 17, _short(name, 15), "label", "end"))
        for place, value in enumerate(line):
            left = gutter + wide * place
            shown = "–" if value is None else f"{100 * value:.1f}"
            red, green, blue = heat(value or 0.0)
            fill = "none" if value is None else f"rgb({red},{green},{blue})"
            ink_ = "currentColor" if value is None else ink(red / 255, green / 255, blue / 255)
            parts.append(
                f"<g><title>{escape(f'{name}, {columns[place]}: {shown} %')}</title>"
                f'<rect x="{left + 1:.1f}" y="{top + 1}" width="{wide - 2:.1f}" '
                f'height="{tall - 2}" fill="{fill}"/>'
                f'<text x="{left + wide / 2:.1f}" y="{top + 17}" text-anchor="middle" '
                f'style="fill:{ink_}">{shown}</text></g>'
            )
            if (number, place) in framed:
                parts.append(
                    f'<rect x="{left + 4:.1f}" y="{top + 4}" width="{wide - 8:.1f}" '
                    f'height="{tall - 8}" fill="none" style="stroke:{ink_}"/>'
                )
    height = _TOP + 20 + tall * len(rows) + (gap if split else 0) + 10
    return _svg(_WIDE, height, f"{title}, in percent", parts, "heat")


def forest(title: str, rows: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Differences with their intervals, one line each: (name, value, low, high), as shares.

    They are filled where the interval leaves 0 out.
    """
    gutter, tall = 150, 22
    ends = [abs(end) for _, *each in rows for end in each if end is not None]
    most = max(ends, default=0.0) * 1.08 or 1.0
    middle, half = (gutter + _WIDE - 16) / 2, (_WIDE - 16 - gutter) / 2
    base = _TOP + tall * len(rows) + 4

    def x(value: float) -> float:
        return middle + half * value / most

    parts = [_text(8, 18, _short(title, 56), "title", "start")]
    for mark in (-most / 1.08, 0.0, most / 1.08):
        parts.append(_line(x(mark), _TOP, x(mark), base, "clean" if mark == 0 else "grid"))
        points = f"{100 * mark:+.1f}" if mark else "0"
        parts.append(_text(x(mark), base + 15, points, "tick", "middle"))
    parts.append(_text(middle, base + 33, "percentage points", "tick", "middle"))
    for number, (name, value, low, high) in enumerate(rows):
        y = _TOP + tall * (number + 0.5)
        says = f"{name}: {100 * value:+.1f} points"
        kind = "open"
        if low is not None and high is not None:
            kind = "sure" if low > 0 or high < 0 else "open"
            says += f" (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
            parts.append(_line(x(low), y, x(high), y, "whisker"))
        parts.append(_text(gutter - 8, y + 4, _short(name, 23), "label", "end"))
        parts.append(
            f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="4.5" class="{kind}">'
            f"<title>{escape(says)}</title></circle>"
        )
    return _svg(_WIDE, base + 40, title, parts, "forest")


def heat(share: float) -> tuple[int, int, int]:
    """The colour of a share in 0 … 1, red, green and blue in 0 … 255: matplotlib's cividis.

    It grows lighter evenly, for colour-blind readers and grey prints.

    >>> heat(0), heat(1)
    ((0, 34, 78), (254, 232, 56))
    """
    place = max(0.0, min(1.0, share)) * (len(_CIVIDIS) - 1)
    below = min(int(place), len(_CIVIDIS) - 2)
    one, two = _CIVIDIS[below], _CIVIDIS[below + 1]
    red, green, blue = (round(a + (b - a) * (place - below)) for a, b in zip(one, two, strict=True))
    return red, green, blue


def ink(red: float, green: float, blue: float) -> str:
    """Black or white, whichever contrasts more with an sRGB colour in 0 … 1 (WCAG 2).

    >>> ink(1, 1, 0), ink(0, 0, 0.5)
    ('black', 'white')
    """
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Where black and white contrast alike, 4.6 : 1 each.
    return "white" if luminance < 1.05**0.5 * 0.05**0.5 - 0.05 else "black"


def swatch(colour: str, marker: str) -> str:
    """A legend entry's mark."""
    mark = _marker(Series("", colour, marker, ()), 13, 7, "")
    line = f'<line x1="0" y1="7" x2="26" y2="7" stroke="{colour}" stroke-width="2"/>'
    return f'<svg class="swatch" width="26" height="14" aria-hidden="true">{line}{mark}</svg>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _whole_percent(share: float) -> str:
    return "<1" if share < 0.01 else f"{100 * share:.0f}"


def _fade(position: int, total: int) -> float:
    return 0.35 + 0.65 * (position + 1) / max(1, total)


def _band(line: Series, x: _Scale, y: _Scale) -> str:
    known = [(x(p.eps), p.low, p.high) for p in line.points if p.low is not None]
    upper = [f"{px:.1f},{y(high):.1f}" for px, _, high in known if high is not None]
    lower = [f"{px:.1f},{y(low):.1f}" for px, low, _ in reversed(known) if low is not None]
    if not upper:
        return ""
    points = " ".join(upper + lower)
    return f'<polygon points="{points}" fill="{line.colour}" fill-opacity="0.15" stroke="none"/>'


def _marker(line: Series, x: float, y: float, says: str) -> str:
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"',
        "square": f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"',
        "triangle": f'<path d="M {x:.1f} {y - 5:.1f} l 4.5 8.5 h -9 z"',
        "diamond": f'<path d="M {x:.1f} {y - 5.5:.1f} l 5 5.5 l -5 5.5 l -5 -5.5 z"',
    }
    return f'{shapes[line.marker]} fill="{line.colour}"><title>{escape(says)}</title>{_close(line)}'


def _close(line: Series) -> str:
    return {"circle": "</circle>", "square": "</rect>"}.get(line.marker, "</path>")


def _arrow(
    x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float, says: str
) -> str:
    angle = math.atan2(y2 - y1, x2 - x1)
    wings = [
        (x2 - 10 * math.cos(angle + side), y2 - 10 * math.sin(angle + side)) for side in (-0.4, 0.4)
    ]
    head = " ".join(f"{px:.1f},{py:.1f}" for px, py in ((x2, y2), *wings))
    return (
        f'<g opacity="{opacity:.2f}"><title>{escape(says)}</title>'
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-width="2.5"/>'
        f'<polygon points="{head}" fill="{colour}"/></g>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str], kind: str) -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
