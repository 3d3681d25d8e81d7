"""The gradient step: a whole U-turn on one batch, told per step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import original
from benchmarks.child import apart, side_by_side
from benchmarks.harness import Case, Contender, Do, Done, Role, Target
from benchmarks.peers import PEERS, Embedding, Turned, as_loaded
from benchmarks.setting import EAGER, OURS, QUICKEST, WORKERS, Setting, ready
from uturn.attacks import load_attack
from uturn.attacks.loop import Attack
from uturn.attacks.problem import Batch, certified
from uturn.attacks.together import ways
from uturn.victims.load import load_victim
from uturn.victims.victim import Precision, Victim, to_pixels

EPS, STEPS = 16, 10
"""The budget holds all steps, so that nobody is stopped by it sooner than another."""

BARE = "bare eager forward and backward"
KEPT = "the same, freed memory kept"
BARE_EACH = "the same, a process per core"
FURTHER = "uturn, a further step"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def cases(setting: Setting) -> Iterator[Case]:
    """OSNet x0.25, ResNet-50."""
    for architecture in ("osnet_x0_25", "resnet50"):
        yield turning(setting, architecture)


@final
@dataclass(frozen=True, eq=False)
class Problem:
    """One batch that everybody turns from the same start: a level up or down in every value."""

    victim: Victim
    """Eager and in float32."""
    images: Tensor
    """uint8 ``(B, 3, H, W)``."""
    started: Tensor
    names: list[str]
    home: Tensor
    """Unit features of ``images``, ``(B, D)``."""
    steps: int

    @property
    def attack(self) -> str:
        """Ours, as a spec."""
        return f"odfa:steps={self.steps}"

    @classmethod
    def of(cls, setting: Setting, architecture: str) -> Problem:
        """32 pictures at 256×128."""
        victim = load_victim(setting.spec(architecture), DEVICE)
        images = victim.grid(setting.pictures(setting.size(32, 3)))
        names, steps = [f"picture {i}" for i in range(len(images))], setting.size(STEPS, 3)
        attack = load_attack(f"odfa:steps={steps}", eps=EPS)
        # The start is drawn from (seed, name), whoever climbs from it.
        problem = attack.pose(Batch(victim, images, names=names))  # type: ignore[attr-defined]
        started = problem.clean + problem.start("sign")
        with torch.no_grad():
            home = victim.embed(to_pixels(images))
        return cls(victim, images, started.to(torch.uint8), names, home, steps)


def turning(setting: Setting, architecture: str) -> Case:
    """Bare passes, ours, the peers and the original on one batch."""
    problem = Problem.of(setting, architecture)

    posed = partial(_posed, setting, architecture)

    def at(do: Callable[[Problem], Do], *, keep: bool = False) -> Callable[[], Do]:
        return apart(partial(posed, do), keep=keep)

    def per_core(name: str, role: Role, do: Callable[[Problem], Do]) -> Contender:
        cores = torch.get_num_threads()
        note = f"{cores} batches at the same time, one thread each; told per batch"
        return Contender(name, role, side_by_side(partial(posed, do), cores), note)

    quickest = partial(_by_us, QUICKEST)
    each = per_core(BARE_EACH, "limit", _bare), per_core(WORKERS, "ours", quickest)
    weights = "trained" if setting.real(architecture) else "random"
    height, width = problem.images.shape[-2:]
    return Case(
        work="step",
        name=f"gradient step, {architecture}",
        title=f"U-turn of {problem.steps} steps on {len(problem.images)} pictures of "
        f"{height}×{width}, {weights} weights, on {problem.victim.device}",
        contenders=(
            Contender(BARE, "limit", at(_bare), "channels_last, weights frozen"),
            Contender(KEPT, "limit", at(_bare, keep=True)),
            *(each if DEVICE == "cpu" else ()),
            *(
                Contender(name, "ours", at(partial(_by_us, precision), keep=True))
                for name, precision in OURS.items()
            ),
            Contender(
                FURTHER,
                "ours",
                at(_further, keep=True),
                "steps 2 and on: without the looks at clean pictures and the exact first step, "
                "which attacks of any length have once",
            ),
            *(
                Contender(name, "peer", at(partial(_by_peer, name)), "embedding as two logits")
                for name in PEERS
            ),
            Contender("original loop", "peer", at(_by_original)),
        ),
        reference=BARE,
        targets=tuple(Target(name, 0.45) for name in ("uturn", WORKERS, FURTHER)),
        unit="ms per step",
        per=1000 / problem.steps,
        same_work=lambda done: same_turn(problem, done),
    )


def _bare(problem: Problem) -> Do:
    network, normalise = problem.victim.network, problem.victim.preprocessing.normalise
    pixels = normalise(to_pixels(problem.started).to(problem.victim.device))
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def do() -> Done:
        for _ in range(problem.steps):
            inputs = pixels.detach().requires_grad_()
            loss = F.normalize(network(inputs), dim=1).mul(problem.home).sum()
            torch.autograd.grad(loss, inputs)
        _settle()
        return Done(facts={"gradients": problem.steps})

    return do


def _posed(setting: Setting, architecture: str, do: Callable[[Problem], Do]) -> Do:
    return do(Problem.of(setting, architecture))


def _by_us(precision: Precision | None, problem: Problem) -> Do:
    victim, attack = ready(problem.victim, precision), load_attack(problem.attack, eps=EPS)

    def do() -> Done:
        found = attack(victim, problem.images, names=problem.names)
        _settle()
        return Done(found.images, facts={"gradients": found.gradients})

    return do


def _further(problem: Problem) -> Do:
    victim, attack = ready(problem.victim, QUICKEST), load_attack(problem.attack, eps=EPS)
    assert isinstance(attack, Attack)
    batch = Batch(victim, problem.images, names=problem.names)
    posed = attack.pose(batch)

    def do() -> Done:
        way = ways(posed, attack)
        start, first = next(way), next(way)
        began = time.perf_counter()
        *_, last = first, *way
        found = batch.clean + certified(attack.threat, batch.clean, last.delta)
        _settle()
        seconds = (time.perf_counter() - began) / (last.gradients - first.gradients)
        facts = {"gradients": last.gradients - start.gradients}
        return Done(found.to(torch.uint8), seconds * problem.steps, facts)

    return do


def _by_peer(name: str, problem: Problem) -> Do:
    turn, embedding = PEERS[name](), Embedding(problem.victim)

    def do() -> Done:
        embedding.gradients = 0
        with torch.no_grad():
            home = embedding(to_pixels(problem.images).to(problem.victim.device))
        pixels = to_pixels(problem.started).to(problem.victim.device)
        found = turn(Turned(embedding, home), pixels, EPS, problem.steps)
        _settle()
        images = (found.detach() * 255).round().to(torch.uint8)
        return Done(images, facts={"gradients": embedding.gradients})

    return do


def _by_original(problem: Problem) -> Do:
    network = as_loaded(problem.victim.network)
    white = original.Whitening.of(problem.victim)

    def do() -> Done:
        on = problem.victim.device
        clean = white.white(to_pixels(problem.images).to(on))
        # With a graph that nobody uses, as there.
        home = F.normalize(network(clean.requires_grad_()), dim=1).data
        started = white.white(to_pixels(problem.started).to(on))
        turn = original.u_turn(network, -home)
        found, gradients = turn.climb(white, started, EPS, problem.steps)
        _settle()
        return Done(white.levels(found), facts={"gradients": gradients})

    return do


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def same_turn(problem: Problem, done: Mapping[str, Done]) -> list[str]:
    """Everybody took all gradients, and turned the pictures as far as ours in float32."""
    complaints = [
        f"{name} took {one.facts['gradients']:g} gradients of {problem.steps}"
        for name, one in done.items()
        if one.facts["gradients"] != problem.steps
    ]
    turned = {
        name: cosine(problem, one.product) for name, one in done.items() if one.product is not None
    }
    return complaints + [
        f"{name} reached a cosine of {reached:.3f}, {EAGER} of {turned[EAGER]:.3f}"
        for name, reached in turned.items()
        if reached > turned[EAGER] + 0.05
    ]


@torch.no_grad()
def cosine(problem: Problem, images: Tensor) -> float:
    """Mean cosine of pictures to where they were, by the network in float32."""
    found = problem.victim.embed(to_pixels(images))
    return float((found * problem.home).sum(1).mean())
