"""The ten digits: a closed set, drawn when asked."""

from __future__ import annotations

import numpy as np

from uturn import load_data
from uturn.data.digits import CLASSES
from uturn.data.glyphs import FACES, GlyphSource


def test_digits_are_a_closed_set() -> None:
    split = load_data("digits")
    assert split.train is not None
    assert split.classes == CLASSES == tuple("0123456789")
    assert split.protocol == "same-identity"
    assert split.gallery is split.query
    for pictures, times in ((split.query, 10), (split.train, 50)):
        assert len(pictures) == 10 * len(FACES) * times
        assert (np.bincount(pictures.identities) == len(FACES) * times).all()
        assert (np.bincount(pictures.cameras) == 10 * times).all()


def test_an_identity_is_the_digit_that_is_drawn() -> None:
    split = load_data("digits")
    for name, identity in zip(split.query.names, split.query.identities, strict=True):
        point, face, _ = name.split("_")
        assert chr(int(point, 16)) == str(identity)
        assert face in FACES


def test_every_draw_is_another_and_repeats() -> None:
    split = load_data("digits")
    assert split.train is not None
    one, other, learned = split.query.read(0), split.query.read(1), split.train.read(0)
    assert one.shape == (32, 32, 3)
    assert one.dtype == np.uint8
    assert split.query.names[0] == split.train.names[0]
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, learned)
    assert np.array_equal(one, load_data("digits").query.read(0))


def test_a_picture_shows_its_digit() -> None:
    """Where the ink is, two draws agree: same digit and face, whatever colours and places."""
    source = GlyphSource("digits/test")

    def ink(name: str) -> tuple[int, int]:
        """Height and width of what differs from the paper, whose colour is the corners'."""
        picture = source.read(name).astype(float)
        corners = picture[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
        rows, columns = np.nonzero(np.abs(picture - corners).max(2) > 70)
        return int(np.ptp(rows)), int(np.ptp(columns))

    for point in (0x31, 0x38):
        sizes = np.array([ink(f"{point:04x}_DejaVuSans-Bold_{n:02d}") for n in range(4)])
        assert (np.ptp(sizes, axis=0) <= 3).all()
    eight, one = ink("0038_DejaVuSans_00"), ink("0031_DejaVuSans_00")
    assert eight[1] >= one[1]
