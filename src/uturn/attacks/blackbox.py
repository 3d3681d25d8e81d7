"""Black boxes: attacks that use nothing but a search system's answers, and count every picture.

Here is the only place where an oracle is asked. A walk (`uturn.attacks.walks`) proposes, the answer
is turned into what it is worth (`uturn.attacks.relevance`), and the walk is told. Pictures go on
side by side, each by itself; nobody's gradient is touched but the prior's.

A walk does not know how often it may ask. What is found with 100 pictures asked is therefore what a
search for 1,000 had found by then, and attacks that differ in that number alone go together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from uturn.attacks.problem import Attacker, Batch, Found, certified, perturbation
from uturn.attacks.relevance import Relevance, Worth
from uturn.attacks.threats import LInf
from uturn.attacks.together import Share
from uturn.attacks.walks import Asking, Guide, Prior, Query, Walk
from uturn.errors import ArgumentError, BudgetError
from uturn.types import Answer, Levels, Oracle, Scene
from uturn.victims.victim import Victim


@final
@dataclass(frozen=True, kw_only=True)
class BlackBox:
    """Ask ``scene.oracle`` about ever other pictures, and keep the one that is worth most.

    The clean picture is asked first, and counted. A picture is done when ``max_queries`` are
    asked, or when nothing of its clean answer is left and ids cannot tell more. Of pictures that
    are worth the same the last is kept: what has changed without effect is nearer to one.
    """

    walk: Walk
    threat: LInf
    max_queries: int = 1000
    """Pictures asked per query, the clean one included; no more in any case."""

    top: int = 10
    """Length of the answers."""

    relevance: Relevance = field(default_factory=Relevance)
    prior: Prior | None = None
    objective: None = None
    gradients: int = 0
    """Of the victim. Those of the prior are counted by themselves."""

    def __post_init__(self) -> None:
        if self.max_queries < 2:
            raise ArgumentError(
                f"max_queries must be at least 2, the clean picture and one other, got "
                f"{self.max_queries}"
            )
        if self.top < 1:
            raise ArgumentError(f"an answer has at least 1 item, got top={self.top}")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("oracle",)

    @property
    def trail(self) -> BlackBox:
        """What the way depends on. Attacks on one trail go together (`asked_together`)."""
        return replace(self, max_queries=2)

    def within(self, max_queries: int) -> BlackBox:
        """The same attack, which asks no more than ``max_queries`` either."""
        return replace(self, max_queries=min(self.max_queries, max_queries))

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        """The change that is worth most, and what it took."""
        (found,) = (found for arrived in _search(batch, [self]) for _, found in arrived)
        return found


def asks(attack: Attacker) -> int:
    """How many pictures ``attack`` may ask an oracle per query."""
    return attack.max_queries if isinstance(attack, BlackBox) else 0


def asked_together(
    attacks: Sequence[BlackBox],
    victim: Victim,
    images: Tensor,
    scene: Scene | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[list[Share]]:
    """Attack uint8 ``images`` ``(B, 3, H, W)`` by ``attacks`` that differ in ``max_queries`` only.

    Each turn of the iterator returns those that have arrived, their pictures and counts the same
    as of ``attack(victim, images, …)``: who may ask 100 has asked the first 100 of who may 1,000.

    Raises:
        ArgumentError: they differ in more, there is no oracle, or as `Attacker.__call__`.
    """
    if len({attack.trail for attack in attacks}) != 1:
        raise ArgumentError("black boxes go together that differ in max_queries and nothing else")
    began = time.perf_counter()
    batch, going = Batch(victim, images, scene or Scene(), names, seed), len(attacks)
    waited = 0.0
    for arrived in _search(batch, attacks):
        spent, began = time.perf_counter() - began, time.perf_counter()
        waited += spent / going
        going -= len(arrived)
        shares = []
        for member, found in arrived:
            end = perturbation(attacks[member], batch, found, time.perf_counter())
            shares.append(Share(member, replace(end, seconds=end.seconds + waited), gradients=0.0))
        yield shares


@final
@dataclass(frozen=True, eq=False)
class Counted:
    """An oracle that is asked no more than ``most`` pictures per query; it counts them."""

    oracle: Oracle
    most: int
    asked: list[int]
    """Per query."""

    def __call__(self, pictures: Tensor, which: Sequence[int], k: int) -> Sequence[Answer]:
        """Answers for uint8 ``pictures`` ``(n, 3, H, W)``, asked for queries number ``which``.

        Raises:
            BudgetError: it would be too many; then nobody is asked (a bug in who asks).
            ArgumentError: not one answer for each picture.
        """
        then = list(self.asked)
        for number in which:
            then[number] += 1
        if max(then) > self.most:
            raise BudgetError(f"a query would be asked {max(then)} times, {self.most} are allowed")
        # Who is asked has been asked, whatever becomes of the answer.
        self.asked[:] = then
        answers = self.oracle(pictures, k)
        if len(answers) != len(pictures):
            raise ArgumentError(
                f"the oracle gives {len(answers)} answers for {len(pictures)} pictures; it must "
                "give one each, in their order"
            )
        return answers


@final
@dataclass(frozen=True, eq=False)
class _Milestone:
    """What the search for one picture had come to when so many were asked."""

    best: Levels
    values: list[float]
    """The best worth after every picture asked."""
    prior_gradients: int


@final
@dataclass(eq=False)
class _Seeker:
    """The search for one picture: its walk, and the best it has come by."""

    query: Query
    worth: Worth
    most: float
    """What no picture is worth more than: there is nothing left to be told."""
    marks: list[int]
    """Pictures asked at which a milestone is set, ascending."""
    walking: Asking[None]
    wanted: Levels | None
    """What the walk waits to be told about; None if it is done."""
    best: Levels
    values: list[float]
    """The best worth after every picture asked, the clean one first."""
    milestones: list[_Milestone] = field(default_factory=list)

    @classmethod
    def set_out(cls, attack: BlackBox, marks: list[int], query: Query, clean: Answer) -> _Seeker:
        """Begin at the clean picture, whose answer is known."""
        walking, worth = attack.walk(query), attack.relevance.bind(clean)
        return cls(
            query=query,
            worth=worth,
            most=attack.relevance.most,
            marks=marks,
            walking=walking,
            wanted=next(walking),
            best=torch.zeros_like(query.clean),
            values=[worth(clean)],
        )

    def propose(self) -> Levels | None:
        """The next changes ``(n, 3, H, W)`` to ask about, as many as may be; None if done."""
        if self.wanted is None:
            return None
        clean, threat = self.query.clean.expand_as(self.wanted), self.query.threat
        allowed = certified(threat, clean, threat.project(self.wanted, clean))
        return allowed[: self.marks[-1] - len(self.values)]

    def learn(self, tried: Levels, answers: Sequence[Answer]) -> None:
        """Take in the answers about the changes ``tried``, and let the walk go on."""
        told = [self.worth(answer) for answer in answers]
        for delta, value in zip(tried, told, strict=True):
            done = self.values[-1] >= self.most
            if value >= self.values[-1] and not done:
                self.best = delta
            self.values.append(max(value, self.values[-1]))
            if len(self.values) in self.marks:
                self._set_milestone()
        if self.values[-1] >= self.most or len(self.values) == self.marks[-1]:
            self.wanted = None
            while len(self.milestones) < len(self.marks):
                self._set_milestone()
        else:
            self.wanted = self.walking.send(torch.tensor(told, dtype=torch.float64))

    def _set_milestone(self) -> None:
        guide = self.query.guide
        borrowed = guide.gradients if guide else 0
        self.milestones.append(_Milestone(self.best, list(self.values), borrowed))


def _search(batch: Batch, attacks: Sequence[BlackBox]) -> Iterator[list[tuple[int, Found]]]:
    """What each of ``attacks`` finds, as soon as every picture has asked as often as it may."""
    attack, oracle = attacks[0], batch.scene.oracle
    if oracle is None:
        raise ArgumentError("a black box is attacked by asking it: pass Scene(oracle=…)")
    marks = sorted({attack.max_queries for attack in attacks})
    counted = Counted(oracle, marks[-1], [0] * len(batch.images))
    prior = attack.prior and attack.prior.on(batch.victim.device)
    answers = counted(batch.images, range(len(batch.images)), attack.top)
    seekers = [
        _Seeker.set_out(attack, marks, _query(attack.threat, batch, i, prior), answer)
        for i, answer in enumerate(answers)
    ]
    arrived = 0
    while arrived < len(marks):
        proposed = [seeker.propose() for seeker in seekers]
        which = [
            i for i, changes in enumerate(proposed) for _ in (() if changes is None else changes)
        ]
        if which:
            changes = torch.cat([each for each in proposed if each is not None])
            pictures = (batch.clean[which] + changes).to(torch.uint8).cpu()
            told = iter(counted(pictures, which, attack.top))
            for seeker, each in zip(seekers, proposed, strict=True):
                if each is not None:
                    seeker.learn(each, [next(told) for _ in each])
        while arrived < len(marks) and all(len(s.milestones) > arrived for s in seekers):
            found = _found([seeker.milestones[arrived] for seeker in seekers])
            yield [(n, found) for n, a in enumerate(attacks) if a.max_queries == marks[arrived]]
            arrived += 1


def _query(threat: LInf, batch: Batch, number: int, prior: Prior | None) -> Query:
    image, name = batch.images[number : number + 1], batch.keys[number]
    guide = Guide(prior, image, name, batch.seed) if prior else None
    return Query(batch.clean[number], threat, name, batch.seed, guide)


def _found(milestones: Sequence[_Milestone]) -> Found:
    longest = max(len(one.values) for one in milestones)
    values = [one.values + one.values[-1:] * (longest - len(one.values)) for one in milestones]
    return Found(
        delta=torch.stack([one.best for one in milestones]),
        losses=list(torch.tensor(values).T),
        asked=torch.tensor([len(one.values) for one in milestones]),
        prior_gradients=max(one.prior_gradients for one in milestones),
    )
