"""Scoring a victim on a split, without a run folder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from uturn.data.pictures import Pictures
from uturn.data.split import Split
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem, chunks, extract_pictures
from uturn.victims.victim import Victim


def evaluate(
    victim: Victim, split: Split, index: str = "exact", *, progress: bool = True
) -> dict[str, str | int | float | None]:
    """Recall@1/5/10 and mAP by every convention, as fractions, with what they rest on.

    A metric is None if no query has a relevant item.
    """
    gallery = _extract(victim, split.gallery, "gallery", progress)
    system = RetrievalSystem.build(victim, split, gallery, index)
    query = _extract(victim, split.query, "queries", progress)
    ranking = system.rank(query, Labels.of(split.query, victim.device))
    values = {f"recall@{k}": metrics.recall_at(ranking, k) for k in metrics.RECALLS}
    for convention in metrics.CONVENTIONS:
        values[f"map ({convention})"] = metrics.average_precision(ranking, convention)
    return {
        "victim": victim.name,
        "data": split.name,
        "index": str(system.index),
        "queries": len(split.query),
        "gallery": len(split.gallery),
        "no-match queries": int((ranking.matches == 0).sum()),
        "tied queries": int(ranking.tied.sum()),
        **{name: _mean(value) for name, value in values.items()},
    }


def _mean(values: Tensor) -> float | None:
    mean = float(values.nanmean())
    return None if math.isnan(mean) else mean


def _extract(victim: Victim, pictures: Pictures, what: str, progress: bool) -> Tensor:
    parts = []
    with bar(len(pictures), f"embedding the {what}", "picture", show=progress) as shown:
        for chunk in chunks(len(pictures)):
            parts.append(extract_pictures(victim, pictures, chunk))
            shown.update(len(chunk))
    return torch.cat(parts)
