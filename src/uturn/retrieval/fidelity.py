"""How well an index answers: its closest items beside the exact ones."""

from __future__ import annotations

import torch
from torch import Tensor

from uturn.retrieval.index import ExactIndex, TopIndex, top
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem

NEAREST = 10
"""So many of the exact nearest are looked for in an index's answer."""

_ROWS, _SLACK = 64, 1e-6
"""Queries at a time; how far equal sums may differ, in parts of the largest score."""


def recall_of_exact(
    system: RetrievalSystem, features: Tensor, queries: Tensor, asked: Labels
) -> float:
    """Share of the exact `NEAREST` items that an index answers with as many: the mean over queries.

    ``features`` ``(G, D)`` are the gallery's, ``queries`` ``(Q, D)`` those asked with, both raw. An
    item that is as close as the last of the exact is right: ties are no mistake. What the judge
    ignores is in neither. Known as k-recall@k; 1 for an index that ranks the whole gallery.

    Source: Aumüller et al., "ANN-Benchmarks", Information Systems 87, 2020, section 2.
    """
    index = system.index
    if not isinstance(index, TopIndex):
        return 1.0
    exact, shares = ExactIndex(features, index.similarity), list[Tensor]()
    for begin in range(0, len(queries), _ROWS):
        part = slice(begin, begin + _ROWS)
        _, ignored = system.judge(asked[part], system.gallery).masks()
        scores = exact.scores(queries[part])
        due = top(scores, ignored, NEAREST).scores  # (q, k), -inf where there are fewer
        wanted = (due > -torch.inf).sum(1)
        least = due.gather(1, (wanted - 1).clamp(min=0)[:, None])
        slack = _SLACK * scores.abs().amax(1, keepdim=True)
        found = index.search(queries[part], asked[part], NEAREST).items
        own = scores.gather(1, found.clamp(min=0))
        right = ((own >= least - slack) & (found >= 0)).sum(1)
        shares.append((torch.minimum(right, wanted) / wanted)[wanted > 0])
    return float(torch.cat(shares).mean())
