"""Online adversarial training: what is crafted, what is asked of features, and that it helps."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import linear_victim, normal
from uturn import Victim, load_data, load_victim
from uturn.attacks import load_attack, odfa
from uturn.attacks.loop import Attack
from uturn.attacks.search import Search
from uturn.attacks.steps import Sign
from uturn.attacks.threats import LInf
from uturn.attacks.training import for_training
from uturn.data.pictures import encode
from uturn.data.split import Split
from uturn.errors import ArgumentError, SpecError
from uturn.retrieval import metrics
from uturn.retrieval.extract import extract, extract_all
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem
from uturn.rng import generator
from uturn.train.adversarial import (
    AntiCollapse,
    Budget,
    Collapse,
    Mixed,
    Online,
    known,
    load_adversary,
    pairs,
    successors,
)
from uturn.train.loop import Pupil, frozen, train
from uturn.train.losses import Shape, load_loss
from uturn.train.recipe import Recipe
from uturn.types import Scene
from uturn.victims import checkpoints, zoo
from uturn.victims.classifiers import CosineClassifier
from uturn.victims.victim import to_pixels

FULL = Budget(eps=8, least=8)


def still(victim: Victim) -> Victim:
    return victim


@pytest.fixture
def images() -> Tensor:
    return torch.randint(40, 216, (6, 3, 32, 32), generator=torch.Generator().manual_seed(2)).byte()


@pytest.fixture
def few() -> Tensor:
    """Of the linear victim's shape."""
    return torch.randint(60, 196, (6, 3, 8, 4), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture
def linear() -> Victim:
    return linear_victim(normal(5, 3, 8, 4), torch.zeros(5))


CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])


# -- how much ------------------------------------------------------------------------------------


def test_the_ceiling_rises_and_every_level_below_it_is_drawn() -> None:
    budget = Budget(eps=8, least=2, warmup=100)
    drawn = [budget.at(0, step) for step in range(1000)]
    ceilings = [max(1, int(min(1.0, step / 100) * 8)) for step in range(1000)]
    assert all(low <= top for low, top in zip(drawn, ceilings, strict=True))
    assert min(drawn[50:]) == 2
    often = Counter(drawn[100:])
    assert sorted(often) == [2, 3, 4, 5, 6, 7, 8]
    assert min(often.values()) > 900 / 7 * 0.7
    assert (
        drawn
        == [budget.at(0, step) for step in range(1000)]
        != [budget.at(1, step) for step in range(1000)]
    )


def test_impossible_budgets_are_told() -> None:
    for wrong in ({"eps": 0.5}, {"eps": 300}, {"eps": 4, "least": 5}, {"eps": 4, "least": 0}):
        with pytest.raises(ArgumentError, match="1"):
            Budget(**wrong)


# -- any attack, from the current weights ----------------------------------------------------------


def test_few_steps_begin_anywhere_and_cross_the_ball() -> None:
    one = for_training(load_attack("fast", eps=8), 8)
    assert isinstance(one, Attack)
    assert (one.start, one.step) == ("sample", Sign(10))  # Wong et al.: α = 1.25 ε
    two = for_training(odfa(eps=8, steps=2), 8)
    assert isinstance(two, Attack)
    assert two.step == Sign(5)
    paper = for_training(odfa(eps=8), 8)  # T(8) = 10 steps of a level
    assert isinstance(paper, Attack)
    assert paper == replace(odfa(eps=8), start="sample")
    own = load_attack("uturn:steps=2", eps=8)
    assert isinstance(own, Attack)
    assert for_training(own, 8) == replace(own, start="sample")
    search = for_training(load_attack("apgd:steps=3", eps=8), 8)
    assert isinstance(search, Search)
    assert search.attack.start == "sample"
    noise = load_attack("noise", eps=8)
    assert for_training(noise, 8) is noise


@pytest.mark.parametrize("spec", ["odfa:steps=2", "uturn:steps=2", "sma:steps=2", "fast", "act"])
def test_partners_lie_within_eps_and_are_drawn_by_seed_and_step(
    spec: str, glyph_victim: Victim, images: Tensor
) -> None:
    def made(seed: int, step: int) -> Tensor:
        adversary = load_adversary(spec, lambda: glyph_victim, FULL, seed=seed)
        return adversary(images, CLASSES, step)

    found = made(0, 3)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    change = (found.int() - images.int()).abs()
    assert change.max() == 8
    assert torch.equal(found, made(0, 3))
    assert not torch.equal(found, made(0, 4))
    assert not torch.equal(found, made(1, 3))


def test_they_turn_features_further_than_noise(glyph_victim: Victim, letters: Split) -> None:
    images = glyph_victim.grid(map(letters.query.read, range(6)))

    def cosine(changed: Tensor) -> float:
        features = [glyph_victim.embed(to_pixels(each)) for each in (images, changed)]
        return float((features[0] * features[1]).sum(1).mean())

    noise = load_attack("noise", eps=8)(glyph_victim, images).images
    for spec in ("odfa:steps=2", "uturn:steps=2"):
        found = load_adversary(spec, lambda: glyph_victim, FULL)(images, CLASSES, 0)
        assert cosine(found) < cosine(noise) - 0.3


def test_what_needs_a_gallery_or_is_unknown_is_refused() -> None:
    for spec in ("tma", "minimal", "fna", "qa_plus"):
        with pytest.raises(ArgumentError, match="picture only"):
            known(spec, 8, 0.0)
    with pytest.raises(SpecError, match=r"act, .*odfa"):
        known("odfo", 8, 0.0)
    with pytest.raises(SpecError, match="valid options"):
        known("act:step=3", 8, 0.0)
    with pytest.raises(SpecError, match="loss of its own"):
        known("act", 8, 0.5)
    with pytest.raises(ArgumentError, match="consistency"):
        known("odfa", 8, -1.0)
    known("act:steps=3,margin=0.1", 8, 0.0)


def test_consistency_is_the_mean_angle_and_reaches_both_sides(linear: Victim) -> None:
    clean, moved = normal(4, 5).requires_grad_(), normal(4, 5, seed=1).requires_grad_()
    online = Online(attack="odfa", now=lambda: linear, budget=FULL, consistency=2.0)
    term = online.term(clean, moved, CLASSES[:4], 0)
    c, m = clean.detach().numpy(), moved.detach().numpy()
    cosines = (c * m).sum(1) / np.linalg.norm(c, axis=1) / np.linalg.norm(m, axis=1)
    assert term.item() == pytest.approx(2 * (1 - cosines.mean()), rel=1e-5)
    term.backward()
    assert clean.grad is not None
    assert moved.grad is not None
    assert bool(clean.grad.any() and moved.grad.any())
    nothing = replace(online, consistency=0.0).term(clean, moved, CLASSES[:4], 0)
    assert nothing.item() == 0


# -- anti-collapse triplet -------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=14), step=st.integers(0, 50))
def test_partners_are_of_another_class_and_mutual(labels: list[int], step: int) -> None:
    found = pairs(torch.tensor(labels), 0, step).tolist()
    alone = [i for i, j in enumerate(found) if i == j]
    for i, j in enumerate(found):
        assert found[j] == i
        assert i == j or labels[i] != labels[j]
    if max(Counter(labels).values()) <= len(labels) // 2:
        assert len(alone) == len(labels) % 2


def test_partners_are_drawn_anew() -> None:
    classes = torch.arange(8).repeat_interleave(4)
    drawn = {tuple((classes[pairs(classes, 0, step)]).tolist()) for step in range(20)}
    assert len(drawn) == 20
    whom = Counter(int(classes[pairs(classes, 0, step)[0]]) for step in range(300))
    assert sorted(whom) == [1, 2, 3, 4, 5, 6, 7]


def test_successors_go_round_every_class() -> None:
    classes = torch.tensor([3, 1, 3, 2, 1, 3])
    found = successors(classes)
    assert torch.equal(classes[found], classes)
    assert sorted(found.tolist()) == list(range(6))
    assert [i for i in range(6) if found[i] == i] == [3]


def test_collapse_is_the_distance_of_partners_and_shrinks_it(linear: Victim, few: Tensor) -> None:
    partners = (2, 3, 0, 1, 5, 4)
    pixels = to_pixels(few)
    embedded = linear.embed(pixels)
    loss = Collapse(partners).bind(linear, pixels, Scene())(pixels)
    wanted = [-float((embedded[i] - embedded[j]).square().sum()) for i, j in enumerate(partners)]
    assert loss.tolist() == pytest.approx(wanted, rel=1e-5)
    attack = Attack(objective=Collapse(partners), threat=LInf(8), step=Sign(), steps=10)
    after = attack(linear, few).images
    moved = Collapse(partners).bind(linear, pixels, Scene())(to_pixels(after))
    assert bool((moved > loss * 0.9).all())
    assert moved.mean() > 0.5 * loss.mean()
    with pytest.raises(ArgumentError, match="partners"):
        Collapse(partners).bind(linear, pixels[:2], Scene())


def test_one_that_is_its_own_partner_stays(linear: Victim, few: Tensor) -> None:
    attack = Attack(objective=Collapse((1, 0, 2)), threat=LInf(8), step=Sign(), steps=3)
    delta = attack(linear, few[:3]).delta
    assert bool(delta[:2].any())
    assert not bool(delta[2].any())


def test_the_triplet_loss_is_torchs_own(linear: Victim) -> None:
    """(a, p̃, ñ) row by row, with the anchors clean."""
    act = AntiCollapse(now=lambda: linear, budget=FULL, margin=0.4, weight=3.0)
    classes = torch.tensor([0, 0, 1, 1, 2, 2, 3])  # the last is alone
    clean, moved = normal(7, 5), normal(7, 5, seed=1)
    rivals, anchors = pairs(classes, 0, 7).tolist(), successors(classes).tolist()
    rows = [i for i in range(7) if rivals[i] != i and anchors[i] != i]
    assert len(rows) >= 4
    unit, other = F.normalize(clean), F.normalize(moved)
    wanted = F.triplet_margin_loss(
        unit[[anchors[i] for i in rows]], other[rows], other[[rivals[i] for i in rows]], margin=0.4
    )
    assert act.term(clean, moved, classes, 7).item() == pytest.approx(3 * wanted.item(), rel=1e-5)


def test_batches_without_pairs_are_told(linear: Victim) -> None:
    act = AntiCollapse(now=lambda: linear, budget=FULL)
    with pytest.raises(ArgumentError, match="pk:pictures"):
        act.term(normal(4, 5), normal(4, 5), torch.arange(4), 0)


# -- in the loop -----------------------------------------------------------------------------------


def pupil_of(classes: int, *specs: str) -> Pupil:
    torch.manual_seed(0)
    chosen = zoo.ZOO["glyph_net"]
    losses = [load_loss(spec, Shape(1, 128, classes)) for spec in specs or ("identity",)]
    return Pupil(chosen.build(), losses, chosen.preprocessing)


def test_the_lesson_is_the_loss_of_both_and_the_term(glyph_victim: Victim, images: Tensor) -> None:
    pupil = pupil_of(3).eval()
    adversary = load_adversary("odfa:steps=1", lambda: glyph_victim, FULL, consistency=0.5)
    loss = Mixed(adversary, 0.5)(pupil, images, CLASSES, 4)
    partners = adversary(images[:3], CLASSES[:3], 4)
    features = pupil.features(torch.cat([images, partners]))[:, 0]
    head = pupil.head()
    assert isinstance(head, CosineClassifier)
    identity = F.cross_entropy(head(features), torch.cat([CLASSES, CLASSES[:3]]))
    cosine = F.cosine_similarity(features[:3], features[6:]).mean()
    assert loss.item() == pytest.approx((identity + 0.5 * (1 - cosine)).item(), rel=1e-4)


def test_crafting_follows_the_live_weights_and_leaves_them_alone(images: Tensor) -> None:
    pupil = pupil_of(3).train()
    card = checkpoints.Card(pupil.preprocessing, "cosine")
    adversary = load_adversary("odfa:steps=2", lambda: frozen(pupil, card, "twin"), FULL)
    before = {key: value.clone() for key, value in pupil.state_dict().items()}
    first = adversary(images, CLASSES, 0)
    assert pupil.training
    assert all(module.training for module in pupil.modules())
    assert all(p.requires_grad and p.grad is None for p in pupil.parameters())
    assert all(torch.equal(before[key], value) for key, value in pupil.state_dict().items())
    with torch.no_grad():
        for parameter in pupil.network.parameters():
            parameter.normal_()
    assert not torch.equal(first, adversary(images, CLASSES, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four colours to learn and four to be tested on, four noisy pictures each."""
    root = tmp_path_factory.mktemp("colours")
    draw = generator(0, "colours")
    for number in range(8):
        colour = draw.integers(0, 256, 3)
        for n in range(4):
            noise = draw.normal(0, 12, (32, 32, 3))
            part = "train" if number < 4 else "test"
            picture = np.clip(colour + noise, 0, 255).astype(np.uint8)
            encode(root / part / f"{number}" / f"{n}.png", picture)
    return root


@pytest.mark.parametrize("adversary", ["uturn:steps=1", "act:steps=1"])
def test_the_loop_trains_with_it_and_repeats_to_the_bit(
    adversary: str, folder: Path, tmp_path: Path
) -> None:
    recipe = Recipe(
        data=f"folder:{folder}",
        arch="glyph_net",
        epochs=1,
        batch_size=8,
        sampler="pk:pictures=2",
        adversary=adversary,
        adv_share=1.0,
    )
    one, other, plain = (tmp_path / f"{name}.safetensors" for name in ("one", "other", "plain"))
    for out in (one, other):
        train(recipe, out, progress=False)
    train(replace(recipe, adversary=None), plain, progress=False)
    tensors = [checkpoints.read(out).tensors for out in (one, other, plain)]
    assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
    assert any(not torch.equal(value, tensors[2][key]) for key, value in tensors[0].items())
    told = json.loads(checkpoints.read_metadata(one)["training"])
    assert told["recipe"]["adversary"] == adversary


@pytest.fixture(scope="module")
def letters() -> Split:
    """40 test identities of glyphs, with their gallery, and 150 to learn from."""
    whole = load_data("glyphs")
    assert whole.train is not None
    return replace(
        whole,
        query=whole.query.subset(np.arange(0, 480, 8)),
        gallery=whole.gallery.subset(np.arange(480)),
        train=whole.train.subset(np.arange(0, 1800, 3)),
    )


def test_thirty_steps_raise_what_recrafted_attacks_leave(letters: Split) -> None:
    """At ε = 4 and 8, against a twin that learned as long from the same batches."""
    pictures = letters.train
    assert pictures is not None
    chosen = zoo.ZOO["glyph_net"]
    training = chosen.preprocessing.grid(map(pictures.read, range(len(pictures))))
    classes = torch.from_numpy(np.unique(pictures.identities, return_inverse=True)[1])
    queries = chosen.preprocessing.grid(map(letters.query.read, range(len(letters.query))))

    def fitted(adversary: str | None) -> Victim:
        pupil = pupil_of(150)
        pupil.network.load_state_dict(load_victim("glyph_net").network.state_dict())
        card = checkpoints.Card(pupil.preprocessing, "cosine")
        made = adversary and load_adversary(
            adversary, lambda: frozen(pupil, card, "twin"), Budget(eps=8)
        )
        optimiser = torch.optim.AdamW(pupil.parameters(), 1e-3)
        pupil.train()
        for step in range(30):
            batch = torch.from_numpy(generator(0, "batch", step).permutation(len(training))[:48])
            if made:
                loss = Mixed(made, 0.5)(pupil, training[batch], classes[batch], step)
            else:
                loss = pupil(training[batch], classes[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return frozen(pupil, card, "fitted")

    def recall(victim: Victim, eps: float) -> float:
        attacked = odfa(eps=eps)(victim, queries).images if eps else queries
        labels = Labels.of(letters.query, victim.device)
        gallery = extract_all(victim, letters.gallery, "pictures", progress=False)
        system = RetrievalSystem.build(victim, letters, gallery)
        ranking = system.rank(extract(victim, attacked), labels)
        return float(metrics.recall_at(ranking, 1).nanmean())

    twin, defended = fitted(None), fitted("uturn:steps=2")
    found = {eps: (recall(twin, eps), recall(defended, eps)) for eps in (0, 4, 8)}
    assert found[0][1] > found[0][0] - 0.05
    assert found[4][1] > found[4][0]
    assert found[8][1] > found[8][0] + 0.1
