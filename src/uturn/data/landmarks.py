"""Oxford5k and Paris6k, and the revisited ROxford5k and RParis6k: landmarks, asked by a box.

A query is a box in a photograph; lists say which photographs show it. The classic lists are text
files (Philbin et al., "Object Retrieval with Large Vocabularies and Fast Spatial Matching", CVPR
2007; "Lost in Quantization", CVPR 2008), the revisited ones a pickle (Radenović et al.,
"Revisiting Oxford and Paris", CVPR 2018), which is read without running anything in it.
Published numbers of all four use the trapezoid convention of average precision.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from uturn.data.pickles import read_pickle
from uturn.data.pictures import Box, Cropped, IntArray, Picture, Pictures, decode
from uturn.data.split import Listing, Split
from uturn.errors import DataError

Level = Literal["easy", "medium", "hard"]

_LEVELS: dict[Level, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""The lists that are relevant at a level, and those that are ignored."""

_FOLDERS = ("jpg", "oxbuild_images", "oxbuild_images-v1", "paris", "images")
_ENDINGS = (".jpg", ".jpeg", ".png")

CORRUPT = frozenset(
    f"paris_{landmark}_{number:06d}"
    for landmark, numbers in {
        "louvre": (136, 146),
        "moulinrouge": (422,),
        "museedorsay": (1059,),
        "notredame": (188,),
        "pantheon": (284, 960, 974),
        "pompidou": (195, 196, 201, 467, 640),
        "sacrecoeur": (299, 330, 353),
        "triomphe": (662, 833, 863, 867),
    }.items()
    for number in numbers
)
"""Twenty files of Paris6k that are no pictures, by the authors' corrupt.txt; all leave them out."""


def oxford5k(root: str) -> Split:
    """Oxford5k: 55 queries, 5 of each of 11 landmarks, and 5,063 photographs.

    Photographs lie below ``jpg``, ``oxbuild_images``, ``images`` or ``root`` itself, the
    text files (``all_souls_1_query.txt``, ``…_good.txt``, ``…_ok.txt``, ``…_junk.txt``) anywhere
    below ``root``; without them, ``gnd_oxford5k.pkl`` of cnnimageretrieval-pytorch is read.

    Good and ok are relevant, junk is ignored. The authors' ``compute_ap`` treats a query's own
    photograph as any other, and so does this: it is in the gallery and counts as its lists say.

    Raises:
        DataError: something is missing or malformed; it is named.
    """
    return _classic("oxford5k", Path(root).expanduser())


def paris6k(root: str) -> Split:
    """Paris6k: 55 queries of 11 landmarks and 6,392 photographs, read as `oxford5k` is.

    The official archive has 6,412 files; the 20 in `CORRUPT` are left out, of the lists too.
    """
    return _classic("paris6k", Path(root).expanduser())


def roxford5k(root: str, level: Level = "medium") -> Split:
    """ROxford5k: 70 queries and 4,993 photographs; the queries' own are not in the gallery.

    Reads ``gnd_roxford5k.pkl`` in ``root``, and photographs as `oxford5k` does. Relevant are the
    easy ones and the hard ones are ignored (``easy``), both are relevant (``medium``), or the hard
    ones are and the easy ones are ignored (``hard``); junk is always ignored. A query without
    relevant photographs at this level has no score, as in the benchmark's own code.

    Raises:
        DataError: something is missing, malformed or hostile; it is named.
    """
    return _revisited("roxford5k", Path(root).expanduser(), level)


def rparis6k(root: str, level: Level = "medium") -> Split:
    """RParis6k: 70 queries and 6,322 photographs, read as `roxford5k` is."""
    return _revisited("rparis6k", Path(root).expanduser(), level)


@final
@dataclass(frozen=True)
class Filed:
    """Pictures in files wherever they lie."""

    paths: Mapping[str, Path]

    def read(self, name: str) -> Picture:
        return decode(self.paths[name])

    def stamp(self, name: str) -> str:
        return hashlib.blake2b(self.paths[name].read_bytes(), digest_size=16).hexdigest()

    def __repr__(self) -> str:
        return f"Filed({len(self.paths)} pictures)"


@final
@dataclass(frozen=True, eq=False)
class _Query:
    name: str
    photograph: str
    box: Box
    landmark: int
    listing: Listing


def _classic(name: str, root: Path) -> Split:
    photographs, pickled = _photographs(root), root / f"gnd_{name}.pkl"
    files = sorted(root.rglob("*_query.txt"))
    if not files and not pickled.is_file():
        raise DataError(
            f"{root} has neither text files such as all_souls_1_query.txt nor {pickled.name}; "
            "unpack the ground truth of the data set there"
        )
    if not files:
        return _split(name, photographs, *_pickled(pickled, ("ok",), ("junk",)))
    if files[0].parent != files[-1].parent:
        raise DataError(
            f"both {files[0].parent} and {files[-1].parent} hold lists; name a folder with one"
        )
    gallery = sorted(photographs.keys() - CORRUPT)
    return _split(name, photographs, gallery, _listed(files, gallery))


def _revisited(name: str, root: Path, level: Level) -> Split:
    photographs = _photographs(root)
    gallery, queries = _pickled(root / f"gnd_{name}.pkl", *_LEVELS[level])
    return _split(f"{name}-{level}", photographs, gallery, queries)


def _split(
    name: str, photographs: Mapping[str, Path], gallery: list[str], queries: list[_Query]
) -> Split:
    _require(name, [*gallery, *(query.photograph for query in queries)], photographs)
    landmarks = np.zeros(len(gallery), dtype=np.int64)
    for query in reversed(queries):  # of two landmarks in one photograph, the first counts
        landmarks[query.listing.relevant] = query.landmark
    asked = Filed({query.name: photographs[query.photograph] for query in queries})
    return Split(
        name=name,
        query=Pictures(
            Cropped(asked, {query.name: query.box for query in queries}),
            tuple(query.name for query in queries),
            np.array([query.landmark for query in queries], dtype=np.int64),
            np.zeros(len(queries), dtype=np.int64),
        ),
        gallery=Pictures(
            Filed({one: photographs[one] for one in gallery}),
            tuple(gallery),
            landmarks,
            np.zeros(len(gallery), dtype=np.int64),
        ),
        protocol="listed",
        listings={query.name: query.listing for query in queries},
    )


def _require(where: str, names: Iterable[str], known: Mapping[str, object]) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        raise DataError(
            f"{where} lists {missing[0]!r} (and {len(missing) - 1} more), but there is no such "
            "photograph; unpack the whole archive"
        )


def _photographs(root: Path) -> dict[str, Path]:
    """Every photograph below ``root``, flat or in folders, by its name without the ending."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    # The folder may be a link to that of the classic data set, which rglob enters only by name.
    folder = next((root / one for one in _FOLDERS if (root / one).is_dir()), root)
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _ENDINGS:
            if path.stem in found:
                raise DataError(
                    f"{found[path.stem]} and {path} share a name; name a folder of one data set"
                )
            found[path.stem] = path
    if not found:
        raise DataError(f"{folder} holds no photographs ({', '.join(_ENDINGS)})")
    return found


def _listed(files: Iterable[Path], gallery: list[str]) -> list[_Query]:
    """The queries of the classic text files."""
    position = {photograph: i for i, photograph in enumerate(gallery)}

    def positions(file: Path) -> IntArray:
        names = [name for name in _lines(file) if name not in CORRUPT]
        _require(str(file), names, position)
        return np.array(sorted({position[name] for name in names}), dtype=np.int64)

    queries: list[_Query] = []
    landmarks: dict[str, int] = {}
    for file in files:
        name = file.name.removesuffix("_query.txt")
        parts = " ".join(_lines(file)).split()
        if len(parts) != 5:
            raise DataError(
                f"{file} does not parse; it must hold a photograph and the four sides of a box, "
                "such as oxc1_all_souls_000013 136.5 34.1 648.5 955.7"
            )
        good, ok, junk = (
            positions(file.with_name(f"{name}_{kind}.txt")) for kind in ("good", "ok", "junk")
        )
        queries.append(
            _Query(
                name,
                parts[0].removeprefix("oxc1_"),
                _box(parts[1:], str(file)),
                landmarks.setdefault(re.sub(r"_\d+$", "", name), len(landmarks) + 1),
                Listing(np.union1d(good, ok), junk),
            )
        )
    return queries


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list {file}: {error}; unpack the lists again") from error
    return [line.strip() for line in lines if line.strip()]


def _pickled(
    file: Path, relevant: tuple[str, ...], ignored: tuple[str, ...]
) -> tuple[list[str], list[_Query]]:
    """The gallery and the queries of a ground truth in a pickle, by the names of its lists."""
    truth = read_pickle(file, encoding="latin-1")
    if not isinstance(truth, dict):
        raise DataError(f"{file} is no ground truth but a {type(truth).__name__}")
    gallery, names = (_names(truth, key, str(file)) for key in ("imlist", "qimlist"))
    entries = truth.get("gnd")
    if not isinstance(entries, list | tuple) or len(entries) != len(names):
        raise DataError(f"{file}: gnd is no list with an entry for each query of qimlist")
    boxes: list[Box] = []
    listings: list[Listing] = []
    shown: list[set[int]] = []
    for name, entry in zip(names, entries, strict=True):
        where = f"{file}, query {name!r}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: the entry is no dict but a {type(entry).__name__}")
        lists = {
            key: _positions(entry.get(key), len(gallery), f"{where}: {key}")
            for key in (*relevant, *ignored)
        }
        boxes.append(_box(entry.get("bbx"), where))
        listings.append(
            Listing(
                *(np.unique(np.concatenate([lists[k] for k in ks])) for ks in (relevant, ignored))
            )
        )
        shown.append({i for key in lists.keys() - {"junk"} for i in lists[key].tolist()})
    landmarks = _landmarks(shown)
    return gallery, [
        _Query(name, name, boxes[i], landmarks[i], listings[i]) for i, name in enumerate(names)
    ]


def _names(truth: dict[Any, Any], key: str, where: str) -> list[str]:
    names = truth.get(key)
    names = names.tolist() if isinstance(names, np.ndarray) else names
    if not isinstance(names, list | tuple) or not names:
        raise DataError(f"{where}: {key} is no list of names")
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {key} holds something else than names")
    return list(names)


def _positions(value: Any, size: int, where: str) -> IntArray:
    """Positions in a gallery of ``size``; an empty list may be of any type, as Matlab's are."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    # Lists of lists are not for NumPy: a small file can hold more of them than fit anywhere.
    if not isinstance(value, list | tuple) or not all(
        isinstance(n, int | np.integer) for n in value
    ):
        raise DataError(f"{where} is no list of whole numbers")
    if not all(0 <= n < size for n in value):
        raise DataError(f"{where} goes beyond the {size} photographs of imlist")
    return np.array(value, dtype=np.int64)


def _box(sides: Any, where: str) -> Box:
    try:
        left, top, right, bottom = (float(side) for side in sides)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: the box is not of four numbers") from None
    box = left, top, right, bottom
    if (
        not all(map(math.isfinite, box))
        or round(left) >= round(right)
        or round(top) >= round(bottom)
    ):
        raise DataError(f"{where}: the box {box} is empty; it is left, top, right and bottom")
    return box


def _landmarks(shown: list[set[int]]) -> list[int]:
    """Which queries ask for one landmark: ``Q`` numbers from 1.

    File names do not say it (paris_general_002985 is the Eiffel tower), but queries of one
    landmark share the photographs that show it: more than half of the fewer.
    """
    numbers = list(range(1, len(shown) + 1))
    for i, mine in enumerate(shown):
        for j, other in enumerate(shown[:i]):
            if 2 * len(mine & other) > min(len(mine), len(other)):
                old, new = sorted((numbers[i], numbers[j]), reverse=True)
                numbers = [new if number == old else number for number in numbers]
    return numbers
