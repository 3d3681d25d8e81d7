"""What the explorer does when somebody touches its page: values in, HTML and files out.

It knows no Gradio. What goes wrong is told in a sentence where the result would stand.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, final

from uturn.data.pictures import Picture
from uturn.errors import ArgumentError, UturnError
from uturn.explorer import card, draw, uploads
from uturn.explorer.climb import Frame, Order, command, frames, survivals
from uturn.explorer.runs import WORST, Fall, RunBook
from uturn.explorer.runs import Order as By
from uturn.explorer.studio import Query, Studio
from uturn.portions import lacks_memory
from uturn.report.folder import fitting
from uturn.rng import generator

NAMED = 60
"""Queries that are offered by name; any other can be typed in."""

LISTED = 100
"""Rows of a run's table."""

PAUSE = 0.1
"""Seconds between two pictures of an attack: eyes see no more, and a browser must draw them."""

_THUMBNAILS = 4096


@final
@dataclass(eq=False)
class Session:
    """What one window of a browser is at. It holds no page, only what the next click needs."""

    folder: Path
    """For its files alone."""
    query: str = ""
    """The name of its query."""
    uploaded: Picture | None = None
    """Its own picture, in the place of a query of the data set."""
    stop: Event = field(default_factory=Event, repr=False)


@final
@dataclass(frozen=True)
class Shown:
    """What there is to see of an attack; files and what surrounds them come with its end."""

    view: str
    survived: str = ""
    command: str = ""
    adversarial: Path | None = None
    clean: Path | None = None
    card: Path | None = None


@final
@dataclass(frozen=True, eq=False)
class Desk:
    """The victims and runs that a page is about."""

    studios: tuple[Studio, ...]
    """Of one data set; any of them can be the one that is attacked. None where only runs are."""
    books: tuple[RunBook, ...]
    folder: Path
    """For the files of all sessions."""
    seed: int = 0
    thumbnails: dict[int, str] = field(default_factory=dict, repr=False)
    """Of gallery items, as `draw.thumbnail` makes them."""

    # -- sessions ---------------------------------------------------------------------------

    def enter(self) -> Session:
        """A window has been opened."""
        return Session(Path(tempfile.mkdtemp(dir=self.folder)))

    @staticmethod
    def leave(session: Session | None) -> None:
        """A window has been closed: its attack stops, its files are removed."""
        if session is not None:
            session.stop.set()
            shutil.rmtree(session.folder, ignore_errors=True)

    # -- queries ----------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Queries to choose from: the first as the seed orders them."""
        pictures = self.studios[0].split.query
        return list(pictures.sample(min(NAMED, len(pictures)), self.seed, "explorer").names)

    def another(self, session: Session) -> str:
        """A query that is not the present one, as its name orders them."""
        names = self.names()
        others = [name for name in names if name != session.query] or names
        return str(generator(self.seed, session.query, "another").choice(others))

    def ask(self, session: Session, victim: str, name: str | None) -> str:
        """Choose the query called ``name`` and show what is answered; None asks once more."""

        def asked() -> str:
            if name is not None:
                session.query, session.uploaded = self._attacked(victim).find(name).name, None
            return self._ranking(session, victim)

        return _plainly(asked)

    def upload(self, session: Session, victim: str, file: Path) -> str:
        """Choose an uploaded picture and show what is answered."""

        def asked() -> str:
            session.query, session.uploaded = file.name, uploads.read(file)
            return self._ranking(session, victim)

        return _plainly(asked)

    def _ranking(self, session: Session, victim: str) -> str:
        seen_by = self._seen_by(victim)
        query = self._query(session, victim)
        answers = [each.answer(each.look(query.picture), query) for each in seen_by]
        return draw.ranking(seen_by, query, answers, [self._thumbnail] * len(seen_by))

    def _query(self, session: Session, victim: str) -> Query:
        studio = self._attacked(victim)
        if session.uploaded is not None:
            return studio.upload(session.query, session.uploaded)
        if not session.query:
            raise ArgumentError("choose a query first")
        return studio.find(session.query)

    def _seen_by(self, victim: str) -> list[Studio]:
        """The studios, the one whose victim is attacked first."""
        return sorted(self.studios, key=lambda studio: studio.spec != victim)

    def _attacked(self, victim: str) -> Studio:
        return self._seen_by(victim)[0]

    def _thumbnail(self, item: int) -> str:
        if item not in self.thumbnails:
            if len(self.thumbnails) >= _THUMBNAILS:
                self.thumbnails.clear()
            self.thumbnails[item] = draw.thumbnail(self.studios[0].split.gallery.read(item))
        return self.thumbnails[item]

    # -- attacks ----------------------------------------------------------------------------

    def attack(
        self,
        session: Session,
        victim: str,
        name: str,
        eps: float,
        steps: float | None,
        scales: str,
    ) -> Iterator[Shown]:
        """Attack the session's query; what there is to see, until it is done or stopped."""
        session.stop.clear()
        try:
            order = Order(
                name=name,
                eps=eps,
                steps=None if steps is None else int(steps),
                scales=_scales(scales),
                seed=self.seed,
            )
            yield from self._attack(session, victim, order)
        except (UturnError, OSError, RuntimeError, MemoryError) as error:
            yield Shown(_told(error))

    def _attack(self, session: Session, victim: str, order: Order) -> Iterator[Shown]:
        seen_by, query = self._seen_by(victim), self._query(session, victim)
        for earlier in session.folder.iterdir():
            shutil.rmtree(earlier)
        out = Path(tempfile.mkdtemp(dir=session.folder))
        before = now = None
        drawn = 0.0
        for now in frames(seen_by[0], query, order, out, beside=seen_by[1:]):
            before = before or now
            if now.file is None and time.perf_counter() - drawn >= PAUSE:
                yield Shown(self._view(seen_by, query, order, before, now))
                drawn = time.perf_counter()
            if session.stop.is_set() and now.file is None:
                stopped = draw.note(f"Stopped after step {now.step} of {now.steps}.")
                yield Shown(stopped + self._view(seen_by, query, order, before, now))
                return
        if before is not None and now is not None:
            yield self._end(seen_by, query, order, before, now)

    def _view(
        self, seen_by: Sequence[Studio], query: Query, order: Order, before: Frame, now: Frame
    ) -> str:
        thumbnails = [self._thumbnail] * len(seen_by)
        return draw.attack(seen_by, query, order, before, now, thumbnails)

    def _end(
        self, seen_by: Sequence[Studio], query: Query, order: Order, before: Frame, now: Frame
    ) -> Shown:
        studio, file = seen_by[0], now.file
        assert file is not None
        # Saved beside the clean PNG, it must not be taken for that.
        adversarial = file.rename(file.with_name(f"adversarial-{query.key}.png"))
        shared = file.with_name(f"card-{query.key}.png")
        shared.write_bytes(card.png(card.draw(studio, query, order, before, now)))
        return Shown(
            view=self._view(seen_by, query, order, before, now),
            survived=draw.survived(query, survivals(studio, query, now.picture)),
            command=draw.commanded(command(studio, query, order), query.key),
            adversarial=adversarial,
            clean=file.parent / "clean" / file.name,
            card=shared,
        )

    # -- runs -------------------------------------------------------------------------------

    def book(self, name: str) -> RunBook:
        """The run folder that is called so.

        Raises:
            ArgumentError: it is none of those that were given.
        """
        for each in self.books:
            if str(each.path) == name:
                return each
        raise ArgumentError(f"{name!r} is none of the run folders that `uturn serve` was given")

    def overview(self, run: str) -> str:
        """A run's curves."""
        return self._leafing(run, draw.run)

    def leaf(
        self, run: str, attack: str, eps: float, first: By, identity: str, camera: str
    ) -> tuple[str, list[str]]:
        """A run's queries as a table, and their names."""
        found = list[Fall]()

        def listed(book: RunBook) -> str:
            nonlocal found
            found = book.choose(
                attack, eps, first=first, identity=_number(identity), camera=_number(camera)
            )
            return draw.falls(found, LISTED)

        shown = self._leafing(run, listed)
        return shown, [fall.query for fall in found[:LISTED]]

    def fallen(self, run: str, query: str, attack: str, eps: float) -> str:
        """One query of a run."""

        return self._leafing(run, lambda book: draw.fallen(book, book.fall(query, attack, eps)))

    def _leafing(self, run: str, show: Callable[[RunBook], str]) -> str:
        """What ``show`` makes of a run, or what is wrong with its files as a sentence."""

        def shown() -> str:
            book = self.book(run)
            with fitting(book.path):
                return show(book)

        return _plainly(shown)

    def attacks_of(self, run: str) -> list[str]:
        """The attacks of a run, and `WORST`."""
        return [*self.book(run).attacks, WORST]


def _plainly(work: Callable[[], str]) -> str:
    """What ``work`` shows, or what went wrong as a sentence."""
    try:
        return work()
    except (UturnError, OSError, RuntimeError, MemoryError) as error:
        return _told(error)


def _told(error: Exception) -> str:
    if isinstance(error, (UturnError, OSError)):
        return draw.sentence(str(error))
    if lacks_memory(error):
        return draw.sentence("there is too little memory for this; choose a smaller picture")
    raise error


def _scales(text: str) -> tuple[float, ...]:
    """Scales from text; one of 1 alone is as the attack is."""
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    try:
        scales = tuple(float(piece) for piece in pieces)
    except ValueError:
        raise ArgumentError(f"scales are numbers such as 1, 0.7071, 0.5; not {text!r}") from None
    return () if scales == (1.0,) else scales


def _number(text: Any) -> int | None:
    """A whole number from a field that may be empty."""
    if text is None or not str(text).strip():
        return None
    try:
        return int(str(text))
    except ValueError:
        raise ArgumentError(f"identities and cameras are whole numbers, not {text!r}") from None
