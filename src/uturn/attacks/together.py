"""The one loop of `Attack`: attacks on one trail climb together, and share what is the same.

Attacks that look at the same objective through the same views differ in ε, in the number of
steps, or in the step, and yet they often stand at the very same place: from one start, steps of
one level lead all ε the same way until the smallest ball is left, and the first gradient of a
fast attack is that of an iterated one. While their changes are equal, value for value, one
gradient serves them all; each then makes its own update and projection. Where they part, the
group splits, and so do the generators of its views. The pictures are those of every attack alone,
to the bit; one attack alone is a group of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, final

import torch
from torch import Tensor

from uturn.attacks.problem import Batch, Found, Problem, Slope, Start, better, perturbation
from uturn.attacks.steps import Info
from uturn.attacks.threats import Threat
from uturn.errors import ArgumentError
from uturn.types import Levels, Perturbation, Scene
from uturn.victims.victim import Victim

if TYPE_CHECKING:
    from uturn.attacks.loop import Attack

T = TypeVar("T")

EXACT = 1
"""Steps whose gradients are exact even where the search is in half precision. After one level of
change features have hardly moved, and part of how they have is lost in rounding: on Market-1501
half precision from the start leaves `odfa` a Recall@1 of 0.685 at ε = 2; with an exact first step
it is 0.671, in float32 0.670 (docs/speed.md)."""


@final
@dataclass(frozen=True)
class Share:
    """What one of several attacks found, and its part of what they cost together."""

    member: int
    """Its place among the attacks."""

    found: Perturbation
    """As of the attack alone, but for ``seconds``: a gradient that k attacks shared counts a
    k-th of its time for each."""

    gradients: float
    """Gradients per picture, counted likewise; over all the attacks the sum is what was spent."""


def attack_together(
    attacks: Sequence[Attack],
    victim: Victim,
    images: Tensor,
    scene: Scene | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[list[Share]]:
    """Attack uint8 ``images`` ``(B, 3, H, W)`` by every one of ``attacks``.

    Each turn of the iterator takes one step and returns the attacks that are done with it, the
    pictures the same as of ``attack(victim, images, …)``.

    Raises:
        ArgumentError: the attacks are on different trails, or as `Attacker.__call__`.
    """
    trails = {attack.trail for attack in attacks}
    if len(trails) != 1:
        raise ArgumentError(
            f"attacks climb together on one trail, objective, views and restart; got {len(trails)}"
        )
    began = time.perf_counter()
    batch = Batch(victim, images, scene or Scene(), names, seed)
    problem = attacks[0].pose(batch)
    bound = (time.perf_counter() - began) / len(attacks)
    for arrived in climb(problem, attacks):
        shares = []
        for one in arrived:
            attack, began = attacks[one.member], time.perf_counter()
            found = perturbation(attack, batch, Found(one.delta, one.losses, rise=one.rise), began)
            found = replace(found, seconds=found.seconds + one.seconds + bound)
            shares.append(Share(one.member, found, one.gradients))
        yield shares


@final
@dataclass(frozen=True, eq=False)
class Climber:
    """One of the attacks on its way: where it stands, and what is its own."""

    member: int
    attack: Attack
    delta: Levels
    """While others stand at the same place, the same tensor."""
    state: Any
    """Of its step; those who made the same updates hold the very same object."""
    best: tuple[Levels, Tensor] | None = None
    """If the best is kept: the change of the largest objective so far, and that, ``(B,)``."""
    losses: tuple[Tensor, ...] = ()
    """The objective ``(B,)`` before each step."""
    rise: Tensor | None = None
    """`Slope.rise` of the first gradient, ``(B,)``."""
    gradients: float = 0.0
    seconds: float = 0.0


@final
@dataclass(frozen=True, eq=False)
class _Rope:
    """Those who stand at one place before step ``index``, and the problem as they see it next."""

    problem: Problem
    index: int
    climbers: list[Climber]


def climb(problem: Problem, attacks: Sequence[Attack]) -> Iterator[list[Climber]]:
    """Climb ``problem`` by all ``attacks``, each within its own threat.

    Each turn of the iterator takes one step of those who stand at one place and returns who has
    arrived with it, the changes not rounded yet. Whoever has few steps to take goes first, so
    that few places are held at a time.
    """
    ropes = _roped(problem, 0, _set_out(problem, attacks))
    while ropes:
        rope, *waiting = ropes
        arrived, going_on = _ascend(rope)
        ropes = going_on + waiting
        yield arrived


def ways(problem: Problem, attack: Attack) -> Iterator[Climber]:
    """The way of one attack up ``problem``: where it starts, and where it is after every step.

    The last one has arrived. Changes are not rounded yet, and a step is taken only when it is
    asked for.
    """
    ropes = _roped(problem, 0, _set_out(problem, [attack]))
    yield from ropes[0].climbers
    while ropes:
        arrived, ropes = _ascend(ropes[0])
        yield from arrived or ropes[0].climbers


def _set_out(problem: Problem, attacks: Sequence[Attack]) -> Iterator[Climber]:
    """The climbers at their starts, with the states of their steps."""
    numbered = sorted(enumerate(attacks), key=lambda pair: pair[1].steps)
    for near in _groups(numbered, lambda a, b: _starts(a[1]) == _starts(b[1])):
        delta = problem.start(*_starts(near[0][1]))
        unknown = delta, delta.new_full((len(delta),), -torch.inf)
        for alike in _groups(near, lambda a, b: a[1].step == b[1].step):
            state = alike[0][1].step.init(delta)
            for member, attack in alike:
                best = unknown if attack.keep == "best" else None
                yield Climber(member, attack, delta, state, best)


def _starts(attack: Attack) -> tuple[Start, Threat]:
    return attack.start, attack.threat


def _roped(problem: Problem, index: int, climbers: Iterable[Climber]) -> list[_Rope]:
    """Climbers by the place where they stand; each rope draws its views by itself from here."""
    parties = _groups(climbers, lambda a, b: a.delta is b.delta or torch.equal(a.delta, b.delta))
    return [_Rope(problem.fork() if n else problem, index, p) for n, p in enumerate(parties)]


def _ascend(rope: _Rope) -> tuple[list[Climber], list[_Rope]]:
    """One step: who has arrived, and the ropes of those who have not."""
    problem, index, delta = rope.problem, rope.index, rope.climbers[0].delta
    # Whose gradient takes another way back from here waits, its views not drawn yet.
    here, *others = _groups(
        rope.climbers, lambda a, b: a.attack.surrogate_at(index) == b.attack.surrogate_at(index)
    )
    waiting = [_Rope(problem.fork(), index, climbers) for climbers in others]
    began = time.perf_counter()
    slope = problem.slope(delta, here[0].attack.surrogate_at(index), exact=index < EXACT)
    rise = None if index else slope.rise
    moved = [
        replace(
            climber,
            delta=place,
            state=state,
            best=climber.best and better(delta, slope.value, *climber.best),
            losses=(*climber.losses, slope.value),
            rise=climber.rise if index else rise,
            gradients=climber.gradients + climber.attack.looks / len(here),
        )
        for climber, place, state in _moved(problem, index, slope, here)
    ]
    seconds = (time.perf_counter() - began) / len(here)
    moved = [replace(climber, seconds=climber.seconds + seconds) for climber in moved]
    arrived = [_arrived(problem, one) for one in moved if one.attack.steps == index + 1]
    going_on = [one for one in moved if one.attack.steps > index + 1]
    return arrived, _roped(problem, index + 1, going_on) + waiting


def _moved(
    problem: Problem, index: int, slope: Slope, climbers: list[Climber]
) -> Iterator[tuple[Climber, Levels, Any]]:
    """Everyone with the place and the state after a step along ``slope``, each computed once."""
    info = Info(index, views=len(problem.views), first=slope.first)
    for alike in _groups(climbers, lambda a, b: _same_step(a, b, index)):
        step, delta = alike[0].attack.step_at(index), alike[0].delta
        update, state = step.update(slope.grad, alike[0].state, info)
        ahead = delta + update
        for near in _groups(alike, lambda a, b: a.attack.threat == b.attack.threat):
            place = near[0].attack.threat.project(ahead, problem.clean)
            yield from ((climber, place, state) for climber in near)


def _same_step(one: Climber, other: Climber, index: int) -> bool:
    equal = one.attack.step_at(index) == other.attack.step_at(index)
    return equal and one.state is other.state


def _arrived(problem: Problem, climber: Climber) -> Climber:
    """``climber`` at the best place it has been to, where that is what it keeps."""
    if climber.best is None:
        return climber
    began, view = time.perf_counter(), problem.fork()  # the others have drawn nothing yet
    best, _ = better(climber.delta, view.value(climber.delta), *climber.best)
    seconds = climber.seconds + time.perf_counter() - began
    return replace(climber, delta=best, seconds=seconds)


def _groups(items: Iterable[T], alike: Callable[[T, T], bool]) -> list[list[T]]:
    """Items in groups that are ``alike``, in the order of their firsts."""
    groups = list[list[T]]()
    for item in items:
        for group in groups:
            if alike(group[0], item):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups
