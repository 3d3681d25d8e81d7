"""Indexes: embeddings in, scores or the closest items out. Larger scores are closer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from uturn.errors import ArgumentError


class Index(Protocol):
    """A gallery that can be asked."""

    def __len__(self) -> int: ...

    def scores(self, queries: Tensor) -> Tensor:
        """Scores ``(Q, G)`` of query embeddings ``(Q, D)`` against the whole gallery."""
        ...


@final
@dataclass(frozen=True, eq=False)
class ExactIndex:
    """Cosine against every gallery embedding ``(G, D)``, unit norm, float32.

    Raises:
        ArgumentError: an embedding is not finite; a score of NaN would rank anywhere.
    """

    embeddings: Tensor

    def __post_init__(self) -> None:
        require_finite(self.embeddings, "gallery")

    def __len__(self) -> int:
        return len(self.embeddings)

    def scores(self, queries: Tensor) -> Tensor:
        return queries @ self.embeddings.T


def require_finite(embeddings: Tensor, what: str) -> None:
    """Raise `ArgumentError` if any embedding ``(N, D)`` holds NaN or infinity."""
    finite = embeddings.isfinite().all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise ArgumentError(
            f"{int((~finite).sum())} of {len(finite)} {what} embeddings are not finite (first: "
            f"number {first}); the victim's weights or preprocessing are broken"
        )


def top(scores: Tensor, ignored: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best items that are not ignored: indices and scores ``(Q, k)``, best first."""
    kept = scores.masked_fill(ignored, -torch.inf)
    best = kept.topk(min(k, kept.shape[1]), dim=1)
    return best.indices, best.values
