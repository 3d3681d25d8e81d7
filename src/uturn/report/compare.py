"""Runs beside one another on the queries that they share, as text, Markdown and a page. No torch.

`uturn.sweep.compare` makes the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from markupsafe import Markup

from uturn.report import figures, page
from uturn.report.matrix import Matrix
from uturn.report.text import aligned, markdown, plain, shown, verbatim

ALPHA = 0.05
"""How often a comparison of equal runs may call any difference sure."""


@final
@dataclass(frozen=True)
class Difference:
    """A metric's means in the first run and in another, over the queries that both have."""

    first: float
    other: float
    interval: tuple[float, float] | None
    """95 %, of ``other − first``; None for fewer than two identities."""
    p: float
    """Of a sign-flip test by identity, two-sided; in a `Comparison`, by Holm over all that it
    has."""
    resolution: float | None
    """The smallest difference that these queries show four times of five."""

    @property
    def change(self) -> float:
        """What the other has more."""
        return self.other - self.first

    @property
    def sure(self) -> bool:
        """Whether it would be rare if the runs were alike, at 5 % over the whole comparison."""
        return self.p <= ALPHA


@final
@dataclass(frozen=True)
class Line:
    """One attack at one ε in both runs."""

    scorer: str | None
    """The other victim that scored the pictures; None: the one that was attacked."""
    attack: str
    eps: float
    differences: dict[str, Difference | None]
    """By metric; None where no query has a relevant item."""

    @property
    def name(self) -> str:
        """The attack and its ε, and who scored if that is another victim."""
        at = self.attack if self.eps == 0 else f"{self.attack} ε={self.eps:g}"
        return at if self.scorer is None else f"{at} on {self.scorer}"


@final
@dataclass(frozen=True)
class Pair:
    """A run against the first."""

    run: str
    lines: tuple[Line, ...]
    missing: tuple[str, ...]
    """What only one of the two has."""

    @property
    def told(self) -> str:
        """The first of `missing`, and how many more there are."""
        more = len(self.missing) - 8
        and_more = f" and {more} more" if more > 0 else ""
        return f"Only one of the two has {', '.join(self.missing[:8])}{and_more}."


@final
@dataclass(frozen=True)
class Comparison:
    """Runs against the first of them."""

    first: str
    data: str
    queries: int
    identities: int
    metrics: tuple[str, ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]
    """What the runs differ in: a key, and its value in each of them."""
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]
    called: dict[str, str]
    """What `matrices` call the victims, by their specs."""
    matrices: tuple[Matrix, ...]
    """Who fools whom, of each attack at the largest ε that all runs have; empty where no run's
    pictures were scored by another victim."""

    @property
    def runs(self) -> tuple[str, ...]:
        """All of them, the first before the others."""
        return (self.first, *(pair.run for pair in self.pairs))

    def text(self) -> str:
        """For the terminal: Recall@1 and its difference."""
        parts = [self.summary]
        for pair in self.pairs:
            lines = [["", "first", "this", "difference", "95 %", "p", "shows"]]
            for line in pair.lines:
                told = line.differences[self.metrics[0]]
                if told:
                    cells = (f"{told.first:.4f}", f"{told.other:.4f}", f"{told.change:+.4f}")
                    lines.append([line.name, *cells, _ends(told), _chance(told.p), _shows(told)])
            parts.append("\n".join([f"{shown(self.metrics[0])} of {pair.run}", *aligned(lines)]))
        return "\n\n".join([*parts, *self.notes, KEY])

    def markdown(self) -> str:
        """Tables of every metric."""
        parts = ["# Runs compared", self.summary]
        names = [f"{number}" for number in range(1, len(self.runs) + 1)]
        runs = [[number, verbatim(run)] for number, run in zip(names, self.runs, strict=True)]
        parts += [markdown(["run", "folder"], runs), "## What they differ in"]
        settings = [[verbatim(key), *map(verbatim, values)] for key, values in self.settings]
        parts.append(markdown(["", *(f"run {n}" for n in names)], settings) if settings else "–")
        for number, pair in enumerate(self.pairs, 2):
            lines = [
                [verbatim(line.name), *(_cell(line.differences[key]) for key in self.metrics)]
                for line in pair.lines
            ]
            head = ["", *(f"{shown(key)}: 1 → {number}, difference" for key in self.metrics)]
            parts += [f"## Run {number} against run 1", markdown(head, lines), f"**Bold**: {BOLD}"]
            if pair.missing:
                parts.append(plain(pair.told))
        if self.matrices:
            told = [[called, verbatim(spec)] for spec, called in self.called.items()]
            parts += ["## Who fools whom", FOOLED, markdown(["", "victim"], told)]
            for matrix in self.matrices:
                parts += [f"### {verbatim(matrix.title)}", matrix.markdown()]
        parts += [*self.notes, NOTE]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """The same as a page, with a figure for each pair."""
        return page.render(
            "compare.html.j2",
            found=self,
            titles=[shown(key) for key in self.metrics],
            drawn=[
                [Markup(_forest(pair, metric)) for metric in (self.metrics[0], self.metrics[-1])]
                for pair in self.pairs
            ],
            chance=_chance,
            shows=_shows,
            bold=BOLD,
            fooled=FOOLED,
            plates=[
                (matrix.title, Markup(matrix.svg()), matrix.table()) for matrix in self.matrices
            ],
            note=NOTE,
        )

    @property
    def summary(self) -> str:
        """What is compared."""
        return (
            f"{self.queries:,} queries of {self.identities:,} identities that {len(self.runs)} "
            f"runs share; differences are to the first."
        )


BOLD = f"p ≤ {ALPHA}."

KEY = (
    "p: of a sign-flip test by identity, corrected by Holm over all differences of all metrics and "
    "runs here. shows: the smallest difference that these queries show four times of five."
)
"""How to read what stands beside a difference."""

NOTE = (
    "Every difference is taken query by query; where attacks were repeated with several seeds, of "
    "each query's mean over them. Its 95 % interval is by bootstrap over identities (and over "
    "seeds, where there are several): it says what other people or objects would change, not "
    "another training. Of twenty intervals of equal runs, one leaves 0 out by chance; p-values are "
    "corrected for that. "
) + KEY
"""What a reader of differences must know."""


FOOLED = (
    "A line for each victim that pictures were crafted on, a column for each that scored them. "
    "Framed, where it is drawn: the white box."
)
"""How to read who fools whom."""


def write(found: Comparison, out: Path) -> list[Path]:
    """Write ``compare.html`` and ``compare.md`` into the folder ``out`` and return their paths."""
    files = {"compare.html": found.html(), "compare.md": found.markdown()}
    return [page.write(out / name, content) for name, content in files.items()]


def _forest(pair: Pair, metric: str) -> str:
    return figures.forest(f"Difference in {shown(metric)}", list(_rows(pair.lines, metric)))


def _rows(
    lines: Sequence[Line], metric: str
) -> Iterator[tuple[str, float, float | None, float | None]]:
    for line in lines:
        found = line.differences[metric]
        if found:
            yield line.name, found.change, *(found.interval or (None, None))


def _cell(found: Difference | None) -> str:
    if found is None:
        return "–"
    change = f"**{found.change:+.4f}**" if found.sure else f"{found.change:+.4f}"
    chance = f"p {_chance(found.p)}, shows {_shows(found)}"
    return f"{found.first:.4f} → {found.other:.4f}, {change} ({_ends(found)}; {chance})"


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _shows(found: Difference) -> str:
    return "–" if found.resolution is None else f"±{found.resolution:.4f}"


def _ends(found: Difference) -> str:
    return "–" if found.interval is None else " to ".join(f"{end:+.4f}" for end in found.interval)
