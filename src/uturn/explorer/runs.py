"""A finished run folder, opened to leaf through: its queries, the hardest and the easiest first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from uturn.data.pictures import Picture, decode
from uturn.errors import ArgumentError, DataError, RunFolderError
from uturn.report import figures
from uturn.report.figures import Point, Series
from uturn.report.folder import Run, fitting, read_json, read_queries
from uturn.report.text import by_victim, interval, precision, shown, value
from uturn.sweep.plan import CLEAN, Job

WORST = "the worst of all"
"""In place of an attack: per query the row that the ranking suffers most from."""

Order = Literal["easiest", "hardest"]
"""To turn: what fell farthest stands first, or what stood firm."""

Row = dict[str, Any]

_COLUMNS = (
    *("query", "identity", "camera", "victim", "attack", "eps"),
    *("first_match_rank", "cosine_to_clean", "linf_levels"),
)


@final
@dataclass(frozen=True)
class Fall:
    """One query of a run, before and after an attack."""

    query: str
    identity: int
    camera: int
    attack: str
    eps: float
    before: float | None
    """The place of its first match; None if it has none, infinite below all that was seen."""
    after: float | None
    ap: float | None
    cosine: float
    levels: float

    @property
    def depth(self) -> tuple[float, float, float]:
        """How far it fell: by place, by average precision, by angle; larger is farther."""
        ap = 0.0 if self.ap is None else self.ap
        return (-math.inf if self.after is None else float(self.after), -ap, -self.cosine)


@final
@dataclass(frozen=True, eq=False)
class RunBook:
    """What a run folder says of the victim that was attacked.

    Everything in it may be a stranger's: names are text, and lead to no file outside of it.
    """

    path: Path
    header: Row
    results: list[Row]
    """Rows of ``results.json``, the clean one first."""
    falls: list[Fall]

    @classmethod
    def open(cls, path: Path) -> RunBook:
        """Read a run folder.

        Raises:
            RunFolderError: it is none, has not finished, or is damaged.
        """
        run = Run.read(path)
        with fitting(path):
            results = by_victim(run.rows)[0]
            ap = precision(results[0]).removeprefix("m")  # ap of map, ap@100 of map@100
            columns = [*_COLUMNS, ap]
            victim = results[0]["victim"]
            own = read_queries(path, columns, victim=victim)
            # Of several seeds the first, whose rank lists and folder are shown.
            rows = [row for row in own if row["seed"] == own[0]["seed"]]
            before = {row["query"]: row["first_match_rank"] for row in rows if not row["eps"]}
            falls = [
                Fall(
                    query=row["query"],
                    identity=row["identity"],
                    camera=row["camera"],
                    attack=row["attack"],
                    eps=row["eps"],
                    before=before[row["query"]],
                    after=row["first_match_rank"],
                    ap=row[ap],
                    cosine=row["cosine_to_clean"],
                    levels=row["linf_levels"],
                )
                for row in rows
                if row["eps"]
            ]
            book = cls(path, run.header, results, falls)
            if not (book.attacks and all(map(math.isfinite, book.budgets))):
                raise ValueError("it has no attack")
            return book

    @property
    def attacks(self) -> tuple[str, ...]:
        """Their specs, in the order of the results."""
        return tuple(dict.fromkeys(row["attack"] for row in self.results[1:]))

    @property
    def budgets(self) -> tuple[float, ...]:
        """Every ε, ascending."""
        return tuple(sorted({row["eps"] for row in self.results[1:]}))

    @property
    def cameras(self) -> tuple[int, ...]:
        """Every camera of a query, ascending."""
        return tuple(sorted({fall.camera for fall in self.falls}))

    def setting(self, key: str) -> str:
        """An entry of the run's configuration as text, ``victim`` or ``data`` for one."""
        return str(self.header.get("configuration", {}).get(key, ""))

    def curves(self) -> list[str]:
        """The metrics over ε as SVG, where the run has them."""
        drawn = []
        for metric in ("recall@1", precision(self.results[0]), "top1"):
            if value(self.results[0], metric) is None:
                continue
            lines = [
                Series(
                    attack,
                    *figures.style(position),
                    [
                        Point(row["eps"], found, *(interval(row, metric) or (None, None)))
                        for row in (self.results[0], *self.results[1:])
                        if row["attack"] in (CLEAN, attack)
                        and (found := value(row, metric)) is not None
                    ],
                )
                for position, attack in enumerate(self.attacks)
            ]
            drawn.append(figures.curves(shown(metric), lines, value(self.results[0], metric)))
        return drawn

    def choose(
        self,
        attack: str,
        eps: float,
        *,
        first: Order = "easiest",
        identity: int | None = None,
        camera: int | None = None,
    ) -> list[Fall]:
        """The queries under ``attack`` at ``eps``, ordered by how far they fell.

        Of `WORST` they are the worst of every attack up to ``eps``. What has no match comes last.
        """
        chosen = [
            fall
            for fall in self.falls
            if (identity is None or fall.identity == identity)
            and (camera is None or fall.camera == camera)
            and (fall.eps <= eps if attack == WORST else (fall.attack, fall.eps) == (attack, eps))
        ]
        worst = dict[str, Fall]()
        for fall in chosen:
            kept = worst.setdefault(fall.query, fall)
            worst[fall.query] = max(kept, fall, key=lambda one: one.depth)
        matched = [fall for fall in worst.values() if fall.after is not None]
        matched.sort(key=lambda fall: (fall.depth, fall.query), reverse=first == "easiest")
        return [*matched, *(fall for fall in worst.values() if fall.after is None)]

    def fall(self, query: str, attack: str, eps: float) -> Fall:
        """One query under one attack; of `WORST` its worst.

        Raises:
            ArgumentError: the run has no such query.
        """
        for found in self.choose(attack, eps):
            if found.query == query:
                return found
        raise ArgumentError(f"this run has no query {query!r} under {attack} at ε = {eps:g}")

    def pictures(self, fall: Fall) -> tuple[Picture, Picture]:
        """The clean and the attacked picture, as they were scored.

        Raises:
            RunFolderError: a file is missing or damaged, or its name leads out of the folder.
        """
        # The folder is called by ε as the results hold it; the table has made 8 into 8.0.
        eps = next(row["eps"] for row in self.results if row["eps"] == fall.eps)
        folder = Job(fall.attack, eps).folder
        return self._picture("images", CLEAN, fall.query), self._picture(
            "images", folder, fall.query
        )

    def ranks(self, fall: Fall) -> list[tuple[str, list[Row]]]:
        """Rank lists before and after, of the few queries whose lists were kept; else none.

        Items have ``name``, ``score`` and ``relevant``.
        """
        kept = {
            entry["eps"]: entry["items"]
            for entry in read_json(self.path, "ranklists.json").get("queries", [])
            if entry["query"] == fall.query
            and entry["victim"] == self.results[0]["victim"]
            and (entry["attack"], entry["eps"]) in ((CLEAN, 0), (fall.attack, fall.eps))
        }
        if set(kept) != {0, fall.eps}:
            return []
        return [("before", kept[0]), (f"after {fall.attack}, ε = {fall.eps:g}", kept[fall.eps])]

    def thumbnail(self, name: str) -> Picture:
        """A gallery picture of a rank list; raises as `pictures`."""
        return self._picture("thumbnails", "", name)

    def _picture(self, part: str, folder: str, name: str) -> Picture:
        """A picture of the run. Names come from its files, so they may not lead out of it."""
        path = self.path / part / folder / f"{name}.png"
        try:
            if not path.resolve().is_relative_to((self.path / part).resolve()):
                raise RunFolderError(f"{self.path} names a picture outside itself: {path}")
            return decode(path)
        except (DataError, ValueError) as error:  # a name with a null byte is a ValueError
            raise RunFolderError(f"cannot read a picture of the run: {error}") from error
