"""A victim's preprocessing against labels: does another one rank better?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uturn.data.pictures import Picture
from uturn.data.split import Split
from uturn.doctor.alternatives import REMEDY, alternatives, options
from uturn.doctor.finding import Finding
from uturn.doctor.patient import Patient
from uturn.retrieval import metrics
from uturn.retrieval.extract import extract_decoded
from uturn.retrieval.index import build_index
from uturn.retrieval.judge import Judgement, Labels, judge_for
from uturn.retrieval.ranking import Chunk, rank_chunk
from uturn.rng import generator
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

Array = npt.NDArray[np.float64]


def recall(patient: Patient) -> Finding:
    """Labelled queries under the stated preprocessing and under others."""
    name, split, stated = "recall", patient.split, patient.victim.preprocessing
    if split is None:
        says = "needs labelled pictures; give --data"
        return Finding(name=name, verdict="not checked", says=says)
    task = _task(stated, split, patient.queries, patient.seed)
    if task is None:
        says = f"fewer than {_FEWEST} identities have a match in {split.name}"
        return Finding(name=name, verdict="not checked", says=says)
    now = task.scored(patient.victim)
    seen = {
        key: task.scored(replace(patient.victim, preprocessing=each))
        for key, each in alternatives(stated).items()
    }
    chances = {
        key: _by_chance(each.precision - now.precision, task.identities, patient.seed)
        for key, each in seen.items()
    }
    best = max(seen, key=lambda key: float(seen[key].precision.mean()))
    gain = float((seen[best].precision - now.precision).mean())
    measured = {
        "queries": len(task.identities),
        "gallery": task.relevant.shape[1],
        "recall@1": float(now.first.mean()),
        "map": float(now.precision.mean()),
        f"recall@1 with {best}": float(seen[best].first.mean()),
        f"map with {best}": float(seen[best].precision.mean()),
        "by chance": chances[best],
    }
    if gain <= 0 or chances[best] * len(seen) > _CHANCE:
        says = f"no other preprocessing ranks better than chance allows; next best: {best}"
        return Finding(name=name, verdict="ok", says=says, measured=measured)
    return Finding(
        name=name,
        verdict="failed" if gain >= MUCH and seen[best].first.mean() >= WORKS else "warning",
        says=f"queries find their matches better with {best}: mAP {gain:+.3f}",
        measured=measured,
        cause="the stated preprocessing is not that of training, or these pictures are unlike "
        "those of training",
        remedy=f"{REMEDY}; here: {options(alternatives(stated)[best])}",
    )


MUCH = 0.05
"""A gain in mAP on the sample that no victim with the right preprocessing leaves lying."""

WORKS = 0.5
"""Recall@1 below which a victim is not made for the pictures, whatever its preprocessing."""

_CHANCE = 0.01
"""The probability of a false alarm, over all alternatives together."""

_FEWEST = 10
"""Identities: with fewer, no outcome of the test is rare enough."""

_MATCHES, _OTHERS, _FLIPS = 3, 150, 20_000
"""Matches of each query, other gallery items, and draws of the test."""


@final
@dataclass(frozen=True, eq=False)
class _Scored:
    """Per query: recall@1 and average precision, ``(Q,)``."""

    first: Array
    precision: Array


@final
@dataclass(frozen=True, eq=False)
class _Task:
    """Some queries, some of their matches and some other items, on the victim's grid."""

    queries: list[Picture]
    gallery: list[Picture]
    identities: npt.NDArray[np.int64]
    relevant: Tensor
    ignored: Tensor
    """Masks ``(Q, G)``."""

    def scored(self, victim: Victim) -> _Scored:
        """What this victim ranks; nothing is found where its features are not finite."""
        query = extract_decoded(victim, self.queries).cpu()
        gallery = extract_decoded(victim, self.gallery).cpu()
        if not bool(query.isfinite().all() and gallery.isfinite().all()):
            nothing = np.zeros(len(query))
            return _Scored(nothing, nothing)
        scores = build_index("exact", gallery, victim.similarity).scores(query)
        ranking = rank_chunk(Chunk.of(scores, Judgement.of(self.relevant, self.ignored)))
        return _Scored(metrics.recall_at(ranking, 1).numpy(), metrics.ap_plain(ranking).numpy())


def _task(preprocessing: Preprocessing, split: Split, queries: int, seed: int) -> _Task | None:
    """Of ``queries`` random queries those with a match, three matches each, and distractors."""
    draw = generator(seed, split.name, "doctor's ranking")
    asked = draw.permutation(len(split.query))[:queries]
    cpu = torch.device("cpu")
    labels = Labels.of(split.query.subset(asked), cpu), Labels.of(split.gallery, cpu)
    relevant, ignored = judge_for(split)(*labels).masks()
    rows = relevant.any(1).nonzero()[:, 0]
    identities = split.query.identities[asked][rows.numpy()]
    if len(np.unique(identities)) < _FEWEST:
        return None
    matches = [draw.permutation(row.nonzero()[:, 0].numpy())[:_MATCHES] for row in relevant[rows]]
    others = draw.permutation(len(split.gallery))[:_OTHERS]
    gallery = np.unique(np.concatenate([*matches, others]))
    columns = torch.from_numpy(gallery)
    return _Task(
        [preprocessing.on_grid(split.query.read(i)) for i in asked[rows.numpy()]],
        [preprocessing.on_grid(split.gallery.read(i)) for i in gallery],
        identities,
        relevant[rows][:, columns],
        ignored[rows][:, columns],
    )


def _by_chance(gain: Array, identities: npt.NDArray[np.int64], seed: int) -> float:
    """How often a gain ``(Q,)`` as large would come by chance: signs flipped by identity."""
    groups, group = np.unique(identities, return_inverse=True)
    sums = np.bincount(group, weights=gain)
    signs = generator(seed, "doctor", "signs").choice((-1.0, 1.0), (_FLIPS, len(groups)))
    return float(((signs @ sums >= sums.sum() - 1e-12).sum() + 1) / (_FLIPS + 1))
