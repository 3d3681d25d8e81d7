"""Oracles: search systems that only answer. One in this process, and a journal of what was said."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from uturn.errors import OracleError
from uturn.retrieval.extract import extract_decoded
from uturn.retrieval.system import RetrievalSystem
from uturn.storage import json_of
from uturn.types import Answer, Oracle
from uturn.victims.victim import Victim, to_picture

_AT_ONCE = 64
"""Pictures whose scores against the whole gallery are held at a time."""


@final
@dataclass(frozen=True, eq=False)
class SystemOracle:
    """A victim and its retrieval system, asked as anybody may ask a deployed one.

    It does not know whom the picture shows, so nothing is left out for that: same camera, the
    query itself where the gallery has it. Items are positions in the gallery.
    """

    victim: Victim
    system: RetrievalSystem

    def __call__(self, pictures: Tensor, k: int) -> list[Answer]:
        answers = list[Answer]()
        for part in torch.split(pictures, _AT_ONCE):
            features = extract_decoded(self.victim, map(to_picture, part))
            best = self.system.answer(features, k)
            for items, scores in zip(best.items.tolist(), best.scores.tolist(), strict=True):
                there = sum(score > -math.inf for score in scores)  # a small gallery has fewer
                answers.append(Answer(tuple(items[:there]), tuple(scores[:there])))
        return answers


@final
@dataclass(frozen=True, eq=False)
class Journal:
    """An oracle whose answers are kept in a file, and not asked for again.

    Every answer is on disk before anybody sees it, so a search that was stopped, by a fault or
    by hand, asks for nothing twice: begun again, it gets the same answers to the same pictures.
    A line that a stop left half written is dropped.

    Raises:
        OracleError: the file holds answers of another system, or is no journal.
    """

    path: Path
    oracle: Oracle
    system: str
    """What the oracle is called; a journal is of one system."""
    batch: int = 1
    """Pictures that are asked at a time: as many answers as a stop can lose."""
    kept: dict[str, Answer] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        whole, rest = lines[:-1], lines[-1:]  # what ends in a newline was written whole
        try:
            head, *entries = [json_of(line) for line in whole] or [{"system": None}]
            self.kept.update((entry["asked"], _answer(entry)) for entry in entries)
            there = head["system"]
        except (ValueError, KeyError, TypeError) as error:
            raise OracleError(
                f"{self.path} is no journal of answers ({error}); move it away, and every picture "
                "is asked anew"
            ) from error
        if there not in (None, self.system):
            raise OracleError(
                f"{self.path} holds the answers of {there}, not of {self.system}; choose another "
                "--out"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if rest not in ([], [b""]):
            self.path.write_bytes(b"".join(line + b"\n" for line in whole))
        if there is None:
            self._write({"system": self.system})

    def __call__(self, pictures: Tensor, k: int) -> list[Answer]:
        keys = [_key(picture, k) for picture in pictures]
        new = {key: i for i, key in enumerate(keys) if key not in self.kept}
        for part in _pieces([*new], self.batch):
            answers = self.oracle(pictures[[new[key] for key in part]], k)
            for key, answer in zip(part, answers, strict=True):
                self._write({"asked": key, "items": answer.items, "scores": answer.scores})
                self.kept[key] = answer
        return [self.kept[key] for key in keys]

    def _write(self, entry: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")


def _pieces(keys: list[str], size: int) -> list[list[str]]:
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def _key(picture: Tensor, k: int) -> str:
    content = picture.contiguous().numpy().tobytes()
    return hashlib.sha256(f"{k} {tuple(picture.shape)} ".encode() + content).hexdigest()


def _answer(entry: dict[str, Any]) -> Answer:
    scores = entry["scores"]
    return Answer(tuple(entry["items"]), None if scores is None else tuple(scores))
