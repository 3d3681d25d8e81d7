"""The report: one self-contained page from a run folder, which opens offline. No torch.

Every string from outside (file names, specs) is text here: Jinja escapes it, and the data for
the page's script is JSON in which ``<`` cannot occur.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from markupsafe import Markup
from PIL import Image

from uturn.errors import RunFolderError
from uturn.report import card, distributions, figures, page
from uturn.report.distributions import Figure, Jobs
from uturn.report.figures import Point, Series
from uturn.report.flags import PAGE, remedies
from uturn.report.folder import Row, Run, fitting, read_json
from uturn.report.text import (
    answered,
    by_victim,
    extras,
    flat,
    interval,
    left,
    precision,
    shown,
    value,
)

_FINENESS = ((192, 80), (144, 70), (112, 60), (88, 50), (64, 40), (48, 30))
"""Longest sides of pictures in the page and their quality; the first at which they fit is taken."""
_FIT = 4_200_000
"""So many bytes of pictures the page may hold, so that it can be sent by mail."""


def write(folder: Path) -> Path:
    """Write ``report.html`` into the finished run ``folder`` and return its path.

    The robustness card is written beside it, as ``card.html`` and ``card.md``.

    Raises:
        RunFolderError: the folder is no run, has not finished, or is damaged.
    """
    run = Run.read(folder)
    with fitting(folder):
        report = _render(run)
    card.write(run)
    return page.write(folder / "report.html", report)


def _render(run: Run) -> str:
    rows, *targets = by_victim(run.rows)
    clean, attacked = rows[0], rows[1:]
    names = list(dict.fromkeys(row["attack"] for row in attacked))
    strongest = min(names, key=lambda name: _left(attacked, name))
    styles = {name: figures.style(position) for position, name in enumerate(names)}
    jobs = run.queries(run.victim, "cosine_to_clean", *distributions.COLUMNS)
    viewer = _viewer(run, jobs, names, strongest)
    return page.render(
        "report.html.j2",
        header=run.header,
        clean=clean,
        own=_Scored.of(rows, names, styles),
        targets=[_Scored.of(scored, names, styles) for scored in targets],
        strongest=strongest,
        worst=[row for row in attacked if row["attack"] == strongest],
        cosine=Markup(_cosine(attacked, names, styles)),
        dial=Markup(_dial(jobs, strongest, styles[strongest][0])),
        precision=(precision(clean), shown(precision(clean))),
        answered=answered(run.header),
        legend=[(name, Markup(figures.swatch(*styles[name]))) for name in names],
        apart=_Apart.of(run, jobs, strongest, styles),
        viewer=viewer,
        viewer_json=page.data(viewer),
        configuration=flat(run.configuration),
        explained=dict(remedies(run.rows)),
        flag_page=PAGE,
        facts=flat({k: v for k, v in run.header.items() if k != "configuration"}),
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
        curves = [Markup(_curve(key, title, rows, names, styles)) for key, title in _drawn(rows[0])]
        return cls(rows[0], rows, extras(rows), curves)


@final
@dataclass(frozen=True)
class _Apart:
    """What the means hide: queries, cameras and victims apart."""

    first_matches: Figure
    """Of the strongest attack."""
    others: list[Figure]
    enough: list[Figure]
    cameras: Figure | None
    transfer: list[Figure]
    titles: dict[str, str]
    """What the figures call the victims that scored, by their specs."""

    @classmethod
    def of(cls, run: Run, jobs: Jobs, strongest: str, styles: dict[str, tuple[str, str]]) -> _Apart:
        first, *others = (
            distributions.first_matches(jobs, name, styles[name][0])
            for name in sorted(styles, key=lambda name: name != strongest)
        )
        return cls(
            first,
            others,
            distributions.enough(jobs, styles, run.searching),
            distributions.by_camera(run.own, strongest),
            distributions.transfer(run.rows, list(styles)),
            distributions.titles(run.rows),
        )


# -- figures -------------------------------------------------------------------------------------


def _drawn(row: Row) -> list[tuple[str, str]]:
    """What is drawn over ε, of what a run has: metrics and their titles."""
    own = precision(row)
    known = [("recall@1", "Recall@1"), ("recall@10", "Recall@10"), (own, shown(own))]
    known += [(key, shown(key)) for key in ("top1", "top5")]
    return [(key, title) for key, title in known if value(row, key) is not None]


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


def _dial(jobs: Jobs, attack: str, colour: str) -> str:
    by_eps = {eps: job["cosine_to_clean"] for (name, eps), job in jobs.items() if name == attack}
    means = [(eps, float(np.mean(cosines))) for eps, cosines in sorted(by_eps.items())]
    return figures.dial(means, [by_eps[eps][:150] for eps, _ in means], colour)


# -- pictures and rank lists ---------------------------------------------------------------------


def _viewer(run: Run, jobs: Jobs, names: list[str], strongest: str) -> dict[str, Any]:
    """Everything that the page's script shows: queries, attacks, rank lists, pictures."""
    for side, quality in _FINENESS:
        viewer = _viewed(run, jobs, names, strongest, _Encoder(side, quality))
        if viewer:
            return viewer
    raise RunFolderError(
        f"the rank lists of {run.path} show more pictures than a page can hold; sweep fewer "
        "attacks, or fewer ε, at a time"
    )


def _viewed(
    run: Run, jobs: Jobs, names: list[str], strongest: str, encode: _Encoder
) -> dict[str, Any] | None:
    """The same at one fineness; None where the pictures do not fit."""
    every = read_json(run.path, "ranklists.json")["queries"]
    lists = [entry for entry in every if entry["victim"] == run.victim]
    queries: dict[str, dict[str, Any]] = {}
    thumbnails: dict[str, str] = {}
    for entry in lists:
        query = queries.setdefault(entry["query"], {"name": entry["query"], "answers": []})
        before = run.picture("images", "clean", entry["query"])
        scored = run.picture("images", entry["folder"], entry["query"])
        job = jobs[entry["attack"], entry["eps"]]
        answer = {
            "attack": entry["attack"],
            "eps": entry["eps"],
            "items": entry["items"],
            "picture": encode(scored),
            "cosine": job["cosine_to_clean"][job["query"].index(entry["query"])],
        }
        if entry["eps"] > 0:
            answer["change"] = encode(_amplified(before, scored, entry["eps"]))
        query["answers"].append(answer)
        for item in entry["items"]:
            if item["name"] not in thumbnails:
                thumbnails[item["name"]] = encode(run.picture("thumbnails", item["name"]))
        if encode.spent > _FIT:
            return None
    budgets = sorted({entry["eps"] for entry in lists if entry["eps"] > 0})
    return {
        "queries": list(queries.values()),
        "thumbnails": thumbnails,
        "attacks": names,
        "eps": budgets,
        "attack": strongest,
        "start": min(budgets, key=lambda eps: abs(eps - 8)),
    }


def _amplified(before: Image.Image, after: Image.Image, eps: float) -> Image.Image:
    """The change around mid-grey, stretched so that ±ε fills the range."""
    change = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return Image.fromarray(np.clip(127.5 + change * 127.5 / eps, 0, 255).astype(np.uint8))


@final
@dataclass
class _Encoder:
    """Pictures for the page: small ones losslessly if all fit, larger ones for looking at only."""

    side: int
    quality: int
    spent: int = 0
    """Bytes of all so far."""

    def __call__(self, image: Image.Image) -> str:
        """The picture as a data URI."""
        if max(image.size) > self.side:
            image = image.copy()
            image.thumbnail((self.side, self.side))
        buffer = io.BytesIO()
        lossless = max(image.size) <= 64 and self.side == _FINENESS[0][0]
        image.save(buffer, "WEBP", lossless=lossless, quality=self.quality)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        self.spent += len(uri)
        return uri


# -- helpers -------------------------------------------------------------------------------------


def _left(rows: list[Row], attack: str) -> tuple[float, ...]:
    """Recall@1 at the largest ε, the next and so on, then average precision: least is strongest."""
    own = sorted((row for row in rows if row["attack"] == attack), key=lambda row: -row["eps"])
    keys = ("recall@1", precision(rows[0]))
    return tuple(left(row, key) for key in keys for row in own)
