"""Scoring a victim on a split, or on anybody's folder of changed queries."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from uturn.data.catalog import load_data
from uturn.data.folder import replace_queries
from uturn.data.pictures import Pictures
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.index import build_index
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.system import RetrievalSystem, chunks, extract_pictures
from uturn.victims.victim import Victim
from uturn.victims.zoo import load_victim


def evaluate(
    victim: str,
    data: str,
    query_dir: Path | None = None,
    index: str = "exact",
    device: str | torch.device = "cpu",
    *,
    progress: bool = True,
) -> dict[str, str | int | float]:
    """Recall@1/5/10 and mAP by every convention, as fractions, with what they rest on.

    With ``query_dir`` the pictures found there stand in for the queries of the same name, and
    only those are scored.
    """
    loaded, split = load_victim(victim, device), load_data(data)
    query = split.query if query_dir is None else replace_queries(split.query, query_dir)
    system = RetrievalSystem(
        build_index(index, _extract(loaded, split.gallery, "gallery", progress), loaded.similarity),
        Labels.of(split.gallery, loaded.device),
        judge_for(split.protocol),
    )
    features = _extract(loaded, query, "queries", progress)
    ranking = system.rank(features, Labels.of(query, loaded.device))
    values: dict[str, str | int | float] = {
        "victim": victim,
        "data": data,
        "index": str(system.index),
        "queries": len(query),
        "gallery": len(split.gallery),
        "no-match queries": int((ranking.matches == 0).sum()),
        "tied queries": int(ranking.tied.sum()),
    }
    for k in (1, 5, 10):
        values[f"recall@{k}"] = float(metrics.recall_at(ranking, k).nanmean())
    for convention in metrics.CONVENTIONS:
        precision = metrics.average_precision(ranking, convention)
        values[f"map ({convention})"] = float(precision.nanmean())
    return values


def _extract(victim: Victim, pictures: Pictures, what: str, progress: bool) -> Tensor:
    parts = []
    with bar(len(pictures), f"embedding the {what}", "picture", show=progress) as shown:
        for chunk in chunks(len(pictures)):
            parts.append(extract_pictures(victim, pictures, chunk))
            shown.update(len(chunk))
    return torch.cat(parts)
