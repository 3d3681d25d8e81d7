"""Several files in one input: ``=== NAME`` on a line, and then what is in it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping

from fuzz.mutate import changed_json, edited

_HEAD = re.compile(rb"(?:\A|\n)=== ([^\n]{1,200})\n")


def bundle(files: Mapping[str, bytes]) -> bytes:
    """``files`` by their names as one input."""
    return b"\n".join(b"=== " + name.encode() + b"\n" + body for name, body in files.items())


def files_of(data: bytes) -> dict[str, bytes]:
    """The files of an input; what stands before the first of them is none."""
    _, *found = _HEAD.split(data)
    names = [name.decode("utf-8", "replace") for name in found[::2]]
    return dict(zip(names, found[1::2], strict=True))


def each_by(*mutators: tuple[str, Callable[[bytes, random.Random], bytes]]) -> Callable[..., bytes]:
    """A mutator of bundles: one file is changed by the mutator of its ending, or the names are."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        files = files_of(data)
        if not files or rng.random() < 0.1:
            return edited(data, rng)
        name = rng.choice(sorted(files))
        how = next((how for ending, how in mutators if name.endswith(ending)), edited)
        return bundle({**files, name: how(files[name], rng)})

    return mutate


json_files = each_by((".json", changed_json), (".jsonl", changed_json))
