"""Answers of a search system that is asked over HTTP: the protocol's JSON, and whole answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from fuzz.mutate import changed_json, worded
from fuzz.target import Target
from fuzz.wire import answered_by
from uturn.errors import OracleError
from uturn.retrieval.endpoint import Endpoint

_PICTURES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


def _ask(answer: bytes) -> None:
    endpoint = Endpoint(url="http://endpoint.invalid/search", batch=2, attempts=1, sleep=_no_wait)
    with answered_by(answer):
        answers = endpoint(_PICTURES, 2)
    assert len(answers) == 2
    for one in answers:
        assert len(one.items) == len(set(one.items)) == 2
        assert one.scores is None or (
            len(one.scores) == 2 and all(abs(score) < float("inf") for score in one.scores)
        )


def _no_wait(seconds: float) -> None:
    assert 0 <= seconds <= 60


def _body(data: bytes, folder: Path) -> None:
    length = str(len(data)).encode()
    _ask(b"HTTP/1.1 200 OK\r\nContent-Length: " + length + b"\r\n\r\n" + data)


def _whole(data: bytes, folder: Path) -> None:
    _ask(data)


def _bodies() -> Iterator[bytes]:
    told = {"items": ["a", "b", "c"], "scores": [0.9, 0.5, 0.1]}
    yield json.dumps({"answers": [told, {"items": [1, 2]}]}).encode()
    yield json.dumps({"answers": [{"items": [], "scores": None}] * 2, "error": "none"}).encode()


def _answers() -> Iterator[bytes]:
    body = next(_bodies())
    length = b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + length + body
    chunk = hex(len(body))[2:].encode() + b"\r\n" + body + b"\r\n0\r\n\r\n"
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk
    yield b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\n\r\nbusy"
    yield b"HTTP/1.1 302 Found\r\nLocation: ftp://elsewhere.invalid/\r\n\r\n"
    yield b"HTTP/1.1 307 Moved\r\nLocation: http://elsewhere.invalid/search\r\n\r\n"
    yield b"HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\n\r\n<html>"
    yield b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Later\r\nRetry-After: 9\r\n\r\n"


_WORDS = (
    *(
        b"\r\n",
        b"HTTP/1.1 ",
        b"200",
        b"301",
        b"302",
        b"308",
        b"401",
        b"407",
        b"416",
        b"500",
        b"206",
    ),
    *(b"Location: ", b"file:///etc/passwd", b"ftp://x/", b"//x", b"Content-Length: ", b"-1", b"; "),
    *(b"Transfer-Encoding: chunked", b"ffffffff\r\n", b"Retry-After: ", b"999999999999", b"\xb2"),
    *(b"WWW-Authenticate: Digest x", b"Content-Type: a/b; charset=x", b"\0", b"\xff", b"9" * 70),
)

TARGETS = (
    Target(
        name="answers",
        parse=_body,
        refusals=(OracleError,),
        seeds=_bodies,
        mutate=changed_json,
    ),
    Target(
        name="endpoint",
        parse=_whole,
        refusals=(OracleError,),
        seeds=_answers,
        mutate=worded(*_WORDS),
    ),
)
