"""Black boxes: what an answer is worth, walks, counting, and that no gradient is touched."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import RAW, linear_victim, normal
from tests.test_indexes import needs
from uturn import Scene, attacks, load_data
from uturn.attacks.blackbox import BlackBox, Counted, asked_together
from uturn.attacks.loop import Attack
from uturn.attacks.objectives import OppositeDirection
from uturn.attacks.presets import load_attack
from uturn.attacks.relevance import Relevance
from uturn.attacks.steps import Sign
from uturn.attacks.threats import LInf
from uturn.attacks.walks import (
    Antithetic,
    Estimated,
    Estimator,
    Forward,
    Guide,
    Guided,
    Prior,
    Query,
    Squares,
    Walk,
    leaning,
)
from uturn.data.split import JUNK
from uturn.errors import ArgumentError, BudgetError
from uturn.retrieval.extract import extract_all, extract_decoded
from uturn.retrieval.oracle import SystemOracle
from uturn.retrieval.system import RetrievalSystem
from uturn.types import Answer
from uturn.victims.unseen import unseen
from uturn.victims.victim import Victim

SMALL = Squares(least=2, starts=3)
WALKS: dict[str, Walk] = {
    "squares": SMALL,
    "nes": Estimated(estimator=Antithetic(pairs=2, cell=2), starts=3),
    "rgf": Estimated(estimator=Forward(probes=3, cell=2), starts=3),
    "prgf": Estimated(estimator=Guided(probes=3, norms=2, cell=2), starts=3),
}


@dataclasses.dataclass
class Line:
    """A system whose features are whole numbers, so that no batch can change an answer.

    ``weights`` ``(3, H, W)`` of whole numbers; the gallery's items stand at ``places``.
    """

    weights: Tensor
    places: Tensor
    asked: int = 0

    def feature(self, pictures: Tensor) -> Tensor:
        return (pictures.long() * self.weights.long()).sum((1, 2, 3))

    def __call__(self, pictures: Tensor, k: int) -> list[Answer]:
        self.asked += len(pictures)
        far = (self.feature(pictures)[:, None] - self.places).abs()
        best = far.sort(dim=1, stable=True)
        return [
            Answer(tuple(items[:k]), tuple(-float(d) for d in distances[:k]))
            for items, distances in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def line(pictures: Tensor, spacing: int = 40, seed: int = 2) -> Line:
    """A gallery evenly spaced around the pictures, on weights −2 … 2 that are never 0."""
    drawn = torch.randint(1, 3, (3, 8, 4), generator=torch.Generator().manual_seed(seed))
    weights = drawn * normal(3, 8, 4, seed=seed).sign().long()
    system = Line(weights, torch.zeros(1))
    middle = int(system.feature(pictures).float().mean())
    system.places = torch.arange(middle - 4000, middle + 4000, spacing)
    return system


@functools.cache
def lent() -> Prior:
    """A linear network that knows the direction but for noise, and two attacks on it."""
    victim = linear_victim(normal(2, 3, 8, 4, seed=2), torch.tensor([9.0, 8.0]))
    starts = tuple(
        Attack(
            objective=OppositeDirection("raw"), threat=LInf(4), step=Sign(), steps=s, start="sign"
        )
        for s in (3, 1)
    )
    return Prior(victim, starts)


def box(walk: str = "squares", max_queries: int = 40, **more: object) -> BlackBox:
    prior = lent() if walk == "prgf" else None
    given = {"threat": LInf(4), "max_queries": max_queries, "top": 5, "prior": prior, **more}
    return BlackBox(walk=WALKS[walk], **given)  # type: ignore[arg-type]


# -- what an answer is worth -----------------------------------------------------------------------


@given(st.permutations(range(8)), st.integers(1, 6))
def test_relevance_is_the_papers_sum(order: list[int], k: int) -> None:
    """Against the definition, term by term."""
    clean, now = tuple(range(k)), tuple(order[:k])
    worth = Relevance().bind(Answer(clean))

    def d(rank: int) -> float:
        return 1 / math.log2(1 + rank)

    both = [(clean.index(i) + 1, now.index(i) + 1) for i in clean if i in now]
    left = sum(d(r) * d(s) for r, s in both) / sum(d(r) ** 2 for r in range(1, k + 1))
    assert worth(Answer(now)) == pytest.approx(-left)
    assert -1 - 1e-12 <= worth(Answer(now)) <= 0
    # Nothing but the clean order is worth as little; nothing but strangers as much.
    assert (worth(Answer(now)) < -1 + 1e-12) == (now == clean)
    assert (worth(Answer(now)) == 0) == (not both)


def test_an_item_that_falls_is_progress_and_order_decides() -> None:
    worth = Relevance().bind(Answer(("a", "b", "c", "d")))
    best = [("a", "b", "c", "d"), ("x", "a", "b", "c"), ("x", "y", "a", "b"), ("x", "y", "z", "d")]
    values = [worth(Answer(items)) for items in best]
    assert values == sorted(values)
    assert len(set(values)) == 4


def test_scores_tell_what_ranks_do_not() -> None:
    ids, scores = Relevance(), Relevance(scores=True)
    clean = Answer(("a", "b"), (0.9, 0.8))
    nearer, farther = Answer(("a", "b"), (0.9, 0.8)), Answer(("a", "b"), (0.7, 0.6))
    assert ids.bind(clean)(nearer) == ids.bind(clean)(farther)
    assert scores.bind(clean)(nearer) < scores.bind(clean)(farther)
    # One that has left the list has at most the last score of it.
    gone = Answer(("a", "x"), (0.7, 0.65))
    assert scores.bind(clean)(gone) == pytest.approx(
        -(0.7 + 0.65 / math.log2(3)) / (1 + 1 / math.log2(3))
    )
    with pytest.raises(ArgumentError, match="keeps its scores to itself; leave scores=yes out"):
        scores.bind(Answer(("a", "b")))
    with pytest.raises(ArgumentError, match="no item at all"):
        ids.bind(Answer(()))


# -- counting --------------------------------------------------------------------------------------


@given(
    walk=st.sampled_from(sorted(WALKS)),
    max_queries=st.integers(2, 60),
    count=st.integers(1, 3),
    eps=st.one_of(st.integers(1, 9), st.floats(1, 9)),
    scores=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_query_is_ever_asked_more_than_it_may(walk, max_queries, count, eps, scores) -> None:  # type: ignore[no-untyped-def]
    images = torch.randint(
        0, 256, (count, 3, 8, 4), generator=torch.Generator().manual_seed(3)
    ).byte()
    oracle = line(images)
    attack = box(walk, max_queries, threat=LInf(eps), relevance=Relevance(scores))
    found = attack(unseen(), images, Scene(oracle=oracle))
    assert bool((found.asked <= max_queries).all())
    assert bool((found.asked >= 2).all())
    assert int(found.asked.sum()) == oracle.asked
    if scores:  # there is always more to learn
        assert found.asked.tolist() == [max_queries] * count
    change = found.images.int() - images.int()
    assert int(change.abs().max()) <= eps
    assert torch.equal(change.float(), found.delta)
    assert found.gradients == 0
    assert (found.prior_gradients > 0) == (walk == "prgf")


def test_asking_beyond_the_budget_is_refused_before_anybody_is_asked() -> None:
    seen: list[int] = []

    def oracle(pictures: Tensor, k: int) -> list[Answer]:
        seen.append(len(pictures))
        return [Answer((1,))] * len(pictures)

    counted, pictures = Counted(oracle, 3, [0, 0]), torch.zeros(4, 3, 2, 2).byte()
    counted(pictures, [0, 0, 1, 0], 1)
    with pytest.raises(BudgetError, match="would be asked 4 times, 3 are allowed"):
        counted(pictures[:2], [1, 0], 1)
    assert (counted.asked, seen) == ([3, 1], [4])
    short = Counted(lambda pictures, k: [], 3, [0])
    with pytest.raises(
        ArgumentError, match="gives 0 answers for 1 pictures; it must give one each"
    ):
        short(pictures[:1], [0], 1)
    assert short.asked == [1]


def test_a_greedy_walk_is_cut_short(pictures: Tensor) -> None:
    """A walk that wants everything at once gets what is left."""

    class Greedy:
        def __call__(self, query: Query):  # type: ignore[no-untyped-def]
            while True:
                yield torch.ones_like(query.clean).expand(1000, -1, -1, -1)

    oracle = line(pictures)
    found = BlackBox(walk=Greedy(), threat=LInf(4), max_queries=7)(
        unseen(), pictures, Scene(oracle=oracle)
    )
    assert found.asked.tolist() == [7] * 5
    assert oracle.asked == 35


def test_a_walk_that_leaves_its_threat_is_brought_back(pictures: Tensor) -> None:
    tried: list[Tensor] = []

    class Wild:
        def __call__(self, query: Query):  # type: ignore[no-untyped-def]
            while True:
                yield torch.full_like(query.clean, 99.7)[None]

    def oracle(asked: Tensor, k: int) -> list[Answer]:
        tried.append(asked)
        return [Answer((1,), (0.0,))] * len(asked)

    BlackBox(walk=Wild(), threat=LInf(4), max_queries=3)(
        unseen(), pictures, Scene(oracle=oracle), names=list("abcde")
    )
    assert all(int((asked.int() - pictures.int()).abs().max()) <= 4 for asked in tried)


def test_who_may_ask_less_has_the_prefix(pictures: Tensor) -> None:
    """One search is the whole curve: pictures and counts are those of every attack alone."""
    for walk in WALKS:
        members = [box(walk, most) for most in (31, 9, 60, 9)]
        names, found = list("abcde"), dict[int, object]()
        oracle = line(pictures, spacing=15)
        for shares in asked_together(
            members, unseen(), pictures, Scene(oracle=oracle), names=names
        ):
            found |= {share.member: share.found for share in shares}
        asked = oracle.asked
        for member, attack in enumerate(members):
            alone = attack(
                unseen(), pictures, Scene(oracle=line(pictures, spacing=15)), names=names
            )
            shared = found[member]
            assert torch.equal(alone.images, shared.images), (walk, attack.max_queries)  # type: ignore[attr-defined]
            assert torch.equal(alone.asked, shared.asked)  # type: ignore[attr-defined]
            assert torch.equal(alone.losses, shared.losses)  # type: ignore[attr-defined]
            assert alone.prior_gradients == shared.prior_gradients  # type: ignore[attr-defined]
            if attack.max_queries == 60:
                assert int(alone.asked.sum()) == asked  # no prefix is asked again
    with pytest.raises(ArgumentError, match="differ in max_queries and nothing else"):
        list(asked_together([box(), box(top=3)], unseen(), pictures))


# -- each picture by itself ------------------------------------------------------------------------


@pytest.mark.parametrize("walk", sorted(WALKS))
def test_batch_and_order_change_nothing(walk: str, pictures: Tensor) -> None:
    attack, names = box(walk), list("abcde")

    def found(which: Sequence[int], seed: int = 5) -> Tensor:
        scene, mine = Scene(oracle=line(pictures, spacing=15)), [names[i] for i in which]
        return attack(unseen(), pictures[list(which)], scene, names=mine, seed=seed).images

    whole = found(range(5))
    assert torch.equal(found([4, 2, 0, 1, 3]), whole[[4, 2, 0, 1, 3]])
    for i in range(5):
        assert torch.equal(found([i]), whole[i : i + 1])
    assert not torch.equal(found(range(5), seed=6), whole)


# -- closed forms ----------------------------------------------------------------------------------


def test_squares_find_the_vertex_of_a_linear_system(pictures: Tensor) -> None:
    """Weights that are one number per channel: the best move is ±ε in whole channels."""
    weights = torch.tensor([3, -2, 5])[:, None, None].expand(3, 8, 4)
    oracle = Line(weights, torch.zeros(1))
    here = int(oracle.feature(pictures[:1])[0])
    oracle.places = torch.tensor([here, here + 10_000])  # what is near is on this side
    attack = dataclasses.replace(
        box(max_queries=200, relevance=Relevance(scores=True), top=1),
        walk=dataclasses.replace(SMALL, patience=200),
    )
    found = attack(unseen(), pictures[:1], Scene(oracle=oracle), names=["a"])
    best = 4 * 32 * (3 + 2 + 5)
    moved = int((oracle.feature(found.images) - here).abs())
    corners = [
        abs(int((torch.tensor(s)[:, None, None] * weights * 4).sum()))
        for s in itertools.product((-1, 1), repeat=3)
    ]
    assert max(corners) == best
    assert moved == best


class Slanted:
    """Worth that is linear in the change: its gradient is known."""

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient

    def estimate(self, estimator: Estimator, query: Query) -> Tensor | None:
        """What an estimator makes of it."""
        walking = estimator(query, torch.zeros_like(self.gradient), 0.0, query.rng("probes"), 2.0)
        wanted = next(walking)
        try:
            while True:
                worth = (wanted.double() * self.gradient.double()).sum((1, 2, 3))
                wanted = walking.send(worth)
        except StopIteration as end:
            estimated: Tensor | None = end.value
            return estimated


def query(picture: Tensor, prior: Prior | None = None) -> Query:
    guide = Guide(prior, picture[None], "a", 0) if prior else None
    return Query(picture.float(), LInf(8), "a", 0, guide)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_estimates_converge_to_the_gradient_in_their_cells(pictures: Tensor) -> None:
    """With many probes the estimate is the gradient's mean over every cell."""
    gradient = normal(3, 8, 4, seed=4)
    pooled = nn.functional.avg_pool2d(gradient, 2)
    in_cells = pooled.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for estimator in (Antithetic(pairs=4000, cell=2), Forward(probes=4000, cell=2)):
        estimated = Slanted(gradient).estimate(estimator, query(pictures[0]))
        assert estimated is not None
        assert cosine(estimated, in_cells) > 0.98
        few = dataclasses.replace(
            estimator, **{"pairs" if isinstance(estimator, Antithetic) else "probes": 3}
        )
        rough = Slanted(gradient).estimate(few, query(pictures[0]))
        assert rough is not None
        assert cosine(rough, in_cells) < 0.9


def test_a_plateau_gives_no_direction_but_the_priors(pictures: Tensor) -> None:
    flat = Slanted(torch.zeros(3, 8, 4))
    for estimator in (Antithetic(cell=2), Forward(cell=2)):
        assert flat.estimate(estimator, query(pictures[0])) is None
    here = query(pictures[0], lent())
    followed = flat.estimate(Guided(cell=2), here)
    assert followed is not None
    assert here.guide is not None
    assert here.guide.gradients == 1  # one is enough, and it is counted
    again = query(pictures[0], lent())
    assert again.guide is not None
    assert cosine(followed, again.guide.slope(torch.zeros(3, 8, 4))) == pytest.approx(1)


def test_a_good_prior_is_followed_and_a_wrong_one_is_not(pictures: Tensor) -> None:
    here = query(pictures[0], lent())
    assert here.guide is not None
    slope = here.guide.slope(torch.zeros(3, 8, 4))
    estimator = Guided(cell=2, probes=8, norms=8)
    followed = Slanted(slope).estimate(estimator, query(pictures[0], lent()))
    turned = Slanted(-slope).estimate(estimator, query(pictures[0], lent()))
    assert followed is not None
    assert turned is not None
    assert cosine(followed, slope) == pytest.approx(1)
    assert cosine(turned, slope) == pytest.approx(-1)  # the probes say that it leads the wrong way
    other = normal(3, 8, 4, seed=11)
    other -= slope * (other * slope).sum() / slope.square().sum()  # nothing in common with it
    alone = Slanted(other).estimate(estimator, query(pictures[0], lent()))
    assert alone is not None
    assert cosine(alone, other) > abs(cosine(alone, slope))


@pytest.mark.parametrize("likeness", [0.03, 0.05, 0.1])
def test_leaning_is_the_best_there_is(likeness: float) -> None:
    """Against brute force: of all λ, the one of the largest mean squared cosine."""
    d, q, trials = 40, 6, 4000
    torch.manual_seed(0)
    gradient = torch.zeros(d + 1)
    gradient[0], gradient[1] = math.sqrt(likeness), 1.0  # v is the axis 0, outside the cells
    gradient /= gradient.norm()

    def quality(weight: float) -> float:
        noise = torch.randn(trials, q, d)
        noise = noise / noise.norm(dim=2, keepdim=True)
        lean = torch.full((trials, q, 1), math.sqrt(weight))
        probes = torch.cat([lean, math.sqrt(1 - weight) * noise], 2)  # (trials, q, d + 1)
        estimates = ((probes @ gradient)[:, :, None] * probes).sum(1)
        return float(nn.functional.cosine_similarity(estimates, gradient, dim=1).square().mean())

    chosen = leaning(likeness, d, q)
    assert 0 < chosen < 1
    assert quality(chosen) > max(quality(weight / 10) for weight in range(11)) - 0.01
    assert leaning(1 / (d + 2 * q - 2), d, q) == 0
    assert leaning((2 * q - 1) / d, d, q) == 1


# -- plateaus --------------------------------------------------------------------------------------


def test_a_plateau_is_walked_over(pictures: Tensor) -> None:
    """An answer that moves only at the far end: ties must be gone along with."""
    weights = torch.ones(3, 8, 4).long()
    oracle = Line(weights, torch.zeros(1))
    here = int(oracle.feature(pictures[:1])[0])
    oracle.places = torch.tensor([here, here - 340, here + 340])  # half way is the border
    attack = box(max_queries=400, top=1)
    found = attack(unseen(), pictures[:1], Scene(oracle=oracle), names=["a"])
    assert bool((found.losses[: 1 + SMALL.starts] == -1).all())  # no start is far enough
    assert float(found.losses[-1]) == 0.0
    assert int((oracle.feature(found.images) - here).abs()) > 170


def test_nothing_left_is_the_end_of_asking(pictures: Tensor) -> None:
    def oracle(asked: Tensor, k: int) -> list[Answer]:
        clean = (asked[:, None] == pictures).all((2, 3, 4)).any(1)
        return [Answer(("mine",) if own else ("another",)) for own in clean]

    found = box(max_queries=50)(unseen(), pictures, Scene(oracle=oracle))
    assert found.asked.tolist() == [1 + SMALL.starts] * 5


# -- real networks ---------------------------------------------------------------------------------


class Untouchable(nn.Module):
    """A network that answers, and breaks where anybody wants its gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = _Refuse.apply(self.network(x))
        return found


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        raise AssertionError("the victim's gradient was touched")


@pytest.fixture(scope="module")
def system(glyph_victim: Victim) -> RetrievalSystem:
    split = load_data("glyphs")
    split = dataclasses.replace(split, gallery=split.gallery.sample(400, 0, "gallery"))
    features = extract_all(glyph_victim, split.gallery, "gallery", progress=False)
    return RetrievalSystem.build(glyph_victim, split, features)


def test_no_gradient_of_the_victim_is_touched(
    glyph_victim: Victim, system: RetrievalSystem
) -> None:
    guarded = dataclasses.replace(glyph_victim, network=Untouchable(glyph_victim.network))
    read = load_data("glyphs").query.read
    images = guarded.grid([read(0), read(9)])
    with pytest.raises(AssertionError, match="gradient was touched"):
        attacks.odfa(eps=8, steps=1)(guarded, images)
    scene = Scene(oracle=SystemOracle(guarded, system))
    for spec in ("square", "nes", "rgf", "prgf:prior=glyph_net", "square:prior=glyph_net"):
        attack = load_attack(spec, eps=8, max_queries=12)
        found = attack(guarded, images, scene, names=["a", "b"])
        assert found.gradients == 0
        assert (found.prior_gradients > 0) == ("prior" in spec)


def test_a_system_answers_as_it_ranks(glyph_victim: Victim, system: RetrievalSystem) -> None:
    query = load_data("glyphs").query
    pictures = [query.read(i) for i in range(70)]
    answers = SystemOracle(glyph_victim, system)(glyph_victim.grid(pictures), 4)
    scores = system.whole.scores(extract_decoded(glyph_victim, pictures))
    best = scores.topk(4, dim=1)
    assert [answer.items for answer in answers] == [tuple(row) for row in best.indices.tolist()]
    assert answers[7].scores == pytest.approx(best.values[7].tolist(), abs=1e-6)


@pytest.mark.parametrize("index", ["exact", "faiss:Flat", "milvus:{}/some.db"])
def test_junk_is_no_answer_and_a_small_gallery_answers_less(
    glyph_victim: Victim, tmp_path: Path, index: str
) -> None:
    needs(index)
    split = load_data("glyphs")
    few = split.gallery.subset(np.array([1, 40, 80, 120]))
    few = dataclasses.replace(few, identities=np.array([JUNK, *few.identities[1:]]))
    split = dataclasses.replace(split, gallery=few)
    features = extract_all(glyph_victim, few, "gallery", progress=False)
    picture = glyph_victim.grid([few.read(0)])  # the junk itself would be first
    system = RetrievalSystem.build(glyph_victim, split, features, index.format(tmp_path))
    (answer,) = SystemOracle(glyph_victim, system)(picture, 10)
    assert sorted(map(int, answer.items)) == [1, 2, 3]
    assert answer.scores is not None
    assert list(answer.scores) == sorted(answer.scores, reverse=True)


def test_every_black_box_leaves_less_than_noise(
    glyph_victim: Victim, system: RetrievalSystem
) -> None:
    query, oracle = load_data("glyphs").query, SystemOracle(glyph_victim, system)
    images = glyph_victim.grid([query.read(i) for i in range(0, 600, 75)])
    names, worth = [str(i) for i in range(8)], Relevance()

    def left(pictures: Tensor) -> float:
        pairs = zip(oracle(images, 10), oracle(pictures, 10), strict=True)
        return -sum(worth.bind(clean)(now) for clean, now in pairs) / len(images)

    noise = left(attacks.noise(eps=12)(glyph_victim, images, names=names).images)
    for spec in ("square", "nes", "rgf"):
        attack = load_attack(f"{spec}:max_queries=100", eps=12)
        found = attack(glyph_victim, images, Scene(oracle=oracle), names=names)
        assert left(found.images) < noise - 0.1, spec
        # What is returned was asked, and the trace is what it was worth.
        assert -float(found.losses[-1].mean()) == pytest.approx(left(found.images), abs=1e-3)
        assert bool((found.losses.diff(dim=0) >= 0).all())


def test_a_prior_saves_questions(glyph_victim: Victim, system: RetrievalSystem) -> None:
    query, oracle = load_data("glyphs").query, SystemOracle(glyph_victim, system)
    images = glyph_victim.grid([query.read(i) for i in (0, 200, 400)])
    names = ["a", "b", "c"]

    def asked(spec: str) -> float:
        attack = load_attack(spec, eps=8, max_queries=60)
        found = attack(glyph_victim, images, Scene(oracle=oracle), names=names)
        return float(found.asked.float().mean())

    assert asked("square:prior=[glyph_net:flip=yes]") < 0.5 * asked("square")


# -- specs -----------------------------------------------------------------------------------------


def test_specs_and_what_is_refused(pictures: Tensor) -> None:
    attack = load_attack("square:max_queries=500,top=5,scores=yes", eps=8)
    assert isinstance(attack, BlackBox)
    assert (attack.max_queries, attack.top, attack.relevance) == (500, 5, Relevance(scores=True))
    assert load_attack("square:max_queries=500", eps=8, max_queries=200).max_queries == 200  # type: ignore[attr-defined]
    assert load_attack("square:max_queries=100", eps=8, max_queries=200).max_queries == 100  # type: ignore[attr-defined]
    assert load_attack("uturn", eps=8, max_queries=2) == load_attack("uturn", eps=8)
    lending = load_attack("square:prior=[glyph_net:flip=yes],max_queries=50", eps=8)
    assert isinstance(lending, BlackBox)
    assert lending.prior is not None
    assert "glyph_net" in repr(lending)
    assert lending == load_attack("square:prior=[glyph_net:flip=yes],max_queries=50", eps=8)
    with pytest.raises(ArgumentError, match=r"asking it: pass Scene\(oracle=…\)"):
        attack(unseen(), pictures)
    for option, message in (("max_queries=1", "must be at least 2"), ("top=0", "at least 1 item")):
        with pytest.raises(ArgumentError, match=message):
            load_attack(f"square:{option}", eps=8)
    with pytest.raises(ArgumentError, match="there is none; take one that asks only"):
        attacks.odfa(eps=8)(unseen(), pictures)
    assert RAW.size == (8, 4)
