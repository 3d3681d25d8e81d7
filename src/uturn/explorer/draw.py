"""What the explorer shows, as HTML. Every string from outside is escaped here and nowhere else."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from uturn.data.pictures import Picture
from uturn.explorer.card import SIGNS, amplified, first_match, scored
from uturn.explorer.climb import Frame, Order, Survival
from uturn.explorer.runs import Fall, RunBook
from uturn.explorer.studio import Answer, Query, Studio, Verdict
from uturn.report import figures

_SMALL, _SIDE = 64, 256
"""Pictures whose longest side is beyond the second are shrunk for looking at; within the first
they are sent losslessly."""

COLOUR = figures.COLOURS[0]

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
"""Of everything that lies in a `block`."""


def block(*parts: str) -> str:
    """A piece of the page."""
    return f'<div class="explorer">{"".join(parts)}</div>'


def sentence(text: str) -> str:
    """An error, or anything else there is to say instead."""
    return block(f'<p class="error" role="alert">{escape(text)}</p>')


def note(text: str) -> str:
    """A word above everything else."""
    return block(f'<p class="say">{escape(text)}</p>')


def uri(picture: Picture, side: int = _SIDE) -> str:
    """A picture as text: small ones losslessly, larger ones shrunk and lossy."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((side, side))
    image.save(buffer, "WEBP", lossless=max(image.size) <= _SMALL, quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def image(picture: Picture, says: str, side: int = _SIDE) -> str:
    """An ``img``; pixels of small pictures stay squares."""
    return f'<img {_source(picture, side)} alt="{escape(says)}">'


def _source(picture: Picture, side: int) -> str:
    small = ' class="small"' if max(picture.shape[:2]) <= _SMALL else ""
    return f'src="{uri(picture, side)}"{small}'


def trio(clean: Picture, attacked: Picture | None, eps: float, mark: str) -> str:
    """Query, change and adversarial query, to be zoomed or to flicker. ``mark`` is an id."""
    if attacked is None:
        return f'<div class="trio">{_captioned(image(clean, "the query"), "query")}</div>'
    change = image(amplified(clean, attacked, eps), "the change, amplified around grey")
    flip = f'<div class="flip">{image(attacked, "the adversarial query")}{image(clean, "")}</div>'
    return (
        f'<input type="checkbox" class="flicker" id="flicker-{mark}"> '
        f'<label for="flicker-{mark}">flicker between both</label> '
        f'<input type="checkbox" class="zoom" id="zoom-{mark}"> '
        f'<label for="zoom-{mark}">zoom</label>'
        f'<div class="trio">{_captioned(image(clean, "the query"), "query")}'
        f"{_captioned(change, f'change × {127.5 / eps:.0f}')}"
        f"{_captioned(flip, 'adversarial query')}</div>"
    )


def _captioned(inner: str, caption: str) -> str:
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


# -- rank lists ----------------------------------------------------------------------------------


def ranks(title: str, items: Iterable[tuple[int | None, str, float, Verdict, str]]) -> str:
    """A rank list of (place, name, score, verdict, picture as `thumbnail` makes it)."""
    entries = []
    for rank, name, score, verdict, source in items:
        place = "ignored" if rank is None else f"{rank}."
        told = verdict if rank is not None else "left out"
        says = escape(f"{place} {name}, score {score:.3f}, {told}")
        entries.append(
            f'<li class="{verdict}" title="{says}"><img {source} alt="{says}">'
            f"{SIGNS[verdict]} {scored(score)}</li>"
        )
    return f'<h3>{escape(title)}</h3><ol class="ranks">{"".join(entries)}</ol>'


def answered(studio: Studio, title: str, answer: Answer, thumbnail: Callable[[int], str]) -> str:
    """The rank list of an answer."""
    return ranks(
        title,
        ((p.rank, p.name, p.score, p.verdict, thumbnail(p.item)) for p in answer.places),
    )


def thumbnail(picture: Picture) -> str:
    """The attributes of a small ``img`` for `ranks`: its source, and how its pixels grow."""
    return _source(picture, 96)


# -- an attack -----------------------------------------------------------------------------------


def losses(values: Sequence[float], steps: int) -> str:
    """The objective before each step, as a line over the steps."""
    width, height, left, right, top, bottom = 380, 238, 52, 12, 30, 36
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = high - low or 1.0

    def x(step: float) -> float:
        return left + (width - left - right) * step / max(1, steps - 1)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / span

    points = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in enumerate(values))
    ticks = "".join(
        f'<line class="grid" x1="{left}" y1="{y(v):.1f}" x2="{width - right}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{left - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        for v in ((low, (low + high) / 2, high) if values else ())
    )
    last = "".join(
        f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="4" fill="{COLOUR}"/>'
        for n, value in [*enumerate(values)][-1:]
    )
    return (
        f'<svg class="curve" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The objective before each step">'
        f'<text class="title" x="{left}" y="18">Objective before each step</text>{ticks}'
        f'<polyline points="{points}" fill="none" stroke="{COLOUR}" stroke-width="2"/>'
        f"{last}"
        f'<text class="tick" x="{left}" y="{height - 14}">1</text>'
        f'<text class="tick" x="{width - right}" y="{height - 14}" text-anchor="end">{steps}</text>'
        f'<text class="tick" x="{(left + width - right) / 2}" y="{height - 6}" '
        'text-anchor="middle">step</text></svg>'
    )


def told(query: Query, before: Answer, after: Answer) -> str:
    """What became of the ranking, in a few words."""
    if query.labelled is None:
        ranked = sum(place.rank is not None for place in before.places)
        return f"{after.kept_from(before)} of the first {ranked} kept"
    if before.first_match is None:
        return "no picture of the gallery is right for this query"
    return f"first right picture at place {first_match(before)} → {first_match(after)}"


def attack(
    studios: Sequence[Studio],
    query: Query,
    order: Order,
    before: Frame,
    now: Frame,
    thumbnails: Sequence[Callable[[int], str]],
) -> str:
    """The state of an attack. ``studios`` are those whose looks a frame holds, in that order."""
    look = now.looks[0]
    degrees = math.degrees(math.acos(max(-1.0, min(1.0, look.cosine))))
    done = now.file is not None
    say = (
        f"{'Done: step' if done else 'Step'} {now.step} of {now.steps}, cosine "
        f"{look.cosine:+.3f} ({degrees:.0f}°), {told(query, before.looks[0].answer, look.answer)}"
    )
    facts = (
        f"{now.seconds:.1f} s, {now.gradients} gradients, largest change {now.levels} of 255 "
        f"levels, length {now.l2:.2f}"
    )
    columns = []
    for studio, then, seen, make in zip(studios, before.looks, now.looks, thumbnails, strict=True):
        head = ""
        if len(studios) > 1:
            how = "attacked" if studio is studios[0] else "looks on"
            words = f"{studio.spec} ({how}): cosine {seen.cosine:+.3f}, "
            head = f"<p><b>{escape(words + told(query, then.answer, seen.answer))}</b></p>"
        columns.append(
            f"<div>{head}{answered(studio, 'before', then.answer, make)}"
            f"{answered(studio, f'after {order.spec}, ε = {order.eps:g}', seen.answer, make)}</div>"
        )
    return block(
        f'<p class="say" role="status" data-step="{now.step}" data-cosine="{look.cosine:.4f}">'
        f"{escape(say)}</p>",
        f'<p class="soft">{escape(facts)}</p>',
        trio(before.picture, now.picture, order.eps, "attack"),
        f'<div class="pair">{figures.dial([(order.eps, look.cosine)], [], COLOUR)}'
        f"{losses(now.losses, now.steps)}</div>",
        f'<div class="sides">{"".join(columns)}</div>',
        _KEY,
    )


_KEY = (
    '<p class="soft">✓ right · ✗ wrong · – ignored by the protocol, takes no place · '
    "? nobody can say</p>"
)


def ranking(
    studios: Sequence[Studio],
    query: Query,
    answers: Sequence[Answer],
    thumbnails: Sequence[Callable[[int], str]],
) -> str:
    """A query before any attack, and what each victim answers."""
    if query.labelled is None:
        facts = "your upload has no identity in this data set, so nothing is right or wrong for it"
    else:
        facts = f"identity {query.labelled.identities[0]}, camera {query.labelled.cameras[0]}"
    columns = [
        f"<div>{answered(studio, f'what {studio.spec} answers', answer, make)}</div>"
        for studio, answer, make in zip(studios, answers, thumbnails, strict=True)
    ]
    return block(
        f'<p class="say" role="status">{escape(query.name)}</p><p class="soft">{escape(facts)}</p>',
        trio(query.picture, None, 1, "query"),
        f'<div class="sides">{"".join(columns)}</div>',
        _KEY,
    )


def survived(query: Query, found: Sequence[Survival]) -> str:
    """What channels leave of an attack, as a table."""
    labelled = query.labelled is not None
    head = ["channel", "cosine, clean", "cosine, attacked"]
    head += ["first right, clean", "first right, attacked"] if labelled else []
    lines = [
        (
            one.channel,
            f"{one.clean.cosine:+.3f}",
            f"{one.attacked.cosine:+.3f}",
            *(
                (first_match(one.clean.answer), first_match(one.attacked.answer))
                if labelled
                else ()
            ),
        )
        for one in found
    ]
    return block("<h3>What survives a channel</h3>", table(head, lines))


def commanded(text: str, name: str) -> str:
    """The command line that repeats an attack."""
    if text.startswith("uturn sweep"):
        note = "this attack must know the gallery; a sweep attacks all queries alike"
    else:
        note = f"in a folder with the clean PNG, {name}.png, this makes the same picture"
    return block(
        f"<h3>Command line</h3><pre>{escape(text)}</pre>",
        f'<p class="soft">{escape(note)}</p>',
    )


# -- a run ---------------------------------------------------------------------------------------


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of text."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>" for line in lines
    )
    rows = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{rows}</table></div>'


def run(book: RunBook) -> str:
    """A run's curves, and what it is of."""
    legend = " ".join(
        f"{figures.swatch(*figures.style(position))} {escape(attack)}"
        for position, attack in enumerate(book.attacks)
    )
    victim, data = book.setting("victim"), book.setting("data")
    what = f"{victim} on {data}, {book.results[0]['queries']} queries"
    return block(
        f'<p class="say">{escape(what)}</p><p>{legend}</p>',
        f'<div class="pair">{"".join(book.curves())}</div>',
    )


def falls(found: Sequence[Fall], most: int) -> str:
    """The first ``most`` of a run's queries as a table."""
    head = ("query", "identity", "camera", "attack", "ε", "first right", "AP", "cosine", "levels")
    lines = [
        (
            fall.query,
            str(fall.identity),
            str(fall.camera),
            fall.attack,
            f"{fall.eps:g}",
            f"{_place(fall.before)} → {_place(fall.after)}",
            "–" if fall.ap is None else f"{fall.ap:.3f}",
            f"{fall.cosine:+.3f}",
            f"{fall.levels:g}",
        )
        for fall in found[:most]
    ]
    shown = f"{min(most, len(found))} of {len(found)} queries"
    return block(f'<p class="soft">{shown}</p>', table(head, lines))


def fallen(book: RunBook, fall: Fall) -> str:
    """One query of a run: its pictures, and its rank lists where they were kept."""
    clean, attacked = book.pictures(fall)
    say = (
        f"{fall.query}: {fall.attack}, ε = {fall.eps:g}, cosine {fall.cosine:+.3f}, first right "
        f"picture at place {_place(fall.before)} → {_place(fall.after)}"
    )
    lists = [
        ranks(
            title,
            (
                (
                    place,
                    item["name"],
                    item["score"],
                    "right" if item["relevant"] else "wrong",
                    thumbnail(book.thumbnail(item["name"])),
                )
                for place, item in enumerate(items, 1)
            ),
        )
        for title, items in book.ranks(fall)
    ]
    without = '<p class="soft">a run keeps the rank lists of its first eight queries only</p>'
    return block(
        f'<p class="say">{escape(say)}</p>',
        trio(clean, attacked, fall.eps, "run"),
        "".join(lists) or without,
    )


def _place(rank: float | None) -> str:
    return "–" if rank is None else "not seen" if math.isinf(rank) else f"{rank:,.0f}"
