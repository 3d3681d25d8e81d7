"""The U-turn picture: two-dimensional features of classes, which an attack turns. No torch.

Drawn from the ``turn.json`` that `uturn.reproduce.turn` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image

from uturn.errors import RunFolderError
from uturn.report import plates
from uturn.report.text import markdown
from uturn.storage import json_of

Points = npt.NDArray[np.float64]

_RIVALS = {
    "fast": r"fast gradient: away from $W_{max}$, one step",
    "basic": r"basic: away from $W_{max}$",
    "least_likely": r"least likely: towards $W_{min}$",
}

_BETWEEN = 14
"""Frames from one ε to the next in the GIF."""
_HOLD, _TICK, _END = 1100, 60, 2200
"""How long a frame stands, in milliseconds: at an ε, on the way, and at the last ε."""


@final
@dataclass(frozen=True, eq=False)
class Panel:
    """The features at one ε."""

    eps: float
    features: Points
    """``(N, 2)``."""
    angle: float
    """The mean angle to the clean feature, in degrees."""
    by_class: tuple[float | None, ...]
    top1: float


@final
@dataclass(frozen=True, eq=False)
class Walk:
    """Where each attack carried one picture's feature, ``(T, 2)`` by attack."""

    name: str
    label: int
    highest: int
    lowest: int
    paths: dict[str, Points]


@final
@dataclass(frozen=True, eq=False)
class Turn:
    """What was measured. The first panel is clean."""

    data: str
    victim: str
    attack: str
    classes: tuple[str, ...]
    directions: Points
    """W, ``(C, 2)``."""
    labels: npt.NDArray[np.int64]
    panels: tuple[Panel, ...]
    walks: tuple[Walk, ...]

    @property
    def marks(self) -> tuple[str, ...]:
        """The shortest beginnings that tell the classes apart: ``ai``, ``au``, ``b`` …"""
        return tuple(
            next(
                one[:n]
                for n in range(1, len(one) + 1)
                if n == len(one) or sum(each.startswith(one[:n]) for each in self.classes) == 1
            )
            for one in self.classes
        )

    @property
    def reach(self) -> float:
        """The radius within which 99 % of the features of every panel lie."""
        return max(float(np.quantile(np.hypot(*panel.features.T), 0.99)) for panel in self.panels)

    @property
    def key(self) -> str:
        """What the lines are, and how many features lie beyond the circle, for its reader."""
        lengths = np.concatenate([np.hypot(*panel.features.T) for panel in self.panels])
        beyond = f"{100 * (lengths > self.reach).mean():.2g} % of the features lie beyond"
        return f"Rays: W, the class directions. {beyond} the circle and are drawn on it."

    def within(self, features: Points) -> Points:
        """``features`` with what lies beyond `reach` drawn in to it, in its direction."""
        lengths = np.hypot(*features.T)[:, None]
        return np.asarray(features * np.minimum(1, self.reach / np.maximum(lengths, 1e-9)))


def read(file: Path) -> Turn:
    """What `uturn.reproduce.turn` measured.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    try:
        content = json_of(file.read_bytes())
        return Turn(
            data=content["data"],
            victim=content["victim"],
            attack=content["attack"],
            classes=tuple(content["classes"]),
            directions=np.array(content["directions"], dtype=np.float64).reshape(-1, 2),
            labels=np.array(content["labels"], dtype=np.int64),
            panels=tuple(_panel(each) for each in content["panels"]),
            walks=tuple(_walk(each) for each in content["paths"]),
        )
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise RunFolderError(
            f"{file} is no U-turn picture's turn.json ({error!r}); `uturn reproduce` measures one"
        ) from error


def _panel(content: dict[str, Any]) -> Panel:
    features = np.array(content["features"], dtype=np.float64).reshape(-1, 2)
    by_class = tuple(content["by_class"])
    return Panel(content["eps"], features, content["angle"], by_class, content["top1"])


def _walk(content: dict[str, Any]) -> Walk:
    paths = {name: np.array(walk, dtype=np.float64) for name, walk in content["walks"].items()}
    return Walk(content["name"], content["label"], content["highest"], content["lowest"], paths)


# -- the panels ----------------------------------------------------------------------------------


def panels(turned: Turn, stem: Path) -> list[Path]:
    """One panel per ε with the same axes, W as labelled rays: PDF and PNG.

    Thousands of points make an SVG that pages are slow with; the PDF is the vector picture.
    """
    with plates.drawing():
        count = len(turned.panels)
        columns = min(3, count)
        rows = math.ceil(count / columns)
        figure = plates.sheet(plates.TEXT, 2.42 * rows + 0.35)
        for number, panel in enumerate(turned.panels):
            axes = figure.add_subplot(rows, columns, number + 1)
            for cloud in _stage(axes, turned):
                cloud.move(turned.within(panel.features), marked=panel.eps > 0)
            axes.set_title(f"{_title(panel)}\n{_says(panel)}", fontsize=8)
        figure.suptitle(f"{turned.attack} on {turned.data}, {turned.victim}", fontsize=9)
        _legend(figure, turned)
        return plates.save(figure, stem, ("pdf", "png"))


def _title(panel: Panel) -> str:
    return f"ε = {panel.eps:g}" if panel.eps else "ε = 0, clean"


def _says(panel: Panel) -> str:
    right = f"{100 * panel.top1:.0f} % right"
    return f"turned by {panel.angle:.0f}°, {right}" if panel.eps else right


@final
@dataclass(frozen=True, eq=False)
class _Cloud:
    """One class in a panel: its features and its mark, which can be moved."""

    dots: PathCollection
    mark: Text
    members: npt.NDArray[np.bool_]

    def move(self, points: Points, marked: bool) -> None:
        """Show its part of ``points`` ``(N, 2)``, ``marked`` at the most central one."""
        own = points[self.members]
        self.dots.set_offsets(own)
        self.mark.set_visible(marked and len(own) > 0)
        if self.mark.get_visible():
            self.mark.set_position(tuple(_central(own)))


def _stage(axes: Axes, turned: Turn, scale: float = 1.0) -> list[_Cloud]:
    """The class directions W as labelled rays in a circle, and clouds that wait to be moved.

    ``scale`` enlarges dots and marks.
    """
    reach = turned.reach
    axes.set_aspect("equal")
    axes.set_axis_off()
    limit = 1.24 * reach
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    axes.add_patch(Circle((0, 0), reach, fill=False, edgecolor="#d8d8d8", linewidth=0.6))
    axes.plot(0, 0, marker="+", color="#555555", markersize=5, zorder=3)
    clouds = []
    bold: dict[str, Any] = {"fontweight": "bold", "ha": "center", "va": "center"}
    bold |= {"fontsize": 8 * scale}
    for label, (direction, mark) in enumerate(zip(turned.directions, turned.marks, strict=True)):
        unit = direction / max(float(np.hypot(*direction)), 1e-9)
        colour, shape = _look(label)
        axes.plot(*np.outer(unit, (0, reach)), color=colour, linewidth=0.9, zorder=1)
        x, y = 1.12 * reach * unit
        axes.text(x, y, mark, color=colour, **bold)
        dots = axes.scatter(
            [], [], s=7 * scale**2, marker=shape, color=colour, alpha=0.55, linewidths=0, zorder=2
        )
        text = axes.text(0, 0, mark, color=colour, path_effects=plates.halo(2.2), zorder=3, **bold)
        clouds.append(_Cloud(dots, text, turned.labels == label))
    return clouds


def _look(label: int) -> tuple[str, str]:
    """Colour and marker of a class."""
    return (
        plates.CLASSES[label % len(plates.CLASSES)],
        plates.CLASS_MARKERS[label % len(plates.CLASS_MARKERS)],
    )


def _central(points: Points) -> Points:
    """The one of ``(N, 2)`` points that has the smallest mean distance to the others."""
    apart = np.hypot(*(points[:, None] - points).transpose(2, 0, 1))  # (N, N)
    return np.asarray(points[apart.sum(0).argmin()])


def _legend(figure: Figure, turned: Turn) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=_look(label)[1],
            color=_look(label)[0],
            markersize=4,
            label=name if name == mark else f"{mark}  {name}",
        )
        for label, (name, mark) in enumerate(zip(turned.classes, turned.marks, strict=True))
    ]
    columns = 10 if max(map(len, turned.classes)) < 3 else 5
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        title=turned.key,
        title_fontsize=7.5,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.2,
    )


# -- the concept ---------------------------------------------------------------------------------


def concept(turned: Turn, stem: Path, *, picture: int | None = None) -> list[Path]:
    """Where each attack carries the feature of one picture, step by step: SVG, PDF and PNG.

    ``picture`` counts the pictures whose ways were measured, one of each class. None takes the
    `widest`, since where W_min lies beside −f two attacks take one way. Ways that leave 2.2
    lengths of f go on outside.
    """
    walk = widest(turned)[0] if picture is None else turned.walks[picture]
    with plates.drawing():
        figure = plates.sheet(plates.COLUMN, plates.COLUMN + 0.75)
        axes = figure.add_subplot()
        axes.set_aspect("equal")
        axes.set_axis_off()
        start = next(iter(walk.paths.values()))[0]
        ways = np.concatenate([*walk.paths.values()])
        reach = min(1.08 * float(np.hypot(*ways.T).max()), 2.2 * float(np.hypot(*start)))
        rim = Circle((0, 0), reach, transform=axes.transData)
        axes.set(xlim=(-1.28 * reach, 1.28 * reach), ylim=(-1.28 * reach, 1.28 * reach))
        _rays(axes, turned, walk, reach)
        for number, (name, path) in enumerate(walk.paths.items()):
            colour, marker, dashes = plates.line_of(number)
            left = np.hypot(*(path - start).T) > 0.06 * reach  # what is nearer lies below f's head
            axes.plot(
                *path.T,
                color=colour,
                linestyle=dashes,
                linewidth=1.2,
                marker=marker,
                markersize=2.2,
                markevery=np.flatnonzero(left).tolist(),
                zorder=3,
                clip_path=rim,
                label=_RIVALS.get(name, f"U-turn ({name}): towards $-f$"),
            )
            axes.plot(
                *path[-1],
                color=colour,
                marker=marker,
                markersize=6,
                markeredgecolor="white",
                zorder=4,
            )
        shares = np.linspace(0, 1, 60)[:, None]
        units = turned.directions / np.hypot(*turned.directions.T)[:, None]
        drawn = [ways, shares * start, -shares * start, *(reach * shares * unit for unit in units)]
        for tip, text in ((start, "$f$"), (-start, "$-f$")):
            _arrow(axes, tip)
            place = _beside(tip, reach, np.concatenate(drawn))
            axes.text(*place, text, ha="center", va="center", fontsize=9, zorder=5)
        figure.legend(loc="outside lower center", frameon=False, ncols=1, handlelength=3.2)
        return plates.save(figure, stem, ("svg", "pdf", "png"))


def widest(turned: Turn) -> tuple[Walk, float]:
    """Of the pictures whose ways were measured the one whose W_min and −f are farthest apart, and
    the angle between the two in degrees."""

    def apart(walk: Walk) -> float:
        opposite = -next(iter(walk.paths.values()))[0]
        lowest = turned.directions[walk.lowest]
        cosine = float(lowest @ opposite / np.hypot(*lowest) / np.hypot(*opposite))
        return math.degrees(math.acos(max(-1.0, min(1.0, cosine))))

    found = max(turned.walks, key=apart)
    return found, apart(found)


def _rays(axes: Axes, turned: Turn, walk: Walk, reach: float) -> None:
    for label, direction in enumerate(turned.directions):
        unit = direction / max(float(np.hypot(*direction)), 1e-9)
        named = {walk.highest: "W_max", walk.lowest: "W_min"}.get(label)
        axes.plot(
            *np.outer(unit, (0, reach)),
            color="#555555" if named else "#d8d8d8",
            linewidth=1.4 if named else 0.7,
            zorder=1,
        )
        mathematical = {"W_max": r"$W_{max}$", "W_min": r"$W_{min}$"}
        x, y = (1.16 if named else 1.1) * reach * unit
        axes.text(
            x,
            y,
            f"{mathematical[named]}\n{turned.classes[label]}" if named else turned.marks[label],
            color="#222222" if named else "#767676",
            ha="center",
            va="center",
            fontsize=8 if named else 7,
            path_effects=plates.halo(),
            zorder=5,
        )


def _arrow(axes: Axes, tip: Points) -> None:
    axes.annotate(
        "",
        (tip[0], tip[1]),
        (0, 0),
        arrowprops={"arrowstyle": "-|>", "color": "#000000", "linewidth": 1.3, "shrinkB": 0},
        zorder=3.5,
    )


def _beside(tip: Points, reach: float, drawn: Points) -> tuple[float, float]:
    """The place beside the arrow to ``tip`` that is farthest from all points ``drawn``."""
    across = np.array([-tip[1], tip[0]]) / max(float(np.hypot(*tip)), 1e-9)
    places = [
        along * tip + side * away * reach * across
        for along in np.linspace(0.5, 1, 6)
        for away in (0.08, 0.1, 0.12)
        for side in (-1, 1)
    ]
    x, y = max(places, key=lambda place: float(np.hypot(*(drawn - place).T).min()))
    return float(x), float(y)


# -- the angles ----------------------------------------------------------------------------------


def angles(turned: Turn) -> str:
    """The mean angle by which each class has turned, and all of them, as a Markdown table."""
    attacked = [panel for panel in turned.panels if panel.eps]
    lines = [
        [name, *(_degrees(panel.by_class[label]) for panel in attacked)]
        for label, name in enumerate(turned.classes)
    ]
    overall = ["**all**", *(f"**{_degrees(panel.angle)}**" for panel in attacked)]
    return markdown(["class", *(f"ε = {panel.eps:g}" for panel in attacked)], [*lines, overall])


def _degrees(angle: float | None) -> str:
    return "–" if angle is None else f"{angle:.1f}°"


# -- the animation -------------------------------------------------------------------------------


def animation(turned: Turn, file: Path) -> Path:
    """A GIF that holds on every ε and loops; between two, features move in straight lines."""
    frames, times = list[Image.Image](), list[int]()
    shown = [turned.within(panel.features) for panel in turned.panels]
    with plates.drawing():
        figure = plates.sheet(4.6, 5.0)
        figure.set_dpi(110)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        clouds = _stage(axes, turned, scale=1.5)
        figure.supxlabel(turned.key.replace(". ", ".\n"), fontsize=8)
        for number, panel in enumerate(turned.panels):
            after = shown[min(number + 1, len(shown) - 1)]
            for step in range(_BETWEEN if number + 1 < len(turned.panels) else 1):
                share = (1 - math.cos(math.pi * step / _BETWEEN)) / 2  # slow at both ends
                for cloud in clouds:
                    points = (1 - share) * shown[number] + share * after
                    cloud.move(points, marked=panel.eps > 0 or step > 0)
                eps = _on_the_way(turned, number, share) if step else _title(panel)
                says = "on the way" if step else _says(panel)
                axes.set_title(f"{turned.attack}, {eps}\n{says}", fontsize=10)
                canvas.draw()  # type: ignore[no-untyped-call]
                figure.set_layout_engine("none")  # as the first frame has it
                pixels = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
                frames.append(Image.fromarray(pixels).convert("RGB"))
                times.append(_TICK if step else _HOLD)
    times[-1] = _END
    file.parent.mkdir(parents=True, exist_ok=True)
    palette = frames[len(frames) // 2].quantize(128, Image.Quantize.FASTOCTREE)
    still = [each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames]
    still[0].save(
        file, "GIF", save_all=True, append_images=still[1:], duration=times, loop=0, optimize=False
    )
    return file


def _on_the_way(turned: Turn, number: int, share: float) -> str:
    before, after = turned.panels[number].eps, turned.panels[number + 1].eps
    return f"ε = {before + share * (after - before):.1f}"


def page(turned: Turn, file: Path) -> Path:
    """The animation as one HTML file that opens offline: play, pause, and a slider over ε."""
    reach = turned.reach
    content = {
        "attack": turned.attack,
        "classes": [
            {"name": name, "mark": mark, "colour": plates.CLASSES[n % len(plates.CLASSES)]}
            for n, (name, mark) in enumerate(zip(turned.classes, turned.marks, strict=True))
        ],
        "rays": _units(turned.directions),
        "labels": turned.labels.tolist(),
        "panels": [
            {
                "eps": panel.eps,
                "angle": panel.angle,
                "top1": panel.top1,
                "byClass": panel.by_class,
                # In thousandths of the circle's radius.
                "points": np.rint(1000 * turned.within(panel.features) / reach)
                .astype(int)
                .tolist(),
            }
            for panel in turned.panels
        ],
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("uturn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    script = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    text = environment.get_template("turn.html.j2").render(
        data=turned.data,
        victim=turned.victim,
        attack=turned.attack,
        key=turned.key,
        classes=len(turned.classes),
        queries=len(turned.labels),
        last=turned.panels[-1],
        content=Markup(script),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def _units(directions: Points) -> Sequence[Sequence[float]]:
    lengths = np.maximum(np.hypot(*directions.T), 1e-9)[:, None]
    units: list[list[float]] = np.round(directions / lengths, 4).tolist()
    return units
