"""Who plays which part: the pictures that are changed, what their owner knows, and who asks.

Nobody who asks is known to the attacker. Who raises has seen queries, and is measured on those of
other identities. Who lowers has other pictures of the same person from the gallery, and has
seen no query; where queries stand in the gallery themselves, those pictures are not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.attacks.problem import knowledge
from uturn.data.pictures import IntArray
from uturn.data.split import JUNK, Split
from uturn.errors import ArgumentError
from uturn.gallery.plan import GalleryPlan
from uturn.retrieval.index import ExactIndex, top
from uturn.retrieval.judge import Judge, Labels, judge_for
from uturn.rng import generator
from uturn.sweep.insider import RIVALS, Goal
from uturn.sweep.plan import Job
from uturn.types import Scene
from uturn.victims.victim import Victim

_LEAST = 4
"""Gallery pictures of a person who lowers, at the least: half of them are known to each other."""


@final
@dataclass(frozen=True, eq=False)
class Cast:
    """Places in the gallery and among the queries, drawn by the seed."""

    items: IntArray
    """Gallery pictures that are changed ``(N,)``."""
    known: IntArray
    """What the attacker knows: queries to raise for, gallery pictures to lower for ``(K,)``."""
    held: IntArray
    """The queries that ask, of which the attacker knows none ``(Q,)``."""

    @classmethod
    def draw(cls, plan: GalleryPlan, split: Split) -> Cast:
        """Draw the parts.

        Raises:
            ArgumentError: there are too few pictures for them.
        """
        if split.protocol == "listed":
            raise ArgumentError(
                f"{split.name} lists what is relevant, query by query; whose pictures are changed "
                "and who asks is parted by identity, which needs another data set"
            )
        return _raised(plan, split) if plan.aim == "raise" else _lowered(plan, split)


def _raised(plan: GalleryPlan, split: Split) -> Cast:
    gallery, query, seed = split.gallery, split.query, plan.plan.seed
    held = np.flatnonzero(gallery.identities != JUNK)
    items = generator(seed, split.name, "gallery items").permutation(held)[: plan.items]
    people = generator(seed, split.name, "known people").permutation(np.unique(query.identities))
    counts = np.array([(query.identities == person).sum() for person in people])
    # Whole identities, until there are enough.
    seen = people[: int(np.searchsorted(counts.cumsum(), plan.known)) + 1]
    known = np.isin(query.identities, seen)
    if len(items) < plan.items or known.all():
        raise ArgumentError(
            f"{split.name} has {len(held)} gallery pictures to be changed and {len(query)} queries "
            f"of {len(people)} identities; ask for fewer --items, or let fewer be --known"
        )
    return Cast(items, np.flatnonzero(known), _asked(plan, split, np.flatnonzero(~known)))


def _lowered(plan: GalleryPlan, split: Split) -> Cast:
    gallery, query, seed = split.gallery, split.query, plan.plan.seed
    people = np.intersect1d(query.identities, gallery.identities)
    people = generator(seed, split.name, "hidden people").permutation(people[people != JUNK])
    items, known = list[IntArray](), list[IntArray]()
    for person in people.tolist():
        own = np.flatnonzero(gallery.identities == person)
        if len(own) >= _LEAST and sum(map(len, items)) + len(own) <= plan.items:
            items.append(own)
            drawn = generator(seed, split.name, "known pictures", person).permutation(own)
            known.append(drawn[: len(own) // 2])
    if not items:
        raise ArgumentError(
            f"{split.name} has no person with {_LEAST} to {plan.items} pictures in the gallery; "
            "allow more --items"
        )
    names = {gallery.names[place] for part in known for place in part}
    free = np.array([place for place, name in enumerate(query.names) if name not in names])
    hidden = np.isin(query.identities[free], gallery.identities[np.concatenate(items)])
    asked = _asked(plan, split, free, first=hidden)
    return Cast(np.concatenate(items), np.concatenate(known), asked)


def _asked(
    plan: GalleryPlan,
    split: Split,
    places: IntArray,
    first: npt.NDArray[np.bool_] | None = None,
) -> IntArray:
    """So many of the queries at ``places`` as the plan says; those ``first`` are among them."""
    order = generator(plan.plan.seed, split.name, "held-out queries").permutation(len(places))
    if first is not None:
        order = order[np.argsort(~first[order], kind="stable")]
    count = len(places) if plan.queries is None else plan.queries
    if count > len(places):
        raise ArgumentError(
            f"{count} held-out queries of {split.name} asked for, but there are {len(places)}; ask "
            "for fewer --queries, or let fewer be --known"
        )
    return places[order[:count]]


@final
@dataclass(frozen=True, eq=False)
class Owner:
    """What the owner of changed pictures is given, in features."""

    plan: GalleryPlan
    victim: Victim
    split: Split
    cast: Cast
    features: Tensor
    """Raw gallery features ``(G, D)``."""
    queries: Tensor
    """Raw features of all queries, of which only those in ``cast.known`` are looked at."""

    @cached_property
    def gallery(self) -> Labels:
        return Labels.of(self.split.gallery, self.victim.device)

    @cached_property
    def judge(self) -> Judge:
        return judge_for(self.split)

    @cached_property
    def position(self) -> dict[str, int]:
        """By name, where a changed picture stands in the gallery."""
        return {self.split.gallery.names[place]: place for place in self.cast.items.tolist()}

    def goal(self, job: Job, names: Sequence[str], labels: Labels, features: Tensor) -> Goal | None:
        """None: what became of the pictures is measured in the end, on other queries."""
        return None

    def scene(
        self,
        job: Job,
        names: Sequence[str],
        labels: Labels,
        features: Tensor,
        goal: Goal | None,
    ) -> Scene:
        """For whom the pictures ``names`` shall rise or fall, and beside which others."""
        if job.attack is None or not knowledge(job.attack):
            return Scene()
        places = [self.position[name] for name in names]
        if self.plan.aim == "raise":
            return self._to_raise(torch.tensor(places, device=self.victim.device), features)
        return self._to_lower(places, names)

    def _to_raise(self, places: Tensor, features: Tensor) -> Scene:
        """The nearest known queries that they are no answer to, and who leads their rankings."""
        known, leaders = self._leaders
        near = F.normalize(features, dim=1) @ F.normalize(known, dim=1).T  # (B, K)
        relevant, ignored = self._judged
        near = near.masked_fill((relevant | ignored)[:, places].T, -torch.inf)
        closeness, chosen = near.topk(min(self.plan.audience, len(known)), dim=1)  # (B, M)
        if bool((closeness[:, 0] == -torch.inf).any()):
            raise ArgumentError(
                "a picture that is to rise is an answer to all known queries; let more be --known"
            )
        # Where there are fewer, the nearest is told again.
        chosen = chosen.where(closeness > -torch.inf, chosen[:, :1])
        rivals = leaders[chosen].flatten(1)  # (B, M·R)
        return Scene(queries=known[chosen], others=self.features[rivals])

    def _to_lower(self, places: list[int], names: Sequence[str]) -> Scene:
        """Other known pictures of the person, and anybody's."""
        gallery, known = self.split.gallery, self.cast.known
        people = gallery.identities[known]
        others = [
            known[(people == gallery.identities[place]) & (known != place)][: self.plan.audience]
            for place in places
        ]
        # Where one has fewer than another, they are told again in turn.
        same = np.stack([np.resize(own, max(map(len, others))) for own in others])
        anybody = np.flatnonzero(gallery.identities != JUNK)
        rivals = np.stack(
            [
                generator(self.plan.plan.seed, name, "rivals").choice(anybody, RIVALS)
                for name in names
            ]
        )
        near, far = (
            self.features[torch.from_numpy(each).to(self.features.device)]
            for each in (same, rivals)
        )
        return Scene(queries=near, others=far)

    @cached_property
    def _leaders(self) -> tuple[Tensor, Tensor]:
        """Raw features of the known queries ``(K, D)``, and the items that lead each's ranking."""
        known = self.queries[torch.from_numpy(self.cast.known).to(self.queries.device)]
        scores = ExactIndex(self.features, self.victim.similarity).scores(known)
        count = max(1, RIVALS // min(self.plan.audience, len(known)))
        return known, top(scores, self._judged[1], count).items

    @cached_property
    def _judged(self) -> tuple[Tensor, Tensor]:
        """What is relevant to known queries, and what is ignored for them: ``(K, G)`` each."""
        asked = Labels.of(self.split.query.subset(self.cast.known), self.victim.device)
        return self.judge(asked, self.gallery).masks()
