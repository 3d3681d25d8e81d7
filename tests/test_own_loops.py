"""Attacks that own their loop: APGD, the smallest ε, universal perturbations, noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import RAW, Tiny, linear_victim, normal
from uturn import Scene, attacks, load_data
from uturn.attacks.loop import Attack
from uturn.attacks.minimal import Minimal
from uturn.attacks.objectives import OppositeDirection
from uturn.attacks.presets import PRESETS
from uturn.attacks.problem import Slope
from uturn.attacks.search import Search, checkpoints
from uturn.attacks.steps import Info, Sign, UnitL2
from uturn.attacks.threats import L2, LInf
from uturn.attacks.universal import RandomSigns, learn, read
from uturn.data.pictures import Pictures
from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.types import Answer
from uturn.victims.victim import Victim, to_pixels

RAW_TURN = OppositeDirection("raw")


# -- APGD ------------------------------------------------------------------------------------------


def test_checkpoints_are_the_papers() -> None:
    """Croce and Hein: p = 0.22, then p + max(p − p before − 0.03, 0.06), ceil of p · N."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]


def test_search_reaches_the_vertex_of_a_linear_victim(pictures: Tensor) -> None:
    w = normal(1, 3, 8, 4)
    victim = linear_victim(w, torch.tensor([50.0]))
    attack = Attack(objective=RAW_TURN, threat=LInf(4), step=Sign(8), steps=6)
    found = Search(attack=attack)(victim, pictures)
    assert torch.equal(found.delta, (-4 * w.sign()).expand_as(found.delta))
    assert found.gradients == 6


def test_the_first_interval_of_search_counts_rises_only(pictures: Tensor) -> None:
    """Eight rises in eleven steps are fewer than ¾ of them: halved at the first checkpoint."""
    values = [float(v) for v in (0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5)]
    sizes = []

    @dataclasses.dataclass(frozen=True)
    class Counting:
        def init(self, delta: Tensor) -> None:
            return None

        def update(self, grad: Tensor, state: None, info: Info):  # type: ignore[no-untyped-def]
            return torch.ones_like(grad), None

    class Played:
        """A problem whose values are given."""

        clean = torch.zeros(1, 3, 1, 1)

        def start(self, kind: str) -> Tensor:
            return torch.zeros(1, 3, 1, 1)

        def slope(self, delta: Tensor, surrogate: object) -> Slope:
            value = torch.tensor([values[len(sizes)]])
            sizes.append(float(delta[0, 0, 0, 0]))
            return Slope(torch.ones_like(delta), value, torch.ones_like(delta))

        def project(self, delta: Tensor) -> Tensor:
            return delta

        def value(self, delta: Tensor) -> Tensor:
            return torch.tensor([-1.0])

    attack = Attack(objective=RAW_TURN, threat=LInf(255), step=Counting(), steps=50)
    search = Search(attack=dataclasses.replace(attack, steps=50), inertia=0.0)
    values += [5.0] * 40
    search.climb(Played())  # type: ignore[arg-type]
    # Seven rises in the eleven steps to the first checkpoint: back to the best, at half the step.
    assert sorted(checkpoints(50))[0] == 11
    assert sizes[:12] == [float(i) for i in range(12)]
    assert sizes[12] == 11.5


def test_search_halves_its_step_where_a_fixed_one_oscillates(pictures: Tensor) -> None:
    """The optimum lies inside the ball: steps of 2ε jump over it for ever, halved ones do not."""
    w = normal(1, 3, 8, 4) / 100
    clean = to_pixels(pictures)
    own = linear_victim(w, torch.zeros(1)).features(clean)  # (5, 1)
    goal = own + 0.3 * 40 / 255 * w.abs().sum()  # 30 % of the way to the vertex

    class Towards:
        def bind(self, victim: Victim, clean: Tensor, scene: Scene):  # type: ignore[no-untyped-def]
            return lambda pixels: -(victim.features(pixels) - goal).square().sum(1)

    victim = linear_victim(w, torch.zeros(1))
    fixed = Attack(objective=Towards(), threat=LInf(40), step=Sign(80), steps=40, keep="best")
    loss = Towards().bind(victim, clean, Scene())
    plain, halved = fixed(victim, pictures), Search(attack=fixed)(victim, pictures)
    misses = [-loss(to_pixels(found.images)) for found in (plain, halved)]
    assert bool((misses[1] < 0.05 * misses[0]).all())


def test_search_returns_the_best_it_met(glyph_victim: Victim) -> None:
    query = load_data("glyphs").query
    images = glyph_victim.grid([query.read(i) for i in range(0, 60, 10)])
    found = attacks.apgd(eps=4, steps=15)(glyph_victim, images)
    loss = OppositeDirection(centre=1.0).bind(glyph_victim, to_pixels(images), Scene())
    assert bool((loss(to_pixels(found.images)) >= found.losses.max(0).values - 0.02).all())
    # More steps never do worse here, and in L2 nothing else is needed.
    more = attacks.apgd(eps=4, steps=40)(glyph_victim, images)
    assert float(loss(to_pixels(more.images)).mean()) > float(loss(to_pixels(found.images)).mean())
    in_l2 = dataclasses.replace(
        attacks.apgd(eps=4).attack, threat=L2(100), step=UnitL2(200), steps=15
    )
    found = Search(attack=in_l2)(glyph_victim, images)
    assert bool((found.delta.flatten(1).norm(dim=1) <= 100).all())
    assert bool((loss(to_pixels(found.images)) > loss(to_pixels(images)) + 0.3).all())


# -- the smallest ε --------------------------------------------------------------------------------


@given(
    smallest=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    highest=st.sampled_from([1, 8, 9]),
)
@settings(max_examples=40, deadline=None)
def test_minimal_finds_the_smallest_eps(smallest: list[int], highest: int) -> None:
    """On a linear victim ε moves every value by ε: query i is lost from ``smallest[i]`` on."""
    victim = linear_victim(torch.ones(1, 3, 8, 4), torch.tensor([50.0]))
    images = torch.full((len(smallest), 3, 8, 4), 128, dtype=torch.uint8)
    asked = []

    def lost(tried: Tensor, which: Tensor) -> Tensor:
        asked.append(len(which))
        moved = (tried.int() - 128).abs().amax((1, 2, 3))
        return moved >= torch.tensor(smallest)[which]

    ladder = tuple(
        attacks.odfa(eps=eps, target="raw", steps=2 * eps) for eps in range(1, highest + 1)
    )
    search = Minimal(ladder=ladder)
    found = search(victim, images, Scene(lost=lost), names=[str(i) for i in range(len(smallest))])
    moved = found.delta.abs().amax((1, 2, 3)).int().tolist()
    assert moved == [min(eps, highest) for eps in smallest]
    rounds = sum(asked[1:])  # the first question is about the clean queries
    assert rounds <= len(smallest) * np.ceil(np.log2(highest + 1))
    assert search.gradients <= sum(attack.gradients for attack in ladder)


def test_minimal_needs_a_ranking(pictures: Tensor) -> None:
    victim = linear_victim(normal(1, 3, 8, 4), torch.tensor([50.0]))
    with pytest.raises(ArgumentError, match=r"pass Scene\(lost=…\)"):
        attacks.minimal(eps=4)(victim, pictures)
    with pytest.raises(ArgumentError, match="at least one attack"):
        Minimal(ladder=())
    with pytest.raises(ArgumentError, match="this one must be given targets"):
        attacks.load_attack("minimal:by=tma", eps=4)


# -- universal -------------------------------------------------------------------------------------


class Solid:
    """Pictures of one value each."""

    def read(self, name: str) -> np.ndarray:
        return np.full((8, 4, 3), int(name), dtype=np.uint8)

    def stamp(self, name: str) -> str:
        return name


def solid() -> Pictures:
    names = tuple(str(value) for value in range(80, 176, 2))
    return Pictures(Solid(), names, np.arange(48), np.zeros(48, dtype=np.int64))


@pytest.fixture(scope="module")
def learned() -> attacks.Attack:
    w = normal(1, 3, 8, 4)
    victim = linear_victim(w, torch.tensor([50.0]))
    return learn(victim, solid(), eps=6, objective=RAW_TURN, epochs=6, batch_size=8, progress=False)


def test_universal_of_a_linear_victim_is_one_vertex(learned, pictures: Tensor) -> None:  # type: ignore[no-untyped-def]
    """All pictures share the gradient, so the best for each is the best for all."""
    w = normal(1, 3, 8, 4)
    assert torch.equal(learned.delta, -6 * w.sign())
    found = learned(linear_victim(w, torch.tensor([50.0])), pictures)
    assert torch.equal(found.delta, learned.delta.expand_as(found.delta))
    assert found.gradients == 0


def test_universal_is_kept_in_a_file(learned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "deep" / "u.safetensors"
    learned.save(file)
    again = read(file, 6)
    assert again == learned
    assert torch.equal(again.delta, learned.delta)
    assert "48 pictures, 6 epochs" in repr(again)
    with pytest.raises(ArgumentError, match="learned for ε = 6; use it at that ε, or learn one"):
        attacks.universal(eps=8, file=str(file))
    with pytest.raises(CheckpointError, match="there is no perturbation at"):
        read(tmp_path / "none.safetensors", 6)
    file.write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="make one with `uturn universal`"):
        read(file, 6)
    torch.save({"delta": learned.delta}, file)
    with pytest.raises(CheckpointError, match="holds no perturbation"):
        read(file, 6)


def test_a_file_beyond_its_own_eps_is_refused(learned, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "u.safetensors"
    dataclasses.replace(learned, delta=2 * learned.delta).save(file)
    with pytest.raises(CheckpointError, match="within ε = 6"):
        read(file, 6)


def test_universal_fits_pictures_of_another_size(learned) -> None:  # type: ignore[no-untyped-def]
    images = torch.full((2, 3, 16, 8), 128, dtype=torch.uint8)
    victim = linear_victim(normal(1, 3, 8, 4), torch.tensor([50.0]))
    found = learned(victim, images)
    assert found.delta.shape == (2, 3, 16, 8)
    assert 0 < int(found.delta.abs().max()) <= 6


def test_a_learned_perturbation_beats_noise_on_unseen_identities(glyph_victim: Victim) -> None:
    data = load_data("glyphs")
    assert data.train is not None
    part = data.train.sample(1500, 0, "train")
    universal = learn(glyph_victim, part, eps=8, batch_size=50, progress=False)
    query = data.query.sample(60, 0, "query")
    images = glyph_victim.grid(map(query.read, range(60)))
    clean = glyph_victim.embed(to_pixels(images))
    cosine = {
        attack: float((glyph_victim.embed(to_pixels(changed)) * clean).sum(1).mean())
        for attack, changed in (
            ("universal", universal(glyph_victim, images).images),
            ("noise", attacks.noise(eps=8)(glyph_victim, images).images),
        )
    }
    assert cosine["universal"] < 0.4 < 0.9 < cosine["noise"]


# -- noise -----------------------------------------------------------------------------------------


def test_noise_is_plus_or_minus_eps_and_keyed_by_name(pictures: Tensor) -> None:
    victim = linear_victim(normal(1, 3, 8, 4), torch.tensor([50.0]))
    found = RandomSigns(LInf(5.5))(victim, pictures, names=list("abcde"))
    assert set(found.delta.unique().tolist()) == {-5.0, 5.0}
    turned = RandomSigns(LInf(5.5))(victim, pictures.flip(0), names=list("edcba"))
    assert torch.equal(turned.images.flip(0), found.images)


# -- all of them -----------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999),
    preset=st.sampled_from(sorted(set(PRESETS) - {"universal", "prgf"})),
    eps=st.one_of(st.integers(1, 40), st.floats(1, 40)),
    shape=st.tuples(st.integers(1, 3), st.just(3), st.integers(4, 9), st.integers(4, 9)),
)
@settings(max_examples=120, deadline=None)
def test_no_named_attack_ever_leaves_its_budget(seed, preset, eps, shape) -> None:  # type: ignore[no-untyped-def]
    """Every name on the command line, with all the knowledge that it may ask for."""
    grid = dataclasses.replace(RAW, size=shape[2:])
    victim = Victim(name="tiny", network=Tiny(seed), preprocessing=grid, classifier=nn.Linear(6, 5))
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()
    features = normal(shape[0], 7, 6, seed=seed)
    scene = Scene(
        targets=to_pixels(images.flip(3)),
        candidates=features[:, :2],
        queries=features[:, :2],
        others=features[:, 2:],
        same=features,
        lost=lambda tried, which: tried.float().mean((1, 2, 3)) > 127,
        oracle=lambda tried, k: [Answer((int(one.float().mean()), 0)) for one in tried],
    )
    found = PRESETS[preset](eps=eps)(victim, images, scene, seed=seed)
    change = found.images.int() - images.int()
    assert found.images.dtype == torch.uint8
    assert int(change.abs().max()) <= eps
    assert torch.equal(change.float(), found.delta)


def test_each_picture_is_on_its_own_in_every_loop(glyph_victim: Victim) -> None:
    query = load_data("glyphs").query
    images = glyph_victim.grid([query.read(i) for i in (0, 700, 1400)])

    def lost(tried: Tensor, which: Tensor) -> Tensor:
        return tried.float().mean((1, 2, 3)) > 128

    names = ["a", "b", "c"]
    for attack in (attacks.apgd(eps=4, steps=6), attacks.minimal(eps=3, by="odfa:steps=2")):
        whole = attack(glyph_victim, images, Scene(lost=lost), names=names).images
        for i in range(3):
            one = slice(i, i + 1)
            alone = attack(glyph_victim, images[one], Scene(lost=lost), names=names[one]).images
            # The last bit of a sum over a batch can turn a sign here and there.
            assert float((whole[one] != alone).float().mean()) < 0.02


def test_options_that_every_climbing_attack_has() -> None:
    attack = attacks.load_attack("odfa:steps=3,views=identity+jpeg75,restart=2", eps=4)
    assert [type(view).__name__ for view in attack.views] == ["Identity", "Jpeg"]
    assert (attack.restart, attack.gradients) == (2, 6)
    searching = attacks.load_attack("apgd:scales=1+0.5", eps=4)
    assert "AtScales" in repr(searching)
    assert "scales=(1.0, 0.5)" in repr(searching)
    assert searching.gradients == 100  # at each of two scales
    with pytest.raises(SpecError, match="unknown view 'blur'; known: flip, identity, jpeg75"):
        attacks.load_attack("odfa:views=blur", eps=4)
    for eps in (0.5, float("nan"), float("inf")):
        for name in ("uturn", "minimal", "noise", "apgd"):
            with pytest.raises(ArgumentError, match="between 1 and 255 levels"):
                attacks.load_attack(name, eps=eps)
    with pytest.raises(ArgumentError, match="at least 1 step"):
        attacks.load_attack("apgd:steps=0", eps=4)
    with pytest.raises(SpecError, match="unknown view ''"):
        attacks.load_attack("odfa:views=", eps=4)
    with pytest.raises(SpecError, match="scales are numbers"):
        attacks.load_attack("odfa:scales=big", eps=4)
    with pytest.raises(SpecError, match="this attack does not climb"):
        attacks.load_attack("noise:restart=1", eps=4)
    with pytest.raises(SpecError, match="needs file; write universal:file=…"):
        attacks.load_attack("universal", eps=4)


def test_a_restart_draws_another_start(pictures: Tensor) -> None:
    victim = linear_victim(normal(4, 3, 8, 4), normal(4))
    found = [
        attacks.load_attack(f"odfa:steps=1,restart={k}", eps=4)(victim, pictures).images
        for k in (0, 1, 2)
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])
