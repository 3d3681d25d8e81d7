"""The endpoint and its journal: faults, retries, limits, resume, and the command line."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from tests.oracle_server import Served, cut_off, fine, garbage, hang_up, serve, stall, status
from uturn.cli import main
from uturn.data.pictures import decode, encode
from uturn.errors import ArgumentError, OracleError
from uturn.retrieval.endpoint import LONGEST, Endpoint, read_headers
from uturn.retrieval.oracle import Journal
from uturn.types import Answer


def by_brightness(pictures: Tensor, k: int) -> list[Answer]:
    """A system whose items are levels of brightness: what is as bright comes first."""
    mean = pictures.double().mean((1, 2, 3))
    far = (mean[:, None] - torch.arange(0, 256, 0.25)).abs()
    best = far.sort(dim=1, stable=True)
    return [
        Answer(tuple(f"item{i}" for i in items[:k]), tuple(-s for s in scores[:k]))
        for items, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@pytest.fixture
def served():  # type: ignore[no-untyped-def]
    with serve(by_brightness) as server:
        yield server


def endpoint(served: Served, waits: list[float] | None = None, **more: object) -> Endpoint:
    waits = [] if waits is None else waits
    return Endpoint(url=served.url, sleep=waits.append, **more)  # type: ignore[arg-type]


def test_an_endpoint_answers_as_the_system_behind_it(served: Served, pictures: Tensor) -> None:
    system = endpoint(served, batch=2, headers={"Authorization": "Bearer x"})
    assert system(pictures, 4) == by_brightness(pictures, 4)
    assert (served.requests, served.pictures) == (3, 5)
    sent = served.headers[0]
    assert sent["Authorization"] == "Bearer x"
    assert sent["User-Agent"].startswith("uturn/")
    assert "Bearer" not in repr(system)  # what opens doors is not printed


SHORT = json.dumps({"answers": [{"items": ["a", "b"]}]}).encode()
PASSING = {
    "500": (status(500), "it answers 500"),
    "429": (status(429, Retry_After="3"), "it answers 429"),
    "hang-up": (hang_up, "it cannot be reached"),
    "cut off": (cut_off, "not of the protocol"),
    "no JSON": (garbage(b"<html>hello</html>"), "not of the protocol .*<html>hello"),
    "no answers": (garbage(b"{}"), "not of the protocol .*answers"),
    "not a list": (garbage(b'{"answers": 3}'), "not of the protocol"),
    "none": (garbage(b'{"answers": []}'), "gives 0 answers for 1 pictures"),
    "fewer than k": (
        garbage(SHORT),
        "gives 2 items where 3 are asked for; ask for fewer with top=",
    ),
    "twice": (garbage(b'{"answers": [{"items": ["a", "a", "b"]}]}'), "an item is there twice"),
    "odd ids": (garbage(b'{"answers": [{"items": [[], 2, 3]}]}'), "items are a list of ids"),
    "odd scores": (
        garbage(b'{"answers": [{"items": ["a", "b", "c"], "scores": [1, NaN, 0]}]}'),
        "scores are finite numbers",
    ),
    "few scores": (
        garbage(b'{"answers": [{"items": ["a", "b", "c"], "scores": [1]}]}'),
        "scores are finite numbers",
    ),
    "deep": (garbage(b"[" * 100_000), "not of the protocol"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_passing_fault_is_asked_again(name: str, served: Served, pictures: Tensor) -> None:
    fault, message = PASSING[name]
    waits = list[float]()
    served.faults = [fault, fault]
    assert endpoint(served, waits)(pictures[:1], 3) == by_brightness(pictures[:1], 3)
    assert served.requests == 3
    assert len(waits) == 2
    # And no more often than it may be.
    served.faults, served.requests = [fault] * 9, 0
    with pytest.raises(OracleError, match=f"asked 4 times: .*{message}.*the same command goes on"):
        endpoint(served, attempts=4)(pictures[:1], 3)
    assert served.requests == 4


def test_waits_double_are_spread_by_the_seed_and_bounded(served: Served, pictures: Tensor) -> None:
    def waits(seed: int) -> list[float]:
        served.faults, found = [status(503)] * 10, list[float]()
        with pytest.raises(OracleError):
            endpoint(served, found, attempts=10, seed=seed)(pictures[:1], 3)
        return found

    first = waits(0)
    for number, wait in enumerate(first):
        whole = 0.5 * 2**number
        assert min(LONGEST, 0.5 * whole) <= wait <= min(LONGEST, 1.5 * whole)
    assert waits(0) == first != waits(1)
    served.faults, asked_for = [status(429, Retry_After="7"), status(429, Retry_After="9999")], []
    endpoint(served, asked_for)(pictures[:1], 3)
    assert asked_for == [7.0, LONGEST]


def test_what_is_refused_for_good_is_not_asked_again(served: Served, pictures: Tensor) -> None:
    served.faults = [status(403)] * 3
    with pytest.raises(OracleError, match="answers 403 Forbidden \\(busy\\); check the address"):
        endpoint(served)(pictures[:1], 3)
    assert served.requests == 1


def test_time_outs(served: Served, pictures: Tensor) -> None:
    event = threading.Event()
    served.faults = [stall(event)] * 2
    with pytest.raises(OracleError, match=r"asked 2 times: .*no answer within 0\.1 seconds"):
        endpoint(served, timeout=0.1, attempts=2)(pictures[:1], 3)
    event.set()


def test_nobody_there(served: Served, pictures: Tensor) -> None:
    with serve(by_brightness) as gone:
        url = gone.url
    system = Endpoint(url=url, attempts=2, sleep=lambda seconds: None)
    with pytest.raises(OracleError, match="asked 2 times: it cannot be reached"):
        system(pictures[:1], 3)


def test_the_rate_is_kept(served: Served, pictures: Tensor) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    waits = list[float]()
    system = Endpoint(url=served.url, rate=4.0, clock=lambda: now[0], sleep=sleep)
    system(pictures[:3], 3)
    assert waits == [0.25, 0.25]
    now[0] += 10
    system(pictures[:1], 3)
    assert len(waits) == 2


def test_what_is_no_endpoint() -> None:
    for url in ("file:///etc/passwd", "example.org", "ftp://example.org/x", "http://"):
        with pytest.raises(ArgumentError, match="begins with http://"):
            Endpoint(url=url)
    for wrong in ({"batch": 0}, {"attempts": 0}, {"timeout": 0.0}, {"rate": 0.0}):
        with pytest.raises(ArgumentError, match="at least 1"):
            Endpoint(url="http://localhost", **wrong)  # type: ignore[arg-type]
    assert read_headers(["A: b:c", "D:"]) == {"A": "b:c", "D": ""}
    for line in ("nothing", ": value", "A: b\r\nC: d"):
        with pytest.raises(ArgumentError, match="NAME:VALUE on one line"):
            read_headers([line])


# -- the journal -----------------------------------------------------------------------------------


def test_a_journal_asks_nothing_twice(tmp_path: Path, pictures: Tensor) -> None:
    asked = list[int]()

    def oracle(some: Tensor, k: int) -> list[Answer]:
        asked.append(len(some))
        return by_brightness(some, k)

    path = tmp_path / "deep" / "answers.jsonl"
    twice = pictures[[0, 1, 0]]
    assert Journal(path, oracle, "a", batch=2)(twice, 3) == by_brightness(twice, 3)
    assert asked == [2]
    again = Journal(path, oracle, "a", batch=2)
    assert again(pictures, 3) == by_brightness(pictures, 3)
    assert asked == [2, 2, 1]
    assert again(pictures, 4) == by_brightness(pictures, 4)  # a longer list is another question
    assert sum(asked) == 10


def test_a_stop_loses_one_request_at_the_most(tmp_path: Path, pictures: Tensor) -> None:
    path, calls = tmp_path / "answers.jsonl", list[int]()

    def failing(some: Tensor, k: int) -> list[Answer]:
        calls.append(len(some))
        if len(calls) == 4:
            raise OracleError("gone")
        return by_brightness(some, k)

    with pytest.raises(OracleError, match="gone"):
        Journal(path, failing, "a")(pictures, 3)
    whole = path.read_bytes()
    assert whole.count(b"\n") == 1 + 3
    path.write_bytes(whole + b'{"asked": "half a li')  # and a kill in the middle of writing
    assert Journal(path, failing, "a")(pictures, 3) == by_brightness(pictures, 3)
    assert calls[4:] == [1, 1]
    assert Journal(path, failing, "a")(pictures, 3) == by_brightness(pictures, 3)
    assert len(calls) == 6


def test_a_journal_is_of_one_system(tmp_path: Path, pictures: Tensor) -> None:
    path = tmp_path / "answers.jsonl"
    Journal(path, by_brightness, "http://a")(pictures, 3)
    with pytest.raises(OracleError, match="holds the answers of http://a, not of http://b"):
        Journal(path, by_brightness, "http://b")
    for content in (b"no journal\n", b'{"system": "x"}\n{"other": 1}\n', b"[]\n"):
        path.write_bytes(content)
        with pytest.raises(OracleError, match=r"is no journal of answers .* move it away"):
            Journal(path, by_brightness, "x")


# -- the command line ------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rng, paths = np.random.default_rng(0), [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        size = (12, 8, 3) if path.stem == "b" else (8, 8, 3)
        encode(path, rng.integers(60, 190, size, dtype=np.uint8))
    return [str(path) for path in paths]


def attack(files: list[str], url: str, out: Path, *more: str) -> str:
    command = ["attack", *files, "--oracle", url, "--attack", "square", "--eps", "8"]
    command += ["--max-queries", "30", "--oracle-attempts", "2", "--out", str(out), *more]
    done = CliRunner().invoke(main, command)
    return f"{done.exit_code} {done.output}"


def test_pictures_in_adversarial_pngs_out(served: Served, files: list[str], tmp_path: Path) -> None:
    told = attack(files, served.url, tmp_path / "out", "--oracle-header", "X-Key: k")
    assert told.startswith("0 ")
    asked = [int(count) for count in re.findall(r"asked (\d+)", told)]
    assert len(asked) == 3
    assert max(asked) <= 30
    assert served.pictures <= sum(asked)
    assert served.headers[0]["X-Key"] == "k"
    for path in map(Path, files):
        clean, changed = (
            decode(tmp_path / "out" / "clean" / path.name),
            decode(tmp_path / "out" / path.name),
        )
        assert np.array_equal(clean, decode(path))
        assert 0 < int(np.abs(changed.astype(int) - clean).max()) <= 8


def test_a_fault_keeps_what_was_answered(served: Served, files: list[str], tmp_path: Path) -> None:
    """Stopped by faults again and again, the end is that of an undisturbed run."""
    smooth = attack(files, served.url, tmp_path / "smooth")
    needed, served.pictures = served.pictures, 0
    out, tries = tmp_path / "out", 0
    while True:
        tries += 1
        served.faults = [*[fine] * 8, status(500), status(500)]
        told = attack(files, served.url, out)
        served.faults = []
        if told.startswith("0 "):
            break
        assert re.search(r"asked 2 times: it answers 500 .*the same command goes on", told)
        assert tries < 60
    assert tries > 2
    assert served.pictures == needed  # nothing was asked twice
    assert told.replace(str(out), "") == smooth.replace(str(tmp_path / "smooth"), "")
    for path in map(Path, files):
        assert (out / path.name).read_bytes() == (tmp_path / "smooth" / path.name).read_bytes()


def test_what_cannot_be_asked(served: Served, files: list[str], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    cases = {
        ("--oracle", served.url, "--attack", "odfa"): "odfa needs a victim; what only asks",
        ("--attack", "square"): "give --victim, or a system to ask, --oracle",
        ("--victim", "glyph_net", "--attack", "square"): "square asks a search system: give its",
        ("--oracle", "nowhere", "--attack", "square"): "an endpoint's address begins with http://",
        ("--oracle", served.url, "--attack", "square", "--oracle-header", "x"): "NAME:VALUE",
    }
    for words, message in cases.items():
        done = CliRunner().invoke(main, ["attack", *files, *words, "--eps", "8", "--out", out])
        assert done.exit_code != 0
        assert message in done.output, done.output
    assert served.requests == 0
