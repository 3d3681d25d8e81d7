"""Specs: of data sets, attacks, victims, indexes, stages, engines; and an endpoint's headers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fuzz.mutate import worded
from fuzz.target import Target
from uturn.attacks.presets import PRESETS, load_attack
from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.retrieval.endpoint import read_headers
from uturn.retrieval.index import ExactIndex, read_index
from uturn.retrieval.rerank import build_stages
from uturn.specs import Spec, bare, separated, split_list
from uturn.sweep.engines import load_engine
from uturn.victims.load import load_victim, require_data
from uturn.victims.zoo import ZOO

with suppress(SpecError):
    load_engine("ray")  # Ray changes the environment when it is imported
_INDEX = ExactIndex(torch.eye(8), "cosine")


def _grammar(text: str) -> None:
    spec = Spec.parse(text)
    assert Spec.parse(str(spec)).name == spec.name
    assert "".join(separated(text, ",")) == text.replace(",", "") or "[" in text
    for each in split_list(text):
        bare(each)


def _victim(text: str) -> None:
    require_data(text, "a file")  # what may run code ends here
    if Spec.parse(text).name in ("glyph_net", "ensemble"):
        load_victim(text)


_READERS: tuple[Callable[[str], Any], ...] = (
    _grammar,
    lambda text: load_attack(text, eps=8),
    lambda text: load_attack(text, eps=4, mode="paper"),
    lambda text: read_index(text, "cosine"),
    lambda text: build_stages(text, _INDEX),
    load_engine,
    _victim,
    lambda text: read_headers([text]),
)


def _spelled(data: bytes, folder: Path) -> None:
    """The text of a spec to every reader: most of them refuse it, in their own words."""
    text = data.decode("utf-8", "surrogateescape")
    for read in _READERS:
        with suppress(SpecError, ArgumentError, CheckpointError):
            read(text)


def seeds() -> Iterator[bytes]:
    """Specs of every kind."""
    yield b"glyph_net"
    yield from (name.encode() for name in PRESETS)
    yield from (f"{name}:weights=net.pth".encode() for name in ZOO)
    for text in (
        *("odfa:steps=20,views=identity+jpeg75,scales=1+0.5", "square:prior=[glyph_net:flip=yes]"),
        *(
            "glyph_net:size=32x32,mean=0.5+0.5+0.5,power=2",
            "ensemble:[glyph_net:flip=yes]+glyph_net",
        ),
        *("exact:similarity=euclidean", "faiss:IVF16,Flat,nprobe=4", "milvus:x.db,depth=100"),
        *("aqe:n=5+k-reciprocal:k1=30", "ray:127.0.0.1:6379,workers=4", "in-process", "a:b=c,d"),
        *("os:system,command=touch canary", "Authorization: Bearer x", "smallest:by=odfa"),
        *("timm:resnet50,pretrained=yes", "hf:x/y,download=yes", "torchscript:net.pt,size=8x8"),
        *("folder:/data,csv=labels.csv", "market1501:[a=b]", "qa_plus:goal=3", "odfa:restart=2"),
    ):
        yield text.encode()


_WORDS = (
    *(b":", b",", b"=", b"[", b"]", b"+", b"x", b"-1", b"0", b"1e999", b"nan", b"9" * 5000, b"\0"),
    *(b"steps=", b"views=", b"scales=", b"restart=", b"prior=", b"size=", b"mean=", b"power="),
    *(b"identity", b"jpeg75", b"glyph_net", b"odfa", b"yes", b"no", b"k1=", b"n=", b"depth="),
    *(b"top=", b"max_queries=", b"alpha=", b"weight=", "²".encode(), "٣".encode(), b"\xff", b"_"),
    *(b"crops=", b"flip=", b"crop_from=", b"fit=", b"whitening=", b"similarity=", b"os:system"),
)

TARGETS = (
    Target(
        name="specs",
        parse=_spelled,
        refusals=(),
        seeds=seeds,
        mutate=worded(*_WORDS),
        largest=1 << 10,
    ),
)
