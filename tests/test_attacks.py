"""Attacks against closed forms on linear victims, and the promises that hold for every attack."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical

from tests.conftest import RAW, Tiny, linear_victim, normal
from uturn import Scene, attacks, load_data
from uturn.attacks.loop import Attack
from uturn.attacks.objectives import (
    AtScales,
    AwayFromKnown,
    MoveCandidates,
    MoveInRankings,
    OppositeDirection,
    TowardsTarget,
)
from uturn.attacks.presets import PRESETS, iterations, load_attack
from uturn.attacks.problem import Batch
from uturn.attacks.search import Search
from uturn.attacks.steps import Adam, Cosine, Linear, Momentum, Sign, Smooth, UnitL2, chain
from uturn.attacks.surrogates import LeakyReLU
from uturn.attacks.threats import L2, LInf, Patch
from uturn.attacks.views import SCALES, Flip, Identity, Jpeg, Noise, ResizePad
from uturn.errors import ArgumentError, BudgetError, SpecError
from uturn.retrieval.extract import extract
from uturn.rng import generator
from uturn.victims.victim import Victim, to_pixels

RAW_TURN = OppositeDirection("raw")

CLIMBING = {
    name: preset
    for name, preset in PRESETS.items()
    if name not in ("universal", "noise", "minimal", "qa_plus", "qa_minus", "ca_plus", "ca_minus")
    and name not in ("fna", "lookalike", "square", "nes", "rgf", "prgf")
}
"""Presets that need no knowledge of a gallery."""
LOOPED = {name: preset for name, preset in CLIMBING.items() if name != "apgd"}
"""Those on the one loop, whose pieces can be exchanged."""


def head(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [2, 4, 8])
def test_odfa_on_a_linear_victim_reaches_the_optimum(pictures: Tensor, eps: int) -> None:
    """F(x) = w·x + b: the raw objective is climbed along −sign(F) w, by ε‖w‖₁ at the most."""
    w = normal(1, 3, 8, 4)
    victim = linear_victim(w, torch.tensor([50.0]))  # F stays positive: −F is out of reach
    found = attacks.odfa(eps=eps, target="raw", steps=2 * eps)(victim, pictures)
    assert torch.equal(found.delta, (-eps * w.sign()).expand_as(found.delta))
    gain = victim.features(to_pixels(found.images)) - victim.features(to_pixels(pictures))
    assert gain.flatten().tolist() == pytest.approx(
        [-eps / 255 * float(w.abs().sum())] * 5, abs=1e-4
    )


def test_odfa_with_unit_features_reaches_a_vertex_that_turns_the_feature(pictures: Tensor) -> None:
    """f = (w·x + b, 1) / ‖·‖ turns monotonically with w·x: the optimum is a vertex ±ε sign(w)."""
    w = torch.cat([normal(1, 3, 8, 4), torch.zeros(1, 3, 8, 4)])
    b = torch.stack([-(w[0] * 0.5).sum(), torch.tensor(1.0)])
    victim = linear_victim(w, b)
    found = attacks.odfa(eps=4, steps=10)(victim, pictures)
    vertex = 4 * w[0].sign()
    ends = [bool(torch.equal(d, vertex) or torch.equal(d, -vertex)) for d in found.delta]
    assert all(ends)
    cosine = (victim.embed(to_pixels(found.images)) * victim.embed(to_pixels(pictures))).sum(1)
    assert bool((cosine < 0.999).all())


def test_l2_on_a_linear_victim_gains_eps_times_the_norm(pictures: Tensor) -> None:
    """The optimum of w·δ in the ball is ε w/‖w‖₂; L2 needs no attack of its own."""
    w, eps = normal(1, 3, 8, 4), 40.0
    victim = linear_victim(w, torch.tensor([50.0]))
    attack = Attack(objective=RAW_TURN, threat=L2(eps), step=UnitL2(2 * eps), steps=2)
    clean = pictures.float()
    delta = attack.climb(attack.pose(Batch(victim, pictures))).delta
    gain = victim.features((clean + delta) / 255) - victim.features(clean / 255)
    assert gain.flatten().tolist() == pytest.approx([-eps / 255 * float(w.norm())] * 5, abs=1e-4)
    # On the 8-bit lattice nearly all of it is left, and the length is never exceeded.
    found = attack(victim, pictures)
    gain = victim.features(to_pixels(found.images)) - victim.features(clean / 255)
    assert bool((gain < -0.97 * eps / 255 * w.norm()).all())
    assert bool((found.delta.flatten(1).norm(dim=1) <= eps).all())


def test_a_patch_changes_nothing_outside_itself(pictures: Tensor) -> None:
    """Inside, the optimum on a linear victim is black or white by the sign of w."""
    w = normal(1, 3, 8, 4)
    victim = linear_victim(w, torch.tensor([50.0]))
    patch = Patch(top=2, left=1, height=3, width=2)
    attack = Attack(objective=RAW_TURN, threat=patch, step=Sign(255), steps=2)
    found = attack(victim, pictures)
    inside = torch.zeros(8, 4, dtype=torch.bool)
    inside[2:5, 1:3] = True
    assert bool((found.delta[..., ~inside] == 0).all())
    expected = torch.where(w[0] > 0, 0, 255)[..., inside]
    assert torch.equal(found.images[..., inside].long(), expected.expand(5, -1, -1))


@pytest.mark.parametrize("threat", [LInf(6), LInf(2.5), L2(30), Patch(1, 1, 3, 2)])
def test_threats_project_onto_themselves_and_sample_inside(threat, pictures: Tensor) -> None:
    clean, wild = pictures.float(), 300 * normal(5, 3, 8, 4)
    rngs = [generator(0, str(i)) for i in range(5)]
    for delta in (threat.project(wild, clean), threat.sample(clean, rngs)):
        assert bool((clean + delta >= 0).all() & (clean + delta <= 255).all())
        assert bool((threat.size(delta) <= threat.size(delta).max()).all())
        torch.testing.assert_close(threat.project(delta, clean), delta, rtol=0, atol=1e-3)
        whole = threat.round(delta, clean)
        assert torch.equal(whole, whole.round())
        assert bool(threat.allows(threat.size(whole)).all())
        assert float((whole - delta).abs().max()) <= 1.0


def test_class_based_attacks_on_two_classes(pictures: Tensor) -> None:
    """The logit difference is linear, so the best change is ±ε sign(its weight)."""
    w = normal(2, 3, 8, 4)
    classifier = head(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    # A bias that keeps the softmax away from saturation, where its gradient would vanish.
    b = -(w * 0.5).sum((1, 2, 3))
    victim = linear_victim(w, b, classifier)
    predicted = victim.logits(to_pixels(pictures)).argmax(1)
    towards = torch.where(predicted[:, None, None, None] == 0, w[1] - w[0], w[0] - w[1]).sign()
    for attack in (
        attacks.fast(eps=3),
        attacks.basic(eps=3, steps=3),
        attacks.least_likely(eps=3, steps=3),
    ):
        assert torch.equal(attack(victim, pictures).delta, 3 * towards)


# -- the right direction on a real network ---------------------------------------------------------


@pytest.fixture(scope="module")
def glyph_queries(glyph_victim: Victim) -> Tensor:
    query = load_data("glyphs").query
    return glyph_victim.grid([query.read(i) for i in range(0, 6000, 500)])


@pytest.fixture(scope="module")
def glyph_gallery(glyph_victim: Victim) -> Tensor:
    """Raw features of all twelve faces of the twelve queried identities, ``(144, 128)``."""
    gallery = load_data("glyphs").gallery
    near = [12 * (i // 12) + face for i in range(0, 6000, 500) for face in range(12)]
    return extract(glyph_victim, glyph_victim.grid([gallery.read(i) for i in near]))


def test_every_preset_climbs_its_objective(glyph_victim: Victim, glyph_queries: Tensor) -> None:
    """A flipped sign anywhere fails here."""
    clean = to_pixels(glyph_queries)
    scene = Scene(targets=clean.roll(1, 0))
    for name, preset in CLIMBING.items():
        attack = preset(eps=8)
        loss = attack.objective.bind(glyph_victim, clean, scene)
        names = [str(i) for i in range(12)]
        inner = attack.attack if isinstance(attack, Search) else attack
        problem = inner.pose(Batch(glyph_victim, glyph_queries, scene, names=names))
        start = problem.start(inner.start) / 255
        found = attack(glyph_victim, glyph_queries, scene, names=names)
        gained = loss(to_pixels(found.images)) - loss(clean + start)
        assert bool((gained > 0).all()), name


def test_label_smooth_evens_the_classes_out(glyph_victim: Victim, glyph_queries: Tensor) -> None:
    found = attacks.label_smooth(eps=8)(glyph_victim, glyph_queries)
    entropy = [
        Categorical(logits=glyph_victim.logits(to_pixels(images))).entropy()
        for images in (glyph_queries, found.images)
    ]
    assert bool((entropy[1] > entropy[0]).all())


def normalised_ranks(victim: Victim, changed: Tensor, gallery: Tensor, chosen: Tensor) -> Tensor:
    """Mean position of the chosen items in the rankings of ``changed``: 0 first, 1 last."""
    scores = victim.embed(to_pixels(changed)) @ torch.nn.functional.normalize(gallery, dim=1).T
    ranks = scores.argsort(1, descending=True).argsort(1).float() / (len(gallery) - 1)
    return ranks.gather(1, chosen).mean(1)


@pytest.mark.parametrize("up", [True, False])
def test_query_attack_moves_chosen_candidates(
    glyph_victim: Victim, glyph_queries: Tensor, glyph_gallery: Tensor, up: bool
) -> None:
    """QA+ and QA−: the candidates stand in the middle of the ranking, or at its top."""
    scores = (
        glyph_victim.embed(to_pixels(glyph_queries))
        @ torch.nn.functional.normalize(glyph_gallery, dim=1).T
    )
    order = scores.argsort(1, descending=True)
    chosen = order[:, 60:63] if up else order[:, :3]
    scene = Scene(
        candidates=glyph_gallery[chosen], others=glyph_gallery.expand(len(glyph_queries), -1, -1)
    )
    attack = dataclasses.replace(attacks.odfa(eps=8), objective=MoveCandidates(up), start="clean")
    found = attack(glyph_victim, glyph_queries, scene)
    before = normalised_ranks(glyph_victim, glyph_queries, glyph_gallery, chosen)
    after = normalised_ranks(glyph_victim, found.images, glyph_gallery, chosen)
    assert float((after - before).mean()) < -0.2 if up else float((after - before).mean()) > 0.2


@pytest.mark.parametrize("up", [True, False])
def test_candidate_attack_moves_the_picture_itself(
    glyph_victim: Victim, glyph_queries: Tensor, glyph_gallery: Tensor, up: bool
) -> None:
    """CA+ and CA−: the changed picture's share of rivals ahead of it, for three queries."""
    own = glyph_victim.embed(to_pixels(glyph_queries))
    unit = torch.nn.functional.normalize(glyph_gallery, dim=1)
    order = (own @ unit.T).argsort(1, descending=True)
    queries = glyph_gallery[order[:, 60:63] if up else order[:, :3]]
    others = glyph_gallery.expand(len(glyph_queries), -1, -1)

    def ahead(images: Tensor) -> Tensor:
        asked = torch.nn.functional.normalize(queries, dim=2)  # (B, 3, D)
        score = asked @ glyph_victim.embed(to_pixels(images))[:, :, None]  # (B, 3, 1)
        return (asked @ unit.T > score).float().mean((1, 2))

    attack = dataclasses.replace(attacks.odfa(eps=8), objective=MoveInRankings(up), start="clean")
    found = attack(glyph_victim, glyph_queries, Scene(queries=queries, others=others))
    moved = float((ahead(found.images) - ahead(glyph_queries)).mean())
    assert moved < -0.2 if up else moved > 0.2


def test_guided_push_leaves_the_known_pictures(
    glyph_victim: Victim, glyph_queries: Tensor, glyph_gallery: Tensor
) -> None:
    """The gallery of these queries is laid out identity by identity, twelve pictures each."""
    same = glyph_gallery.view(len(glyph_queries), -1, 128)
    attack = dataclasses.replace(attacks.odfa(eps=8), objective=AwayFromKnown(), start="clean")
    found = attack(glyph_victim, glyph_queries, Scene(same=same))

    def closeness(images: Tensor) -> Tensor:
        feature = glyph_victim.embed(to_pixels(images))[:, :, None]
        return (torch.nn.functional.normalize(same, dim=2) @ feature).mean((1, 2))

    assert bool((closeness(found.images) < closeness(glyph_queries) - 0.2).all())


def test_objectives_say_which_knowledge_they_lack(
    glyph_victim: Victim, glyph_queries: Tensor
) -> None:
    for objective, message in (
        (
            MoveCandidates(True),
            "Scene\\(candidates=…\\): features of shape \\(12, M, D\\), got nothing",
        ),
        (MoveInRankings(True), r"Scene\(queries=…\)"),
        (AwayFromKnown(), r"Scene\(same=…\)"),
    ):
        attack = dataclasses.replace(attacks.odfa(eps=8), objective=objective)
        with pytest.raises(ArgumentError, match=message):
            attack(glyph_victim, glyph_queries)


class Halves(nn.Module):
    """A feature of two parts, the upper and the lower half of the picture."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)  # (D, 3, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.stack(x.chunk(2, dim=2), 1)  # (B, 2, 3, 4, 4)
        return (halves[:, :, None] * self.weight).sum((3, 4, 5))  # (B, 2, D)


@pytest.mark.parametrize("preset", ["odfa", "sma", "uturn", "tma"])
def test_every_part_is_pushed(pictures: Tensor, preset: str) -> None:
    """PCB-style features: each part turns, and the loss is the mean over the parts."""
    victim = Victim(name="parts", network=Halves(normal(6, 3, 4, 4)), preprocessing=RAW)
    attack = PRESETS[preset](eps=8)
    scene = Scene(targets=to_pixels(pictures.roll(1, 0)))
    found = attack(victim, pictures, scene)
    both = victim.parts(to_pixels(pictures)), victim.parts(to_pixels(found.images))
    turned = torch.nn.functional.cosine_similarity(*both, dim=2)  # (B, 2)
    assert bool((turned < 0.999).all())
    loss = attack.objective.bind(victim, to_pixels(pictures), scene)
    # One half changed does half of what both do: the parts do not look at each other.
    upper, lower = pictures.clone(), pictures.clone()
    upper[:, :, :4], lower[:, :, 4:] = found.images[:, :, :4], found.images[:, :, 4:]
    clean = loss(to_pixels(pictures))
    gains = [loss(to_pixels(images)) - clean for images in (upper, lower, found.images)]
    torch.testing.assert_close(gains[0] + gains[1], gains[2], rtol=1e-4, atol=1e-4)


def test_scales_one_by_one_are_the_mean_of_single_ones(
    glyph_victim: Victim, glyph_queries: Tensor
) -> None:
    several = glyph_victim.at_scales((1.0, 0.5))
    turn = attacks.odfa(eps=4).objective
    clean = to_pixels(glyph_queries)
    changed = to_pixels(attacks.odfa(eps=4)(glyph_victim, glyph_queries).images)
    alone = [turn.bind(glyph_victim.at_scales((s,)), clean, Scene())(changed) for s in (1.0, 0.5)]
    mean = AtScales(turn, (1.0, 0.5)).bind(several, clean, Scene())(changed)
    torch.testing.assert_close(mean, (alone[0] + alone[1]) / 2)
    # Looking at one scale only is the weaker attack on a victim of two.
    cosine = {}
    for scales in ("1", "1+0.5"):
        found = load_attack(f"odfa:scales={scales}", eps=8)(several, glyph_queries)
        both = several.embed(clean), several.embed(to_pixels(found.images))
        cosine[scales] = float((both[0] * both[1]).sum(1).mean())
    assert cosine["1+0.5"] < cosine["1"] - 0.05


# -- surrogate gradients ---------------------------------------------------------------------------


class Closed(nn.Module):
    """ReLUs in every way that networks call them."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.inplace, self.six = nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.stack(
            [
                self.plain(x).sum(1),
                (self.inplace(2 * x) + torch.relu(input=3 * x)).sum(1),
                nn.functional.relu6(x + 5.9).sum(1)
                + self.six(x + 5.9).sum(1)
                + (4 * x).relu().sum(1)
                + (5 * x).relu_().sum(1),
            ],
            1,
        )


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0])
def test_leaky_relus_leak_backwards_only(slope: float) -> None:
    x = normal(4, 3, 8, 4)
    network = Closed()
    leaf = x.clone().requires_grad_()
    with LeakyReLU(slope)():
        out = network(leaf)
    assert torch.equal(out, network(x))
    out.sum().backward()
    closed = (x <= 0).float()
    relu = 1 - closed + slope * closed
    six = ((x > -5.9) & (x < 0.1)).float()
    torch.testing.assert_close(
        leaf.grad, (1 + 2 + 3 + 4 + 5) * relu + 2 * (six + slope * (1 - six))
    )


def test_a_relu_in_place_still_changes_what_a_skip_sees() -> None:
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            return nn.functional.relu(y, inplace=True) + y  # y has become its ReLU

    leaf = normal(5).requires_grad_()
    with LeakyReLU(0.5)():
        out = Skip()(leaf)
    assert torch.equal(out, 2 * leaf.detach().relu())
    out.sum().backward()
    assert torch.equal(leaf.grad, torch.where(leaf > 0, 2.0, 1.0))


def test_the_slope_follows_its_schedule_and_the_loss_stays_the_victims(
    glyph_victim: Victim, glyph_queries: Tensor
) -> None:
    plain = attacks.odfa(eps=4)
    leaky = dataclasses.replace(plain, surrogate=LeakyReLU(Linear(0.2, 0.0)))
    names = [str(i) for i in range(12)]
    problem = leaky.pose(Batch(glyph_victim, glyph_queries, names=names))
    start = problem.start("sign")
    slopes = [problem.slope(start, leaky.surrogate_at(i)) for i in (0, leaky.steps - 1)]
    true = problem.slope(start)
    torch.testing.assert_close(slopes[1].grad, true.grad)
    assert float((slopes[0].grad - true.grad).abs().max()) > 0
    assert torch.equal(slopes[0].value, true.value)


def test_odfa_turns_the_feature_round(glyph_victim: Victim, glyph_queries: Tensor) -> None:
    clean = glyph_victim.embed(to_pixels(glyph_queries))
    cosine = [
        float(
            (
                glyph_victim.embed(
                    to_pixels(attacks.odfa(eps=eps)(glyph_victim, glyph_queries).images)
                )
                * clean
            )
            .sum(1)
            .mean()
        )
        for eps in (2, 8, 16)
    ]
    assert cosine[0] > cosine[1] > cosine[2]
    assert cosine[2] < -0.2


def test_towards_target_raises_the_cosine(glyph_victim: Victim, glyph_queries: Tensor) -> None:
    attack = dataclasses.replace(attacks.odfa(eps=8), objective=TowardsTarget(), start="clean")
    targets = to_pixels(glyph_queries.roll(1, 0))
    found = attack(glyph_victim, glyph_queries, Scene(targets=targets))
    goal = glyph_victim.embed(targets)
    before = (glyph_victim.embed(to_pixels(glyph_queries)) * goal).sum(1)
    after = (glyph_victim.embed(to_pixels(found.images)) * goal).sum(1)
    assert bool((after > before).all())
    assert float((after - before).mean()) > 0.3
    with pytest.raises(ArgumentError, match="one target picture per query"):
        attack(glyph_victim, glyph_queries)


def test_uturn_turns_further_than_odfa_with_as_many_gradients(glyph_victim: Victim) -> None:
    query = load_data("glyphs").query
    images = glyph_victim.grid([query.read(i) for i in range(0, 6000, 75)])
    clean = glyph_victim.embed(to_pixels(images))
    for eps in (2, 4, 8):
        cosine = {}
        for preset in (attacks.odfa, attacks.uturn):
            found = preset(eps=eps)(glyph_victim, images)
            assert found.gradients == iterations(eps)
            cosine[preset] = (glyph_victim.embed(to_pixels(found.images)) * clean).sum(1).mean()
        assert cosine[attacks.uturn] < cosine[attacks.odfa] - 0.005, eps


def test_the_centred_target_is_reachable_where_the_opposite_is_not(pictures: Tensor) -> None:
    """Non-negative features: −f is out of reach, but raising what was low is not.

    From the clean picture the plain form has no gradient, the centred one climbs.
    """
    w = normal(4, 3, 8, 4).abs()  # positive weights on positive pixels: positive features
    victim = linear_victim(w, torch.zeros(4))
    levels = pictures.float()
    sizes = {}
    for centre in (0.0, 1.0):
        objective = OppositeDirection(centre=centre)
        attack = dataclasses.replace(attacks.odfa(eps=4), objective=objective)
        problem = attack.pose(Batch(victim, pictures))
        sizes[centre] = float(problem.slope(problem.start("clean")).grad.abs().mean())
    assert sizes[0.0] < 1e-3 * sizes[1.0]
    # Features of mean 0 have the same target either way.
    feature = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    centred = linear_victim(torch.zeros(4, 3, 8, 4), feature[0])
    values = [
        OppositeDirection(centre=c).bind(centred, levels / 255, Scene())(levels / 255)
        for c in (0.0, 1.0)
    ]
    torch.testing.assert_close(values[0], values[1])


def test_the_gradient_is_zero_at_the_clean_picture(
    glyph_victim: Victim, glyph_queries: Tensor
) -> None:
    """The trap: with unit features the climb starts on noise unless it starts beside x."""
    problem = attacks.odfa(eps=8).pose(Batch(glyph_victim, glyph_queries))
    sizes = {
        start: float(problem.slope(problem.start(start)).grad.abs().mean())
        for start in ("clean", "sign")
    }
    assert sizes["clean"] < 1e-3 * sizes["sign"]
    raw = attacks.odfa(eps=8, target="raw").pose(Batch(glyph_victim, glyph_queries))
    assert float(raw.slope(raw.start("clean")).grad.abs().mean()) > sizes["sign"]


# -- promises --------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999),
    preset=st.sampled_from(sorted(LOOPED)),
    eps=st.one_of(st.integers(1, 40), st.floats(1, 40)),
    step=st.one_of(
        st.floats(0.1, 9).map(Sign),
        st.just(chain(Momentum(), Smooth(1.0), Sign(Cosine(3, 0.5)))),
        st.just(chain(Momentum(0.5, nesterov=True), UnitL2(Linear(30, 3)))),
        st.just(Adam(1.5)),
    ),
    threat=st.sampled_from([LInf, L2, lambda eps: Patch(1, 2, 3, 1)]),
    start=st.sampled_from(["clean", "sign", "sample"]),
    keep=st.sampled_from(["last", "best"]),
    shape=st.tuples(st.integers(1, 3), st.just(3), st.integers(4, 9), st.integers(4, 9)),
    views=st.sampled_from(
        [(Identity(),), (Identity(), Flip()), SCALES, (Noise(3), ResizePad(0.3)), (Jpeg(75),)]
    ),
)
@settings(max_examples=80, deadline=None)
def test_no_attack_ever_leaves_its_budget(
    seed, preset, eps, step, threat, start, keep, shape, views
) -> None:
    victim = Victim(
        name="tiny",
        network=Tiny(seed),
        preprocessing=dataclasses.replace(RAW, size=shape[2:]),
        classifier=nn.Linear(6, 5),
    )
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()
    attack = dataclasses.replace(
        LOOPED[preset](eps=eps),
        threat=threat(eps),
        step=step,
        steps=5,
        start=start,
        keep=keep,
        views=views,
    )
    found = attack(victim, images, Scene(targets=to_pixels(images.flip(3))), seed=seed)
    change = found.images.int() - images.int()
    assert found.images.dtype == torch.uint8
    if threat is LInf:
        assert int(change.abs().max()) <= eps
    elif threat is L2:
        assert int(change.square().sum((1, 2, 3)).max()) <= eps**2
    else:
        outside = change.clone()
        outside[..., 1:4, 2:3] = 0
        assert not outside.any()
    assert torch.equal(change.float(), found.delta)
    assert found.gradients == attack.steps * len(views)
    assert found.losses.shape == (attack.steps, shape[0])


@pytest.mark.parametrize("start", ["clean", "sign", "sample"])
def test_each_picture_is_on_its_own(pictures: Tensor, start: str) -> None:
    victim = linear_victim(normal(4, 3, 8, 4), normal(4), head(normal(6, 4)))
    views = (Identity(), Noise(2.0), ResizePad(0.3, chance=0.8))
    for preset in LOOPED.values():
        attack = dataclasses.replace(preset(eps=4), start=start, steps=4, views=views)
        whole = attack(victim, pictures, Scene(targets=to_pixels(pictures) / 2)).images
        for i in range(len(pictures)):
            one = pictures[i : i + 1]
            alone = attack(victim, one, Scene(targets=to_pixels(one) / 2)).images
            assert torch.equal(whole[i : i + 1], alone)


def test_names_and_seed_key_the_start_not_the_order(pictures: Tensor) -> None:
    victim = linear_victim(normal(4, 3, 8, 4), normal(4))
    attack, names = attacks.odfa(eps=4, steps=1), list("abcde")
    once = attack(victim, pictures, names=names).images
    turned = attack(victim, pictures.flip(0), names=names[::-1]).images.flip(0)
    assert torch.equal(once, turned)
    assert not torch.equal(once, attack(victim, pictures, names=names, seed=1).images)


def test_views_average_gradients(pictures: Tensor) -> None:
    victim = linear_victim(normal(2, 3, 8, 4), normal(2))
    one, other = attacks.odfa(eps=4), dataclasses.replace(attacks.odfa(eps=4), views=(Flip(),))
    both = dataclasses.replace(one, views=(Identity(), Flip()))
    problems = [a.pose(Batch(victim, pictures)) for a in (one, other, both)]
    gradients = [problem.slope(problem.start("sign")).grad for problem in problems]
    torch.testing.assert_close(gradients[2], (gradients[0] + gradients[1]) / 2)


def test_keep_best_never_returns_less_than_last(
    glyph_victim: Victim, glyph_queries: Tensor
) -> None:
    last = dataclasses.replace(attacks.odfa(eps=2, steps=12), step=Sign(2))
    best = dataclasses.replace(last, keep="best")
    loss = last.objective.bind(glyph_victim, to_pixels(glyph_queries), Scene())
    reached = [loss(to_pixels(a(glyph_victim, glyph_queries).images)) for a in (last, best)]
    assert bool((reached[1] >= reached[0] - 1e-6).all())
    assert bool((reached[1] > reached[0] + 1e-4).any())


def test_a_threat_that_lies_is_caught(pictures: Tensor) -> None:
    class Lying(LInf):  # type: ignore[misc]
        def project(self, delta: Tensor, clean: Tensor) -> Tensor:
            return delta

        round = project

    victim = linear_victim(normal(1, 3, 8, 4), torch.tensor([50.0]))
    attack = Attack(objective=OppositeDirection("raw"), threat=Lying(2), step=Sign(), steps=5)
    with pytest.raises(BudgetError, match="left its threat"):
        attack(victim, pictures)


# -- configuration and errors ----------------------------------------------------------------------


def test_iterations_are_the_papers() -> None:
    assert [iterations(eps) for eps in (2, 4, 8, 12, 16)] == [2, 5, 10, 15, 20]


def test_an_attack_prints_its_whole_configuration() -> None:
    assert repr(load_attack("odfa:steps=7", eps=4)) == (
        "Attack(objective=OppositeDirection(target='unit', centre=0.0), threat=LInf(eps=4), "
        "step=Sign(size=1.0), steps=7, views=(Identity(),), start='sign', keep='last', "
        "surrogate=None, restart=0)"
    )


def test_bad_input_says_what_to_do(pictures: Tensor) -> None:
    victim = linear_victim(normal(1, 3, 8, 4), normal(1))
    with pytest.raises(
        SpecError, match="known: apgd, basic, boosted, ca_minus, ca_plus, fast, fna, label_smooth"
    ):
        load_attack("pgd", eps=4)
    with pytest.raises(SpecError, match="valid options: steps, start, target"):
        load_attack("odfa:step=2", eps=4)
    with pytest.raises(SpecError, match="must be a number"):
        load_attack("odfa:steps=many", eps=4)
    with pytest.raises(SpecError, match="clean, sign, sample"):
        load_attack("odfa:start=somewhere", eps=4)
    with pytest.raises(ArgumentError, match="at least 1 step"):
        load_attack("odfa:steps=0", eps=4)
    with pytest.raises(ArgumentError, match="8/255 elsewhere is eps=8 here"):
        load_attack("odfa", eps=8 / 255)
    with pytest.raises(ArgumentError, match="no classifier"):
        attacks.fast(eps=4)(victim, pictures)
    with pytest.raises(ArgumentError, match="uint8 images"):
        attacks.odfa(eps=4)(victim, to_pixels(pictures))
    with pytest.raises(ArgumentError, match="5 images but 1 names"):
        attacks.odfa(eps=4)(victim, pictures, names=["a"])
