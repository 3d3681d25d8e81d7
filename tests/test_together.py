"""Attacks that climb together: the pictures of each alone, to the bit, for fewer gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import RAW, Tiny
from uturn import Scene, attacks, load_data
from uturn.attacks import load_attack
from uturn.attacks.loop import Attack
from uturn.attacks.problem import Batch
from uturn.attacks.steps import (
    Adam,
    Cosine,
    Linear,
    Momentum,
    Sign,
    Smooth,
    Step,
    UnitL2,
    Variance,
    When,
    chain,
    now,
    number,
)
from uturn.attacks.surrogates import LeakyReLU, Surrogate
from uturn.attacks.threats import L2, LInf, Patch, Threat
from uturn.attacks.together import Share, attack_together, climb
from uturn.attacks.views import Flip, Identity, Neighbour, Noise, ResizePad, View
from uturn.errors import ArgumentError
from uturn.types import Perturbation
from uturn.victims.victim import Victim, to_pixels

EPS = (2, 4, 8, 12, 16)


def tiny(seed: int = 0) -> Victim:
    preprocessing = dataclasses.replace(RAW, size=(8, 6))
    return Victim(
        name="tiny", network=Tiny(seed), preprocessing=preprocessing, classifier=nn.Linear(6, 5)
    )


def pictures(seed: int, count: int = 3) -> Tensor:
    drawn = torch.randint(0, 256, (count, 3, 8, 6), generator=torch.Generator().manual_seed(seed))
    return drawn.byte()


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with every pass back through a victim."""
    passes, engine = list[int](), torch.autograd.graph._engine_run_backward

    def counted(*args: object, **kwargs: object) -> object:
        passes.append(1)
        return engine(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", counted)
    return passes


def all_shares(members: Sequence[Attack], victim: Victim, images: Tensor, seed: int) -> list[Share]:
    names, scene = [f"q{i}" for i in range(len(images))], Scene(targets=to_pixels(images.flip(3)))
    turns = attack_together(members, victim, images, scene, names=names, seed=seed)
    return sorted((share for turn in turns for share in turn), key=lambda share: share.member)


def alone(attack: Attack, victim: Victim, images: Tensor, seed: int) -> Perturbation:
    names, scene = [f"q{i}" for i in range(len(images))], Scene(targets=to_pixels(images.flip(3)))
    return attack(victim, images, scene, names=names, seed=seed)


def assert_as_alone(
    members: Sequence[Attack], victim: Victim, images: Tensor, seed: int
) -> list[Share]:
    shares = all_shares(members, victim, images, seed)
    assert [share.member for share in shares] == [*range(len(members))]
    for attack, share in zip(members, shares, strict=True):
        single = alone(attack, victim, images, seed)
        assert torch.equal(share.found.images, single.images), attack
        assert torch.equal(share.found.losses, single.losses), attack
        assert share.found.gradients == single.gradients
        assert 0 < share.gradients <= single.gradients
    return shares


STEPS: list[Step] = [
    Sign(),
    Sign(Linear(4, 0.5)),
    chain(Momentum(), Sign()),
    chain(Momentum(0.5, nesterov=True), Sign(Cosine(3, 1))),
    chain(Smooth(0.6), Momentum(), Sign(2)),
    chain(Variance(), Sign()),
    Adam(0.7),
    UnitL2(20.0),
]
VIEWS: list[tuple[View, ...]] = [
    (Identity(),),
    (Identity(), Flip()),
    (Identity(), Neighbour(6), Noise(3)),
    (ResizePad(0.3, 0.8), Noise(2)),
]
SURROGATES: list[Surrogate | None] = [None, LeakyReLU(0.2), LeakyReLU(Linear(0.2, 0.0))]
THREATS: list[Callable[[float], Threat]] = [LInf, lambda eps: L2(20 * eps)]


@given(data=st.data(), seed=st.integers(0, 99), views=st.sampled_from(VIEWS))
@settings(max_examples=30, deadline=None)
def test_the_pictures_are_those_of_each_attack_alone(
    data: st.DataObject, seed: int, views: tuple[View, ...]
) -> None:
    """Whatever the members differ in: ε, steps, step, start, surrogate, threat, what is kept."""
    steps = (
        STEPS if len(views) > 1 else [step for step in STEPS if step != chain(Variance(), Sign())]
    )
    member = st.builds(
        lambda eps, threat, step, count, start, keep, surrogate: Attack(
            objective=attacks.odfa(eps=8).objective,
            threat=threat(eps),
            step=step,
            steps=count,
            start=start,
            keep=keep,
            surrogate=surrogate,
            views=views,
            restart=seed % 3,
        ),
        st.sampled_from([1.5, 2, 4, 9]),
        st.sampled_from(THREATS),
        st.sampled_from(steps),
        st.integers(1, 5),
        st.sampled_from(["clean", "sign", "sample"]),
        st.sampled_from(["last", "best"]),
        st.sampled_from(SURROGATES),
    )
    members = data.draw(st.lists(member, min_size=1, max_size=4))
    assert_as_alone(members, tiny(seed), pictures(seed), seed)


PRESETS = ["fast", "basic", "least_likely", "label_smooth", "odfa", "momentum", "uturn", "sma"]
PRESETS += ["pire:steps=9", "tma:steps=9", "odfa:views=identity+noise+pad", "uturn:steps=6"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_at_every_eps_is_as_alone(name: str) -> None:
    members = [load_attack(name, eps=eps) for eps in EPS]
    assert all(isinstance(member, Attack) for member in members)
    assert_as_alone(members, tiny(), pictures(1, 4), 5)  # type: ignore[arg-type]


def test_random_views_are_drawn_as_alone_after_a_split(spent: list[int]) -> None:
    """`boosted` has a trail for each ε; at one ε its lengths share all of the shorter ones."""
    members = [attacks.boosted(eps=4, steps=steps) for steps in (3, 5, 9)]
    all_shares(members, tiny(), pictures(2), 1)
    assert len(spent) == 9 * 3
    other = dataclasses.replace(members[0], step=Sign(3), steps=7)
    assert_as_alone([*members, other], tiny(), pictures(2), 1)


def test_what_is_shared_is_what_was_spent(spent: list[int]) -> None:
    """The shares of a gradient add up to it, and the first gradient of all is one."""
    members = [load_attack(name, eps=eps) for name in ("odfa", "momentum") for eps in EPS]
    shares = all_shares(members, tiny(), pictures(0), 0)  # type: ignore[arg-type]
    assert sum(share.gradients for share in shares) == pytest.approx(len(spent))
    assert len(spent) < sum(member.gradients for member in members) - 45
    assert all(share.found.seconds > 0 for share in shares)


@pytest.mark.parametrize(
    ("names", "most"),
    [(["basic"], 23), (["least_likely"], 23), (["odfa"], 26), (["fast", "basic"], 23)],
)
def test_a_sweep_over_eps_shares_its_prefixes(
    glyph_victim: Victim, spent: list[int], names: list[str], most: int
) -> None:
    """Steps of one level are the same until the ball is left: T(ε) − ε − 1 are an ε's own.

    Where the start is one level out already, T(ε) − ε; the largest ε takes all of its T. The
    first gradient of `fast` is that of `basic`.
    """
    members = [load_attack(name, eps=eps) for name in names for eps in EPS]
    query = load_data("glyphs").query
    images = glyph_victim.grid([query.read(i) for i in (0, 500, 1000)])
    turns = [*attack_together(members, glyph_victim, images)]  # type: ignore[arg-type]
    assert len(spent) == len(turns) == most


def test_attacks_that_never_meet_share_nothing(spent: list[int]) -> None:
    starts = [dataclasses.replace(attacks.odfa(eps=eps), start="sample") for eps in (3, 9)]
    all_shares(starts, tiny(), pictures(0), 0)
    assert len(spent) == sum(attack.gradients for attack in starts)


def test_other_trails_are_refused() -> None:
    pair = [attacks.odfa(eps=2), attacks.basic(eps=2)]
    with pytest.raises(ArgumentError, match="on one trail"):
        next(attack_together(pair, tiny(), pictures(0)))


def test_who_stops_first_arrives_first() -> None:
    members = [attacks.odfa(eps=eps) for eps in (16, 2, 8)]
    problem = members[0].pose(Batch(tiny(), pictures(0)))
    order = [climber.member for turn in climb(problem, members) for climber in turn]
    assert order == [1, 2, 0]


def test_schedules_get_their_numbers_at_any_depth() -> None:
    step = chain(Momentum(), Sign(Linear(5, 1)))
    assert [now(step, When(i, 5)) for i in (0, 4)] == [
        chain(Momentum(), Sign(5.0)),
        chain(Momentum(), Sign(1.0)),
    ]
    assert now(LeakyReLU(Linear(0.2, 0)), When(0, 3)) == now(LeakyReLU(Linear(0.2, 0)), When(0, 9))
    patch = Patch(1, 2, 3, 4)
    assert now(patch, When(0, 3)) is patch
    assert now(None, When(0, 3)) is None
    with pytest.raises(ArgumentError, match="now"):
        number(Linear(2, 1))
