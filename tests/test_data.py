"""Glyphs, Market-1501 in its official layout, and pictures that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import uturn.data.glyphs as glyphs_module
from tests.conftest import write_market
from uturn import load_data
from uturn.data.folder import replace_queries
from uturn.data.glyphs import FACES, glyphs
from uturn.data.pictures import FORMATS, Pictures, decode, encode
from uturn.data.split import JUNK
from uturn.errors import ArgumentError, DataError, SpecError


def test_kept_identities_are_those_of_the_typefaces(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = json.loads(glyphs_module._KEPT.read_bytes())
    found = glyphs_module._distinct()
    if kept["typefaces"] == glyphs_module._typefaces():
        assert tuple(kept["identities"]) == found, "uturn.data.glyphs.keep() writes them anew"
    monkeypatch.setattr(glyphs_module, "_typefaces", lambda: "of another matplotlib")
    monkeypatch.setattr(glyphs_module, "_distinct", lambda: (65, 66))
    assert glyphs_module._identities.__wrapped__() == (65, 66)


def test_glyphs_are_an_open_set_with_every_face() -> None:
    split = glyphs()
    assert split.train is not None
    test, train = set(split.query.identities), set(split.train.identities)
    assert not test & train
    assert len(test) + len(train) == 2115  # of 2,297 code points; the rest is drawn alike
    for pictures in (split.query, split.gallery, split.train):
        assert len(pictures) == len(np.unique(pictures.identities)) * len(FACES)
    picture = split.query.read(5)
    assert picture.shape == (32, 32, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, glyphs().query.read(5))
    assert not np.array_equal(picture, split.gallery.read(5))  # same name, other rendering


def test_shapes_drawn_alike_are_one_identity() -> None:
    split = glyphs()
    assert split.train is not None
    names = {name.split("_")[0] for p in (split.query, split.train) for name in p.names}
    assert "0041" in names  # Latin A stands for
    assert not names & {"0391", "0410"}  # Greek Alpha and Cyrillic A


def test_sampling_is_seeded_and_nested() -> None:
    split = glyphs()
    small, large = split.sample(20, seed=1), split.sample(50, seed=1)
    assert small.query.names == large.query.names[:20]
    assert small.query.names != split.sample(20, seed=2).query.names
    assert sorted(split.sample(None, seed=1).query.names) == sorted(split.query.names)
    assert split.sample(None, seed=1).query.names[:50] == large.query.names
    with pytest.raises(ArgumentError, match="0 glyphs queries asked for"):
        split.sample(0, seed=0)


GALLERY = ["-1_c1s1_000001_01.jpg", "0000_c2s1_000001_01.jpg", "0002_c2s1_000001_02.jpg"]
QUERY = ["0002_c1s1_000451_03.jpg"]
TWICE = "1488_c1s6_023021_00.jpg.jpg"
"""A query of the official archive."""


def test_market1501_reads_identities_and_cameras_from_names(tmp_path: Path) -> None:
    root = write_market(tmp_path / "market", GALLERY, [*QUERY, TWICE])
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"not a picture")
    split = load_data(f"market1501:{root}")
    assert split.gallery.identities.tolist() == [JUNK, 0, 2]
    assert split.gallery.cameras.tolist() == [1, 2, 2]
    assert split.query.names == ("0002_c1s1_000451_03", "1488_c1s6_023021_00.jpg")
    assert split.query.read(0).shape == (16, 8, 3)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "query").rename(root / "queries"), "no folder query"),
        (
            lambda root: (root / "query" / QUERY[0]).rename(root / "query" / "person2.jpg"),
            r"person2\.jpg does not parse",
        ),
        (
            lambda root: (root / "query" / QUERY[0]).rename(
                root / "query" / "0002_c1s1_000451_03 (copy).jpg"
            ),
            "does not parse",
        ),
        (
            lambda root: (root / "bounding_box_test" / GALLERY[1]).write_bytes(b""),
            rf"{GALLERY[1]} is empty",
        ),
        (lambda root: [p.unlink() for p in (root / "query").iterdir()], "holds no pictures"),
        (
            lambda root: (root / "query" / QUERY[0]).rename(
                root / "query" / "0000_c1s1_000451_03.jpg"
            ),
            "junk or a distractor",
        ),
    ],
)
def test_market1501_names_what_is_wrong(tmp_path: Path, break_it, message: str) -> None:
    root = write_market(tmp_path / "market", GALLERY, QUERY)
    break_it(root)
    with pytest.raises(DataError, match=message):
        load_data(f"market1501:{root}")


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0"])
def test_unreadable_pictures_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png"):
        decode(file)
    assert FORMATS == ("PNG", "JPEG", "BMP", "WEBP", "TIFF")
    (tmp_path / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"program\.jpg: cannot identify"):
        decode(tmp_path / "program.jpg")
    with pytest.raises(DataError, match=r"no picture at .*missing\.png"):
        decode(tmp_path / "missing.png")


def test_png_keeps_every_value(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    encode(tmp_path / "deep" / "p.png", picture)
    assert np.array_equal(decode(tmp_path / "deep" / "p.png"), picture)


def test_a_folder_stands_in_for_queries(tmp_path: Path) -> None:
    query = glyphs().query
    for i in (7, 3):
        encode(tmp_path / f"{query.names[i]}.png", query.read(i) // 2)
    found = replace_queries(query, tmp_path)
    assert sorted(found.names) == sorted([query.names[7], query.names[3]])
    position = query.names.index(found.names[0])
    assert found.identities[0] == query.identities[position]
    assert np.array_equal(found.read(0), query.read(position) // 2)
    Image.new("RGB", (4, 4)).save(tmp_path / "stranger.png")
    with pytest.raises(DataError, match=r"stranger\.png .*has the name of no query"):
        replace_queries(query, tmp_path)


def test_names_are_unique() -> None:
    ones = np.ones(2, dtype=np.int64)
    with pytest.raises(DataError, match="share the name 'a'"):
        Pictures(glyphs().query.source, ("a", "a"), ones, ones)


def test_unknown_data_lists_the_known() -> None:
    with pytest.raises(SpecError, match=r"known: cifar10, cub200, .*glyphs, .*market1501"):
        load_data("imagenet")
    with pytest.raises(SpecError, match="needs root"):
        load_data("market1501")
