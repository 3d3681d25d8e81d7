"""A reference server of the oracle's protocol (docs/black_box.md), in a thread, with faults."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from uturn.types import Oracle
from uturn.victims.preprocessing import to_images

Fault = Callable[[BaseHTTPRequestHandler, bytes], bool]
"""Answers in the server's place and says whether it did."""


@dataclass
class Served:
    """What a server was asked."""

    url: str = ""
    requests: int = 0
    pictures: int = 0
    headers: list[dict[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """One for each request that is to come, from the first; none are left: all goes well."""


def answered(oracle: Oracle, body: bytes) -> dict[str, Any]:
    """The protocol: JSON in, JSON out."""
    asked = json.loads(body)
    pngs = [base64.b64decode(text, validate=True) for text in asked["pictures"]]
    pictures = [np.asarray(Image.open(io.BytesIO(png), formats=["PNG"])) for png in pngs]
    answers = oracle(to_images(pictures), asked["k"])
    return {"answers": [{"items": a.items, "scores": a.scores} for a in answers]}


@contextmanager
def serve(oracle: Oracle) -> Iterator[Served]:
    """Serve ``oracle`` at a free port of this machine."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            served.requests += 1
            served.headers.append(dict(self.headers))
            if served.faults and served.faults.pop(0)(self, body):
                return
            served.pictures += len(json.loads(body)["pictures"])
            say(self, 200, json.dumps(answered(oracle, body)).encode())

        def log_message(self, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, request: object, client: object) -> None:
            pass  # who hung up hung up

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_port}/search"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def fine(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
    return False


def status(code: int, **headers: str) -> Fault:
    def fault(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        say(handler, code, b"busy", **headers)
        return True

    return fault


def garbage(content: bytes) -> Fault:
    def fault(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        say(handler, 200, content)
        return True

    return fault


def hang_up(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
    handler.connection.close()
    return True


def cut_off(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
    """Promise more than is sent."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"answers": [')
    handler.close_connection = True
    return True


def stall(event: threading.Event) -> Fault:
    def fault(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        event.wait(10)
        return True

    return fault
