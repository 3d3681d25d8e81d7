"""The robustness card: one printable page that says of a victim what a run has measured. No torch.

Victim, protocol, budget, the worst case at each ε with its interval, and flags, as HTML and as
Markdown. Strings from outside are text in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from markupsafe import Markup

from uturn.report import distributions, figures, page
from uturn.report.figures import Point, Series
from uturn.report.flags import named, remedies
from uturn.report.folder import Row, Run, fitting
from uturn.report.text import (
    answered,
    caveats,
    interval,
    left,
    markdown,
    percent,
    percent_within,
    plain,
    precision,
    shown,
    value,
    verbatim,
)

_RELEVANT = {
    "cross-camera": "same identity, another camera",
    "same-identity": "same identity",
    "listed": "as the data set lists it",
}

_NAMES = {"spec", "weights", "preprocessing", "test time", "data", "fingerprint", "ranked by"}
"""Facts that are names of something, not words."""

Facts = tuple[tuple[str, str], ...]


@final
@dataclass(frozen=True)
class Line:
    """The clean queries, or the worst that any attack of the run did at an ε."""

    eps: float
    attack: str
    cells: tuple[str, ...]
    """One for each of the card's metrics, with its interval."""
    cosine: str


@final
@dataclass(frozen=True)
class Card:
    """What stands on it; see `Card.of`."""

    victim: str
    data: str
    clean: str
    """Recall@1 of the clean queries."""
    left: str
    """Recall@1 in the worst case at the largest ε."""
    budget: str
    """By how much the query changes at the largest ε."""
    sections: tuple[tuple[str, Facts], ...]
    metrics: tuple[str, ...]
    """Of the cells of `lines`."""
    lines: tuple[Line, ...]
    flags: tuple[str, ...]
    remedies: Facts
    """What to do about those that have a name (`uturn.report.flags`)."""
    curve: Markup
    made: str

    @classmethod
    def of(cls, run: Run) -> Card:
        """The card of a run's attacked victim.

        Raises:
            LookupError, TypeError, ValueError: the run's files do not fit together.
        """
        clean, *attacked = run.own
        worst = [_worst(attacked, eps) for eps in sorted({row["eps"] for row in attacked})]
        versions = ", ".join(f"{name} {at}" for name, at in run.header["versions"].items())
        return cls(
            victim=clean["victim"],
            data=clean["data"],
            clean=percent(clean["recall@1"]),
            left=percent(worst[-1]["recall@1"]),
            budget=f"by at most {worst[-1]['eps']:g} of 255 levels{_lossy(run)}",
            sections=(
                ("Victim", tuple(_victim(run))),
                ("Protocol", tuple(_protocol(run))),
                ("Attacker", tuple(_attacker(run, attacked))),
            ),
            metrics=_metrics(clean),
            lines=tuple(_line(row) for row in (clean, *worst)),
            flags=tuple(_flags(run)),
            remedies=tuple((name, flag.remedy) for name, flag in remedies(run.own)),
            curve=Markup(_curve(clean, worst)),
            made=f"{versions}, on {run.configuration['device']}; finished {run.header['finished']}",
        )

    @property
    def head(self) -> tuple[str, ...]:
        """Titles of the columns of `lines`."""
        return (
            "ε",
            "strongest attack",
            *(f"{shown(name)} (95 %)" for name in self.metrics),
            "cosine",
        )

    def html(self) -> str:
        """One page for screen and paper."""
        return page.render("card.html.j2", card=self, note=NOTE)

    def markdown(self) -> str:
        """The same, to be pasted into a model card or a README."""
        parts = [
            f"# Robustness card: {verbatim(self.victim)}",
            f"Recall@1 on {verbatim(self.data)} falls from **{self.clean}** to **{self.left}** "
            f"when only the query changes, {self.budget}.",
        ]
        for title, facts in self.sections:
            lines = [[key, (verbatim if key in _NAMES else plain)(said)] for key, said in facts]
            parts += [f"## {title}", markdown(["", ""], lines)]
        lines = [
            [f"{line.eps:g}", verbatim(line.attack), *line.cells, line.cosine]
            for line in self.lines
        ]
        flags = [f"- {plain(flag)}" for flag in self.flags] or ["None."]
        if self.remedies:
            told = [[name, plain(remedy)] for name, remedy in self.remedies]
            flags += ["", markdown(["flag", "what to do"], told)]
        parts += [
            "## Worst case",
            markdown(self.head, lines),
            NOTE,
            "## Flags",
            "\n".join(flags),
            plain(self.made),
        ]
        return "\n\n".join(parts) + "\n"


NOTE = (
    "At each ε the attack of this run that left least Recall@1. It is what these attacks achieved, "
    "not what the victim withstands: a stronger attack can only lower it. Intervals are 95 % by "
    "bootstrap over identities."
)
"""What a reader of the worst case must know."""


def write(run: Run) -> list[Path]:
    """Write ``card.html`` and ``card.md`` into a run's folder and return their paths.

    Raises:
        RunFolderError: its files do not fit together.
    """
    with fitting(run.path):
        card = Card.of(run)
        files = {"card.html": card.html(), "card.md": card.markdown()}
    return [page.write(run.path / name, content) for name, content in files.items()]


# -- sections -------------------------------------------------------------------------------------


def _victim(run: Run) -> Iterator[tuple[str, str]]:
    own = run.configuration
    yield "spec", own["victim"]
    for key in ("victim weights", "preprocessing", "test time"):
        yield key.removeprefix("victim "), str(own.get(key, "–"))
    yield "feature", f"{run.header['dimensions']} dimensions, compared by {own['similarity']}"


def _protocol(run: Run) -> Iterator[tuple[str, str]]:
    own, clean = run.configuration, run.own[0]
    yield "data", own["data"]
    yield "fingerprint", own["data fingerprint"]
    asked = f"{clean['queries']:,} queries"
    drawn = f"{asked}, drawn by seed {own['seed']}" if own["queries"] else f"all {asked}"
    yield "asked", f"{drawn}, of {run.header['gallery']:,} gallery pictures"
    if own.get("seeds", 1) > 1:
        yield "seeds", f"attacks that draw are repeated with {own['seeds']}; shares are means"
    yield "relevant", _RELEVANT.get(own["protocol"], own["protocol"])
    again = f", then {own['rerank']}" if own.get("rerank") else ""
    yield "ranked by", f"{clean['index']}{again}"
    if told := answered(run.header):
        yield "answers", told
    yield "average precision", f"{clean['convention']}; {own['ties']}"


def _attacker(run: Run, attacked: list[Row]) -> Iterator[tuple[str, str]]:
    own = run.configuration
    levels = sorted({row["eps"] for row in attacked})
    yield "may change", f"the query only, each value by at most ε of 255 levels{_lossy(run)}"
    yield "ε", ", ".join(f"{eps:g}" for eps in levels)
    where = "its own" if own.get("at") == "native" else "the model's"
    yield "picture", f"an 8-bit PNG of {where} size, decoded again before it was scored"
    yield "knows", "the weights (white box)"
    most = {row["attack"]: row["gradients"] for row in attacked if row["eps"] == levels[-1]}
    spent = [f"{name} {gradients:g}" for name, gradients in most.items()]
    yield f"gradients at ε = {levels[-1]:g}", ", ".join(spent)
    jobs = run.queries(run.victim, *distributions.COLUMNS)
    name = _worst(attacked, levels[-1])["attack"]
    half = distributions.median(distributions.smallest(jobs, name))
    if not math.isnan(half):
        told = f"at ε = {half:g}" if half < math.inf else "at none of these ε"
        yield "half of the right queries lost", f"{told}, by {name}"


def _lossy(run: Run) -> str:
    paper = run.configuration.get("mode") == "paper"
    return " before it is truncated and saved as JPEG" if paper else ""


def _flags(run: Run) -> Iterator[str]:
    """What rows confess and what they do not bear out, by kind, and what the run does."""
    kinds: dict[str, list[str]] = {}
    for row in run.own:
        for kind, says in map(named, (*row["flags"], *caveats(row))):
            kinds.setdefault(kind, []).append(f"{row['attack']} at ε={row['eps']:g}: {says}")
    for kind, found in kinds.items():
        yield f"{kind}, {len(found)} of {len(run.own)} rows, such as {found[0]}"
    if run.configuration.get("mode") == "paper":
        yield "paper mode: what was scored was a JPEG before, and can be further than ε"
    if run.header.get("nonnegative features"):
        yield "features are never negative: no two can be further than 90° apart"
    if run.own[0]["recall@1"] is None:
        yield "no query has a relevant item: nothing was measured"


def _worst(attacked: list[Row], eps: float) -> Row:
    """The row at ``eps`` that leaves least Recall@1, among equals least mAP."""
    own = [row for row in attacked if row["eps"] == eps]
    return min(own, key=lambda row: tuple(left(row, key) for key in ("recall@1", precision(row))))


def _metrics(row: Row) -> tuple[str, ...]:
    """What the card states of a row, in this order."""
    return "recall@1", "recall@10", precision(row)


def _line(row: Row) -> Line:
    cells = tuple(percent_within(value(row, m), interval(row, m)) for m in _metrics(row))
    return Line(row["eps"], row["attack"], cells, f"{row['cosine']:+.2f}")


def _curve(clean: Row, worst: list[Row]) -> str:
    points = [
        Point(row["eps"], found, *(interval(row, "recall@1") or (None, None)))
        for row in (clean, *worst)
        if (found := value(row, "recall@1")) is not None
    ]
    line = Series("worst case", *figures.style(3), points)
    return figures.curves("Recall@1, worst case", [line], value(clean, "recall@1"))
