"""A connection on which a fixed answer comes, whoever is called: no socket is opened."""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final
from unittest import mock


@final
class _Line:
    """What `http.client` needs of a socket."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def sendall(self, data: Any) -> None:
        """It does not matter what is asked."""

    def makefile(self, mode: str, buffering: int | None = None) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self.answer))

    def close(self) -> None:
        """There is nothing to close."""


@contextmanager
def answered_by(answer: bytes) -> Iterator[list[str]]:
    """While this lasts every HTTP connection gets ``answer``; the hosts that were called."""
    called = list[str]()

    def connect(connection: http.client.HTTPConnection) -> None:
        called.append(connection.host)
        connection.sock = _Line(answer)

    with (
        mock.patch.object(http.client.HTTPConnection, "connect", connect),
        mock.patch.object(http.client.HTTPSConnection, "connect", connect),
    ):
        yield called
