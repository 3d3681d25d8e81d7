"""``torchscript:PATH``: a network that was compiled with ``torch.jit``.

Such an archive carries a program beside its weights, and torch's interpreter runs it. It is no
Python and imports nothing, but it can fill the memory, run for ever or read files: load archives
of people you trust only.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from uturn.errors import CheckpointError
from uturn.victims.adapters import Bare, features_of, file_hash


def build(path: str) -> Bare:
    """torchscript:PATH,size=HxW; runs the archive's program: only from people you trust.

    Normalised pictures go in; if several tensors come out, one of them must be ``(B, D)``.

    Raises:
        CheckpointError: no such file, or no TorchScript archive.
    """
    file = Path(path).expanduser()
    mark = file_hash(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit itself
            program = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no TorchScript archive, as torch.jit.save writes it; a state dict needs "
            "its architecture: see uturn list victims"
        ) from error
    name = f"torchscript:{path}"
    return Bare(name, Scripted(program, name), mark)


@final
class Scripted(nn.Module):
    """A compiled network, of whose outputs one is ``(B, D)``."""

    def __init__(self, program: Any, name: str) -> None:
        super().__init__()
        self.program, self.name = program, name

    def forward(self, x: Tensor) -> Tensor:
        return features_of(self.program(x), self.name)
