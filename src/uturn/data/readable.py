"""Pictures that cannot be read, found before anything is computed with the others."""

from __future__ import annotations

from functools import partial

from uturn.data.pictures import Pictures
from uturn.data.split import Split
from uturn.errors import DataError
from uturn.parallel import threaded
from uturn.progress import bar

_AT_A_TIME = 256


def unreadable(split: Split, *, progress: bool = False) -> dict[str, dict[str, str]]:
    """Why queries and gallery pictures cannot be read, by their names; each is tried once."""
    total = len(split.query) + len(split.gallery)
    with bar(total, "reading every picture", "picture", show=progress) as shown:

        def tried(pictures: Pictures) -> dict[str, str]:
            found = dict[str, str]()
            for begin in range(0, len(pictures), _AT_A_TIME):
                part = range(begin, min(begin + _AT_A_TIME, len(pictures)))
                answers = threaded(partial(_why, pictures), part)
                found |= {pictures.names[i]: a for i, a in zip(part, answers, strict=True) if a}
                shown.update(len(part))
            return found

        return {"query": tried(split.query), "gallery": tried(split.gallery)}


def _why(pictures: Pictures, position: int) -> str:
    """Why a picture cannot be decoded; an empty text if it can."""
    try:
        pictures.read(position)
    except DataError as error:
        return str(error)
    return ""
