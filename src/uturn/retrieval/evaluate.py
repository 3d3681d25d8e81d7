"""Scoring a victim on a split, without a run folder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.data.pictures import Pictures
from uturn.data.split import Protocol, Split
from uturn.errors import ArgumentError
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.classification import TOPS, classifies, label_ranks
from uturn.retrieval.extract import chunks, extract_all
from uturn.retrieval.fidelity import NEAREST, recall_of_exact
from uturn.retrieval.index import read_index, whole
from uturn.retrieval.intervals import identity_bootstrap, median, query_bootstrap, weighted_mean
from uturn.retrieval.judge import Labels
from uturn.retrieval.ranking import Ranking, join, rank_chunk, scored
from uturn.retrieval.rerank import asks_all_at_once
from uturn.retrieval.single_shot import recall_single_shot
from uturn.retrieval.support import caveats
from uturn.retrieval.system import RetrievalSystem, require_matches
from uturn.retrieval.verification import Impostors
from uturn.victims.victim import Victim


def evaluate(
    victim: Victim,
    split: Split,
    index: str = "exact",
    *,
    rerank: str | None = None,
    clean: Pictures | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Every metric's mean, as fractions unless they are ranks, with what they rest on.

    ``clean`` holds the queries before an attack, under the same names, if those of ``split``
    are attacked: they set the threshold of TPR@FPR, and the attack's success and the embeddings'
    cosine to the clean ones are reported too. A metric is None if no query has a relevant item
    (or, for success, a right first match), or if it needs more of the ranking than the index gives;
    of an index that answers with its first k items there is ``map@k``, and how many of the exact
    nearest it answers the clean queries with. ``ci95`` holds intervals by bootstrap over
    identities, ``caveats`` what the queries do not bear out (`uturn.retrieval.support`).
    Where the identities are the classes of the victim's classifier, ``top1`` and ``top5`` say how
    it does, with intervals by bootstrap over queries.

    Raises:
        ArgumentError: ``clean`` lacks a query. DataError: no query has a relevant item.
    """
    require_matches(split)
    read_index(index, victim.similarity)  # what is misspelt fails here, not in an hour
    if rerank:
        whole(index, victim.similarity, f"the stage {rerank}")
    originals = None if clean is None else _same(clean, split.query.names)
    gallery = extract_all(victim, split.gallery, "gallery", progress=progress)

    def build(queries: Tensor | None = None) -> RetrievalSystem:
        return RetrievalSystem.build(
            victim, split, gallery, index, rerank=rerank, queries=queries, progress=progress
        )

    shared = None if rerank and asks_all_at_once(rerank) else build()

    def ask(pictures: Pictures, what: str) -> _Answers:
        known = _among(pictures, split.gallery)
        if known is None:
            features = extract_all(victim, pictures, what, progress=progress)
        else:  # leave one out: every query stands in the gallery
            features = gallery[known]
        system = build(features) if shared is None else shared
        return _Answers.of(features, Labels.of(pictures, victim.device), system, split.protocol)

    found = ask(split.query, "queries")
    before = found if originals is None else ask(originals, "clean queries")
    ranking, first = found.ranking, metrics.first_match(found.ranking)
    tpr = f"tpr@fpr={metrics.FPR}"
    values = {f"recall@{k}": metrics.recall_at(ranking, k) for k in metrics.RECALLS}
    for convention in metrics.CONVENTIONS:
        values[f"map ({convention})"] = metrics.average_precision(ranking, convention)
    if ranking.depth is not None:
        values[f"map@{ranking.depth}"] = metrics.ap_within(ranking, ranking.depth)
    if split.protocol == "listed":
        for k in metrics.RECALLS:
            values[f"precision@{k}"] = metrics.precision_at(ranking, k)
    values |= {
        "r_precision": metrics.r_precision(ranking),
        "minp": metrics.inp(ranking),
        "normalised_rank": metrics.normalised_rank(ranking),
        tpr: metrics.accepted(ranking, before.threshold),
        "mean_first_match": first,
    }
    if found.single_shot is not None:
        for k, recall in zip(metrics.RECALLS, found.single_shot.T, strict=True):
            values[f"recall@{k} (single-shot)"] = recall
    if originals is not None:
        values["success"] = metrics.attack_success(metrics.first_match(before.ranking), first)
        values["cosine_to_clean"] = F.cosine_similarity(found.features, before.features)
    matches = ranking.matches.double().cpu().numpy()
    columns = {name: value.double().cpu().numpy() for name, value in values.items()}
    columns |= {
        name: metrics.known(column, matches)
        for name, column in columns.items()
        if name != "success"  # which only right first matches have
    }
    answered = {}
    if shared is not None and shared.depth is not None:
        labels = Labels.of(split.query, victim.device)
        recall = recall_of_exact(shared, gallery, before.features, labels)
        answered[f"index recall@{NEAREST}"] = recall
    hits = _classified(victim, split, progress) if classifies(victim, split) else {}
    weights = {tpr: matches}  # of genuine pairs, not of queries
    identities = split.query.identities
    intervals = {
        name: identity_bootstrap(column, identities, seed, weights.get(name))
        for name, column in columns.items()
        if name not in ("mean_first_match", "cosine_to_clean")  # no fractions of queries
    }
    was = None
    if originals is not None:
        right = metrics.recall_at(before.ranking, 1).double().cpu().numpy()
        was = metrics.known(right, matches)
    return {
        "victim": victim.name,
        "data": split.name,
        "protocol": split.protocol,
        "index": found.index,
        "queries": len(split.query),
        "gallery": len(split.gallery),
        "no-match queries": int((ranking.matches == 0).sum()),
        "tied queries": int(ranking.tied.sum()),
        **{name: weighted_mean(column, weights.get(name)) for name, column in columns.items()},
        "median_first_match": median(columns["mean_first_match"]),
        **answered,
        **{name: float(hit.mean()) for name, hit in hits.items()},
        "ci95": intervals | {name: query_bootstrap(hit, seed) for name, hit in hits.items()},
        "caveats": caveats(columns["recall@1"], identities, intervals["recall@1"], seed, was),
    }


def _classified(victim: Victim, split: Split, progress: bool) -> dict[str, npt.NDArray[np.float64]]:
    """By metric, whether the true class of each query is among as many logits ``(Q,)``."""
    ranks = list[int]()
    with bar(len(split.query), "classifying the queries", "picture", show=progress) as shown:
        for part in chunks(len(split.query)):
            pictures = [split.query.read(i) for i in part]
            ranks += label_ranks(victim, pictures, split.query.identities[part].tolist())
            shown.update(len(part))
    return {f"top{k}": (np.array(ranks) <= k).astype(np.float64) for k in TOPS}


@final
@dataclass(frozen=True, eq=False)
class _Answers:
    """What one pass over some queries gives."""

    index: str
    features: Tensor
    ranking: Ranking
    threshold: float = math.nan
    """Of `metrics.accepted`; NaN where the index does not give all scores."""
    single_shot: Tensor | None = None
    """``(Q, len(RECALLS))``; None without all scores, or without cameras to choose pictures by."""

    @classmethod
    def of(
        cls, features: Tensor, labels: Labels, system: RetrievalSystem, protocol: Protocol
    ) -> _Answers:
        gallery, name = system.gallery, str(system.index)
        if system.depth is not None:
            return cls(name, features, system.rank(features, labels))
        rankings, recalls = list[Ranking](), list[Tensor]()
        impostors = Impostors(metrics.FPR, len(labels) * len(gallery))
        for chunk in scored(system.whole, features, labels, gallery, system.judge):
            rankings.append(rank_chunk(chunk))
            impostors = impostors.see(chunk)
            if protocol == "cross-camera":
                recalls.append(recall_single_shot(chunk, gallery.identities, metrics.RECALLS))
        found = torch.cat(recalls) if recalls else None
        ranking = join(rankings)
        return cls(name, features, ranking, impostors.threshold(), found)


def _among(pictures: Pictures, gallery: Pictures) -> Tensor | None:
    """Where the pictures stand in the gallery; None unless all of them do."""
    position = {name: i for i, name in enumerate(gallery.names)}
    if pictures.source is not gallery.source or not position.keys() >= set(pictures.names):
        return None
    return torch.tensor([position[name] for name in pictures.names])


def _same(clean: Pictures, names: tuple[str, ...]) -> Pictures:
    position = {name: i for i, name in enumerate(clean.names)}
    missing = [name for name in names if name not in position]
    if missing:
        raise ArgumentError(
            f"query {missing[0]} (and {len(missing) - 1} more) is not among the clean queries; "
            "an attacked query bears the name of the clean one"
        )
    return clean.subset(np.array([position[name] for name in names]))
