"""Indexes: raw features in, scores or the closest items out. Larger scores are closer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn import specs
from uturn.errors import ArgumentError
from uturn.types import Similarity

_ROWS = 4096
"""Features that are worked on at a time, so that a pass over a gallery needs no second one."""


class Index(Protocol):
    """A gallery that can be asked. Its ``str`` names it in result rows."""

    def __len__(self) -> int: ...

    def scores(self, queries: Tensor) -> Tensor:
        """Scores ``(Q, G)`` of raw query features ``(Q, D)`` against the whole gallery.

        Whoever asks may write to them.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class ExactIndex:
    """Every query against every gallery feature ``(G, D)``.

    ``cosine`` scores are cosines, ``euclidean`` ones minus the squared distance.

    Raises:
        ArgumentError: a feature is not finite; a score of NaN would rank anywhere.
    """

    features: Tensor
    similarity: Similarity = "cosine"

    def __post_init__(self) -> None:
        if self.similarity not in get_args(Similarity):
            raise ArgumentError(f"unknown similarity {self.similarity!r}")
        require_finite(self.features, "gallery")
        if self.similarity == "cosine":
            object.__setattr__(self, "features", F.normalize(self.features, dim=1))

    def __len__(self) -> int:
        return len(self.features)

    def __str__(self) -> str:
        return f"exact:{self.similarity}"

    def scores(self, queries: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return F.normalize(queries, dim=1) @ self.features.T
        scores = 2 * queries @ self.features.T
        return scores.sub_(_squares(queries)[:, None] + self._squares)

    @cached_property
    def _squares(self) -> Tensor:
        return _squares(self.features)


def build_index(spec: str, features: Tensor, published: Similarity) -> Index:
    """Build an index from a spec: ``exact``, ``exact:cosine`` or ``exact:euclidean``.

    Without a similarity it is ``published``, the one that the victim's weights come with.

    Raises:
        SpecError: unknown index or similarity.
    """

    def exact(similarity: Similarity = published) -> Index:
        return ExactIndex(features, similarity)

    parsed = specs.Spec.parse(spec)
    specs.choose("index", parsed.name, ["exact"])
    index: Index = specs.call("index", exact, parsed)
    return index


def require_finite(features: Tensor, what: str) -> None:
    """Raise `ArgumentError` if any feature ``(N, D)`` holds NaN or infinity."""
    # A sum that is finite is of finite numbers; only of the others are the numbers looked at.
    suspects = (~features.sum(1).isfinite()).nonzero()[:, 0]
    broken = suspects[~features[suspects].isfinite().all(1)]
    if len(broken):
        raise ArgumentError(
            f"{len(broken)} of {len(features)} {what} features are not finite (first: "
            f"number {int(broken[0])}); the victim's weights or preprocessing are broken"
        )


def _squares(features: Tensor) -> Tensor:
    """Squared lengths ``(N,)``, without another table as large as the features."""
    return torch.cat([part.square().sum(1) for part in torch.split(features, _ROWS)])


def top(scores: Tensor, ignored: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best items that are not ignored: indices and scores ``(Q, k)``, best first."""
    kept = scores.masked_fill(ignored, -torch.inf)
    best = kept.topk(min(k, kept.shape[1]), dim=1)
    return best.indices, best.values
