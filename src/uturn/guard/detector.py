"""The detector: pictures in, one number each out, larger = less like a clean query.

A query that was attacked stands at a place that only this very picture leads to: shown again after
JPEG, smaller or mirrored, its embedding falls back, and it has no neighbours there. Four signs
are measured, each is set against what it is for clean queries, and the strongest is the score.

Sources: Xu et al., "Feature Squeezing", NDSS 2018 (movement under a squeezer); Guo et al.,
"Countering Adversarial Images using Input Transformations", ICLR 2018 (answering with one).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.data.channels import CHANNELS
from uturn.errors import ArgumentError, CheckpointError
from uturn.guard.neighbourhood import Neighbourhood
from uturn.retrieval.extract import chunks, extract
from uturn.storage import json_of, write
from uturn.victims.preprocessing import to_images
from uturn.victims.victim import Victim, to_picture

Shown = Literal["query", "flip", "jpeg75", "resize"]
"""How a picture is shown to the victim: as it is; mirrored; after JPEG; halved and enlarged."""

Answer = Literal["query", "flip", "jpeg75", "resize", "mean"]
"""By which features a query is answered: of one of the ways it is shown, or their mean."""

MOVED: tuple[Shown, ...] = ("flip", "jpeg75", "resize")
"""How far the embedding moves when the picture is shown in these ways is a sign each."""

SIGNS = (*MOVED, "stranger")
"""The signs; the last is how far from the gallery's items a picture is (`Neighbourhood`)."""

_LEAST = 1e-6
"""A movement that is the rounding of a cosine in float32."""

_STEADY = 1e-3
"""A spread below which a sign says nothing, so that rounding is not magnified."""

SCHEMA = 1


@final
@dataclass(frozen=True)
class Usual:
    """What a sign is like for clean queries."""

    mean: float
    spread: float


_USUAL = ("mean", "spread")


@final
@dataclass(frozen=True, eq=False)
class Look:
    """All that one look at ``B`` pictures gives; the features are to be asked the index with."""

    features: dict[Shown, Tensor]
    """Raw features ``(B, D)`` by how the pictures were shown."""

    signs: Tensor
    """``(B, S)`` in the order of `SIGNS`: in spreads of clean queries, 0 is their mean."""

    threshold: float

    @property
    def score(self) -> Tensor:
        """The strongest sign, ``(B,)``; NaN where the features are not finite."""
        return self.signs.max(1).values

    @property
    def flags(self) -> Tensor:
        """Whether a picture is to be refused, ``(B,)`` booleans. What is not a number is."""
        return ~(self.score <= self.threshold)

    def answer(self, by: Answer) -> Tensor:
        """Raw features ``(B, D)`` to ask the index with: purified, but for ``query``."""
        if by == "mean":
            return torch.stack([*self.features.values()]).mean(0)
        return self.features[by]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """A detector fitted to a victim, its gallery and clean queries; no attack is needed to fit it.

    >>> import uturn
    >>> from uturn.guard import Guard
    >>> from uturn.retrieval.extract import extract
    >>> victim, data = uturn.load_victim("glyph_net"), uturn.load_data("glyphs")
    >>> gallery = extract(victim, victim.grid(data.gallery.read(i) for i in range(100)))
    >>> clean = victim.grid(data.query.read(i) for i in range(100))
    >>> guard = Guard.fit(victim, gallery, clean, fpr=0.05)
    >>> attacked = uturn.attacks.odfa(eps=8)(victim, clean[:10]).images
    >>> bool(guard.score(attacked).mean() > guard.score(clean[:10]).mean())
    True
    """

    victim: Victim
    gallery: Neighbourhood
    usual: dict[str, Usual]
    threshold: float
    """Scores above it are flagged."""

    fpr: float
    pictures: int
    """Clean queries that it was fitted to."""

    @classmethod
    def fit(
        cls,
        victim: Victim,
        gallery_features: Tensor,
        clean_pictures: Sequence[Tensor] | Tensor,
        *,
        fpr: float = 0.01,
        left_out: Tensor | None = None,
    ) -> Guard:
        """Fit to a gallery's raw features ``(G, D)`` and clean queries, uint8 ``(3, H, W)`` each.

        The threshold is the smallest of their scores that at most a share ``fpr`` of clean queries
        like these exceeds (split conformal; Vovk et al., 2005). Equal scores pass together, so
        that ties cost detections and never false alarms.
        ``left_out`` ``(N, G)``: gallery items that a query is not to be held against, such as
        itself.

        Raises:
            ArgumentError: ``fpr`` is not within 0 and 1, there are too few pictures for it, or the
                victim's features of them are not finite.
        """
        if not 0 < fpr < 1:
            raise ArgumentError(f"a false positive rate is between 0 and 1, got {fpr}")
        needed = math.ceil(round(1 / fpr, 9)) - 1
        if len(clean_pictures) < max(2, needed):
            raise ArgumentError(
                f"{len(clean_pictures)} clean pictures cannot fix a false positive rate of "
                f"{fpr:g}; give {max(2, needed)} at least, or a larger rate"
            )
        gallery = Neighbourhood.of(gallery_features.to(victim.device))
        raw = torch.empty(len(clean_pictures), len(SIGNS), device=victim.device)
        for which in _alike(clean_pictures):
            images = torch.stack([clean_pictures[i] for i in which])
            beside = None if left_out is None else left_out[which]
            raw[which] = _measured(gallery, _seen(victim, images), beside)
        if not bool(raw.isfinite().all()):
            raise ArgumentError(
                f"victim {victim.name} gives features that are not finite; see `uturn doctor`"
            )
        usual = {
            name: Usual(float(column.mean()), max(_STEADY, float(column.std())))
            for name, column in zip(SIGNS, raw.double().T, strict=True)
        }
        scores = _standardised(raw, usual).max(1).values
        return cls(
            victim=victim,
            gallery=gallery,
            usual=usual,
            threshold=threshold(scores, fpr),
            fpr=fpr,
            pictures=len(clean_pictures),
        )

    def look(self, pictures: Tensor, left_out: Tensor | None = None) -> Look:
        """Look at uint8 ``pictures`` ``(B, 3, H, W)``, each on its own, in four ways.

        This is what a service calls: one look has the features for the index, the score and the
        flag. It costs four passes through the victim.
        """
        features = _seen(self.victim, pictures)
        return Look(features, self.signs(features, left_out), self.threshold)

    def signs(self, features: Mapping[Shown, Tensor], left_out: Tensor | None = None) -> Tensor:
        """The signs ``(B, S)`` of raw features ``(B, D)`` by way of showing; differentiable."""
        return _standardised(_measured(self.gallery, features, left_out), self.usual)

    def score(self, pictures: Tensor, left_out: Tensor | None = None) -> Tensor:
        """How little each picture is like a clean query, ``(B,)``."""
        return self.look(pictures, left_out).score

    def flags(self, pictures: Tensor, left_out: Tensor | None = None) -> Tensor:
        """Which pictures are to be refused, ``(B,)`` booleans."""
        return self.look(pictures, left_out).flags

    def save(self, path: Path) -> None:
        """Write what was fitted as JSON; the gallery's features are not in it."""
        usual = {name: asdict(each) for name, each in self.usual.items()}
        content = {
            "schema": SCHEMA,
            "victim": _identity(self.victim),
            "fpr": self.fpr,
            "pictures": self.pictures,
            "threshold": self.threshold,
            "signs": usual,
        }
        write(path, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: Path, victim: Victim, gallery_features: Tensor) -> Guard:
        """Read what `save` wrote, for the same victim and the gallery's raw features ``(G, D)``.

        Nothing in the file is run.

        Raises:
            CheckpointError: there is no such file, it is damaged, or it is of another victim.
        """
        try:
            content = json_of(path.read_bytes())
            usual = {
                name: Usual(**{key: _number(content["signs"][name], key) for key in _USUAL})
                for name in SIGNS
            }
            found = {key: _number(content, key) for key in ("fpr", "pictures", "threshold")}
            if content["schema"] != SCHEMA:
                raise ValueError(f"its schema is {content['schema']}, known is {SCHEMA}")
            fitted_to = content["victim"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{path} is no guard that can be read ({error}); fit it again, see docs/guard.md"
            ) from error
        if fitted_to != (now := _identity(victim)):
            raise CheckpointError(
                f"{path} was fitted to {fitted_to}, this victim is {now}; thresholds of one victim "
                "mean nothing for another: fit it again"
            )
        return cls(
            victim=victim,
            gallery=Neighbourhood.of(gallery_features.to(victim.device)),
            usual=usual,
            threshold=found["threshold"],
            fpr=found["fpr"],
            pictures=int(found["pictures"]),
        )


def threshold(scores: Tensor, fpr: float) -> float:
    """The ⌈(n + 1)(1 − fpr)⌉-th smallest of clean ``scores`` ``(n,)``; above it is flagged.

    Of n exchangeable clean queries and one more, the one is above it with a probability of at most
    ``fpr``. Source: Vovk et al., "Algorithmic Learning in a Random World", 2005.

    >>> threshold(torch.arange(99.0), 0.01), threshold(torch.tensor([1.0, 1, 1, 1]), 0.2)
    (98.0, 1.0)
    """
    place = math.ceil(round((len(scores) + 1) * (1 - fpr), 9))
    return float(scores.sort().values[place - 1])


def show(pictures: Tensor) -> dict[Shown, Tensor]:
    """uint8 ``pictures`` ``(B, 3, H, W)`` in every way that the guard shows them."""
    if pictures.dtype != torch.uint8 or pictures.ndim != 4:
        raise ArgumentError(
            f"a guard looks at uint8 pictures (B, 3, H, W), got {pictures.dtype} "
            f"{tuple(pictures.shape)}; victim.grid([picture]) makes them of decoded files"
        )

    def through(channel: str) -> Tensor:
        return to_images([np.array(CHANNELS[channel](to_picture(one))) for one in pictures])

    ways: dict[Shown, Tensor] = {"query": pictures, "flip": pictures.flip(-1)}
    return ways | {"jpeg75": through("jpeg75"), "resize": through("resize")}


def _alike(pictures: Sequence[Tensor] | Tensor) -> Iterator[list[int]]:
    """Which pictures have one shape, some at a time."""
    groups = dict[tuple[int, ...], list[int]]()
    for place, picture in enumerate(pictures):
        groups.setdefault(tuple(picture.shape), []).append(place)
    for which in groups.values():
        yield from (which[part.start : part.stop] for part in chunks(len(which)))


@torch.no_grad()
def _seen(victim: Victim, pictures: Tensor) -> dict[Shown, Tensor]:
    """Raw features ``(B, D)`` by way of showing."""
    return {way: extract(victim, images) for way, images in show(pictures).items()}


def _measured(
    gallery: Neighbourhood, features: Mapping[Shown, Tensor], left_out: Tensor | None
) -> Tensor:
    """The signs as they are measured, ``(B, S)``.

    Movements ``1 − cos`` are taken as logarithms, in which those of clean queries are about normal.
    """
    unit = {way: F.normalize(found, dim=1) for way, found in features.items()}
    own = unit["query"]
    moved = [(1 - (own * unit[way]).sum(1)).clamp(min=_LEAST).log() for way in MOVED]
    return torch.stack([*moved, gallery.strangeness(own, left_out)], 1)


def _standardised(raw: Tensor, usual: dict[str, Usual]) -> Tensor:
    """Signs ``(B, S)`` in spreads of clean queries."""
    mean = raw.new_tensor([usual[name].mean for name in SIGNS])
    return (raw - mean) / raw.new_tensor([usual[name].spread for name in SIGNS])


def _identity(victim: Victim) -> str:
    """What makes a victim another one for a guard."""
    return f"{victim.fingerprint}, {victim.preprocessing!r}, {victim.test_time!r}"


def _number(content: Any, key: str) -> float:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}, not a number")
    return float(value)
