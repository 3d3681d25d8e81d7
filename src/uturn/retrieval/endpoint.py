"""An oracle behind HTTP. It is spoken to only by who names its address.

The protocol (docs/black_box.md) is one POST of JSON: ``{"k": 10, "pictures": ["<PNG, base64>"]}``,
answered by ``{"answers": [{"items": ["id", …], "scores": [0.9, …]}]}``, one answer for each picture
in their order, best item first; ``scores`` may be left out.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, final
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor

from uturn._version import __version__
from uturn.errors import ArgumentError, OracleError
from uturn.rng import generator
from uturn.storage import json_of
from uturn.types import Answer
from uturn.victims.victim import to_picture

LARGEST = 16 * 2**20
"""Bytes of an answer beyond which it is not read on."""

LONGEST = 60.0
"""Seconds that are waited at the most, whatever the endpoint asks for."""


@final
class _PassingError(Exception):
    """A fault that may be gone when the same is asked again."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait
        """Seconds to wait, where the endpoint says so."""


@final
class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """An answer that leads elsewhere is an answer like any other."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@final
@dataclass(kw_only=True, eq=False)
class Endpoint:
    """A search system at an address.

    What fails in passing (no connection, a time-out, 429, 5xx, an answer that is none) is asked
    again up to ``attempts`` times, after waits that double and are spread at random; other
    statuses are final. A picture is one query of the budget however often it had to be sent.

    Raises:
        ArgumentError: no http(s) address, or a number that makes no sense. OracleError, when
        asked: the endpoint fails for good.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request, such as ``Authorization``."""
    batch: int = 1
    """Pictures in a request."""
    rate: float = math.inf
    """Requests per second, at the most."""
    timeout: float = 30.0
    """Seconds until an answer is no longer waited for."""
    attempts: int = 5
    first_wait: float = 0.5
    """Seconds before the second attempt, about."""
    seed: int = 0
    """Of what the waits are spread by."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    _last: float | None = field(default=None, init=False, repr=False)
    """When the last request was sent, by the clock."""

    def __post_init__(self) -> None:
        self._waits = generator(self.seed, "waits")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ArgumentError(f"an endpoint's address begins with http://, got {self.url!r}")
        if self.batch < 1 or self.attempts < 1 or self.timeout <= 0 or not self.rate > 0:
            raise ArgumentError(
                "batch and attempts of an endpoint are at least 1, time-out and rate above 0"
            )

    def __call__(self, pictures: Tensor, k: int) -> list[Answer]:
        found = list[Answer]()
        for part in torch.split(pictures, self.batch):
            found += self._insist(part, k)
        return found

    def _insist(self, pictures: Tensor, k: int) -> list[Answer]:
        body = json.dumps({"k": k, "pictures": [_png(picture) for picture in pictures]}).encode()
        for attempt in range(1, self.attempts + 1):
            self._keep_rate()
            try:
                return _read(self._post(body), len(pictures), k)
            except _PassingError as fault:
                if attempt == self.attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    raise OracleError(
                        f"{self.url} was asked {times}: {fault}; what it has answered is kept, the "
                        "same command goes on from there"
                    ) from fault
                spread = self.first_wait * 2 ** (attempt - 1) * (0.5 + self._waits.random())
                self.sleep(min(LONGEST, max(spread, fault.wait or 0.0)))
        raise AssertionError("unreachable")

    def _keep_rate(self) -> None:
        """Wait until the last request is as long ago as the rate demands."""
        if self._last is not None and math.isfinite(self.rate):
            early = self._last + 1 / self.rate - self.clock()
            if early > 0:
                self.sleep(early)
        self._last = self.clock()

    def _post(self, body: bytes) -> bytes:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"uturn/{__version__}",
            **self.headers,
        }
        request = urllib.request.Request(self.url, body, headers)
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                content: bytes = answer.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            told = ""
            with error, suppress(OSError, HTTPException):  # what it says may break off as well
                told = error.read(200).decode(errors="replace").strip()
            why = f"it answers {error.code} {error.reason}" + (f" ({told})" if told else "")
            if error.code in (408, 425, 429) or error.code >= 500:
                raise _PassingError(why, _seconds(error.headers.get("Retry-After"))) from error
            elsewhere = error.headers.get("Location") if error.code in range(300, 400) else None
            if elsewhere:  # headers that open doors are for nobody else
                raise OracleError(
                    f"{self.url} leads to {elsewhere[:200]!r}, which is not followed; if that is "
                    "where to ask, give it as the address"
                ) from error
            raise OracleError(
                f"{self.url}: {why}; check the address and --oracle-header"
            ) from error
        except TimeoutError as error:
            raise _PassingError(f"no answer within {self.timeout:g} seconds") from error
        except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"no answer within {self.timeout:g} seconds"
            raise _PassingError(f"it cannot be reached ({reason})") from error
        if len(content) > LARGEST:
            raise _PassingError(f"its answer has more than {LARGEST:,} bytes")
        return content


def _png(picture: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(to_picture(picture)).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def _read(content: bytes, count: int, k: int) -> list[Answer]:
    """The answers for ``count`` pictures; `_PassingError` says what they lack."""
    try:
        answers = json_of(content)["answers"]
        found = [_answer(each) for each in answers]
    except (ValueError, KeyError, TypeError) as error:
        start = content[:80].decode(errors="replace")
        raise _PassingError(
            f"its answer is not of the protocol ({type(error).__name__}: {error}): {start!r}"
        ) from error
    if len(found) != count:
        raise _PassingError(f"it gives {len(found)} answers for {count} pictures")
    short = min(len(answer.items) for answer in found)
    if short < k:
        raise _PassingError(
            f"it gives {short} items where {k} are asked for; ask for fewer with top="
        )
    return [
        Answer(each.items[:k], None if each.scores is None else each.scores[:k]) for each in found
    ]


def _answer(told: Any) -> Answer:
    items, scores = told["items"], told.get("scores")
    if not isinstance(items, list) or not all(isinstance(item, (str, int)) for item in items):
        raise ValueError("items are a list of ids, text or whole numbers")
    if len(set(items)) != len(items):
        raise ValueError("an item is there twice")
    if scores is not None:
        if len(scores) != len(items) or not all(math.isfinite(float(one)) for one in scores):
            raise ValueError("scores are finite numbers, one for each item")
        scores = tuple(float(one) for one in scores)
    return Answer(tuple(items), scores)


def _seconds(text: str | None) -> float | None:
    """What Retry-After says, where it says seconds and no date."""
    return float(text) if text and text.isdecimal() else None


def read_headers(lines: Iterable[str]) -> dict[str, str]:
    """Headers from lines such as ``Authorization: Bearer …``.

    Raises:
        ArgumentError: a line has no colon, no name, or a line break.
    """
    found = dict[str, str]()
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or set(line) & set("\r\n"):
            raise ArgumentError(f"a header is NAME:VALUE on one line, got {name.strip()!r}")
        found[name.strip()] = value.strip()
    return found
