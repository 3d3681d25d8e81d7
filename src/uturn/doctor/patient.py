"""Who is examined: a victim, and the pictures that it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from uturn.data.pictures import Picture
from uturn.data.split import Split
from uturn.rng import generator
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_pixels

COUNT = 64
"""Pictures of a data set that are looked at."""

QUERIES = 50
"""Labelled queries that are asked."""

SHAPES = ((96, 48), (130, 211), (64, 64), (207, 120), (75, 300), (330, 241), (33, 32), (256, 128))
"""(H, W) of built pictures: tall, wide, square and odd, so that every way to fit is used."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Patient:
    """A victim and pictures of different proportions; ``split`` is where they come from."""

    victim: Victim
    pictures: list[Picture]
    split: Split | None = None
    queries: int = QUERIES
    """How many labelled queries are asked under every preprocessing."""
    seed: int = 0

    @classmethod
    def of(
        cls, victim: Victim, split: Split | None, *, queries: int = QUERIES, seed: int = 0
    ) -> Patient:
        """The victim with a sample of the split's queries, or with built pictures."""
        pictures = built(COUNT) if split is None else sampled(split, COUNT, seed)
        return cls(victim=victim, pictures=pictures, split=split, queries=queries, seed=seed)

    @cached_property
    def pixels(self) -> Tensor:
        """At most eight of the pictures on the victim's grid, of one shape: ``(B, 3, H, W)``."""
        fitted = by_shape(map(self.victim.preprocessing.on_grid, self.pictures))
        return to_pixels(max((images for _, images in fitted), key=len)[:8])


@torch.no_grad()
def features(victim: Victim, pixels: Tensor) -> Tensor:
    """Raw features ``(B, D)`` on the CPU, without gradients."""
    return victim.features(pixels).cpu()


def sampled(split: Split, count: int, seed: int) -> list[Picture]:
    """At most ``count`` queries of a split, drawn by ``seed``."""
    count = min(count, len(split.query))
    chosen = split.query.sample(count, seed, split.name, "doctor's pictures")
    return [chosen.read(i) for i in range(count)]


def built(count: int) -> list[Picture]:
    """Coloured random pictures with the 1/f amplitudes of photographs, the same ones every time.

    Mean and contrast are about those of photographs, and red and blue are treated alike: such
    pictures say nothing about the order of channels.

    Source: Field, "Relations between the Statistics of Natural Images and the Response
    Properties of Cortical Cells", JOSA A 1987.
    """
    return [_natural(i, *SHAPES[i % len(SHAPES)]) for i in range(count)]


def _natural(number: int, height: int, width: int) -> Picture:
    draw = generator(0, "doctor", "picture", number)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    frequency = np.hypot(y, x)
    frequency[0, 0] = np.inf  # no mean
    waves = np.fft.rfft2(draw.normal(0, 1, (4, height, width))) / frequency
    fields = np.fft.irfft2(waves, (height, width))
    light, *colours = fields / fields.std((1, 2), keepdims=True)
    pixels = 0.45 + draw.normal(0, 0.1) + 0.22 * light + 0.07 * np.stack(colours)
    levels: Picture = np.clip(np.rint(pixels * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(levels)


def extremes(victim: Victim) -> dict[str, Tensor]:
    """Unusual pixels ``(1, 3, H, W)`` at the victim's size, by name."""
    height, width = victim.preprocessing.size
    noise = generator(0, "doctor", "noise").random((1, 3, height, width), dtype=np.float32)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    board = ((x + y) % 2).float().expand(1, 3, -1, -1)
    black = torch.zeros(1, 3, height, width)
    return {
        "black": black,
        "white": black + 1,
        "grey": black + 0.5,
        "noise": torch.from_numpy(noise),
        "a chequered picture": board,
    }
