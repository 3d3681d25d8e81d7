"""What some attackers are given beyond the query, drawn from (seed, name), and how far they got.

A targeted attack gets another person's gallery picture, a rank attack chosen gallery items and
rivals, a guided push known pictures of the same identity, a search for the smallest ε the
ranking's verdict. The goal is measured in the whole ranking, not in what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.objectives import MoveCandidates, MoveInRankings
from uturn.attacks.problem import knowledge
from uturn.data.split import Split
from uturn.retrieval import metrics
from uturn.retrieval.index import build_index, top
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem, extract
from uturn.rng import generator
from uturn.sweep.plan import Job
from uturn.types import Scene
from uturn.victims.victim import Victim, to_picture, to_pixels

CHOSEN = 5
"""Candidates that a rank attack moves, and queries in whose rankings a candidate is moved."""
RIVALS = 1000
"""Other gallery items that a rank attack compares with."""
KNOWN = 8
"""Pictures of the same identity that a guided push is given, repeated if there are fewer."""


@final
@dataclass(frozen=True, eq=False)
class Goal:
    """What a batch of attacked pictures is to achieve."""

    chosen: Tensor
    """Gallery items ``(B, M)`` to be retrieved, or in whose rankings the picture shall move."""

    as_candidate: bool
    """The attacked picture is a candidate (CA±), not the query."""

    pictured: bool
    """``chosen`` are target pictures; else they are targets by their features."""


@final
@dataclass(frozen=True, eq=False)
class Insider:
    """Draws scenes, and measures goals, for one sweep."""

    victim: Victim
    split: Split
    system: RetrievalSystem
    features: Tensor
    """Raw gallery features ``(G, D)``."""
    index: str
    seed: int

    def goal(self, job: Job, names: Sequence[str], labels: Labels, features: Tensor) -> Goal | None:
        """What ``job`` is to achieve with these queries; None if it only has to do harm."""
        wanted = knowledge(job.attack) if job.attack else ()
        if job.attack is None or not {"targets", "candidates", "queries"} & set(wanted):
            return None
        objective = job.attack.objective
        relevant, ignored = self.system.judge(labels, self.system.gallery)
        nearest = isinstance(objective, (MoveCandidates, MoveInRankings)) and not objective.up
        if nearest:  # what stands at the top is to fall
            chosen = top(self.system.index.scores(features), ignored, CHOSEN)[0]
        else:
            count = 1 if "targets" in wanted else CHOSEN
            chosen = self._draw(names, "goal", ~(relevant | ignored), count)
        return Goal(chosen, "queries" in wanted, "targets" in wanted)

    def scene(
        self,
        job: Job,
        names: Sequence[str],
        labels: Labels,
        features: Tensor,
        goal: Goal | None,
    ) -> Scene:
        """What ``job`` is given for these queries."""
        wanted = knowledge(job.attack) if job.attack else ()
        relevant, ignored = self.system.judge(labels, self.system.gallery)
        given = None if goal is None else self.features[goal.chosen]
        pictured = goal is not None and goal.pictured
        rivals = None
        if "others" in wanted:
            rivals = self.features[self._draw(names, "rivals", ~(relevant | ignored), RIVALS)]
        same = None
        if "same" in wanted:
            known = self._draw(names, "known", relevant, KNOWN)
            same = self.features[known]
            # A query without a match has nothing to flee from but itself.
            alone = relevant.sum(1) == 0
            same = torch.where(alone[:, None, None], features[:, None].expand_as(same), same)
        return Scene(
            targets=self._pictures(goal.chosen[:, 0]) if goal is not None and pictured else None,
            candidates=given if "candidates" in wanted else None,
            queries=given if "queries" in wanted else None,
            others=rivals,
            same=same,
            lost=(lambda images, which: self._lost(images, labels[which]))
            if "lost" in wanted
            else None,
        )

    @torch.no_grad()
    def positions(self, goal: Goal, labels: Labels, features: Tensor) -> Tensor:
        """Mean place of what was chosen, among all that is not ignored: ``(B,)``, 1 is first.

        Ties count against the attacker who wants to rise: the other item is ahead.
        """
        if goal.as_candidate:
            return self._as_candidate(goal, features)
        _, ignored = self.system.judge(labels, self.system.gallery)
        scores = self.system.index.scores(features).masked_fill(ignored, -torch.inf)
        own = scores.gather(1, goal.chosen)  # (B, M)
        ahead = torch.stack([(scores >= own[:, [m]]).sum(1) for m in range(own.shape[1])], 1)
        return ahead.double().mean(1)  # an item reaches its own score, so 1 is first

    def _as_candidate(self, goal: Goal, features: Tensor) -> Tensor:
        """Places of the attacked pictures as gallery items, asked by the chosen ones."""
        pictures = build_index(self.index, features, self.victim.similarity)
        places = []
        for column in goal.chosen.T:  # (B,)
            asked = self.features[column]
            scores = self.system.index.scores(asked)  # (B, G)
            own = pictures.scores(asked).diagonal()[:, None]
            junk = self.system.gallery.identities < 0
            ahead = (scores >= own) & ~junk
            ahead.scatter_(1, column[:, None], False)  # whoever asks does not find itself
            places.append(1 + ahead.sum(1))
        return torch.stack(places, 1).double().mean(1)

    def _lost(self, images: Tensor, labels: Labels) -> Tensor:
        seen = self.victim.grid(map(to_picture, images))
        ranking = self.system.rank(extract(self.victim, seen), labels)
        return ~(metrics.first_match(ranking) == 1)

    def _pictures(self, items: Tensor) -> Tensor:
        gallery = self.split.gallery
        return to_pixels(self.victim.grid(gallery.read(i) for i in items.tolist())).to(
            self.victim.device
        )

    def _draw(self, names: Sequence[str], purpose: str, allowed: Tensor, count: int) -> Tensor:
        """``(B, count)`` allowed gallery items; repeated where there are too few."""
        drawn = []
        for name, row in zip(names, allowed.cpu().numpy(), strict=True):
            items = np.flatnonzero(row)
            rng = generator(self.seed, name, purpose)
            if not len(items):
                drawn.append(np.zeros(count, dtype=np.int64))
            else:
                drawn.append(rng.choice(items, count, replace=len(items) < count))
        return torch.from_numpy(np.stack(drawn)).to(allowed.device)
