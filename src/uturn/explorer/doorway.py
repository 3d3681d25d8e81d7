"""Who may come in: requests that a page from elsewhere has made, and those that are too large.

A server on this machine is within reach of every page that its browser shows. Such a page can send
requests here, and by a name of its own that leads to this machine (DNS rebinding) read the answers.
So a request must name this server as its host, and come from its own page if it changes anything.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, final
from urllib.parse import urlsplit

from uturn.explorer import uploads

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MOST = uploads.BYTES + 2**20
"""Bytes of a request: an upload, and what a form wraps it in."""

_READING = ("GET", "HEAD", "OPTIONS")


@final
class Doorway:
    """ASGI: a request that is not for this server, not from its page or too large is refused."""

    def __init__(self, app: App, host: str) -> None:
        self.app = app
        self.names = {"localhost", host.lower()}
        if not _loopback(host):  # whoever serves a network is known there by the machine's names
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        self.loopback = _loopback(host)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is None:
            await self.app(scope, _metered(receive), send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            status, why = refused
            body = f"{why}\n".encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            headers += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def _refused(self, scope: Message) -> tuple[int, str] | None:
        """Status and reason; None if the request may pass."""
        told: dict[bytes, bytes] = dict(scope["headers"])
        host = told.get(b"host", b"").decode("latin-1")
        if not self._known(host):
            return 403, "this server is not called so; open it by the address that it has printed"
        origin = told.get(b"origin")
        if origin is not None and scope.get("method") not in _READING:
            came = urlsplit(origin.decode("latin-1")).netloc
            if came != host:
                return 403, "a page from elsewhere may not ask for that"
        length = told.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST:
            return 413, f"a request has at most {MOST:,} bytes"
        return None

    def _known(self, host: str) -> bool:
        """Whether a request's host is this server: one of its names, or an address by numbers."""
        with suppress(ValueError):
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            if name in self.names:
                return True
            address = ipaddress.ip_address(name)  # no name, so nobody can let it lead elsewhere
            return address.is_loopback or not self.loopback
        return False


def _loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def _metered(receive: Receive) -> Receive:
    """``receive``, which hangs up on a body that goes on longer than it may."""
    left = MOST

    async def counted() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b"")) if message["type"] == "http.request" else 0
        return message if left >= 0 else {"type": "http.disconnect"}

    return counted
