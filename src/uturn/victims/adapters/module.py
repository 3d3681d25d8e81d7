"""``package.module:factory``: any ``nn.Module``, or a whole `Victim`, from a function of yours.

This is the one kind of spec that runs foreign code.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from uturn.errors import SpecError
from uturn.victims.adapters import Bare, fingerprint
from uturn.victims.victim import Victim


def factory(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of an importable module.

    Raises:
        SpecError: no such module or function, or importing it fails.
    """
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the module does when it is imported
        raise SpecError(
            f"cannot import {module!r} ({error!r}); it must import cleanly, and be "
            "on PYTHONPATH: for a file in this folder, write PYTHONPATH=. before uturn"
        ) from error
    if not callable(found):
        raise SpecError(f"{module!r} has no function {name!r}; write package.module:function")
    called: Callable[..., Any] = found
    return called


def as_victim(made: Any, name: str) -> Victim | Bare:
    """What a factory returned: a `Victim`, or an ``nn.Module`` that maps pictures to features.

    Raises:
        SpecError: something else.
    """
    if isinstance(made, Victim):
        parts = nn.ModuleList(
            each for each in (made.network, made.classifier, made.whitening) if each is not None
        )
        return made if made.fingerprint else replace(made, fingerprint=fingerprint(parts))
    if isinstance(made, nn.Module):
        return Bare(name, made, fingerprint(made))
    raise SpecError(
        f"{name} returned a {type(made).__name__}; return an nn.Module that maps normalised "
        "pictures (B, 3, H, W) to features (B, D), or a uturn.Victim"
    )
