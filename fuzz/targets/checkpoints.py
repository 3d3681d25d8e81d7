"""Weights: PyTorch's three formats, the pickle in the newest, safetensors and their cards."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fuzz.mutate import changed_json, worded
from fuzz.target import Target
from uturn.errors import CheckpointError, SpecError
from uturn.victims import checkpoints
from uturn.victims.checkpoints import Card
from uturn.victims.load import named_by_card
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.whitening import Whitening

_STATE = {"state_dict": {"module.a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1).half()}}
_STORED = (("0", 24), ("1", 2), ("2", 12))
"""Storages and their bytes, as in the archive of `_STATE` and in those of the other pickles."""
_CARD = Card(Preprocessing(size=(8, 4)), "cosine", "glyph_net")


def _sound(path: Path, size: int) -> None:
    try:
        found = checkpoints.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017 — either outcome is right
        raise
    assert [*path.parent.iterdir()] == [path]
    for tensor in found.tensors.values():
        assert type(tensor) is Tensor
        assert tensor.untyped_storage().nbytes() <= 40 * size  # 10 of bytes, which become floats


def _whole(data: bytes, folder: Path) -> None:
    path = folder / "net.pth"
    path.write_bytes(data)
    _sound(path, len(data))


def _pickled(data: bytes, folder: Path) -> None:
    """``data`` as the pickle of a sound archive, whose sums would else stop every change."""
    path = folder / "net.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/byteorder", "little")
        for name, size in _STORED:
            archive.writestr(f"net/data/{name}", bytes(size))
        archive.writestr("net/version", "3\n")
    _sound(path, path.stat().st_size)


def _card(data: bytes, folder: Path) -> None:
    """``data`` as the header of a safetensors file of 24 bytes."""
    path = folder / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(data)) + data + bytes(24))
    _sound(path, path.stat().st_size)
    named_by_card(path)
    Whitening.read(path)


def _formats() -> Iterator[bytes]:
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save(_STATE, buffer, _use_new_zipfile_serialization=zipped)
        yield buffer.getvalue()
    yield safetensors.torch.save(_STATE["state_dict"])
    yield b"\x80\x02cos\nsystem\nX\x0c\x00\x00\x00touch canary\x85R."
    yield b"version https://git-lfs.github.com/spec/v1\n"


def _pickles() -> Iterator[bytes]:
    first, half, three = torch.ones(6), torch.ones(1).half(), torch.ones(3)
    odd = {"model": OrderedDict(a=torch.nn.Parameter(first), b=half), "epoch": 3, "set": {1, 2}}
    for content in (_STATE, odd, {"a": first[:2], "b": half, "c": three, "d": torch.Size([2])}):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with zipfile.ZipFile(buffer) as archive:
            yield next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl"))


def _headers() -> Iterator[bytes]:
    whitening = {
        "mean": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "projection": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]},
    }
    card = {"preprocessing": vars(_CARD.preprocessing), "similarity": "cosine"}
    for architecture in ("glyph_net", "timm:resnet18,img_size=3", "os:system,command=touch canary"):
        told = json.dumps({**card, "architecture": architecture})
        yield json.dumps({"__metadata__": {"uturn": told}, **whitening}).encode()


_OPCODES = (
    *(b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"R", b"b"),
    *(b"ctorch\nload\n", b"ccollections\nOrderedDict\n", b"Q", b"\x93", b"\x81", b"(", b"t", b"u"),
    *(b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n", b"X\x01\x00\x00\x000", b"J\xff\xff"),
    *(b"J\x00\x00\x00\x40", b"ctorch._utils\n_rebuild_parameter\n", b"q\x00", b"h\x00", b"K\x02"),
    *(b"ctorch._utils\n_rebuild_sparse_tensor\n", b"ctorch.nn.parameter\nParameter\n", b"e", b"."),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\ndevice\n", b"ctorch\nSize\n", b"}"),
)

TARGETS = (
    Target(
        name="checkpoints",
        parse=_whole,
        refusals=(CheckpointError,),
        seeds=_formats,
        mutate=worded(*_OPCODES),
    ),
    Target(
        name="checkpoint_pickles",
        parse=_pickled,
        refusals=(CheckpointError,),
        seeds=_pickles,
        mutate=worded(*_OPCODES),
    ),
    Target(
        name="safetensors",
        parse=_card,
        refusals=(CheckpointError, SpecError),
        seeds=_headers,
        mutate=changed_json,
    ),
)
