"""Figures for print: widths, fonts and colours, and files that repeat to the byte. No torch.

Sizes are inches and points as a two-column paper has them; no text is below 7 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import Stroke, withStroke

from uturn.report import figures

COLUMN, TEXT = 3.4, 7.0
"""Widths of a column and of the text block, in inches."""

DPI = 300

LINES = ("-", "--", "-.", ":")
MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}

CLASSES = (
    "#332288",
    "#cc6677",
    "#117733",
    "#3399cc",
    "#882255",
    "#999933",
    "#44aa99",
    "#aa4499",
    "#e69f00",
    "#222222",
)
"""Ten colours for ten classes: seven of Tol's muted scheme, blue, orange and black. No reader tells
ten apart by colour alone, so what has one also has its name beside it."""

CLASS_MARKERS = "os^DvP<X>p"

Format = Literal["svg", "pdf", "png"]

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.linewidth": 0.4,
    "grid.color": "#d8d8d8",
    "svg.hashsalt": "uturn",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@contextmanager
def drawing() -> Iterator[None]:
    """The style in which figures are made and saved, whatever one's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def sheet(width: float, height: float) -> Figure:
    """An empty figure of so many inches, laid out by itself, on no screen."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def save(
    figure: Figure, stem: Path, formats: Sequence[Format] = ("svg", "png"), dpi: int = DPI
) -> list[Path]:
    """Write ``stem.svg`` and so on without dates; return the files.

    ``dpi`` counts for PNGs, and for the pictures within the other kinds.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    undated = {
        "svg": {"Date": None, "Creator": "uturn"},
        "pdf": {"CreationDate": None, "Creator": "uturn", "Producer": "uturn"},
        "png": {"Software": "uturn"},
    }
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in formats]
    for file, kind in zip(files, formats, strict=True):
        figure.savefig(file, format=kind, dpi=dpi, metadata=undated[kind])
    return files


def line_of(position: int) -> tuple[str, str, str]:
    """Colour and marker of the attack at ``position``, as on the report's page, and dashes.

    No two of sixteen attacks share both marker and dashes, so that grey copies tell them apart.
    """
    colour, marker = figures.style(position)
    shift = position // len(MARKERS)
    return colour, MARKERS[marker], LINES[([*MARKERS].index(marker) + shift) % len(LINES)]


def halo(width: float = 1.8) -> list[Stroke]:
    """White around text, so that it can be read on anything."""
    return [withStroke(linewidth=width, foreground="white")]
