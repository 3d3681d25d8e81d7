"""Pictures and checkpoints that are damaged, odd or malicious: a clear error or a known conversion.

test_data.py and test_victims.py hold the everyday cases.
"""

from __future__ import annotations

import builtins
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.conftest import Tiny
from uturn.data.pictures import LARGEST, Picture, decode
from uturn.errors import CheckpointError, DataError
from uturn.victims import checkpoints
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.backbones.osnet import OSNet

RGB = np.random.default_rng(0).integers(0, 256, (17, 13, 3), dtype=np.uint8)


# Pictures


def png(width: int, height: int, bits: int, colour: int, pixels: bytes, *extra: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *((e[:4], e[4:]) for e in extra), (b"IDAT", zlib.compress(pixels))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in [*chunks, (b"IEND", b"")])


def tiff(pixels: bytes, order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """A TIFF with one strip; the strip's tags may be overruled."""
    numbers = {
        **{"width": 256, "length": 257, "bits": 258, "compression": 259, "black": 262},
        **{"text": 270, "strips": 273, "samples": 277, "rows": 278, "counts": 279},
        **{"tile_width": 322, "tile_length": 323, "tiles": 324, "tile_counts": 325, "format": 339},
    }
    given = {"compression": 1, "black": 1, "samples": 1, "strips": 0, "counts": len(pixels)}
    given |= {"rows": tags["length"]} | tags
    start = 8 + 2 + 12 * len(given) + 4
    body, entries = b"", b""
    for name, value in sorted(given.items(), key=lambda item: numbers[item[0]]):
        values = value if isinstance(value, tuple) else (value,)
        kind = "H" if name in ("bits", "compression", "black", "samples", "format") else "I"
        if name in ("strips", "tiles"):
            values = (start + 64,)
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            packed, body = struct.pack(f"{order}I", start + len(body)), body + packed
        code = 3 if kind == "H" else 4
        entries += struct.pack(f"{order}HHI", numbers[name], code, len(values)) + packed.ljust(
            4, b"\0"
        )
    header = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}IH", 8, len(given)) + entries + bytes(4)
    return header + directory + body.ljust(64, b"\0") + pixels


def decoded(folder: Path, content: bytes | Image.Image, ending: str = "png", **how: Any) -> Picture:
    path = folder / f"picture.{ending}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **how)
    return decode(path)


@contextmanager
def memory(spare: int) -> Iterator[None]:
    """Let the process grow by no more than ``spare`` bytes."""
    resource = pytest.importorskip("resource", reason="memory can be limited on Unix only")
    if not sys.platform.startswith("linux"):
        pytest.skip("the size of a process is read from Linux's /proc")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def resized(ending: str, at: int, form: str, *size: int) -> bytes:
    """A small picture of that format whose header claims another size."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, ending.upper())
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0") + 5 if ending == "jpeg" else at
    struct.pack_into(form, content, at, *size)
    return bytes(content)


SIDE = 40_000


@pytest.mark.parametrize("side", [SIDE, 10_000])  # Pillow would only warn of the second
@pytest.mark.parametrize("ending", ["png", "jpeg", "bmp", "tiff"])
def test_a_header_may_claim_any_size(tmp_path: Path, ending: str, side: int) -> None:
    content = {
        "png": png(side, side, 8, 2, b"\0" * 1000),
        "jpeg": resized("jpeg", 0, ">HH", side, side),
        "bmp": resized("bmp", 18, "<ii", side, side),
        "tiff": tiff(b"\0" * 100, width=side, length=side, bits=8),
    }[ending]
    with memory(100_000_000), pytest.raises(DataError, match=r"picture\.\w+: it claims more than"):
        decoded(tmp_path, content, ending)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as a user has it: Pillow's warning is no exception
        with memory(100_000_000), pytest.raises(DataError, match=f"more than {LARGEST:,} pixels"):
            decoded(tmp_path, content, ending)


def test_bombs_behind_a_small_header(tmp_path: Path) -> None:
    bomb = zlib.compress(b"a" * (1 << 25))
    for chunk in (b"zTXtk\0\0", b"iTXtk\0\1\0\0\0", b"iCCPk\0\0"):
        with memory(100_000_000), pytest.raises(DataError, match="data too large"):
            decoded(tmp_path, png(2, 2, 8, 2, b"\0" * 14, chunk + bomb))
    tile = {"tile_width": SIDE, "tile_length": SIDE, "tiles": 0, "tile_counts": 1 << 30}
    small = {"width": 4, "length": 4, "bits": 8}
    with memory(100_000_000), pytest.raises(DataError, match="claims more than"):
        decoded(tmp_path, tiff(b"\0" * 100, compression=5, **tile, **small), "tif")
    with memory(100_000_000), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = bytearray(tiff(b"\7" * 16, text=0, **small))
        entry = odd.index(struct.pack("<HH", 270, 4))
        struct.pack_into("<HHI", odd, entry, 270, 2, 0xFFFFFFF0)  # a text of 4 GB
        with suppress(DataError):  # Pillow ≥ 12.3 refuses the file; older ones leave out the text
            assert (decoded(tmp_path, bytes(odd), "tif") == 7).all()


@pytest.mark.parametrize("spread", [256, 257])  # 8 bits made 16 by a shift, or exactly
@pytest.mark.parametrize("form", ["png", "tiff <", "tiff >"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_give_their_high_byte(
    tmp_path: Path, channels: int, form: str, spread: int
) -> None:
    levels = np.arange(256).repeat(channels).reshape(16, 16, channels)
    kind, _, order = form.partition(" ")
    deep = (levels * spread).astype(f"{order or '>'}u2")
    if kind == "png":
        rows = b"".join(b"\0" + row.tobytes() for row in deep)
        content = png(16, 16, 16, 0 if channels == 1 else 2, rows)
    else:
        bits, black = (16,) * channels, 1 if channels == 1 else 2
        tags = {"bits": bits, "samples": channels, "black": black}
        content = tiff(deep.tobytes(), order, width=16, length=16, **tags)
    assert np.array_equal(decoded(tmp_path, content, kind), levels.repeat(3 // channels, axis=2))


def test_values_without_a_fixed_white_are_refused(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    for array in (grey.astype(np.float32) / 255, grey.astype(np.int32)):
        with pytest.raises(DataError, match=r"picture\.tif: its grey is not of 8 or 16 bits"):
            decoded(tmp_path, Image.fromarray(array), "tif")
    shape = {"width": 13, "length": 17}
    for pixels, tags in (
        (grey.astype("<i2"), {"bits": 16, "format": 2}),
        (grey.astype("<u2"), {"bits": 16, "black": 0}),
        (grey.astype("<u2"), {"bits": 12}),
    ):
        with pytest.raises(DataError, match="its grey is not of 8 or 16 bits"):
            decoded(tmp_path, tiff(pixels.tobytes(), **tags, **shape), "tif")


def test_cmyk_is_multiplied_out(tmp_path: Path) -> None:
    ink = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    expected = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    found = decoded(tmp_path, Image.fromarray(ink, "CMYK"), "tif")
    assert np.abs(found - expected).max() <= 1
    flat = np.broadcast_to(np.uint8([10, 200, 90, 40]), (16, 16, 4))
    found = decoded(tmp_path, Image.fromarray(flat.copy(), "CMYK"), "jpg", quality=100)
    expected = (255.0 - flat[..., :3]) * (255.0 - flat[..., 3:]) / 255
    assert np.abs(found - expected).max() <= 3  # Adobe's inverted CMYK


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.random.default_rng(2).integers(0, 256, RGB.shape[:2], dtype=np.uint8)
    rgba = Image.fromarray(np.dstack([RGB, alpha]))
    for ending, how in (("png", {}), ("tif", {}), ("webp", {"lossless": True, "exact": True})):
        assert np.array_equal(decoded(tmp_path, rgba, ending, **how), RGB)
    grey = np.dstack([RGB[..., :1], alpha])
    found = decoded(tmp_path, Image.fromarray(grey, "LA"))
    assert np.array_equal(found, RGB[..., :1].repeat(3, axis=2))
    palette = Image.fromarray(RGB).quantize(16)
    found = decoded(tmp_path, palette, transparency=bytes(range(16)))
    assert np.array_equal(found, np.asarray(palette.convert("RGB")))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = RGB[..., 0] > 127
    found = decoded(tmp_path, Image.fromarray(bits))
    assert np.array_equal(found, 255 * bits[..., None].repeat(3, axis=2))


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    for ending, how in (("png", {}), ("webp", {"lossless": True}), ("tif", {})):
        found = decoded(tmp_path, first, ending, save_all=True, append_images=[second], **how)
        assert np.array_equal(found, RGB)


def test_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° before showing
    assert np.array_equal(decoded(tmp_path, Image.fromarray(RGB), exif=exif), RGB)


@pytest.mark.parametrize("ending", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_truncated_pictures_and_wrong_endings(tmp_path: Path, ending: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, ending.upper())
    content = buffer.getvalue()
    for tenth in range(10):
        with pytest.raises(DataError, match=r"cannot read the picture .*picture\.png"):
            decoded(tmp_path, content[: len(content) * tenth // 10])
    assert decoded(tmp_path, content).shape == RGB.shape  # the content counts, not the name


def test_what_is_no_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    names = ["folder.png"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        names.append("pipe.png")
    for name in names:
        with pytest.raises(DataError, match=f"there is no picture at .*{name}"):
            decode(tmp_path / name)
    with pytest.raises(DataError, match=r"cannot read the picture .*File name too long"):
        decode(tmp_path / ("long" * 100))
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "GIF")
    with pytest.raises(DataError, match="cannot identify"):
        decoded(tmp_path, buffer.getvalue(), "gif")


def samples() -> list[bytes]:
    """Small pictures of every kind that is decoded."""
    picture, exif = Image.fromarray(RGB), Image.Exif()
    exif[0x010E] = "text"
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (picture, "PNG", {}),
        (picture, "PNG", {"save_all": True, "append_images": [picture.rotate(180)]}),
        (picture.convert("P"), "PNG", {"transparency": b"\0\1"}),
        (Image.fromarray(RGB[..., 0].astype(np.uint16)), "PNG", {}),
        (picture, "JPEG", {"exif": exif}),
        (picture, "JPEG", {"progressive": True}),
        (picture.convert("CMYK"), "JPEG", {}),
        (picture, "WEBP", {}),
        (picture, "WEBP", {"lossless": True}),
        (picture, "BMP", {}),
        (picture, "TIFF", {}),
        (picture, "TIFF", {"compression": "tiff_lzw"}),
        (Image.fromarray(RGB[..., 0].astype(np.uint16)), "TIFF", {}),
    ]
    contents = []
    for image, form, how in kinds:
        buffer = io.BytesIO()
        image.save(buffer, form, **how)
        contents.append(buffer.getvalue())
    return contents


@st.composite
def mutated(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the files with some bytes changed, put in or taken out, mostly in its header."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 8))):
        reach = draw(st.sampled_from([len(content), min(200, len(content))]))
        at = draw(st.integers(0, reach))
        content[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
        content = content or bytearray(1)
    return bytes(content)


FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(content=mutated(samples()))
def test_mutated_pictures_decode_or_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    try:
        picture = decoded(tmp_path, content)
    except DataError as error:
        assert "picture.png" in str(error)  # noqa: PT017 — either outcome is right
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
    capfd.readouterr()  # libtiff prints what it finds


# Checkpoints


class Call:
    """Pickled, it calls ``function`` when read."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


def save_legacy(content: object, path: Path) -> None:
    """As PyTorch before 1.6 saved."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def refusal(path: Path) -> str:
    """Why `read` refuses the file; it must leave the folder as it was."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.read(path)
    assert sorted(path.parent.rglob("*")) == before
    assert str(path) in str(caught.value)
    return str(caught.value)


def weights() -> dict[str, Tensor]:
    return dict(Tiny(0).state_dict())


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_pickle])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.name}.system"),
        (builtins.eval, "eval"),
        (builtins.exec, "exec"),
        (io.open, f"{io.open.__module__}.open"),
    ],
)
def test_nothing_in_a_pickle_is_called(
    tmp_path: Path, save: Callable[..., None], function: Callable[..., object], name: str
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "net.pth"
    source = f"touch {canary}" if function is os.system else f"open({str(canary)!r}, 'w')"
    arguments = (str(canary), "w") if function is io.open else (source,)
    save({"x": Call(function, *arguments), "state_dict": weights()}, path)
    said = refusal(path)
    assert f"refused, since reading it would run {name}:" in said
    assert not canary.exists()


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_whole_network_is_not_unpickled(tmp_path: Path, save: Callable[..., None]) -> None:
    save(Tiny(0), tmp_path / "net.pth")
    said = refusal(tmp_path / "net.pth")
    assert "would run tests.conftest.Tiny" in said
    assert "torch.save(model.state_dict(), …)" in said


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecation
        torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)).save(path)


def bomb(path: Path) -> None:
    """A checkpoint whose tensors are a gigabyte of packed zeros, and a zip in the zip."""
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 24))
    torch.save(weights(), outer)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in zipfile.ZipFile(outer).infolist():
            archive.writestr(entry.filename, zipfile.ZipFile(outer).read(entry))
        archive.writestr("net/data/99", inner.getvalue() * 4)


def tar(path: Path) -> None:
    """The layout before PyTorch 0.2."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html><title>Google Drive - Virus scan warning", "web page.*gdown"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\3", "an archive; unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5.* convert it"),
        (b"PK\3\4" + bytes(99), "damaged zip archive"),
        (b"Not Found", "damaged or truncated, or no PyTorch checkpoint"),
        (bytes(1000), "damaged or truncated, or no PyTorch checkpoint"),
        (struct.pack("<Q", 1 << 40) + b'{"a":1}', "not a valid safetensors file"),
        (struct.pack("<Q", 8) + b'{"a":1} ', "not a valid safetensors file"),
        (
            struct.pack("<Q", 71)
            + b'{"a":{"dtype":"F32","shape":[1099511627776,1],"data_offsets":[0,4]}} 0000',
            "not a valid safetensors file",
        ),
        (tar, "an archive; unpack it.*PyTorch's own old tar"),
        (torchscript, "TorchScript program .*torchscript:.*net.pth"),
        (bomb, "compressed zip archive .*refused as a bomb"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("net.pth", b"x"), "zip archive; unpack"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: torch.save({"epoch": 3}, path), "no state dict, but epoch"),
        (lambda path: torch.save({}, path), "no state dict"),
        (
            lambda path: torch.save({"teacher": weights(), "student": weights()}, path),
            "no state dict, but teacher, student; save the state dict in a file",
        ),
        (
            lambda path: torch.save({"model": weights(), "state_dict": weights()}, path),
            r"several state dicts \(state_dict, model\)",
        ),
        (
            lambda path: torch.save({"a": torch.rand(1), "module.a": torch.rand(1)}, path),
            "holds a twice",
        ),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, content: bytes | Callable[[Path], object], said: str
) -> None:
    path = tmp_path / "net.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with memory(100_000_000):
        message = refusal(path)
    assert re.search(said, message), message


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_file])
def test_truncated_checkpoints(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "net.pth"
    save(weights(), path)
    content = path.read_bytes()
    assert checkpoints.read(path).tensors.keys() == weights().keys()
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        assert re.search("truncated|empty|not a valid safetensors", refusal(path))


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (torch.eye(3).to_sparse, "sparse"),
        (lambda: torch.rand(3, device="meta"), "meta"),
        (lambda: torch.rand(3, dtype=torch.complex64), "complex64"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is prototype or deprecated
def test_tensors_that_are_no_weights(
    tmp_path: Path, save: Callable[..., None], make: Callable[[], Tensor], named: str
) -> None:
    save({**weights(), "odd": make()}, tmp_path / "net.pth")
    said = refusal(tmp_path / "net.pth")
    assert f"holds a {named} tensor, odd; save dense" in said.replace(" (without values)", "")


@pytest.mark.filterwarnings("ignore")
def test_nested_quantised_and_scaled_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"a": torch.nested.nested_tensor([torch.rand(2), torch.rand(3)])}, path)
    assert "holds a nested tensor, a;" in refusal(path)
    torch.save({"a": torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)}, path)
    assert "holds a quantised tensor, a;" in refusal(path)
    for save in (torch.save, save_file):
        save({"a": torch.rand(3).to(torch.float8_e4m3fn)}, path)
        assert "holds a float8_e4m3fn tensor, a;" in refusal(path)


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_shapes_that_claim_more_than_the_file_holds(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    path = tmp_path / "net.pth"
    with memory(100_000_000):
        save({"a": torch.rand(1).half().expand(1 << 40)}, path)
        assert "claims tensors of 2,199,023,255,552 bytes" in refusal(path)
        save({f"{i}": torch.rand(1).expand(1 << 60) for i in range(9)}, path)
        assert "refused as a bomb" in refusal(path)
    buffer = io.BytesIO()
    save({"a": torch.arange(64.0)}, buffer)
    claim = b"J" + (1 << 30).to_bytes(4, "little")  # 4 GB instead of K@, 64 numbers
    if save is torch.save:
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                new.writestr(entry.filename, content.replace(b"K@t", claim + b"t"))
    else:
        path.write_bytes(buffer.getvalue().replace(b"K@N", claim + b"N"))
    with memory(100_000_000):
        assert "is damaged or truncated" in refusal(path)


def test_methods_that_a_pickle_hides_are_not_called(tmp_path: Path) -> None:
    tensor = torch.rand(3)
    tensor.detach = tensor.is_floating_point = tensor.float = "hidden"  # type: ignore
    torch.save({"state_dict": HiddenMethods([("a", tensor)])}, tmp_path / "net.pth")
    assert list(checkpoints.read(tmp_path / "net.pth").tensors) == ["a"]


class HiddenMethods(list[tuple[str, Tensor]]):
    """Pickled, an ordered dictionary that has other things in the place of its methods."""

    def __reduce__(self) -> tuple[object, ...]:
        return (
            OrderedDict,
            (),
            dict.fromkeys(("get", "items", "keys", "values"), 3),
            None,
            iter(self),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {key: tensor.to(dtype) for key, tensor in weights().items()}
    torch.save({**stored, "steps": torch.tensor(3)}, tmp_path / "net.pth")
    checkpoint = checkpoints.read(tmp_path / "net.pth")
    for key, tensor in stored.items():
        assert torch.equal(checkpoint.tensors[key], tensor.to(torch.float32))
        assert checkpoint.tensors[key].dtype == torch.float32
    size = (tmp_path / "net.pth").stat().st_size
    kinds = {str(dtype).removeprefix("torch."): 4, "int64": 1}
    # 4 · 3 · 3 · 3 + 4 of the convolution, 6 · 4 + 6 of the layer, and the counter
    assert checkpoint.contents == checkpoints.Contents(5, 143, size, kinds)
    assert str(checkpoint.contents).startswith("5 tensors (4 ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    state = weights()
    state["out.weight"][2, 1] = value
    torch.save(state, tmp_path / "net.pth")
    checkpoint = checkpoints.read(tmp_path / "net.pth")
    network = Tiny(1)
    before = network.out.bias.clone()
    with pytest.raises(CheckpointError, match=r"NaN or infinity in out\.weight"):
        checkpoint.load_into(network, checkpoint.tensors)
    assert torch.equal(network.out.bias, before)


class Inside(nn.Module):
    """A network whose own keys start with ``model.``, beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = Tiny(0), nn.Linear(6, 2)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
)
def test_wrappers_and_prefixes_are_taken_off(
    tmp_path: Path, wrapper: str | None, prefix: str
) -> None:
    for trained, network in ((Tiny(0), Tiny(1)), (Inside(), Inside())):
        state = {f"{prefix}{key}": tensor for key, tensor in trained.state_dict().items()}
        content = {wrapper: state, "epoch": 3, "best": 0.5} if wrapper else state
        torch.save(content, tmp_path / "net.pth")
        checkpoint = checkpoints.read(tmp_path / "net.pth")
        if prefix == "model." and isinstance(network, Inside):
            # What is unclear is left alone: the network has a "model" of its own.
            with pytest.raises(CheckpointError, match="missing keys"):
                checkpoint.load_into(network, checkpoint.tensors)
            continue
        checkpoint.load_into(network, checkpoint.tensors)
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, trained.state_dict()[key])


def test_a_compiled_part_is_like_any_other(tmp_path: Path) -> None:
    torch.save({"model._orig_mod.conv.weight": torch.rand(1)}, tmp_path / "net.pth")
    assert list(checkpoints.read(tmp_path / "net.pth").tensors) == ["model.conv.weight"]


def test_a_wrong_architecture_is_reported_in_full(tmp_path: Path) -> None:
    with torch.device("meta"):
        osnet = OSNet(0.25)
    resnet = CifarResNet((8, 8, 8), blocks=1, stem_stride=1, neck=True)
    torch.save(resnet.state_dict(), tmp_path / "net.pth")
    checkpoint = checkpoints.read(tmp_path / "net.pth")
    found = checkpoint.compare(osnet, checkpoint.tensors)
    own, stored = osnet.state_dict(), resnet.state_dict()
    assert set(found.unexpected) == stored.keys() - own.keys()
    assert set(found.missing) == {
        key for key in own.keys() - stored.keys() if "num_batches_tracked" not in key
    }
    lines = str(found).splitlines()
    assert len(lines) == 1 + sum(1 + len(keys) for keys in found.lists.values())
    assert f"{len(found.missing)} missing keys" in lines
    for network in (OSNet(0.25), osnet):
        with pytest.raises(CheckpointError, match=r"does not fit OSNet: .*uturn list") as error:
            checkpoint.load_into(network, checkpoint.tensors)
        assert found.problems in str(error.value)
        assert len(str(error.value)) < 600
    found = checkpoint.compare(resnet, checkpoint.tensors)
    assert not found.lists
    assert str(found) == f"{len(stored)} keys match"


def test_types_and_foreign_names_in_reports(tmp_path: Path) -> None:
    state = weights()
    state["out.weight"] = state["out.weight"].to(torch.int8)
    state |= {"\x1b[2J": torch.rand(1), "long" * 1000: torch.rand(1)}
    torch.save(state, tmp_path / "net.pth")
    checkpoint = checkpoints.read(tmp_path / "net.pth")
    found = checkpoint.compare(Tiny(0), checkpoint.tensors)
    assert found.differing == ("out.weight (6, 4) of whole numbers instead of (6, 4)",)
    assert found.unexpected[0] == r"'\x1b[2J'"
    assert len(found.unexpected[1]) == 100


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*File name too long"):
        checkpoints.read(tmp_path / ("long" * 100))
    save_file(weights(), tmp_path / "model.bin")
    assert checkpoints.read(tmp_path / "model.bin").tensors.keys() == weights().keys()
    torch.save(weights(), tmp_path / "net.safetensors")
    assert "not a valid safetensors file" in refusal(tmp_path / "net.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<html>\n<body>Not found</body></html>")
    assert "is a web page" in refusal(tmp_path / "page.safetensors")
    nested = {"uturn": "[" * 100_000}
    save_file(weights(), tmp_path / "card.safetensors", nested)
    assert "unreadable card" in refusal(tmp_path / "card.safetensors")


def saved() -> list[bytes]:
    """One small state dict in each format."""
    new, old = io.BytesIO(), io.BytesIO()
    state = {"state_dict": {"module.a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1).half()}}
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return [new.getvalue(), old.getvalue(), safetensors.torch.save(state["state_dict"])]


@FUZZ
@given(content=mutated(saved()))
def test_mutated_checkpoints_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    try:
        checkpoint = checkpoints.read(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        for tensor in checkpoint.tensors.values():
            assert tensor.untyped_storage().nbytes() <= 40 * len(content)  # 10 of bytes → floats
    assert list(tmp_path.iterdir()) == [path]
