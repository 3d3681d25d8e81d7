"""Changes to inputs that keep enough of their structure to get past the first check."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from copy import deepcopy
from typing import Any

_EDGES = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 24, (1 << 31) - 1, 1 << 31)
_ODD_TEXTS = (
    *("", "\0", "..", "../../outside", "/etc/passwd", "a" * 300, "\ud800", "\x1b[2J", "é", "٣"),
    *("<script>", "{{7*7}}", "nan", "-1", "clean", "1e999", "os:system,command=touch outside"),
)
_ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 8, 0.5, 1e308, -0.0, 10**30, 10**400, 2**63),
    *(float("nan"), float("inf"), [], {}, [[]], [None], {"": {}}, *_ODD_TEXTS),
)


def edited(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, put in, taken out, doubled or set to the edges of their types."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # Headers are where the decisions are.
        reach = rng.choice((len(content), min(64, len(content))))
        at, length = rng.randint(0, reach), rng.choice((0, 1, 1, 2, 4, 16))
        match rng.randrange(6):
            case 0:
                content[at : at + length] = rng.randbytes(length)
            case 1:
                content[at : at + length] = b""
            case 2:
                content[at:at] = rng.randbytes(length)
            case 3:
                size, order = rng.choice("BHIQ"), rng.choice("<>")
                edge = rng.choice(_EDGES) % (1 << 8 * struct.calcsize(f"{order}{size}"))
                packed = struct.pack(f"{order}{size}", edge)
                content[at : at + len(packed)] = packed
            case 4:
                content[at:at] = content[at : at + 8 * length]
            case _ if at < len(content):
                content[at] ^= 1 << rng.randrange(8)
    return bytes(content)


def worded(*words: bytes) -> Callable[[bytes, random.Random], bytes]:
    """`edited`, with ``words`` put in or over what is there."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return edited(data, rng)
        content = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at, word = rng.randint(0, len(content)), rng.choice(words)
            over = rng.choice((0, len(word), rng.randint(0, 16)))
            content[at : at + over] = word
        return bytes(content)

    return mutate


def mended_png(data: bytes, rng: random.Random) -> bytes:
    """`edited`; most PNGs get the sums of their chunks right, or nothing behind them is reached."""
    content = edited(data, rng)
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or rng.random() < 0.2:
        return content
    made, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, at)
        size = min(size, len(content) - at - 12)
        body = content[at + 4 : at + 8 + size]
        made += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(made + content[at:])


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """JSON in which values were swapped for odd ones, taken out, doubled or nested deeply."""
    if rng.random() < 0.15:
        return edited(data, rng)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return edited(data, rng)
    if rng.random() < 0.02:
        return b"[" * rng.choice((900, 5000))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = _changed(content, rng)
    return json.dumps(content).encode()


def _changed(content: Any, rng: random.Random) -> Any:
    """A value with one leaf or branch changed."""
    places = list[tuple[Any, Any]]()
    rest = [content] if isinstance(content, (dict, list)) else []
    while rest:
        here = rest.pop()
        inside = here.items() if isinstance(here, dict) else enumerate(here)
        for key, value in list(inside):
            places.append((here, key))
            if isinstance(value, (dict, list)):
                rest.append(value)
    if not places:
        return deepcopy(rng.choice(_ODD_VALUES))
    here, key = rng.choice(places)
    match rng.randrange(6):
        case 0 | 1 | 2:
            here[key] = deepcopy(rng.choice(_ODD_VALUES))  # it may be changed next
        case 3:
            del here[key]
        case 4:
            other, name = rng.choice(places)
            if (isinstance(other, dict) and name in other) or (
                isinstance(other, list) and name < len(other)
            ):
                here[key] = deepcopy(other[name])
        case _ if isinstance(here, dict):
            here[rng.choice(_ODD_TEXTS)] = deepcopy(here[key])
        case _:
            here.insert(key, deepcopy(here[key]))
    return content
