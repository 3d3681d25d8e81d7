"""Reading and writing weights. A checkpoint is hostile until proven otherwise: nothing runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, final, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError
from uturn.storage import json_of
from uturn.types import Similarity
from uturn.victims.preprocessing import Preprocessing


@dataclass(frozen=True)
class Card:
    """What must live with the weights: how pictures go in and how features are compared."""

    preprocessing: Preprocessing
    similarity: Similarity
    architecture: str | None = None
    """The spec of the network these weights fill, without ``weights=``."""

    def __post_init__(self) -> None:
        if self.similarity not in get_args(Similarity):
            raise ArgumentError(f"unknown similarity {self.similarity!r}")


@final
@dataclass(frozen=True)
class Contents:
    """How much a checkpoint holds, as it is stored."""

    tensors: int
    parameters: int
    size: int
    """Bytes of the file."""

    dtypes: Mapping[str, int]
    """How many tensors there are of each type of number."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {dtype}" for dtype, count in self.dtypes.items())
        return (
            f"{self.tensors} tensors ({kinds}), {self.parameters:,} numbers, "
            f"{self.size / 1e6:.1f} MB"
        )


@final
@dataclass(frozen=True)
class Comparison:
    """How tensors meet a network, key by key; ``str`` lists all of it, `problems` the first few."""

    matching: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    differing: tuple[str, ...]
    """Keys of both that differ, with what they are and what they should be."""

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """What does not fit, by its kind; empty if everything does."""
        named = {
            "missing keys": self.missing,
            "unexpected keys": self.unexpected,
            "differing shapes": self.differing,
        }
        return {what: keys for what, keys in named.items() if keys}

    @property
    def problems(self) -> str:
        """One line: how much does not fit, and the first three of each kind."""
        return "; ".join(
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
            for what, keys in self.lists.items()
        )

    def __str__(self) -> str:
        lines = [f"{len(self.matching)} keys match"]
        for what, keys in self.lists.items():
            lines += [f"{len(keys)} {what}", *(f"  {key}" for key in keys)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by key, the card that was stored with them, and a hash of the file."""

    path: Path
    tensors: Mapping[str, Tensor]
    """Dense, on the CPU; floats of any precision have become float32."""

    card: Card | None
    fingerprint: str
    contents: Contents

    def without(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key does not start with ``prefix.``."""
        return {k: v for k, v in self.tensors.items() if not k.startswith(f"{prefix}.")}

    def compare(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> Comparison:
        """Compare keys and shapes; a network on the ``meta`` device will do, and costs nothing."""
        own, tensors = network.state_dict(), unwrap(tensors, network)
        both = [key for key in own if key in tensors]
        matching = {key for key in both if _kind(own[key]) == _kind(tensors[key])}
        # Checkpoints from before PyTorch 0.4.1 lack the counters of batch norm.
        needed = [key for key in own if not key.endswith("num_batches_tracked")]
        return Comparison(
            matching=tuple(key for key in both if key in matching),
            missing=tuple(key for key in needed if key not in tensors),
            unexpected=tuple(_plain(key) for key in tensors if key not in own),
            differing=tuple(
                f"{key} {_kind(tensors[key])} instead of {_kind(own[key])}"
                for key in both
                if key not in matching
            ),
        )

    def require_fit(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Raise `CheckpointError` with the first of what does not fit; `compare` lists it all."""
        comparison = self.compare(network, tensors)
        if comparison.lists:
            raise CheckpointError(
                f"{self.path} does not fit {type(network).__name__}: {comparison.problems}; "
                "choose the architecture these weights were trained for (uturn list victims)"
            )

    def load_into(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Fill ``network``; after `unwrap` every key and shape must match.

        Raises:
            CheckpointError: says what does not fit, or names the first tensor that is not finite.
        """
        self.require_fit(network, tensors)
        tensors = unwrap(tensors, network)
        self.require_finite(tensors)
        network.load_state_dict(tensors, strict=False)

    def require_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `CheckpointError` that names the first tensor with NaN or infinity in it."""
        for key, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"{self.path} holds NaN or infinity in {_plain(key)}: the training has "
                    "diverged, or the file is damaged; take an earlier checkpoint"
                )


def unwrap(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Take off the one first name that all keys carry (Lightning's ``model.``).

    Only if the network has no such name itself, as layumi's re-ID networks have ``model.``.
    """
    firsts = {key.partition(".")[0] for key in tensors}
    if len(firsts) != 1 or firsts & {key.partition(".")[0] for key in network.state_dict()}:
        return dict(tensors)
    start = f"{firsts.pop()}."
    return {key.removeprefix(start): tensor for key, tensor in tensors.items()}


def _kind(tensor: Tensor) -> str:
    """The shape, and whether the numbers are of a kind that cannot be weights."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of whole numbers'}"


def _plain(key: str) -> str:
    """A foreign key for a message: no control characters, not endless."""
    shown = key if key.isprintable() else ascii(key)
    return shown if len(shown) <= 100 else f"{shown[:99]}…"


_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Names of the entry that holds the state dict: torchreid's, timm's and Lightning's, that of
PyTorch's tutorials, fast-reid's and DeiT's, and that of many CIFAR trainings."""

_NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
"""What weights are made of; not complex, not quantised, not 8-bit floats that lack their scales."""

_IMPOSTORS = (
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|script|\?xml|!--)",
        "a web page, such as the notice that Google Drive shows before a large download; "
        "download the weights in a browser, or with gdown",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer and not the weights; run git lfs pull"),
    (
        rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|(?s:.{257}ustar)",
        "an archive; unpack it and name the weights in it (PyTorch's own old tar format can be "
        "converted by loading and saving it with a PyTorch before 2.6)",
    ),
    (rb"\x89HDF\r\n", "an HDF5 file, as Keras writes it; convert it to PyTorch's keys first"),
)
"""What often lies where weights should be, by its first bytes, and what to do about it."""


def read(path: Path) -> Checkpoint:
    """Read safetensors, or a PyTorch file with the ``weights_only`` unpickler: no code runs.

    One wrapping entry is taken off (``state_dict``, ``model_state_dict``, ``model`` or ``net``),
    and so are the names that DataParallel (``module.`` in front) and torch.compile
    (``_orig_mod.`` anywhere) put into keys. What is not a tensor (epoch, options) is left out.

    Raises:
        CheckpointError: missing, unreadable, unsafe, no state dict, or tensors that are not
            plain; says what the file is instead, where that can be told.
    """
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; name the weights file in it")
        if not path.is_file():
            raise CheckpointError(f"there is no weights file at {path}; check weights=PATH")
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            fingerprint = sha256(file)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); download or copy it again")
    for pattern, what in _IMPOSTORS:
        if re.match(pattern, head):
            raise CheckpointError(f"{path} is {what}")
    content: Any
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        content, card = _read_safetensors(path)
    else:
        content, card = _read_torch(path), None
    tensors = _tensors(path, content)
    size = path.stat().st_size
    contents = Contents(
        tensors=len(tensors),
        parameters=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        size=size,
        dtypes=Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values()),
    )
    # A stride of 0 lets a byte claim terabytes; honest files share a tensor among a few keys.
    claimed = sum(math.prod(t.shape) * t.element_size() for t in tensors.values())
    if claimed > _SHARED * size:
        raise CheckpointError(
            f"{path} claims tensors of {claimed:,} bytes, but the file has {size:,}: it is refused "
            "as a bomb; if you trust its author, save contiguous copies of its tensors"
        )
    dense = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    return Checkpoint(path, dense, card, fingerprint, contents)


_SHARED = 10
"""How often a checkpoint's bytes may be used by its tensors, on average."""


def hashed(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return sha256(file)


def sha256(file: BinaryIO) -> str:
    """The hash of what is left to read of ``file``, as hexadecimal digits."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    """The plain tensors of a state dict by their usual keys.

    Raises:
        CheckpointError: it is no state dict, is ambiguous, or a tensor is not plain.
    """
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no state dict, but a {type(content).__name__}")
    # By the class, here and below: a pickle may set any attribute of what it holds.
    wrappers = [name for name in _WRAPPERS if isinstance(dict.get(content, name), dict)]
    if len(wrappers) > 1:
        raise CheckpointError(
            f"{path} holds several state dicts ({', '.join(wrappers)}); save the one you mean in a "
            "file of its own"
        )
    entries = dict.__getitem__(content, wrappers[0]) if wrappers else content
    tensors: dict[str, Tensor] = {}
    for name, value in dict.items(entries):
        if not isinstance(name, str) or not isinstance(value, Tensor):
            continue
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        key = ".".join(parts[1:] if parts[0] == "module" else parts)
        if key in tensors:
            raise CheckpointError(f"{path} holds {_plain(key)} twice, with and without a wrapper")
        tensor = Tensor.detach(value)
        odd = _oddity(tensor)
        if odd:
            raise CheckpointError(
                f"{path} holds a {odd} tensor, {_plain(key)}; save dense float16, bfloat16 or "
                "float32 weights"
            )
        tensors[key] = tensor
    if not tensors:
        names = [_plain(name) for name in dict.keys(content) if isinstance(name, str)][:5]
        raise CheckpointError(
            f"{path} holds no state dict, but {', '.join(names) or 'no names'}; save the state "
            "dict in a file of its own"
        )
    return tensors


def _oddity(tensor: Tensor) -> str:
    """What makes a tensor unfit to be a weight; empty if nothing does."""
    if type(tensor) is not Tensor:
        return type(tensor).__name__
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.device.type != "cpu":
        return f"{tensor.device.type} (without values)"
    return "" if tensor.dtype in _NUMBERS else str(tensor.dtype).removeprefix("torch.")


def _read_torch(path: Path) -> Any:
    _inspect_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked:
            raise CheckpointError(
                f"{path} was refused, since reading it would run {asked[1]}: a whole network from "
                "torch.save(model) asks for such things, and malware does; ask its author for "
                "torch.save(model.state_dict(), …) or a safetensors file"
            ) from error
        raise CheckpointError(
            f"{path} is damaged or truncated, or no PyTorch checkpoint "
            f"({_plain(str(error) or type(error).__name__)}); compare its size or checksum with "
            "the original"
        ) from error


def _inspect_zip(path: Path) -> None:
    """Refuse zip archives that are not PyTorch's checkpoints, before anything is unpacked."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # zipfile, too, raises anything at damaged files
        raise CheckpointError(
            f"{path} is a damaged zip archive ({error}); it may be truncated: compare its size or "
            "checksum with the original"
        ) from error
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program and no state dict; use --victim torchscript:{path}"
        )
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is a zip archive; unpack it and name the weights in it")
    claimed = sum(entry.file_size for entry in entries)
    # PyTorch does not compress.
    if claimed > path.stat().st_size or any(entry.compress_type for entry in entries):
        raise CheckpointError(
            f"{path} is a compressed zip archive that would become {claimed:,} bytes; PyTorch does "
            "not compress, so it is refused as a bomb; save it again with torch.save"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Card | None]:
    try:
        card = read_card(path)
        tensors = safetensors.torch.load_file(path)
    except CheckpointError:
        raise
    except Exception as error:  # an unknown type of number is a KeyError, and so on
        raise _invalid(path, error) from error
    return tensors, card


def _invalid(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a valid safetensors file: {error}; download or copy it again"
    )


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; its tensors are not read.

    Raises:
        CheckpointError: missing, or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"there is no weights file at {path}") from None
    except Exception as error:
        raise _invalid(path, error) from error


def read_card(path: Path) -> Card | None:
    """The card of a safetensors file; None if it carries none.

    Raises:
        CheckpointError: missing, no safetensors file, or an unreadable card.
    """
    metadata = read_metadata(path)
    if "uturn" not in metadata:
        return None
    try:
        stored = json_of(metadata["uturn"])
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in stored["preprocessing"].items()
        }
        architecture = stored.get("architecture")
        if not isinstance(architecture, str | None):
            raise TypeError("the architecture is no text")
        return Card(Preprocessing(**given), stored["similarity"], architecture)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # ArgumentError is a ValueError.
        raise CheckpointError(f"{path} carries an unreadable card: {error!r}") from error


def require_writable(path: Path) -> None:
    """Raise `CheckpointError` if `write` could not write there, before hours are spent."""
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path} must end in .safetensors, the format that is written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error


def write(
    path: Path, tensors: Mapping[str, Tensor], card: Card, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file that carries its card; check ``path`` with `require_writable`."""
    write_tensors(path, tensors, {"uturn": json.dumps(asdict(card)), **(metadata or {})})


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    safetensors.torch.save_file(plain, temporary, metadata)
    temporary.replace(path)
