"""Who fools whom: surrogates × targets of one attack at one ε, from run folders. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from uturn.errors import ArgumentError, RunFolderError
from uturn.report import figures, plates, text
from uturn.storage import json_of


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """Surrogates × targets: what is left of a metric, ``(S, T)``; NaN where nobody measured it."""

    attack: str
    eps: float
    metric: str
    surrogates: tuple[str, ...]
    targets: tuple[str, ...]
    attacked: npt.NDArray[np.float64]
    clean: npt.NDArray[np.float64]
    """What the targets make of the same surrogate's clean pictures."""
    ends: npt.NDArray[np.float64]
    """The 95 % intervals of ``attacked``, ``(S, T, 2)``; NaN where a row has none."""
    white: npt.NDArray[np.bool_]
    """Where the surrogate is the target itself, whatever the two are called."""

    @classmethod
    def of(
        cls,
        runs: Sequence[Path],
        attack: str,
        eps: float,
        metric: str = "recall@1",
        *,
        titles: Mapping[str, str] | None = None,
    ) -> Matrix:
        """Read the matrix from finished run folders, one or more for each surrogate.

        ``metric`` is a key of a result row or of its ``metrics``; ``titles`` give victim specs
        shorter names.

        Raises:
            ArgumentError: two runs say something of the same pair, or there is no run.
            RunFolderError: a folder is no finished run, or lacks the attack, ε or metric.
        """
        if not runs:
            raise ArgumentError("a matrix needs at least one run folder of `uturn sweep`")
        pairs = dict[tuple[str, str], tuple[float, ...]]()
        for run in runs:
            for pair, values in _pairs(run, attack, eps, metric).items():
                if pair in pairs:
                    raise ArgumentError(
                        f"{run} and a run before it both hold {pair[0]} → {pair[1]}; leave one out"
                    )
                pairs[pair] = values
        surrogates = tuple(dict.fromkeys(surrogate for surrogate, _ in pairs))
        others = dict.fromkeys(target for _, target in pairs)
        # In the surrogates' order first, so that the diagonal is the white box.
        targets = tuple(dict.fromkeys([*(s for s in surrogates if s in others), *others]))
        nothing = (np.nan,) * 4
        found = np.array([[pairs.get((s, t), nothing) for t in targets] for s in surrogates])
        named = titles or {}
        return cls(
            attack,
            eps,
            metric,
            tuple(named.get(name, name) for name in surrogates),
            tuple(named.get(name, name) for name in targets),
            found[..., 0],
            found[..., 1],
            found[..., 2:],
            np.array([[s == t for t in targets] for s in surrogates]),
        )

    def text(self) -> str:
        """A table for the terminal: a line per surrogate, as `table` has it."""
        return "\n".join([self.title, *text.aligned(self.table())])

    def markdown(self) -> str:
        """The same as a Markdown table."""
        head, *lines = self.table()
        return text.markdown(head, lines, numbers=True)

    def svg(self) -> str:
        """The heat map as SVG text, in percent: for a page, beside the numbers of `table`."""
        return figures.heatmap(
            f"{self.attack} at ε = {self.eps:g}: {text.shown(self.metric)} left",
            self.surrogates,
            self.targets,
            [
                [None if np.isnan(value) else value for value in line]
                for line in self.attacked.tolist()
            ],
            framed=[(int(row), int(column)) for row, column in np.argwhere(self.white)],
        )

    def table(self) -> list[list[str]]:
        """A head, then a line per surrogate: ``attacked (clean), 95 % …`` per target."""

        def cell(value: float, clean: float, ends: tuple[float, float]) -> str:
            told = "" if np.isnan(ends).any() else f", 95 % {ends[0]:.3f}–{ends[1]:.3f}"
            return "–" if np.isnan(value) else f"{value:.4f} ({clean:.4f}){told}"

        body = [
            [name, *map(cell, *values)]
            for name, *values in zip(
                self.surrogates,
                self.attacked.tolist(),
                self.clean.tolist(),
                self.ends.tolist(),
                strict=True,
            )
        ]
        return [["crafted on", *self.targets], *body]

    def draw(self, stem: Path) -> list[Path]:
        """A heat map as ``stem.svg`` and ``stem.png``, the numbers in its cells; return the files.

        The colours (cividis) grow lighter evenly, for colour-blind readers and grey prints. What
        stands on them is black or white, whichever contrasts more, as is the frame of a white box.
        """
        with plates.drawing():
            rows, columns = self.attacked.shape
            figure = plates.sheet(1.6 + 0.95 * columns, 0.9 + 0.5 * rows)
            axes = figure.add_subplot()
            colours = matplotlib.colormaps["cividis"].with_extremes(bad="#ffffff")
            ink = [[figures.ink(*colours(value)[:3]) for value in line] for line in self.attacked]
            image = axes.imshow(self.attacked, cmap=colours, vmin=0, vmax=1, aspect="auto")
            axes.set_xticks(range(columns), self.targets)
            axes.set_yticks(range(rows), self.surrogates)
            axes.tick_params(length=0)
            axes.set_xlabel("scored by (framed: the white box)")
            axes.set_ylabel("crafted on")
            axes.set_title(self.title, loc="left")
            for row, column in np.ndindex(rows, columns):
                self._cell(axes, row, column, ink[row][column])
            bar = figure.colorbar(image, ax=axes)
            bar.set_label(f"{text.shown(self.metric)} left")
            return plates.save(figure, stem)

    def _cell(self, axes: Axes, row: int, column: int, ink: str) -> None:
        value, clean = self.attacked[row, column], self.clean[row, column]

        def write(down: float, text: str, size: float) -> None:
            axes.text(column, row + down, text, ha="center", va="center", color=ink, fontsize=size)

        if np.isnan(value):
            write(0, "–", 8.5)
            return
        write(-0.13, f"{value:.3f}", 8.5)
        write(0.24, f"clean {clean:.3f}", 7)
        if self.white[row, column]:
            corner = (column - 0.47, row - 0.47)
            frame = Rectangle(corner, 0.94, 0.94, fill=False, edgecolor=ink, linewidth=1.6)
            axes.add_patch(frame)

    @property
    def title(self) -> str:
        """What it shows."""
        return f"{self.attack} at ε = {self.eps:g}: {text.shown(self.metric)} (clean)"


def _pairs(
    run: Path, attack: str, eps: float, metric: str
) -> dict[tuple[str, str], tuple[float, ...]]:
    """(surrogate, target) → (attacked, clean, low and high end of the attacked)."""
    try:
        rows: list[dict[str, Any]] = json_of((run / "results.json").read_bytes())["rows"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFolderError(
            f"cannot read the results of {run} ({error!r}); `uturn sweep` makes a run folder"
        ) from None
    values = {(row["victim"], row["attack"], row["eps"]): _value(run, row, metric) for row in rows}
    found = dict[tuple[str, str], tuple[float, ...]]()
    for row in rows:
        if (row["attack"], row["eps"]) == (attack, eps):
            pair = (row.get("crafted_on", row["victim"]), row["victim"])
            ends = text.interval(row, metric) or (np.nan, np.nan)
            found[pair] = (_value(run, row, metric), values[row["victim"], "clean", 0], *ends)
    if not found:
        there = sorted({f"{row['attack']} ε={row['eps']:g}" for row in rows if row["eps"]})
        raise RunFolderError(f"{run} has no {attack} at ε={eps:g}; it has {', '.join(there)}")
    return found


def _value(run: Path, row: dict[str, Any], metric: str) -> float:
    found = text.value(row, metric)
    if found is None:
        raise RunFolderError(
            f"{row['victim']} in {run} has no {metric}; choose another metric, such as recall@1"
        )
    return found
