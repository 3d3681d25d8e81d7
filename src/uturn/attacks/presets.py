"""Attacks by name. A preset is a function of at most nine lines that returns an `Attack`.

Its name here, on the command line and in a result row is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from uturn import specs
from uturn.attacks.blackbox import BlackBox
from uturn.attacks.loop import Attack, iterations
from uturn.attacks.minimal import Minimal
from uturn.attacks.objectives import (
    AtScales,
    AwayFromFeature,
    AwayFromKnown,
    AwayFromPredicted,
    MoveCandidates,
    MoveInRankings,
    Objective,
    OppositeDirection,
    TowardsLeastLikely,
    TowardsNearest,
    TowardsTarget,
    TowardsUniform,
    Turned,
    Unnoticed,
    opposite,
)
from uturn.attacks.paper import PAPER
from uturn.attacks.problem import Attacker, Start
from uturn.attacks.relevance import Relevance
from uturn.attacks.search import Search
from uturn.attacks.steps import Adam, Linear, Momentum, Sign, Smooth, chain
from uturn.attacks.surrogates import LeakyReLU
from uturn.attacks.threats import LInf
from uturn.attacks.universal import RandomSigns, Universal
from uturn.attacks.universal import read as read_universal
from uturn.attacks.views import VIEWS, Neighbour, ResizePad
from uturn.attacks.walks import Antithetic, Estimated, Forward, Guided, Prior, Squares, Walk
from uturn.errors import SpecError
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim


def fast(*, eps: float) -> Attack:
    """Fast gradient sign: one step of ε away from the predicted training class."""
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(eps), steps=1)


def basic(*, eps: float, steps: int | None = None) -> Attack:
    """Basic iterative: steps of one level away from the predicted training class."""
    T = iterations(eps, steps)
    return Attack(objective=AwayFromPredicted(), threat=LInf(eps), step=Sign(), steps=T)


def least_likely(*, eps: float, steps: int | None = None) -> Attack:
    """Least likely: steps of one level towards the least likely training class."""
    T = iterations(eps, steps)
    return Attack(objective=TowardsLeastLikely(), threat=LInf(eps), step=Sign(), steps=T)


def odfa(
    *, eps: float, steps: int | None = None, start: Start = "sign", target: Turned = "unit"
) -> Attack:
    """U-turn (ODFA): steps of one level towards the opposite feature, from a ±1-level start."""
    J = opposite(target)
    T = iterations(eps, steps)
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T, start=start)


def label_smooth(*, eps: float, steps: int | None = None) -> Attack:
    """Label-smooth: steps of one level towards equal training classes."""
    T = iterations(eps, steps)
    return Attack(objective=TowardsUniform(), threat=LInf(eps), step=Sign(), steps=T)


def sma(*, eps: float, steps: int | None = None, start: Start = "sign") -> Attack:
    """Self metric attack: steps of one level away from the raw feature, from a ±1 start."""
    J, T = AwayFromFeature(), iterations(eps, steps)
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T, start=start)


def pire(*, eps: float, steps: int = 100, start: Start = "sign") -> Attack:
    """PIRE: Adam away from the unit feature; its paper takes 100 steps and more."""
    J, step = AwayFromFeature("unit"), Adam(size=0.5)
    return Attack(objective=J, threat=LInf(eps), step=step, steps=steps, start=start)


def tma(*, eps: float, steps: int = 100) -> Attack:
    """Targeted mismatch: Adam towards `Scene.targets`, so that the query is found as them."""
    step = Adam(size=0.5)
    return Attack(objective=TowardsTarget(), threat=LInf(eps), step=step, steps=steps)


def momentum(*, eps: float, steps: int | None = None, decay: float = 1.0) -> Attack:
    """U-turn with momentum (MI): gradients are accumulated before the sign is taken."""
    J, T = OppositeDirection(), iterations(eps, steps)
    step = chain(Momentum(decay), Sign())
    return Attack(objective=J, threat=LInf(eps), step=step, steps=T, start="sign")


def uturn(*, eps: float, steps: int | None = None) -> Attack:
    """Improved U-turn: centred target, falling sizes, momentum, gradients through closed ReLUs."""
    J, T = OppositeDirection(centre=1.0), iterations(eps, steps)
    size, back = Linear(2 * eps, max(0.5, 2 * eps / T)), LeakyReLU(Linear(0.15, 0))
    step, threat = chain(Momentum(min(0.4, T / 40)), Sign(size)), LInf(eps)
    return Attack(objective=J, threat=threat, step=step, steps=T, start="sign", surrogate=back)


def boosted(*, eps: float, steps: int = 12) -> Attack:
    """U-turn for black-box transfer: what neighbours and other places of the picture agree on."""
    J, near, back = OppositeDirection(centre=1.0), Neighbour(2.5 * eps), LeakyReLU(0.3)
    step, threat = chain(Smooth(0.6), Momentum(), Sign(eps / 4)), LInf(eps)
    views, T = (near, near, ResizePad(0.3, 1.0)), iterations(eps, steps)
    return Attack(
        objective=J, threat=threat, step=step, steps=T, views=views, start="sign", surrogate=back
    )


def apgd(*, eps: float, steps: int = 50) -> Search:
    """APGD on `uturn`'s objective and gradient: halves its step by itself, returns the best."""
    attack = replace(uturn(eps=eps, steps=steps), step=Sign(2 * eps))
    return Search(attack=attack)


def _ranked(J: Objective, eps: float, steps: int) -> Attack:
    step = chain(Momentum(0.5), Sign(Linear(eps / 2, 0.5)))
    return Attack(objective=J, threat=LInf(eps), step=step, steps=steps)


def qa_plus(*, eps: float, steps: int = 50) -> Attack:
    """QA+: change the query so that chosen gallery items rise in its ranking."""
    return _ranked(MoveCandidates(up=True), eps, steps)


def qa_minus(*, eps: float, steps: int = 50) -> Attack:
    """QA−: change the query so that chosen gallery items fall in its ranking."""
    return _ranked(MoveCandidates(up=False), eps, steps)


def ca_plus(*, eps: float, steps: int = 50) -> Attack:
    """CA+: change a gallery picture so that it rises in the rankings of chosen queries."""
    return _ranked(MoveInRankings(up=True), eps, steps)


def ca_minus(*, eps: float, steps: int = 50) -> Attack:
    """CA−: change a gallery picture so that it falls in the rankings of chosen queries."""
    return _ranked(MoveInRankings(up=False), eps, steps)


def fna(*, eps: float, steps: int | None = None) -> Attack:
    """FNA: steps of one level away from known pictures of the same identity."""
    J, T = AwayFromKnown(), iterations(eps, steps)
    return Attack(objective=J, threat=LInf(eps), step=Sign(), steps=T)


def lookalike(
    *, eps: float, steps: int = 20, guard: str | None = None, weight: float = 0.05
) -> Attack:
    """Towards the nearest of others' gallery pictures; past a guard that was saved, guard=FILE."""
    J: Objective = TowardsNearest()
    return _ranked(J if guard is None else Unnoticed(J, guard, weight), eps, steps)


def minimal(*, eps: float, by: str = "uturn:steps=20") -> Minimal:
    """The smallest whole ε, up to this one, at which a query loses its first match."""
    LInf(eps)
    return Minimal(ladder=tuple(load_attack(by, eps=e) for e in range(1, int(eps) + 1)))


def universal(*, eps: float, file: str) -> Universal:
    """One perturbation for all pictures, learned before by `uturn universal`."""
    return read_universal(Path(file).expanduser(), eps)


def noise(*, eps: float) -> RandomSigns:
    """Chance: every value goes up or down by ε; what an attack must be better than."""
    return RandomSigns(LInf(eps))


Lent = str | None
"""The spec of another network for the same task, or none."""

STARTS = ("boosted", "uturn:steps=20")
"""What is made on a prior and asked first, in this order."""


def _asking(
    walk: Walk, eps: float, max_queries: int, top: int, scores: bool, prior: Lent
) -> BlackBox:
    lent = None if prior is None else _prior(specs.bare(prior), eps)
    threat, J = LInf(eps), Relevance(scores)
    return BlackBox(
        walk=walk, threat=threat, max_queries=max_queries, top=top, relevance=J, prior=lent
    )


def priors(spec: str) -> list[str]:
    """The specs of the victims that an attack's spec has loaded, whose they may be.

    >>> priors("square:prior=[glyph_net:flip=yes],top=5"), priors("minimal:by=[nes:prior=net]")
    (['glyph_net:flip=yes'], ['net'])
    """
    found = list[str]()
    for key, value in specs.Spec.parse(spec).options.items():
        inner = specs.bare(value)
        found += [inner] if key == "prior" else priors(inner) if ":" in inner else []
    return found


@lru_cache
def _prior(spec: str, eps: float) -> Prior:
    return Prior(_lender(spec), tuple(_climbing(start, eps) for start in STARTS))


@lru_cache(maxsize=4)
def _lender(spec: str) -> Victim:
    return load_victim(spec).folded()


def _climbing(spec: str, eps: float) -> Attack:
    attack = load_attack(spec, eps=eps)
    assert isinstance(attack, Attack)
    return attack


def square(
    *, eps: float, max_queries: int = 1000, top: int = 10, scores: bool = False, prior: Lent = None
) -> BlackBox:
    """Square attack on answers alone: squares at random, kept unless more of the answer is left."""
    return _asking(Squares(), eps, max_queries, top, scores, prior)


def nes(
    *, eps: float, max_queries: int = 1000, top: int = 10, scores: bool = False, prior: Lent = None
) -> BlackBox:
    """NES on answers alone: a gradient is estimated from pairs of probes."""
    return _asking(Estimated(estimator=Antithetic()), eps, max_queries, top, scores, prior)


def rgf(
    *, eps: float, max_queries: int = 1000, top: int = 10, scores: bool = False, prior: Lent = None
) -> BlackBox:
    """RGF on answers alone: a gradient is estimated from probes to one side."""
    return _asking(Estimated(estimator=Forward()), eps, max_queries, top, scores, prior)


def prgf(
    *, eps: float, prior: str, max_queries: int = 1000, top: int = 10, scores: bool = False
) -> BlackBox:
    """P-RGF on answers alone: as rgf, its probes leaning to the gradient of another network."""
    return _asking(Estimated(estimator=Guided()), eps, max_queries, top, scores, prior)


PRESETS: dict[str, Callable[..., Attacker]] = {
    preset.__name__: preset
    for preset in (
        *(fast, basic, least_likely, label_smooth, odfa, uturn, momentum, boosted, sma, pire, apgd),
        *(tma, qa_plus, qa_minus, ca_plus, ca_minus, fna, lookalike, minimal),
        *(universal, noise, square, nes, rgf, prgf),
    )
}


WORST = "worst"
MEMBERS = (
    "odfa:steps=20",
    "uturn:steps=20",
    "uturn:steps=50",
    "uturn:steps=50,restart=1",
    "apgd:steps=50",
    "sma:steps=20",
)
"""What `WORST` takes the worst of, per query. Fixed, free of parameters, and without need of a
classifier, so that worst cases of different victims can be compared."""

Mode = Literal["default", "paper"]

ADJUSTMENTS = ("views", "scales", "restart")
"""Options of every attack that climbs, whatever its preset."""


def load_attack(
    spec: str, *, eps: float, mode: Mode = "default", max_queries: int | None = None
) -> Attacker:
    """Build an attack from a spec such as ``odfa`` or ``odfa:steps=20,views=identity+jpeg75``.

    Beside the preset's own options there are, for every attack that climbs, ``views=A+B``
    (averages over `VIEWS`), ``scales=1+0.5`` (the victim at these scales one by one, see
    `AtScales`) and ``restart=K`` (another random start). In the mode ``paper`` the names mean
    the original implementation's attacks, which take no options. Whoever asks an oracle asks it no
    more than ``max_queries`` pictures per query, whatever the spec says.

    Raises:
        SpecError: unknown attack or option; the message lists the valid ones.
    """
    parsed = specs.Spec.parse(spec)
    if mode == "paper":
        original = PAPER[specs.choose("attack of the paper", parsed.name, PAPER)]
        attack: Attacker = specs.call("attack of the paper", original, parsed, eps=eps)
        return attack
    preset = PRESETS[specs.choose("attack", parsed.name, PRESETS)]
    wanted = {k: v for k, v in parsed.options.items() if k in ADJUSTMENTS}
    options = {k: v for k, v in parsed.options.items() if k not in wanted}
    attack = specs.call(
        "attack", preset, replace(parsed, options=options), elsewhere=ADJUSTMENTS, eps=eps
    )
    if max_queries is not None and isinstance(attack, BlackBox):
        attack = attack.within(max_queries)
    return _adjusted(attack, spec, **wanted) if wanted else attack


def _adjusted(
    attack: Attacker,
    spec: str,
    views: str | None = None,
    scales: str | None = None,
    restart: str | None = None,
) -> Attacker:
    if isinstance(attack, Search):
        inner = _adjusted(attack.attack, spec, views, scales, restart)
        assert isinstance(inner, Attack)
        return replace(attack, attack=inner)
    if not isinstance(attack, Attack):
        raise SpecError(f"{spec!r}: this attack does not climb; it has no {', '.join(ADJUSTMENTS)}")
    if views is not None:
        named = [VIEWS[specs.choose("view", name, VIEWS)] for name in views.split("+")]
        attack = replace(attack, views=tuple(view for group in named for view in group))
    try:
        if scales is not None:
            at = tuple(float(scale) for scale in scales.split("+"))
            attack = replace(attack, objective=AtScales(attack.objective, at))
        if restart is not None:
            attack = replace(attack, restart=int(restart))
    except ValueError:
        raise SpecError(f"{spec!r}: scales are numbers, 1+0.7071+0.5; restart is one") from None
    return attack
