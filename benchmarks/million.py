"""A process of its own: queries against a large gallery; seconds and peak memory as JSON."""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F

from uturn.retrieval import metrics
from uturn.retrieval.index import ExactIndex
from uturn.retrieval.judge import CrossCamera, Labels
from uturn.retrieval.ranking import rank


def ranked(queries: int, gallery: int, dimensions: int) -> dict[str, float]:
    """Rank features of chance, with some ten relevant pictures per query; what it took."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(gallery, dimensions, generator=draw)
    asked = torch.randn(queries, dimensions, generator=draw)
    identities = max(1, gallery // 12)

    def labels(count: int) -> Labels:
        return Labels(
            torch.randint(1, identities + 1, (count,), generator=draw),
            torch.randint(1, 7, (count,), generator=draw),
            torch.arange(count),
        )

    query, there = labels(queries), labels(gallery)
    began = time.perf_counter()
    index = ExactIndex(F.normalize(features, dim=1, out=features))
    ranking = rank(index, asked, query, there, CrossCamera())
    metrics.ap_plain(ranking)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
    return {"seconds": seconds, "peak": peak}


if __name__ == "__main__":
    print(json.dumps(ranked(*map(int, sys.argv[1:]))))
