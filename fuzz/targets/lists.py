"""Lists of data sets in their official text files, each in a tree that is else sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.bundle import bundle, each_by, files_of
from fuzz.mutate import worded
from fuzz.target import Target
from uturn.data.cub import cub200
from uturn.data.landmarks import oxford5k
from uturn.data.products import grocery, sop
from uturn.data.reid import msmt17
from uturn.data.split import Split
from uturn.errors import DataError

_CUB = {
    "images.txt": b"1 1.A/a.jpg\n2 101.B/b.jpg\n3 102.C/c.jpg\n",
    "image_class_labels.txt": b"1 1\n2 101\n3 102\n",
}
_SOP = {
    "Ebay_train.txt": b"image_id class_id super_class_id path\n1 1 1 x/a.JPG\n",
    "Ebay_test.txt": b"image_id class_id super_class_id path\n1 9 1 x/b.JPG\n2 9 1 x/c.JPG\n",
}
_GROCERY = {
    "train.txt": b"train/a.jpg, 0, 0\n",
    "val.txt": b"val/b.jpg, 41, 1\n",
    "test.txt": b"test/c.jpg, 42, 1\n",
}
_MSMT = {
    "list_query.txt": b"0000/0000_000_01_0303morning_0008_0.jpg 0\n",
    "list_gallery.txt": b"0000/0000_001_02_0303morning_0008_0.jpg 0\n",
    "list_train.txt": b"0001/0001_000_01_0303morning_0008_0.jpg 0\n",
    "list_val.txt": b"0001/0001_001_02_0303morning_0008_0.jpg 0\n",
}
_OXFORD = {
    "all_souls_1_query.txt": b"oxc1_all_souls_000013 136.5 34.1 648.5 955.7\n",
    "all_souls_1_good.txt": b"all_souls_000026\n",
    "all_souls_1_ok.txt": b"",
    "all_souls_1_junk.txt": b"all_souls_000013\n",
}
_SETS: dict[str, tuple[Callable[[str], Split], dict[str, bytes], tuple[str, ...]]] = {
    "cub": (cub200, _CUB, ("images/1.A/a.jpg", "images/101.B/b.jpg", "images/102.C/c.jpg")),
    "sop": (sop, _SOP, ("x/a.JPG", "x/b.JPG", "x/c.JPG")),
    "grocery": (grocery, _GROCERY, ("train/a.jpg", "val/b.jpg", "test/c.jpg")),
    "msmt17": (
        msmt17,
        _MSMT,
        (
            "test/0000/0000_000_01_0303morning_0008_0.jpg",
            "test/0000/0000_001_02_0303morning_0008_0.jpg",
            "train/0001/0001_000_01_0303morning_0008_0.jpg",
            "train/0001/0001_001_02_0303morning_0008_0.jpg",
        ),
    ),
    "oxford": (oxford5k, _OXFORD, ("jpg/all_souls_000013.jpg", "jpg/all_souls_000026.jpg")),
}


def _lists(data: bytes, folder: Path) -> None:
    """A bundle of lists that take the place of a sound data set's; their names say of which."""
    given = files_of(data)
    which = next((name for name, (_, lists, _) in _SETS.items() if given.keys() & lists), "cub")
    read, lists, pictures = _SETS[which]
    for name in pictures:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for name, content in lists.items():
        (folder / name).write_bytes(given.get(name, content))
    split = read(str(folder))
    for names in (split.query.names, split.gallery.names):
        assert all(not name.startswith("/") and ".." not in name.split("/") for name in names)


def seeds() -> Iterator[bytes]:
    """Every data set's lists, whole and one by one."""
    for _, lists, _ in _SETS.values():
        yield bundle(lists)
        for name, content in lists.items():
            yield bundle({name: content * 2})


_WORDS = (b" ", b"\n", b",", b"\t", b"-1", b"999999999999999999999", b"\xff", b"\0", b"../", b"/")
_MORE = (
    b"\xef\xbb\xbf",
    b"1e400",
    b"nan",
    "٣".encode(),
    b"all_souls_000026",
    b"\r",
    b"\x85",
    b"101",
)

TARGETS = (
    Target(
        name="lists",
        parse=_lists,
        refusals=(DataError,),
        seeds=seeds,
        mutate=each_by(("", worded(*_WORDS, *_MORE))),
    ),
)
