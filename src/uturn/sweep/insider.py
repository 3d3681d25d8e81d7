"""What some attackers are given beyond the query, drawn from (seed, name), and how far they got.

A targeted attack gets another person's gallery picture, a rank attack chosen gallery items and
rivals, a guided push known pictures of the same identity, a search for the smallest ε the
ranking's verdict, a black box nothing but the system's answers. The goal is measured in the whole
ranking, not in what was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.objectives import lowers, watched
from uturn.attacks.problem import knowledge
from uturn.data.split import Split
from uturn.retrieval import metrics
from uturn.retrieval.counting import at_least
from uturn.retrieval.extract import extract_decoded
from uturn.retrieval.index import Index, build_index, top
from uturn.retrieval.judge import Labels
from uturn.retrieval.oracle import SystemOracle
from uturn.retrieval.system import RetrievalSystem
from uturn.rng import generator
from uturn.sweep.plan import Job
from uturn.sweep.watch import watch
from uturn.types import Scene
from uturn.victims.preprocessing import stretch, to_images
from uturn.victims.victim import Victim, to_picture, to_pixels

CHOSEN = 5
"""Candidates that a rank attack moves, and queries in whose rankings a candidate is moved."""
RIVALS = 1000
"""Other gallery items that a rank attack compares with."""
_GOALS = {"targets", "candidates", "queries"}
"""What an attack is given that has a goal beyond harm."""
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


def has_goal(job: Job) -> bool:
    """Whether a job is to achieve something in the whole ranking, beyond doing harm."""
    return job.attack is not None and bool(_GOALS & set(knowledge(job.attack)))


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

    @cached_property
    def plain(self) -> Index:
        """The gallery without the stages of a re-ranking."""
        return build_index(self.index, self.features, self.victim.similarity)

    def goal(self, job: Job, names: Sequence[str], labels: Labels, features: Tensor) -> Goal | None:
        """What ``job`` is to achieve with these queries; None if it only has to do harm."""
        if job.attack is None or not has_goal(job):
            return None
        wanted = knowledge(job.attack)
        relevant, ignored = self.system.judge(labels, self.system.gallery).masks()
        if lowers(job.attack.objective):  # what stands at the top is to fall
            chosen = top(self.system.whole.scores(features), ignored, CHOSEN)[0]
        else:
            count = 1 if "targets" in wanted else CHOSEN
            chosen = self._draw(job, names, "goal", ~(relevant | ignored), count)
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
        if not wanted:
            return Scene()
        relevant, ignored = self.system.judge(labels, self.system.gallery).masks()
        given = None if goal is None else self.features[goal.chosen]
        rivals = None
        if "others" in wanted:
            allowed = ~(relevant | ignored)
            rivals = self.features[self._draw(job, names, "rivals", allowed, RIVALS)]
        same = None
        if "same" in wanted:
            known = self._draw(job, names, "known", relevant, KNOWN)
            same = self.features[known]
            # A query without a match has nothing to flee from but itself.
            alone = relevant.sum(1) == 0
            same = torch.where(alone[:, None, None], features[:, None].expand_as(same), same)
        guard = watched(job.attack.objective) if job.attack else None
        return Scene(
            targets=self._pictures(goal.chosen[:, 0]) if goal and goal.pictured else None,
            candidates=given if "candidates" in wanted else None,
            queries=given if "queries" in wanted else None,
            others=rivals,
            same=same,
            lost=(lambda images, which: self._lost(images, labels[which]))
            if "lost" in wanted
            else None,
            watch=watch(guard, self.victim, self.features, ignored) if guard else None,
            oracle=SystemOracle(self.victim, self.system) if "oracle" in wanted else None,
        )

    @torch.no_grad()
    def places(self, goal: Goal, labels: Labels, features: Tensor) -> dict[str, list[Any]]:
        """Columns of per-query values: how the chosen items stand among all not ignored.

        ``goal_rank``: their mean place, 1 is first. ``goal_items``: how many are ranked.
        ``goal_first``: whether nothing else stands before them. Ties count against an attacker
        who wants to rise: the other item is ahead.
        """
        ranked = self._as_candidate if goal.as_candidate else self._as_query
        places, items = ranked(goal, labels, features)  # (B, M), (B,)
        best = 1 if goal.as_candidate else places.shape[1]
        return {
            "goal_rank": places.double().mean(1).tolist(),
            "goal_items": items.tolist(),
            "goal_first": (places <= best).all(1).tolist(),
        }

    def _as_query(self, goal: Goal, labels: Labels, features: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the chosen items in the attacked pictures' rankings."""
        judgement = self.system.judge(labels, self.system.gallery)
        _, ignored = judgement.masks()
        scores = self.system.whole.scores(features).masked_fill_(ignored, -torch.inf)
        own = scores.gather(1, goal.chosen).sort(1, descending=True).values  # (B, M)
        # An item reaches its own score, so 1 is first.
        places = at_least(scores, own, torch.full_like(judgement.items, own.shape[1]))
        return places, judgement.items

    def _as_candidate(self, goal: Goal, labels: Labels, features: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the attacked pictures as gallery items, asked by the chosen ones.

        By the plain index: the scores of a re-ranking depend on who else is in the gallery.
        """
        pictures = build_index(self.index, features, self.victim.similarity)
        junk, places = self.system.gallery.junk, list[Tensor]()
        for column in goal.chosen.T:  # (B,)
            asked = self.features[column]
            scores = self.plain.scores(asked)  # (B, G)
            own = pictures.scores(asked).diagonal()[:, None]
            scores.scatter_(1, column[:, None], -torch.inf)  # whoever asks does not find itself
            scores.index_fill_(1, junk, -torch.inf)
            places.append(1 + at_least(scores, own, torch.ones_like(column)))
        return torch.cat(places, 1), torch.full_like(column, len(self.plain) - len(junk))

    def _lost(self, images: Tensor, labels: Labels) -> Tensor:
        features = extract_decoded(self.victim, map(to_picture, images))
        ranking = self.system.rank(features, labels)
        return ~(metrics.first_match(ranking) == 1)

    def _pictures(self, items: Tensor) -> Tensor:
        gallery = self.split.gallery
        found = [self.victim.canvas(gallery.read(i), "model") for i in items.tolist()]
        height, width, _ = found[0].shape
        # A batch has one shape; where proportions are kept, the first one's.
        shaped = [
            one if one.shape == found[0].shape else stretch(one, height, width) for one in found
        ]
        return to_pixels(to_images(shaped)).to(self.victim.device)

    def _draw(
        self, job: Job, names: Sequence[str], purpose: str, allowed: Tensor, count: int
    ) -> Tensor:
        """``(B, count)`` allowed gallery items; repeated where there are too few."""
        drawn = []
        for name, row in zip(names, allowed.cpu().numpy(), strict=True):
            items = np.flatnonzero(row)
            rng = generator(self.seed + job.repeat, name, purpose)
            if not len(items):
                drawn.append(np.zeros(count, dtype=np.int64))
            else:
                drawn.append(rng.choice(items, count, replace=len(items) < count))
        return torch.from_numpy(np.stack(drawn)).to(allowed.device)
