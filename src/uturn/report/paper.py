"""The paper's figures from run folders: curves, rank lists, perturbations. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from uturn.errors import ArgumentError, RunFolderError
from uturn.report import plates, text
from uturn.report.folder import read_json

Row = dict[str, Any]
Picture = npt.NDArray[np.uint8]

_TRUE, _FALSE = "#0072b2", "#d55e00"

PHOTOGRAPHS = 150
"""Dots per inch of figures full of pictures, which have few pixels themselves."""


@final
@dataclass(frozen=True)
class Curves:
    """One line of the grid: a data set's run folder and the metrics drawn of it."""

    title: str
    run: Path
    metrics: tuple[str, ...] = ("recall@1", "recall@10", "map")


# -- curves --------------------------------------------------------------------------------------


def curves(grid: Sequence[Curves], stem: Path) -> list[Path]:
    """Data sets × metrics over ε, with 95 % bands and the clean value dashed: SVG, PDF and PNG.

    An attack has the same colour, marker and dashes in every panel.

    Raises:
        ArgumentError: there is nothing to draw. RunFolderError: a run is not finished, or was
        not scored by a metric.
    """
    if not grid or not all(line.metrics for line in grid):
        raise ArgumentError("curves need at least one run folder and one metric of each")
    rows = [_own_rows(line.run) for line in grid]
    attacks = list(dict.fromkeys(row["attack"] for each in rows for row in each if row["eps"]))
    columns = max(len(line.metrics) for line in grid)
    with plates.drawing():
        figure = plates.sheet(plates.TEXT, 1.85 * len(grid) + 0.35)
        for number, (line, own) in enumerate(zip(grid, rows, strict=True)):
            for column, metric in enumerate(line.metrics):
                axes = figure.add_subplot(len(grid), columns, number * columns + column + 1)
                _curve(axes, own, metric, attacks, line.run)
                axes.set_title(f"{line.title}, {text.shown(metric)}", loc="left")
                axes.set_xlabel("ε (levels of 255)" if number + 1 == len(grid) else "")
        _legend(figure)
        return plates.save(figure, stem, ("svg", "pdf", "png"))


def _curve(axes: Axes, rows: list[Row], metric: str, attacks: list[str], run: Path) -> None:
    clean, (low, high) = _value(rows[0], metric, run)
    axes.axhline(clean, color="#555555", linestyle=(0, (5, 3)), linewidth=0.8, label="clean")
    axes.plot([0, 0], [low, high], color="#555555", linewidth=1.6, solid_capstyle="butt")
    for number, attack in enumerate(attacks):
        own = [rows[0], *(row for row in rows if row["attack"] == attack)]
        if len(own) == 1:
            continue
        colour, marker, dashes = plates.line_of(number)
        eps = [row["eps"] for row in own]
        values, ends = zip(*(_value(row, metric, run) for row in own), strict=True)
        lows, highs = np.array(ends[1:], dtype=np.float64).T  # at ε = 0 all are the clean one
        axes.fill_between(eps[1:], lows, highs, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            eps,
            values,
            color=colour,
            linestyle=dashes,
            linewidth=1.2,
            marker=marker,
            markersize=3.6,
            markevery=slice(1, None),
            label=attack,
        )
    axes.set_xticks(sorted({row["eps"] for row in rows}))
    axes.set_ylim(0, 1.02)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    axes.grid(axis="y")


def _value(row: Row, metric: str, run: Path) -> tuple[float, tuple[float, float]]:
    """A metric of a row and the ends of its interval: NaN where there is none."""
    value = text.value(row, metric)
    if value is None:
        raise RunFolderError(
            f"{run} has no {metric} for {row['attack']} at ε = {row['eps']:g}; it was scored by "
            f"{', '.join(key for key in text.NAMES if text.value(row, key) is not None)}"
        )
    return value, text.interval(row, metric) or (np.nan, np.nan)


def _legend(figure: Figure) -> None:
    """One legend for all panels, in the order of the attacks."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, names = axes.get_legend_handles_labels()
        entries |= dict(zip(names, handles, strict=True))
    clean = {"clean": entries.pop("clean")}
    entries = {**entries, **clean}
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(6, len(entries)),
        frameon=False,
        handlelength=3,
    )


# -- rank lists ----------------------------------------------------------------------------------


def rank_list(
    run: Path, stem: Path, *, attack: str, eps: float, query: int = 0, top: int = 8
) -> list[Path]:
    """A query's first ``top`` answers, clean and attacked: SVG and PNG.

    True answers have a solid blue frame and a tick, false ones a dashed orange frame and a cross.
    ``query`` counts those whose rank lists the run keeps.

    Raises:
        RunFolderError: the run keeps no such list.
    """
    listed = read_json(run, "ranklists.json")["queries"]
    names = list(dict.fromkeys(entry["query"] for entry in listed))
    _require(run, f"rank list of query {query}", query < len(names), f"it keeps {len(names)}")
    entries = [e for e in listed if e["query"] == names[query]]
    own = {(e["attack"], e["eps"]): e for e in entries if e["victim"] == entries[0]["victim"]}
    kept = ", ".join(f"{name} at {at:g}" for name, at in own if at)
    _require(run, f"rank list of {attack} at ε = {eps:g}", (attack, eps) in own, f"it keeps {kept}")
    shown = [("clean", own["clean", 0]), (f"{attack}\nε = {eps:g}", own[attack, eps])]
    top = min(top, len(own["clean", 0]["items"]))
    asked = [_picture(run, "images", entry["folder"], names[query]) for _, entry in shown]
    height, width = asked[0].shape[:2]
    with plates.drawing():
        cell = plates.TEXT / (top + 2.2)
        figure = plates.sheet(plates.TEXT, 2 * (cell * height / width + 0.28))
        layout = figure.add_gridspec(2, top + 2, width_ratios=[1, 0.12, *[1] * top])
        for line, ((title, entry), picture) in enumerate(zip(shown, asked, strict=True)):
            axes = figure.add_subplot(layout[line, 0])
            _show(axes, picture)
            axes.set_ylabel(title)
            axes.set_title("query" if line == 0 else "")
            for place, item in enumerate(entry["items"][:top]):
                axes = figure.add_subplot(layout[line, place + 2])
                _show(axes, _picture(run, "thumbnails", item["name"]))
                _frame(axes, item["relevant"])
                axes.set_title(str(place + 1) if line == 0 else "")
        return plates.save(figure, stem, dpi=PHOTOGRAPHS)


def _frame(axes: Axes, right: bool) -> None:
    colour = _TRUE if right else _FALSE
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2, capstyle="butt")
        spine.set_linestyle("-" if right else (0, (2.5, 1)))
    axes.set_xlabel("✓" if right else "✗", color=colour, fontsize=9, labelpad=1)


def _show(axes: Axes, picture: Picture) -> None:
    axes.imshow(picture, interpolation="nearest" if max(picture.shape) <= 64 else "antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


# -- perturbations -------------------------------------------------------------------------------


def perturbation(
    run: Path, stem: Path, *, attack: str, query: int = 0, eps: Sequence[float] | None = None
) -> list[Path]:
    """A clean query, and attacked at every ε with the change below it: SVG and PNG.

    The change stands around mid-grey, amplified so that ±ε fills the range from black to white.
    ``query`` counts those whose rank lists the run keeps; ``eps`` None is all of the run's.

    Raises:
        RunFolderError: the run has no such pictures.
    """
    listed = read_json(run, "ranklists.json")["queries"]
    names = list(dict.fromkeys(entry["query"] for entry in listed))
    _require(run, f"query {query}", query < len(names), f"it keeps {len(names)}")
    folders = {entry["eps"]: entry["folder"] for entry in listed if entry["attack"] == attack}
    levels = sorted(folders) if eps is None else sorted(eps)
    known = f"it has {', '.join(f'{one:g}' for one in sorted(folders)) or 'none'}"
    _require(run, f"{attack} at every ε asked for", set(levels) <= {*folders} and folders, known)
    clean = _picture(run, "images", "clean", names[query])
    height, width = clean.shape[:2]
    with plates.drawing():
        cell = min(plates.TEXT / (len(levels) + 1), 1.4)
        figure = plates.sheet(cell * (len(levels) + 1), 2 * (0.92 * cell * height / width) + 0.5)
        axes = figure.add_subplot(2, len(levels) + 1, 1)
        _show(axes, clean)
        axes.set_title("clean")
        for column, one in enumerate(levels, 2):
            attacked = _picture(run, "images", folders[one], names[query])
            change = attacked.astype(np.float64) - clean
            axes = figure.add_subplot(2, len(levels) + 1, column)
            _show(axes, attacked)
            axes.set_title(f"ε = {one:g}")
            axes = figure.add_subplot(2, len(levels) + 1, len(levels) + 1 + column)
            _show(axes, np.clip(127.5 + change * 127.5 / one, 0, 255).astype(np.uint8))
            axes.set_xlabel(f"change × {127.5 / one:.3g}", fontsize=7)
        return plates.save(figure, stem, dpi=PHOTOGRAPHS)


# -- run folders ---------------------------------------------------------------------------------


def _own_rows(run: Path) -> list[Row]:
    """The rows in which the victim whose gradients were used also scored; the first is clean."""
    rows: list[Row] = read_json(run, "results.json")["rows"]
    own = [row for row in rows if row.get("crafted_on", row["victim"]) == row["victim"]]
    _require(run, "clean row", bool(own) and own[0]["eps"] == 0, "repeat its sweep")
    return own


def _picture(run: Path, *place: str) -> Picture:
    """A picture of the run ``(H, W, 3)``. Its files name it, and may not lead out."""
    path = run.joinpath(*place[:-1], f"{place[-1]}.png")
    _require(
        run, f"picture {path}", path.resolve().is_relative_to(run.resolve()), "it lies outside"
    )
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunFolderError(f"cannot read the picture {path} of the run: {error}") from error


def _require(run: Path, what: str, there: object, instead: str) -> None:
    if not there:
        raise RunFolderError(f"{run} has no {what}; {instead}")
