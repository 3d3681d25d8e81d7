"""Figures as SVG text: curves over ε, and the dial on which a feature turns round.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every attack also has
its own marker. Text and axes take the page's colour, so they follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c6bb1", "#7f7f7f")
_MARKERS = ("circle", "square", "triangle", "diamond")

_Scale = Callable[[float], float]

WIDTH, HEIGHT = 380, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 30, 40


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


def swatch(colour: str, marker: str) -> str:
    """A legend entry's mark."""
    mark = _marker(Series("", colour, marker, ()), 13, 7, "")
    line = f'<line x1="0" y1="7" x2="26" y2="7" stroke="{colour}" stroke-width="2"/>'
    return f'<svg class="swatch" width="26" height="14" aria-hidden="true">{line}{mark}</svg>'


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
