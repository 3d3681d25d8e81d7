"""Who scores: a victim with its gallery. The one attacked is the first, others only look on.

Every scorer sees the same decoded pictures and puts them on its own grid; its features, its
similarity and its threshold are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.data.channels import CHANNELS
from uturn.data.pictures import Picture, Pictures
from uturn.data.split import Split
from uturn.parallel import threaded
from uturn.retrieval import metrics
from uturn.retrieval.classification import classifies, label_ranks
from uturn.retrieval.extract import extract_decoded
from uturn.retrieval.fidelity import NEAREST, recall_of_exact
from uturn.retrieval.judge import Labels
from uturn.retrieval.ranking import Ranking
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep.insider import Goal, Insider
from uturn.sweep.plan import Plan
from uturn.sweep.store import Row
from uturn.victims.victim import Victim

SHOWN = 8
"""Queries whose rank lists are kept for the report: the first of the seeded sample, not the
most telling ones."""
RANKS = 10


@final
@dataclass(frozen=True, eq=False)
class Queries:
    """A batch of queries as their clean PNGs decode, which everything is held against."""

    pictures: Pictures
    clean: list[Picture]
    labels: Labels
    shown: int
    """So many of them, from the first, have their rank lists kept."""


class Known(NamedTuple):
    """What was embedded and measured for a scorer, as it is sent to other processes."""

    features: npt.NDArray[np.float32]
    threshold: float
    fidelity: float


@final
@dataclass(frozen=True)
class Terms:
    """Who scored, and how its rows are to be read."""

    name: str
    """The victim's spec."""
    index: str
    depth: int | None
    """How many items the index answers with; None if it ranks the whole gallery."""
    classes: bool
    """Whether the identities are the classes of its classifier."""
    asked_for: str
    """The plan's convention of average precision."""

    @property
    def convention(self) -> str:
        """Of average precision: the plan's, or that of the first items which the index gives."""
        return self.asked_for if self.depth is None else f"map@{self.depth}"

    @property
    def precision(self) -> str:
        """The column of average precision: as deep as the index answers."""
        return "ap" if self.depth is None else f"ap@{self.depth}"


@final
@dataclass(frozen=True, eq=False)
class Scorer:
    """A victim that scores pictures, whoever they were crafted on."""

    name: str
    """Its spec."""
    plan: Plan
    victim: Victim
    split: Split
    features: Tensor
    """Of the gallery, raw, ``(G, D)``."""
    system: RetrievalSystem
    """The gallery, asked as the plan says."""
    threshold: float
    """Of `metrics.accepted`, fixed on the clean queries of the data set."""
    fidelity: float
    """Share of the exact nearest that the index answers the clean queries with."""
    classes: bool
    """Whether the identities are the classes of its classifier."""

    @classmethod
    def build(
        cls,
        name: str,
        plan: Plan,
        victim: Victim,
        split: Split,
        features: Tensor,
        clean: Tensor,
        *,
        progress: bool = False,
    ) -> Scorer:
        """From raw ``features`` ``(G, D)`` of the gallery and ``clean`` ``(Q, D)`` of the queries.

        The clean queries fix the threshold, and tell how well the index answers.
        """
        system = _asked(plan, victim, split, features, progress=progress)
        labels = Labels.of(split.query, victim.device)
        threshold = system.threshold(clean, labels, metrics.FPR)
        fidelity = recall_of_exact(system, features, clean, labels)
        classes = classifies(victim, split)
        return cls(name, plan, victim, split, features, system, threshold, fidelity, classes)

    @property
    def known(self) -> Known:
        """What another process needs to have the same scorer."""
        return Known(self.features.cpu().numpy(), self.threshold, self.fidelity)

    @classmethod
    def like(cls, name: str, plan: Plan, victim: Victim, split: Split, known: Known) -> Scorer:
        """The same as one that another process has built."""
        features = torch.tensor(known.features, device=victim.device)
        system = _asked(plan, victim, split, features)
        classes = classifies(victim, split)
        fixed = (known.threshold, known.fidelity)
        return cls(name, plan, victim, split, features, system, *fixed, classes)

    @cached_property
    def insider(self) -> Insider:
        """What attackers of this victim may be given, and how far they got in its rankings."""
        plan, index = self.plan, str(self.plan.index)
        return Insider(self.victim, self.split, self.system, self.features, index, plan.seed)

    @property
    def terms(self) -> Terms:
        """How its rows are to be read."""
        system, convention = self.system, str(self.plan.convention)
        return Terms(self.name, str(system.index), system.depth, self.classes, convention)

    @property
    def precision(self) -> str:
        """The column of average precision: as deep as the index answers."""
        return self.terms.precision

    def facts(self) -> dict[str, Any]:
        """What a run's header says of this scorer."""
        return {
            "dimensions": self.features.shape[1],
            "nonnegative features": bool((self.features >= 0).all()),
            "threshold": None if math.isnan(self.threshold) else self.threshold,
            **self._answered(),
        }

    def _answered(self) -> dict[str, Any]:
        """How deep an index answers that does not rank the whole gallery, and how well."""
        depth = self.system.depth
        told = {"depth": depth, f"recall@{NEAREST}": self.fidelity}
        return {} if depth is None else {"index": told}

    def look(self, pictures: Sequence[Picture]) -> Tensor:
        """Raw features ``(B, D)`` of decoded pictures."""
        return extract_decoded(self.victim, pictures)

    def score(
        self,
        queries: Queries,
        before: Tensor,
        scored: list[Picture],
        sizes: Sequence[tuple[int, float]],
        goal: Goal | None,
    ) -> dict[str, Any]:
        """Rows per query, and the rank lists that are kept, of the pictures ``scored``.

        ``before`` are this victim's features of the clean queries, ``sizes`` the certified
        changes of `checks.measure`.
        """
        labels, identities = queries.labels, queries.pictures.identities.tolist()
        features = self.look(scored)
        columns = self._ranks(features, labels)
        for channel in self.plan.survive:
            ranks = self._ranks(self.look(threaded(CHANNELS[channel], scored)), labels)
            kept = dict.fromkeys(("first_match_rank", "ap", self.precision))
            columns |= {f"{key}|{channel}": ranks[key] for key in kept}
        if self.classes:
            columns["label_rank"] = label_ranks(self.victim, scored, identities)
        if goal is not None:
            columns |= self.insider.places(goal, labels, features)
            columns["goal_rank_clean"] = self.insider.places(goal, labels, before)["goal_rank"]
        cosine = F.cosine_similarity(features, before).tolist()
        rows = [
            {
                "query": name,
                "identity": identities[n],
                "camera": int(queries.pictures.cameras[n]),
                "cosine_to_clean": cosine[n],
                "linf_levels": sizes[n][0],
                "l2": sizes[n][1],
                **{key: values[n] for key, values in columns.items()},
            }
            for n, name in enumerate(queries.pictures.names)
        ]
        return {"rows": rows, "answers": self._answers(queries, features)}

    def _ranks(self, features: Tensor, labels: Labels) -> dict[str, list[Any]]:
        return self.columns(self.system.rank(features, labels))

    def columns(self, ranking: Ranking) -> dict[str, list[Any]]:
        """Columns of per-query values; None where a query has no relevant item."""
        first = metrics.first_match(ranking).tolist()
        values = {
            "ap": metrics.average_precision(ranking, str(self.plan.convention)),
            **self._within(ranking),
            "r_precision": metrics.r_precision(ranking),
            "inp": metrics.inp(ranking),
            "normalised_rank": metrics.normalised_rank(ranking),
            "tpr": metrics.accepted(ranking, self.threshold),
        }
        columns = {name: column.tolist() for name, column in values.items()}
        return {
            "first_match_rank": [_place(rank) for rank in first],
            **{k: [None if math.isnan(v) else v for v in column] for k, column in columns.items()},
            "matches": ranking.matches.tolist(),
            "tied": ranking.tied.tolist(),
        }

    def _within(self, ranking: Ranking) -> dict[str, Tensor]:
        depth = self.system.depth
        return {} if depth is None else {self.precision: metrics.ap_within(ranking, depth)}

    def _answers(self, queries: Queries, features: Tensor) -> list[Row]:
        """The first ranks of the queries that the report shows: the attacked victim's."""
        if self.name != self.plan.victim or not queries.shown:
            return []
        part, gallery = slice(queries.shown), self.split.gallery.names
        answers = self.system.ask(features[part], queries.labels[part], RANKS)
        return [
            {
                "query": name,
                "items": [
                    {"name": gallery[hit.item], "score": hit.score, "relevant": hit.relevant}
                    for hit in answer
                ],
            }
            for name, answer in zip(queries.pictures.names[part], answers, strict=True)
        ]


def _place(rank: float) -> float | None:
    """A position: None where there is none, infinite where it lies below all that was seen."""
    return None if math.isnan(rank) else rank if math.isinf(rank) else int(rank)


def _asked(
    plan: Plan, victim: Victim, split: Split, features: Tensor, *, progress: bool = False
) -> RetrievalSystem:
    """The gallery as the plan asks it."""
    index, rerank = str(plan.index), plan.rerank
    return RetrievalSystem.build(victim, split, features, index, rerank=rerank, progress=progress)
