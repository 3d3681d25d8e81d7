"""Walks: where a black-box attack asks next. A walk sees what its pictures are worth, and no more.

It is a generator of its own for every picture. It yields changes ``(n, 3, H, W)`` to be asked
about and is sent what each is worth, ``(n,)``, larger = worse for the victim. It never holds the
search system, so it can neither ask beyond what it is granted nor see other pictures' answers.
What it asks about is rounded inside the threat first. It never ends: it is left where it stands
when there is nothing more to ask with.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeAlias, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from uturn.attacks.loop import Attack
from uturn.attacks.problem import Batch, Problem
from uturn.attacks.threats import LInf
from uturn.rng import generator
from uturn.types import Levels
from uturn.victims.victim import Victim

T = TypeVar("T")

Asking: TypeAlias = Generator[Levels, Tensor, T]
"""Yields changes to be asked about, is sent what they are worth, and returns something."""


@final
@dataclass(frozen=True)
class Prior:
    """Another network for the same task, whose gradients are to be had."""

    victim: Victim
    starts: tuple[Attack, ...]
    """Attacks on it whose pictures are asked first. The slope is that of the first."""

    def on(self, device: torch.device) -> Prior:
        """The same prior on ``device``."""
        return replace(self, victim=replace(self.victim, device=device))


@final
@dataclass(eq=False)
class Guide:
    """A prior at work for one picture. Every gradient that is borrowed is counted."""

    prior: Prior
    image: Tensor
    """uint8 ``(1, 3, H, W)``."""
    name: str
    seed: int
    gradients: int = 0

    def starts(self) -> Iterator[Levels]:
        """What each of the prior's attacks makes of the picture: changes ``(3, H, W)``.

        One is made when it is asked for.
        """
        for attack in self.prior.starts:
            self.gradients += attack.gradients
            found = attack(self.prior.victim, self.image, names=[self.name], seed=self.seed)
            yield found.delta[0]

    def slope(self, delta: Levels) -> Levels:
        """The prior's gradient ``(3, H, W)`` at a change ``(3, H, W)``; other views each time."""
        attack = self.prior.starts[0]
        self.gradients += attack.looks
        return self._problem.slope(delta[None], attack.surrogate_at(0)).grad[0]

    @cached_property
    def _problem(self) -> Problem:
        batch = Batch(self.prior.victim, self.image, names=[self.name], seed=self.seed)
        return self.prior.starts[0].pose(batch)


@final
@dataclass(frozen=True, eq=False)
class Query:
    """One picture to be attacked, as its walk knows it."""

    clean: Levels
    """``(3, H, W)``."""
    threat: LInf
    name: str
    seed: int
    guide: Guide | None = None

    @property
    def reach(self) -> int:
        """The largest change by whole levels."""
        return math.floor(self.threat.eps)

    def rng(self, purpose: str) -> np.random.Generator:
        """Randomness of (seed, name, purpose)."""
        return generator(self.seed, self.name, purpose)

    def stripes(self, count: int, rng: np.random.Generator) -> Levels:
        """``count`` changes ``(n, 3, H, W)`` of stripes one pixel wide, each up or down by ε.

        Networks react strongly to them: Andriushchenko et al., ECCV 2020.
        """
        channels, _, width = self.clean.shape
        signs = 2 * rng.integers(0, 2, (count, channels, 1, width)) - 1
        wide = torch.from_numpy(signs).to(self.clean) * self.reach
        return wide.expand(-1, *self.clean.shape)


class Walk(Protocol):
    """A frozen value that knows where to ask next."""

    def __call__(self, query: Query) -> Asking[None]: ...


def begin(query: Query, count: int, rng: np.random.Generator) -> Asking[tuple[Levels, float]]:
    """The best start and its worth: of the prior's, one by one, or else of ``count`` stripes."""
    if query.guide is None:
        tried = query.stripes(count, rng)
        worth = yield tried
        best = int(worth.argmax())
        return tried[best], float(worth[best])
    found, value = torch.zeros_like(query.clean), -math.inf
    for delta in query.guide.starts():
        worth = yield delta[None]
        if float(worth) >= value:
            found, value = delta, float(worth)
    return found, value


@final
@dataclass(frozen=True, kw_only=True)
class Squares:
    """Random search: a square of the change is replaced, and kept unless the answer got better.

    At a random place all values of a channel go up or down by ε together. A square's area falls
    with the number n of squares tried as ``share · (early / n)^fall``. With a prior every other
    square takes the signs of its gradient in place of random ones.

    The paper's search demands that the loss falls, and its squares soon have few pixels. An
    answer is a list, which most small changes do not move. So what is worth as much is kept too
    (a plateau is walked over, not stood on), squares stay large, and who finds nothing better for
    ``patience`` squares begins anew, with other stripes.

    Source: Andriushchenko et al., "Square Attack: a Query-efficient Black-box Adversarial Attack
    via Random Search", ECCV 2020 (Algorithms 1 and 2, L∞).
    """

    share: float = 0.3
    """Of the picture's area, the first squares'."""
    early: int = 10
    fall: float = 0.5
    least: int = 8
    """Pixels of a side that no square falls below."""
    patience: int = 30
    """Squares that bring nothing, after which the search begins anew, without the prior."""
    starts: int = 8
    """Stripes to begin with, where there is no prior."""

    def __call__(self, query: Query) -> Asking[None]:
        rng = query.rng("squares")
        while True:
            yield from self._search(query, rng)
            query = replace(query, guide=None)

    def _search(self, query: Query, rng: np.random.Generator) -> Asking[None]:
        """From a start until nothing better has come for long."""
        delta, value = yield from begin(query, self.starts, rng)
        slope, number, since = None, 0, 0
        while since < self.patience:
            number, since = number + 1, since + 1
            tried, (rows, columns) = delta.clone(), self._window(rng, delta.shape, number)
            if query.guide is not None and rng.random() < 0.5:
                slope = query.guide.slope(delta) if slope is None else slope
                signs = slope[:, rows, columns].sign()
            else:
                signs = torch.from_numpy(2 * rng.integers(0, 2, (3, 1, 1)) - 1).to(delta)
            tried[:, rows, columns] = query.reach * signs
            worth = float((yield tried[None]))
            if worth > value:
                slope, since = None, 0
            if worth >= value:
                delta, value = tried, worth

    def _window(
        self, rng: np.random.Generator, shape: torch.Size, number: int
    ) -> tuple[slice, slice]:
        _, height, width = shape
        area = self.share * min(1.0, (self.early / number) ** self.fall) * height * width
        side = max(self.least, round(math.sqrt(area)))
        tall, wide = min(side, height), min(side, width)
        top = int(rng.integers(0, height - tall + 1))
        left = int(rng.integers(0, width - wide + 1))
        return slice(top, top + tall), slice(left, left + wide)


class Estimator(Protocol):
    """Estimates a gradient from what pictures near by are worth."""

    def __call__(
        self, query: Query, delta: Levels, value: float, rng: np.random.Generator, sigma: float
    ) -> Asking[Levels | None]:
        """The direction ``(3, H, W)`` in which worth rises at ``delta``, whose own is ``value``.

        ``sigma`` is the root mean square of the probes, in levels. None on a plateau, where all
        of them are worth the same.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Estimated:
    """Climb an estimated gradient: steps of its sign, with momentum.

    Probes reach out as far as may be, and so do steps: near by an answer hardly moves. On a
    plateau the walk goes on as it went, and with other probes. Who finds nothing better in
    ``patience`` steps goes back to the best place, at rest.
    """

    estimator: Estimator
    sigma: float = 1.0
    """Of the probes, in ε."""
    size: float = 1.0
    """Of a step, in ε."""
    decay: float = 0.7
    patience: int = 4
    starts: int = 8
    """Stripes to begin with, where there is no prior."""

    def __call__(self, query: Query) -> Asking[None]:
        rng, reach = query.rng("probes"), query.reach
        delta, value = home, best = yield from begin(query, self.starts, rng)
        went, since = torch.zeros_like(delta), 0
        while True:
            grad = yield from self.estimator(query, delta, value, rng, self.sigma * reach)
            if grad is not None:
                went = self.decay * went + grad / grad.abs().mean()
            ahead = delta + self.size * reach * went.sign()
            delta = query.threat.project(ahead, query.clean)
            value, since = float((yield delta[None])), since + 1
            if value >= best:
                home, best, since = delta, value, 0
            elif since >= self.patience:
                delta, value, went, since = home, best, torch.zeros_like(delta), 0


@final
@dataclass(frozen=True, kw_only=True)
class Antithetic:
    """NES: pairs of probes to both sides, g = Σ (worth(δ + σu) − worth(δ − σu)) u / 2nσ.

    Source: Ilyas et al., "Black-box Adversarial Attacks with Limited Queries and Information",
    ICML 2018. Its probes are of pixels; here cells of pixels move together, as in `Forward`.
    """

    pairs: int = 5
    cell: int = 64
    """Pixels of a cell's side."""

    def __call__(
        self, query: Query, delta: Levels, value: float, rng: np.random.Generator, sigma: float
    ) -> Asking[Levels | None]:
        probes = _directions(rng, self.pairs, delta, self.cell)
        worth = yield torch.cat([delta + sigma * probes, delta - sigma * probes])
        up, down = worth.chunk(2)
        return _weighted(up - down, probes)


@final
@dataclass(frozen=True, kw_only=True)
class Forward:
    """RGF: probes to one side, g = Σ (worth(δ + σu) − worth(δ)) u / qσ.

    Source: Cheng et al., "Improving Black-box Adversarial Attacks with a Transfer-based Prior",
    NeurIPS 2019 (RGF with its data-dependent prior: probes that are constant on cells).
    """

    probes: int = 10
    cell: int = 64
    """Pixels of a cell's side."""

    def __call__(
        self, query: Query, delta: Levels, value: float, rng: np.random.Generator, sigma: float
    ) -> Asking[Levels | None]:
        probes = _directions(rng, self.probes, delta, self.cell)
        worth = yield delta + sigma * probes
        return _weighted(worth - value, probes)


@final
@dataclass(frozen=True, kw_only=True)
class Guided:
    """P-RGF: probes that lean to the prior's gradient v, by as much as v is worth.

    A probe is u = √λ v + √(1 − λ) w with random w orthogonal to v. A step along v and a few
    along w tell ρ, how much the gradient is like v against what of it lies in the cells, and

        λ = (1 − ρ (d + 2q − 2)) / (1 + ρ² d² − 2ρ (q + dq − 1)),

    0 where ρ ≤ 1 / (d + 2q − 2), 1 where ρ ≥ (2q − 1) / d, is the λ of q probes and d cells that
    estimates best. Where v and w make no difference at all, v is followed: it is all there is.

    Source: Cheng et al., NeurIPS 2019 (P-RGF with the data-dependent prior).
    """

    probes: int = 8
    norms: int = 3
    """Random probes that tell how long the gradient is."""
    cell: int = 64
    """Pixels of a cell's side."""

    def __call__(
        self, query: Query, delta: Levels, value: float, rng: np.random.Generator, sigma: float
    ) -> Asking[Levels | None]:
        assert query.guide is not None  # `BlackBox` has seen to it
        prior = _unit(query.guide.slope(delta)[None])
        others = _directions(rng, self.norms, delta, self.cell)
        worth = yield delta + sigma * torch.cat([prior, others])
        along, across = worth[0] - value, worth[1:] - value
        if not bool(across.any()):
            return prior[0] if along >= 0 else -prior[0]
        count = math.prod(_coarse(delta, self.cell))
        weight = leaning(float(along**2 / (count * across.square().mean())), count, self.probes)
        if weight == 1:
            return prior[0] if along >= 0 else -prior[0]
        drawn = _directions(rng, self.probes, delta, self.cell)
        drawn = _unit(drawn - (drawn * prior).mean((1, 2, 3), keepdim=True) * prior)
        probes = math.sqrt(weight) * prior + math.sqrt(1 - weight) * drawn
        worth = yield delta + sigma * probes
        return _weighted(worth - value, probes)


def leaning(likeness: float, count: int, probes: int) -> float:
    """How much probes should lean to a prior: λ in [0, 1] of `Guided`.

    ``likeness`` is ρ, the squared cosine of prior and gradient over the squared share of the
    gradient that lies in a subspace of ``count`` dimensions.

    >>> leaning(0, 384, 15), leaning(0.1, 384, 15), leaning(2, 384, 15)
    (0.0, 1.0, 1.0)
    """
    d, q = count, probes
    if likeness * (d + 2 * q - 2) <= 1:
        return 0.0
    if likeness * d >= 2 * q - 1:
        return 1.0
    above = 1 - likeness * (d + 2 * q - 2)
    return above / (1 + likeness**2 * d**2 - 2 * likeness * (q + d * q - 1))


def _coarse(like: Levels, cell: int) -> tuple[int, int, int]:
    channels, height, width = like.shape
    return channels, math.ceil(height / cell), math.ceil(width / cell)


def _directions(rng: np.random.Generator, count: int, like: Levels, cell: int) -> Tensor:
    """Random directions ``(n, 3, H, W)``, constant on cells, of root mean square 1."""
    drawn = torch.from_numpy(rng.standard_normal((count, *_coarse(like, cell)))).to(like)
    blocks = drawn.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return _unit(blocks[:, :, : like.shape[1], : like.shape[2]])


def _unit(directions: Tensor) -> Tensor:
    """Directions ``(n, 3, H, W)`` at root mean square 1."""
    length = directions.square().mean((1, 2, 3), keepdim=True).sqrt()
    return directions / length.clamp_min(torch.finfo(directions.dtype).tiny)


def _weighted(gains: Tensor, probes: Tensor) -> Levels | None:
    """The probes' sum ``(3, H, W)``, each weighted by its gain; None if none gained or lost."""
    if not bool(gains.any()):
        return None
    return (gains.to(probes)[:, None, None, None] * probes).sum(0)
