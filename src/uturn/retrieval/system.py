"""The retrieval system under test: a victim's embeddings of a gallery, asked under a judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from uturn.data.pictures import Pictures
from uturn.retrieval.index import Index, top
from uturn.retrieval.judge import Judge, Labels
from uturn.retrieval.ranking import Ranking, rank
from uturn.victims.victim import Victim, to_pixels

EMBED_BATCH = 64


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """The first ``k`` gallery items for each query, best first: ``(Q, k)`` each."""

    items: Tensor
    scores: Tensor
    relevant: Tensor


@final
@dataclass(frozen=True, eq=False)
class RetrievalSystem:
    """An index over a gallery, the gallery's labels, and the judge."""

    index: Index
    gallery: Labels
    judge: Judge

    def rank(self, embeddings: Tensor, query: Labels) -> Ranking:
        """Positions of the relevant items for query embeddings ``(Q, D)``."""
        return rank(self.index, embeddings, query, self.gallery, self.judge)

    def ask(self, embeddings: Tensor, query: Labels, k: int) -> Answer:
        """The first ``k`` items that the judge does not ignore, as a person would see them."""
        relevant, ignored = self.judge(query, self.gallery)
        items, scores = top(self.index.scores(embeddings), ignored, k)
        return Answer(items, scores, relevant.gather(1, items))


@torch.no_grad()
def embed(victim: Victim, images: Tensor) -> Tensor:
    """Embeddings ``(N, D)`` of uint8 images ``(N, 3, H, W)``, in batches of bounded memory."""
    return torch.cat([victim.embed(to_pixels(part)) for part in images.split(EMBED_BATCH)])


def embed_pictures(victim: Victim, pictures: Pictures, chunk: int = 256) -> Iterator[Tensor]:
    """Decode, put on the victim's grid and embed ``chunk`` pictures at a time: ``(≤chunk, D)``."""
    for begin in range(0, len(pictures), chunk):
        part = range(begin, min(begin + chunk, len(pictures)))
        yield embed(victim, victim.grid([pictures.read(i) for i in part]))
