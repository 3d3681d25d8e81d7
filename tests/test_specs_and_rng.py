"""Specs, and randomness keyed by meaning."""

from __future__ import annotations

import pytest

from uturn.errors import SpecError
from uturn.rng import generator
from uturn.specs import Spec, call, split_list


@pytest.mark.parametrize(
    "text",
    ["glyphs", "market1501:/data/a,b", "osnet_x0_25:weights=a,b.pth", "x:PATH,key=1,other=2=3"],
)
def test_specs_print_as_they_were_written(text: str) -> None:
    assert str(Spec.parse(text)) == text


def test_specs_are_read() -> None:
    assert Spec.parse("x:PATH,key=1").argument == "PATH"
    assert Spec.parse("x:a=C:/net.pth").options == {"a": "C:/net.pth"}
    assert Spec.parse("market1501:/data/a,b").argument == "/data/a,b"
    assert split_list("fast,odfa:steps=20,start=clean,basic") == [
        "fast",
        "odfa:steps=20,start=clean",
        "basic",
    ]


def test_bad_specs_say_what_to_do() -> None:
    def factory(weights: str, size: int = 3) -> tuple[str, int]:
        return weights, size

    assert call("thing", factory, Spec.parse("x:w.pth,size=4")) == ("w.pth", 4)
    for text, message in (
        (":x", "has no name"),
        ("x:size=1,size=2", "gives 'size' twice"),
        ("x:sise=1", "valid options: weights, size"),
        ("x:weights=a,size=big", "size must be a number"),
        ("x", "write x:weights=…"),
    ):
        with pytest.raises(SpecError, match=message):
            call("thing", factory, Spec.parse(text))


def test_randomness_depends_on_every_part_of_the_key() -> None:
    keys = [("a", "b"), ("ab",), ("a", "b", "c"), ("b", "a"), (1,), ("1",)]
    drawn = {tuple(generator(0, *key).integers(0, 1000, 4)) for key in keys}
    drawn.add(tuple(generator(1, "a", "b").integers(0, 1000, 4)))
    assert len(drawn) == len(keys) + 1


def test_randomness_is_the_same_everywhere() -> None:
    """Run folders made elsewhere must resume here, so the stream is pinned."""
    drawn = generator(0, "name", "start").integers(0, 2, 12).tolist()
    assert drawn == [1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0]
