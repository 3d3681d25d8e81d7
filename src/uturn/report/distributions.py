"""How the queries fare one by one: where first matches stand, how little is enough, which cameras
and which other victims are fooled. Each figure comes with its numbers as a table."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

from markupsafe import Markup

from uturn.report import figures
from uturn.report.figures import Bars
from uturn.report.folder import CLEAN, Columns, Job, Row
from uturn.report.text import by_victim, interval, percent, percent_within

COLUMNS = ("first_match_rank", "linf_levels", "camera")
"""Of ``queries.parquet``, what these figures are drawn from."""

CAMERAS = 24
"""So many cameras are shown at most, those with most queries."""

LEVELS = 255
"""The most that a value can change by."""

_PLAIN = "#7f7f7f"
"""The colour of clean queries."""

Jobs = Mapping[Job, Columns]


@final
@dataclass(frozen=True)
class Figure:
    """A drawing, and the same as a table for whoever does not see it."""

    title: str
    svg: Markup
    head: list[str]
    lines: list[list[str]]


# -- where the first match stands -----------------------------------------------------------------


def first_matches(jobs: Jobs, attack: str, colour: str) -> Figure:
    """Shares of queries by the position of their first match, clean and at every ε."""
    named = [("clean", CLEAN, _PLAIN)]
    named += [(f"ε = {eps:g}", (attack, eps), colour) for eps in _levels(jobs, attack)]
    ranks = {
        name: [rank for rank in jobs[job]["first_match_rank"] if rank is not None]
        for name, job, _ in named
    }
    every = [rank for each in ranks.values() for rank in each]
    ends = steps(max((rank for rank in every if rank < math.inf), default=1))
    if math.inf in every:  # below all that the index answers with
        ends.append(math.inf)
    rows = [Bars(name, shade, _histogram(ranks[name], ends)) for name, _, shade in named]
    return _drawn(
        f"{attack}: the first match",
        rows,
        ends,
        "position of the first match, up to",
        clean=True,
        beyond="deeper",
    )


def steps(most: float) -> list[float]:
    """Upper ends of bins 1, 2, 5, 10, 20, … that hold everything from 1 to ``most``.

    >>> steps(30)
    [1, 2, 5, 10, 20, 50]

    Raises:
        ValueError: there is no such number of anything.
    """
    if not most < 1e15:
        raise ValueError(f"{most} is no position in a ranking")
    ends: list[float] = []
    for power in count():
        for digit in (1, 2, 5):
            ends.append(digit * 10**power)
            if ends[-1] >= most:
                return ends
    raise AssertionError("counting never ends")


# -- how little is enough -------------------------------------------------------------------------


def smallest(jobs: Jobs, attack: str) -> list[float]:
    """Of every query that was right, the least ε of the sweep at which it lost its first place.

    Infinite where it kept it at every ε.
    """
    firsts = [(eps, jobs[attack, eps]["first_match_rank"]) for eps in _levels(jobs, attack)]
    return [
        next((eps for eps, first in firsts if first[query] != 1), math.inf)
        for query in _right(jobs)
    ]


def found(jobs: Jobs, attack: str) -> list[float]:
    """The same of an attack that looks for the smallest change itself: its own, in levels."""
    own = jobs[attack, _levels(jobs, attack)[-1]]
    return [
        own["linf_levels"][query] if own["first_match_rank"][query] != 1 else math.inf
        for query in _right(jobs)
    ]


def median(levels: Sequence[float]) -> float:
    """The least ε at which at least half are lost; infinite where fewer are, NaN where none are.

    >>> median([4, 8, 8, math.inf])
    8
    """
    return sorted(levels)[(len(levels) - 1) // 2] if levels else math.nan


def enough(jobs: Jobs, styles: Mapping[str, tuple[str, str]], searching: set[str]) -> list[Figure]:
    """Histograms of the smallest ε, those of attacks that are ``searching`` for it by the level.

    Empty where no query was right.
    """
    if not _right(jobs):
        return []
    drawn = []
    on_grid = {name: smallest(jobs, name) for name in styles if name not in searching}
    if on_grid:
        levels = sorted({eps for name, eps in jobs if name in on_grid})
        drawn.append(_enough("The smallest ε of the sweep that is enough", on_grid, levels, styles))
    for name in styles:
        if name in searching:
            own = found(jobs, name)
            most = max((int(one) for one in own if one < math.inf), default=1)
            if most > LEVELS:
                raise ValueError(f"{name} changed a value by {most} levels of {LEVELS}")
            levels = [float(level) for level in range(1, most + 1)]
            title = f"{name}: the smallest change it found"
            drawn.append(_enough(title, {name: own}, levels, styles))
    return drawn


def _enough(
    title: str,
    losses: Mapping[str, list[float]],
    levels: list[float],
    styles: Mapping[str, tuple[str, str]],
) -> Figure:
    exact = len(levels) <= 16
    ends = [*(levels if exact else steps(levels[-1])), math.inf]
    rows = [Bars(name, styles[name][0], _histogram(each, ends)) for name, each in losses.items()]
    drawn = _drawn(title, rows, ends, "ε (levels of 255)", exact=exact)
    half = [_level(median(each)) for each in losses.values()]
    lines = [[*line, cell] for line, cell in zip(drawn.lines, half, strict=True)]
    return Figure(title, drawn.svg, [*drawn.head, "half are lost at"], lines)


def _level(eps: float, beyond: str = "never") -> str:
    return beyond if eps == math.inf else f"{eps:g}"


# -- cameras --------------------------------------------------------------------------------------


def by_camera(rows: Sequence[Row], attack: str) -> Figure | None:
    """Recall@1 of the queries of each camera, clean and at every ε, with 95 % intervals.

    ``rows`` are the attacked victim's. None where queries are of one camera only, and of runs from
    before their tables had cameras.
    """
    levels = sorted((r for r in rows if r["attack"] == attack), key=lambda row: float(row["eps"]))
    columns = {"clean": rows[0].get("cameras", {})}
    columns |= {f"ε = {row['eps']:g}": row.get("cameras", {}) for row in levels}
    queries = {camera: said["queries"] for camera, said in columns["clean"].items()}
    if len(queries) < 2:
        return None
    most = sorted(queries, key=lambda camera: -queries[camera])[:CAMERAS]
    cameras = sorted(most, key=int)
    values = [[of[camera]["recall@1"] for of in columns.values()] for camera in cameras]
    title = f"{attack}: Recall@1 by the query's camera"
    names = [f"camera {camera}" for camera in cameras]
    return Figure(
        title,
        Markup(figures.heatmap(title, names, list(columns), values)),
        ["camera", "queries", *columns],
        [
            [camera, f"{queries[camera]}"]
            + [
                percent_within(of[camera]["recall@1"], of[camera]["ci95"])
                for of in columns.values()
            ]
            for camera in cameras
        ],
    )


# -- transfer -------------------------------------------------------------------------------------


def titles(rows: Sequence[Row]) -> dict[str, str]:
    """What the heat maps call the victims that scored, by their specs: the attacked one first."""
    names = [str(scored[0]["victim"]) for scored in by_victim(rows)]
    return {name: f"target {number}" if number else "itself" for number, name in enumerate(names)}


def transfer(rows: Sequence[Row], attacks: Sequence[str]) -> list[Figure]:
    """Who is fooled: attacks × victims, Recall@1 at each ε. Empty where only one victim scored."""
    called = titles(rows)
    if len(called) < 2:
        return []
    left = {(row["victim"], row["attack"], row["eps"]): row["recall@1"] for row in rows}
    ends = {(row["victim"], row["attack"], row["eps"]): interval(row, "recall@1") for row in rows}
    drawn = []
    for eps in sorted({row["eps"] for row in rows if row["eps"]}):
        names = [name for name in attacks if any((v, name, eps) in left for v in called)]
        lines = {"clean": [left.get((victim, *CLEAN)) for victim in called]}
        lines |= {name: [left.get((victim, name, eps)) for victim in called] for name in names}
        title = f"Recall@1 at ε = {eps:g}"
        drawn.append(
            Figure(
                title,
                Markup(
                    figures.heatmap(title, [*lines], [*called.values()], [*lines.values()], split=1)
                ),
                ["attack", *called.values()],
                [
                    [name]
                    + [
                        percent_within(
                            found, ends.get((victim, *(CLEAN if name == "clean" else (name, eps))))
                        )
                        for victim, found in zip(called, values, strict=True)
                    ]
                    for name, values in lines.items()
                ],
            )
        )
    return drawn


# -- helpers --------------------------------------------------------------------------------------


def _levels(jobs: Jobs, attack: str) -> list[float]:
    return sorted(eps for name, eps in jobs if name == attack)


def _right(jobs: Jobs) -> list[int]:
    """The queries whose first match stood first."""
    return [i for i, rank in enumerate(jobs[CLEAN]["first_match_rank"]) if rank == 1]


def _histogram(values: Sequence[float], ends: Sequence[float]) -> list[int]:
    """How many values are at most each end, and above the one before it."""
    if any(math.isnan(value) for value in values):
        raise ValueError("one of the values is not a number")
    held = Counter(bisect_left(ends, value) for value in values)
    return [held[place] for place in range(len(ends))]


def _drawn(
    title: str,
    rows: list[Bars],
    ends: Sequence[float],
    axis: str,
    *,
    clean: bool = False,
    exact: bool = False,
    beyond: str = "never",
) -> Figure:
    """Bars over bins. ``exact``: a bin holds its end alone. ``clean``: the first row is the clean
    queries', whose outline stands behind all others. ``beyond`` names a bin without an end."""
    names = [_level(end, beyond) for end in ends] if exact else [*_ranges(ends, beyond)]
    outline = rows[0].shares if clean else ()
    return Figure(
        title,
        Markup(
            figures.ridges(title, [_tick(end, beyond) for end in ends], names, rows, axis, outline)
        ),
        ["", *names, "queries"],
        [[row.name, *map(percent, row.shares), f"{sum(row.counts)}"] for row in rows],
    )


def _ranges(ends: Sequence[float], beyond: str) -> Iterator[str]:
    low = 1.0
    for end in ends:
        yield f"{low:.0f}–{end:.0f}" if low < end < math.inf else _level(end, beyond)
        low = end + 1


def _tick(end: float, beyond: str = "never") -> str:
    """A short name of a bin's upper end.

    >>> [_tick(end) for end in (5, 2000, 10**6, math.inf)]
    ['5', '2k', '1M', 'never']
    """
    if end == math.inf:
        return beyond
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if end >= size:
            return f"{end / size:g}{unit}"
    return f"{end:g}"
