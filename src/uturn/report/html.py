"""The report: one self-contained page from a run folder, which opens offline. No torch.

Every string from outside (file names, specs) is text here: Jinja escapes it, and the data for
the page's script is JSON in which ``<`` cannot occur.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import jinja2
import numpy as np
import pyarrow.parquet
from markupsafe import Markup
from PIL import Image

from uturn.errors import RunFolderError
from uturn.report import figures
from uturn.report.figures import Point, Series
from uturn.report.text import by_victim, extras, interval, value

CURVES = (
    ("recall@1", "Recall@1"),
    ("recall@10", "Recall@10"),
    ("map", "mAP"),
    ("top1", "top-1"),
    ("top5", "top-5"),
)
"""What is drawn over ε, where a run has it."""
_SIDE = 192
"""Longest side of a picture in the page; larger ones are shrunk for looking at."""

Row = dict[str, Any]


def write(run: Path) -> Path:
    """Write ``report.html`` into the finished run folder ``run`` and return its path.

    Raises:
        RunFolderError: the folder is no run, has not finished, or is damaged.
    """
    path = run / "report.html"
    try:
        page = _render(run)
    except (LookupError, TypeError, ValueError, AttributeError, jinja2.UndefinedError) as error:
        # pyarrow's errors are ValueErrors too.
        raise RunFolderError(f"the files of {run} do not fit together: {error!r}") from error
    temporary = run / ".report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _render(run: Path) -> str:
    header = _read(run, "run.json")
    if not header.get("finished"):
        raise RunFolderError(f"the run in {run} has not finished; repeat its command to resume it")
    rows, *targets = by_victim(_read(run, "results.json")["rows"])
    clean, attacked = rows[0], rows[1:]
    names = list(dict.fromkeys(row["attack"] for row in attacked))
    strongest = min(names, key=lambda n: tuple(_mean(attacked, n, k) for k in ("recall@1", "map")))
    styles = {name: figures.style(position) for position, name in enumerate(names)}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("uturn.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda v: "–" if v is None else f"{100 * v:.1f} %"
    environment.filters["number"] = lambda v: "–" if v is None else f"{v:.4f}"
    viewer = _viewer(run, clean["victim"], names, strongest)
    return environment.get_template("report.html.j2").render(
        header=header,
        clean=clean,
        own=_Scored.of(rows, names, styles),
        targets=[_Scored.of(scored, names, styles) for scored in targets],
        strongest=strongest,
        worst=[row for row in attacked if row["attack"] == strongest],
        cosine=Markup(_cosine(attacked, names, styles)),
        dial=Markup(_dial(run, clean["victim"], strongest, styles[strongest][0])),
        legend=[(name, Markup(figures.swatch(*styles[name]))) for name in names],
        viewer=viewer,
        viewer_json=Markup(_script_safe(viewer)),
        configuration=_flat(header["configuration"]),
        facts=_flat({k: v for k, v in header.items() if k != "configuration"}),
    )


@final
@dataclass(frozen=True)
class _Scored:
    """What one victim says of the pictures, as the page shows it."""

    clean: Row
    rows: list[Row]
    extras: list[tuple[str, list[str]]]
    curves: list[Markup]

    @classmethod
    def of(cls, rows: list[Row], names: list[str], styles: dict[str, tuple[str, str]]) -> _Scored:
        curves = [
            Markup(_curve(key, title, rows, names, styles))
            for key, title in CURVES
            if key in rows[0] or key in rows[0].get("metrics", {})
        ]
        return cls(rows[0], rows, extras(rows), curves)


# -- figures -------------------------------------------------------------------------------------


def _curve(
    key: str, title: str, rows: list[Row], names: list[str], styles: dict[str, tuple[str, str]]
) -> str:
    lines = []
    for name in names:
        # Every curve begins at ε = 0, where the query is clean.
        own = [rows[0], *(row for row in rows[1:] if row["attack"] == name)]
        points = [
            Point(row["eps"], found, *(interval(row, key) or (None, None)))
            for row in own
            if (found := value(row, key)) is not None
        ]
        lines.append(Series(name, *styles[name], points))
    return figures.curves(title, lines, value(rows[0], key))


def _cosine(attacked: list[Row], names: list[str], styles: dict[str, tuple[str, str]]) -> str:
    lines = [
        Series(
            name,
            *styles[name],
            [
                Point(0, 1.0),
                *(Point(row["eps"], row["cosine"]) for row in attacked if row["attack"] == name),
            ],
        )
        for name in names
    ]
    return figures.curves("Cosine to the clean feature", lines, None, (-1.0, 1.0), percent=False)


def _dial(run: Path, victim: str, attack: str, colour: str) -> str:
    table = pyarrow.parquet.read_table(
        run / "queries.parquet", columns=["attack", "eps", "cosine_to_clean"], filters=_by(victim)
    ).to_pydict()
    by_eps: dict[float, list[float]] = {}
    for name, eps, cosine in zip(*table.values(), strict=True):
        if name == attack:
            by_eps.setdefault(eps, []).append(cosine)
    means = [(eps, float(np.mean(cosines))) for eps, cosines in sorted(by_eps.items())]
    return figures.dial(means, [by_eps[eps][:150] for eps, _ in means], colour)


# -- pictures and rank lists ---------------------------------------------------------------------


def _viewer(run: Path, victim: str, names: list[str], strongest: str) -> dict[str, Any]:
    """Everything that the page's script shows: queries, attacks, rank lists, pictures."""
    every = _read(run, "ranklists.json")["queries"]
    lists = [entry for entry in every if entry["victim"] == victim]
    queries: dict[str, dict[str, Any]] = {}
    thumbnails: dict[str, str] = {}
    for entry in lists:
        query = queries.setdefault(entry["query"], {"name": entry["query"], "answers": []})
        before = _open(run, "images", "clean", entry["query"])
        scored = _open(run, "images", entry["folder"], entry["query"])
        answer = {
            "attack": entry["attack"],
            "eps": entry["eps"],
            "items": entry["items"],
            "picture": _data_uri(scored),
        }
        if entry["eps"] > 0:
            answer["change"] = _data_uri(_amplified(before, scored, entry["eps"]))
        query["answers"].append(answer)
        for item in entry["items"]:
            if item["name"] not in thumbnails:
                thumbnails[item["name"]] = _data_uri(_open(run, "thumbnails", item["name"]))
    budgets = sorted({entry["eps"] for entry in lists if entry["eps"] > 0})
    cosines = _cosines(run, victim, set(queries))
    for name, query in queries.items():
        for answer in query["answers"]:
            answer["cosine"] = cosines[name, answer["attack"], answer["eps"]]
    return {
        "queries": list(queries.values()),
        "thumbnails": thumbnails,
        "attacks": names,
        "eps": budgets,
        "attack": strongest,
        "start": min(budgets, key=lambda eps: abs(eps - 8)),
    }


def _cosines(run: Path, victim: str, wanted: set[str]) -> dict[tuple[str, str, float], float]:
    columns = ["query", "attack", "eps", "cosine_to_clean"]
    table = pyarrow.parquet.read_table(
        run / "queries.parquet", columns=columns, filters=_by(victim)
    ).to_pydict()
    return {
        (query, attack, eps): cosine
        for query, attack, eps, cosine in zip(*(table[c] for c in columns), strict=True)
        if query in wanted
    }


def _by(victim: str) -> list[tuple[str, str, str]]:
    """A filter of rows: what this victim scored."""
    return [("victim", "==", victim)]


def _open(run: Path, *place: str) -> Image.Image:
    """A picture of the run. Names come from its files, so they may not lead out of it."""
    path = run.joinpath(*place[:-1], f"{place[-1]}.png")
    if not path.resolve().is_relative_to(run.resolve()):
        raise RunFolderError(f"{run} names a picture outside itself: {path}")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RunFolderError(f"cannot read the picture {path} of the run: {error}") from error


def _amplified(before: Image.Image, after: Image.Image, eps: float) -> Image.Image:
    """The change around mid-grey, stretched so that ±ε fills the range."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return Image.fromarray(np.clip(127.5 + change * 127.5 / eps, 0, 255).astype(np.uint8))


def _data_uri(image: Image.Image) -> str:
    """Small pictures losslessly; larger ones shrunk and lossy, for looking at only."""
    small = max(image.size) <= 64
    if max(image.size) > _SIDE:
        image = image.copy()
        image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=small, quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


# -- helpers -------------------------------------------------------------------------------------


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((run / name).read_bytes())
    except FileNotFoundError:
        raise RunFolderError(
            f"{run} has no {name}: it is no finished run folder; `uturn sweep` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {run / name}: {error}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{run / name} is damaged: expected an object")
    return content


def _mean(rows: list[Row], attack: str, key: str) -> float:
    values = [row[key] for row in rows if row["attack"] == attack and row[key] is not None]
    return sum(values) / len(values) if values else 1.0


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of (key, value)."""
    lines = []
    for key, each in content.items():
        if isinstance(each, dict):
            lines += _flat(each, f"{prefix}{key}: ")
        else:
            lines.append((prefix + key, each if isinstance(each, str) else json.dumps(each)))
    return lines


def _script_safe(content: Any) -> str:
    text = json.dumps(content)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
