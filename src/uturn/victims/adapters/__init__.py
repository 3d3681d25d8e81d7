"""Networks that come from elsewhere, each with its makers' own preprocessing. One file each.

An adapter is a function of a spec's argument and options that returns a `Victim`, or a `Bare`
network where nothing is known of its preprocessing. It imports its package when it is called,
and downloads nothing unless it is asked to.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TypeAlias, final

from torch import nn

from uturn.errors import SpecError
from uturn.victims.victim import Victim


@final
@dataclass(frozen=True, eq=False)
class Bare:
    """A network alone; the spec has to say ``size=HxW``, and mean and std if not ImageNet's."""

    name: str
    network: nn.Module
    fingerprint: str


Adapter: TypeAlias = Callable[..., Victim | Bare]


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package; where it is missing or broken, say what to install."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise SpecError(
            f"this victim needs {package} ({error}); pip install 'uturn[{extra}]'"
        ) from error
    except RuntimeError as error:  # torchvision's wheel against another build of torch
        raise SpecError(
            f"{package} does not work here ({error}); install builds of torch and torchvision "
            "that belong together (https://pytorch.org/get-started)"
        ) from error


def fingerprint(network: nn.Module) -> str:
    """A hash of all parameters and buffers."""
    digest = hashlib.sha256()
    for key, tensor in network.state_dict().items():
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
