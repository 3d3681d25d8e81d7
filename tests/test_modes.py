"""What a sweep can be asked beside the plain one: native size, paper mode, scales, goals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests.conftest import write_market
from uturn import load_data, load_victim
from uturn.attacks import load_attack
from uturn.attacks.paper import PAPER
from uturn.attacks.presets import iterations
from uturn.attacks.problem import Batch
from uturn.data.pictures import decode
from uturn.data.split import Split
from uturn.errors import ArgumentError, SpecError
from uturn.report import html
from uturn.report.text import table
from uturn.retrieval.extract import extract_all
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep import Plan, run
from uturn.sweep.insider import CHOSEN, Goal, Insider
from uturn.sweep.plan import Job
from uturn.victims.victim import Victim, to_pixels

GALLERY = [f"{i:04d}_c{c}s1_0000{i:02d}_0{c}.jpg" for i in range(1, 9) for c in (1, 2, 3)]
QUERIES = [f"{i:04d}_c1s2_0001{i:02d}_01.jpg" for i in range(1, 9)]


def plan(**changes: Any) -> Plan:
    given = {"victim": "glyph_net", "data": "glyphs", "eps": (8,), "queries": 10, "seed": 3}
    return Plan(**given | changes)


def results(out: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {row["attack"]: row for row in rows}


# -- at native size --------------------------------------------------------------------------------


def test_native_pictures_are_changed_at_their_own_size(tmp_path: Path) -> None:
    """16 × 8 pictures, a victim of 32 × 32: saved as they are, read again through its resize."""
    data = f"market1501:{write_market(tmp_path / 'market', GALLERY, QUERIES)}"
    out = tmp_path / "native"
    run(plan(data=data, attacks=("odfa", "uturn"), queries=8, at="native"), out, progress=False)
    split = load_data(data)
    for position, name in enumerate(split.query.names):
        clean = decode(out / "images" / "clean" / f"{name}.png")
        assert np.array_equal(clean, split.query.read(position))
        for attack in ("odfa", "uturn"):
            changed = decode(out / "images" / attack / "eps8" / f"{name}.png")
            assert changed.shape == (16, 8, 3)
            assert 0 < np.abs(changed.astype(int) - clean).max() <= 8
    cosine = {name: row["cosine"] for name, row in results(out).items()}
    assert cosine["uturn"] < cosine["odfa"] < 0.98
    header = json.loads((out / "run.json").read_text())
    assert header["configuration"]["at"] == "native"


# -- paper mode ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("paper") / "run"
    run(plan(mode="paper", attacks=("fast", "odfa", "sma")), out, progress=False)
    return out


def test_paper_mode_is_the_original_pipeline(paper_run: Path) -> None:
    """What is scored is a JPEG of quality 75 of truncated pictures; trapezoid; cosine."""
    victim, query = load_victim("glyph_net"), load_data("glyphs").sample(10, 3).query
    clean = victim.grid(map(query.read, range(10)))
    attack = load_attack("fast", eps=8, mode="paper")
    found = attack(victim, clean, names=query.names, seed=3).images
    for name, image in zip(query.names, found, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG")
        scored = decode(paper_run / "images" / "fast" / "eps8" / f"{name}.png")
        assert np.array_equal(scored, np.asarray(Image.open(buffer)))
    rows = results(paper_run)
    assert rows["odfa"]["convention"] == "trapezoid"
    assert rows["odfa"]["index"] == "exact:cosine"
    assert any("beyond" in flag for flag in rows["odfa"]["flags"])
    page = html.write(paper_run).read_text()
    assert "Paper mode" in page
    assert "after checking that none is further" not in page


def test_whitened_steps_are_truncated() -> None:
    """One step of ε = 16 is 16.21, 15.86 and 15.93 levels of R, G and B; then the floor."""
    victim = load_victim("glyph_net")
    images = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    found = PAPER["fast"](eps=16)(victim, images).images[0]
    moved = [sorted(set((channel.int() - 100).flatten().tolist())) for channel in found]
    assert moved[0] == [-17, 16] or set(moved[0]) <= {-17, 0, 16}
    assert set(moved[1]) <= {-16, 0, 15}
    assert set(moved[2]) <= {-16, 0, 15}
    assert [len(moved[c]) >= 2 for c in range(3)] == [True] * 3


def test_paper_attacks_spend_the_papers_gradients() -> None:
    for name, preset in PAPER.items():
        for eps in (2, 4, 8, 12, 16):
            assert preset(eps=eps).gradients == (1 if name == "fast" else iterations(eps))
    with pytest.raises(SpecError, match=r"unknown attack of the paper 'uturn'; known: basic, fast"):
        plan(mode="paper", attacks=("uturn",))
    with pytest.raises(ArgumentError, match="worst is a set of attacks of its own"):
        plan(mode="paper", attacks=("odfa", "worst"))
    with pytest.raises(SpecError, match="unknown mode 'papers'"):
        plan(mode="papers")


def test_papers_sma_holds_its_ball_around_the_random_start() -> None:
    """No value leaves ε around the start, but 2 ε around the picture is reached."""
    victim, eps = load_victim("glyph_net"), 8
    images = torch.full((4, 3, 32, 32), 128, dtype=torch.uint8)
    attack = PAPER["sma"](eps=eps)
    problem = attack.pose(Batch(victim, images))
    start = problem.start("sample")
    delta = attack.climb(problem).delta
    ratio = torch.tensor([0.229, 0.224, 0.225])[:, None, None] / 0.226
    assert float(((delta - start) / ratio).abs().max()) <= eps + 1e-4
    assert float((start / ratio).abs().max()) <= eps
    assert float((delta / ratio).abs().max()) > 1.5 * eps


def test_every_attack_of_the_paper_climbs_and_keeps_its_whitened_ball() -> None:
    victim, query = load_victim("glyph_net"), load_data("glyphs").query
    images = victim.grid([query.read(i) for i in range(0, 4000, 400)])
    for name, preset in PAPER.items():
        attack = preset(eps=8)
        problem = attack.pose(Batch(victim, images))
        start = problem.start(attack.start)
        delta = attack.climb(problem).delta
        # Where the gradient is zero at the start, any change is a gain.
        assert float((problem.value(delta) - problem.value(start)).mean()) > 0, name
        change = attack(victim, images).delta
        reach = (16 if name == "sma" else 8) * torch.tensor([0.229, 0.224, 0.225]) / 0.226
        assert bool((change.abs().amax((0, 2, 3)) <= reach + 1).all()), name


# -- scales ----------------------------------------------------------------------------------------


def test_scales_belong_to_queries_and_gallery(tmp_path: Path) -> None:
    out = tmp_path / "run"
    attacks = ("odfa:scales=1", "odfa")
    run(plan(scales=(1.0, 0.5), attacks=attacks), out, progress=False)
    rows = results(out)
    assert rows["odfa"]["cosine"] < rows["odfa:scales=1"]["cosine"]
    split = load_data("glyphs").sample(10, 3)
    victim = load_victim("glyph_net").at_scales((1.0, 0.5))
    gallery = extract_all(victim, split.gallery, "pictures", progress=False)
    system = RetrievalSystem.build(victim, split, gallery)
    queries = extract_all(victim, split.query.subset(np.arange(10)), "pictures", progress=False)
    ranking = system.rank(queries, Labels.of(split.query, victim.device))
    assert rows["clean"]["recall@1"] == float((ranking.positions[:, 0] == 1).double().mean())


# -- goals -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def insider() -> tuple[Insider, Split, torch.Tensor]:
    victim, split = load_victim("glyph_net"), load_data("glyphs").sample(6, 3)
    few = np.arange(0, len(split.gallery), 8)
    split = Split(name="few", query=split.query, gallery=split.gallery.subset(few))
    gallery = extract_all(victim, split.gallery, "pictures", progress=False)
    system = RetrievalSystem.build(victim, split, gallery)
    queries = extract_all(victim, split.query.subset(np.arange(6)), "pictures", progress=False)
    return Insider(victim, split, system, gallery, "exact", 3), split, queries


def job(spec: str) -> Job:
    return Job(spec, 8, load_attack(spec, eps=8))


@pytest.mark.parametrize("spec", ["tma", "qa_plus", "qa_minus"])
def test_places_of_candidates_against_brute_force(insider, spec: str) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    goal = known.goal(job(spec), split.query.names, labels, features)
    assert goal is not None
    assert goal.chosen.shape == (6, 1 if spec == "tma" else CHOSEN)
    relevant, ignored = known.system.judge(labels, known.system.gallery).masks()
    scores = known.system.index.scores(features)
    expected = []
    for q in range(6):
        kept = [i for i in range(len(split.gallery)) if not ignored[q, i]]
        order = sorted(kept, key=lambda i: -float(scores[q, i]))
        places = [order.index(int(c)) + 1 for c in goal.chosen[q]]
        if spec == "qa_minus":
            assert places == list(range(1, CHOSEN + 1))  # what stands at the top is to fall
        else:
            assert not relevant[q, goal.chosen[q]].any()
        expected.append(float(np.mean(places)))
    found = known.places(goal, labels, features)
    assert found["goal_rank"] == expected
    assert found["goal_items"] == (~ignored).sum(1).tolist()
    assert found["goal_first"] == [spec == "qa_minus"] * 6


@pytest.mark.parametrize("spec", ["ca_plus", "ca_minus"])
def test_places_of_the_picture_as_a_candidate_against_brute_force(insider, spec: str) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    goal = known.goal(job(spec), split.query.names, labels, features)
    assert goal.as_candidate
    unit = torch.nn.functional.normalize(known.features, dim=1)
    own = torch.nn.functional.normalize(features, dim=1)
    for q, place in enumerate(known.places(goal, labels, features)["goal_rank"]):
        places = []
        for asking in goal.chosen[q].tolist():
            mine = float(unit[asking] @ own[q])
            others = [i for i in range(len(unit)) if i != asking]
            places.append(1 + sum(float(unit[asking] @ unit[i]) >= mine for i in others))
        assert place == pytest.approx(float(np.mean(places)), abs=0.41)  # last bits of a float


def test_looking_at_scales_keeps_the_goal(insider) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    plain, scaled = (
        known.goal(job(spec), split.query.names, labels, features)
        for spec in ("qa_minus", "qa_minus:scales=1+0.5")
    )
    assert torch.equal(plain.chosen, scaled.chosen)


def test_what_an_insider_is_given_does_not_depend_on_the_batch(insider) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    for spec in ("tma", "qa_plus", "ca_plus", "fna"):
        whole = known.goal(job(spec), split.query.names, labels, features)
        scene = known.scene(job(spec), split.query.names, labels, features, whole)
        one = slice(2, 3)
        part = known.goal(job(spec), split.query.names[one], labels[one], features[one])
        alone = known.scene(job(spec), split.query.names[one], labels[one], features[one], part)
        for field in ("targets", "candidates", "queries", "others", "same"):
            given = getattr(scene, field)
            assert (given is None) == (getattr(alone, field) is None)
            assert given is None or torch.equal(given[one], getattr(alone, field)), field


def test_known_pictures_are_of_the_same_identity_and_targets_of_another(insider) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    relevant, _ = known.system.judge(labels, known.system.gallery).masks()
    scene = known.scene(job("fna"), split.query.names, labels, features, None)
    assert scene.same is not None
    for q in range(6):
        allowed = known.features[relevant[q]] if relevant[q].any() else features[[q]]
        for one in scene.same[q]:
            assert bool((allowed == one).all(1).any())
    goal = known.goal(job("tma"), split.query.names, labels, features)
    target = known.scene(job("tma"), split.query.names, labels, features, goal).targets
    expected = known.victim.grid(split.gallery.read(int(i)) for i in goal.chosen[:, 0])
    assert torch.equal(target, to_pixels(expected))


def test_a_goal_is_a_row_of_its_own_kind(tmp_path: Path) -> None:
    out = tmp_path / "run"
    wanted = ("odfa", "tma:steps=40", "qa_plus", "qa_minus", "ca_plus", "ca_minus", "fna")
    rows = run(plan(attacks=wanted), out, progress=False)
    goals = {row["attack"]: row["goal"] for row in rows}
    assert goals["odfa"] is None
    assert goals["fna"] is None
    for name in ("tma:steps=40", "qa_plus", "ca_plus"):
        assert goals[name]["attacked"] < goals[name]["clean"] - 0.2, name
    for name in ("qa_minus", "ca_minus"):
        assert goals[name]["attacked"] > goals[name]["clean"] + 0.4, name
    text = table(rows)
    assert "goal clean" in text
    assert "median levels" not in text
    assert "goal 1st" in html.write(out).read_text()
    stored = pq.read_table(out / "queries.parquet").to_pylist()
    tma = [row for row in stored if row["attack"] == "tma:steps=40"]
    mean = np.mean([(row["goal_rank"] - 1) / (row["goal_items"] - 1) for row in tma])
    assert goals["tma:steps=40"]["attacked"] == pytest.approx(mean)


def test_the_smallest_eps_is_found_by_the_ranking(tmp_path: Path) -> None:
    """Every query that lost did so at its own ε, and not at one less."""
    out = tmp_path / "run"
    ladder = tuple(f"uturn:steps={steps}" for steps in (5,))
    rows = run(plan(attacks=("minimal:by=uturn:steps=5", *ladder), eps=(6,)), out, progress=False)
    minimal = next(row for row in rows if row["attack"].startswith("minimal"))
    assert minimal["linf_levels"] < 6
    assert "median levels" in table(rows)
    stored = [
        row
        for row in pq.read_table(out / "queries.parquet").to_pylist()
        if row["attack"].startswith("minimal")
    ]
    lost = [row for row in stored if row["first_match_rank"] != 1]
    assert len(lost) >= 8
    one_less = run(plan(attacks=ladder, eps=(1, 2, 3, 4, 5)), tmp_path / "steps", progress=False)
    assert one_less
    before = {
        (row["query"], row["eps"]): row["first_match_rank"]
        for row in pq.read_table(tmp_path / "steps" / "queries.parquet").to_pylist()
    }
    for row in lost:
        if row["linf_levels"] > 1:
            assert before[row["query"], row["linf_levels"] - 1] == 1


def test_a_goal_needs_no_match(insider) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    numbers = torch.arange(6)
    labels = Labels(torch.full((6,), 10**6), torch.zeros(6, dtype=torch.int64), numbers)
    scene = known.scene(job("fna"), split.query.names, labels, features, None)
    assert torch.equal(scene.same, features[:, None].expand_as(scene.same))


def test_positions_count_ties_against_the_attacker(insider) -> None:  # type: ignore[no-untyped-def]
    known, split, features = insider
    labels = Labels.of(split.query, torch.device("cpu"))
    goal = Goal(torch.zeros(6, 1, dtype=torch.int64), as_candidate=False, pictured=True)
    collapsed = known.places(goal, labels, torch.zeros_like(features))
    assert collapsed["goal_rank"] == collapsed["goal_items"]
    assert not any(collapsed["goal_first"])


def test_no_two_attacks_share_a_folder() -> None:
    names = ["universal:file=a/b", "universal:file=a_b", "odfa:steps=20", "uturn:views=a+b,steps=2"]
    folders = [Job(name, 8).folder for name in (*names, "universal:file=" + "/long" * 99)]
    assert len(set(folders)) == len(folders)
    assert all(len(folder) < 120 for folder in folders)
    assert folders[2] == "odfa_steps=20/eps8"


def test_an_unknown_place_to_attack_is_refused() -> None:
    with pytest.raises(SpecError, match="unknown place to attack 'home'; known: model, native"):
        plan(at="home")
    with pytest.raises(ArgumentError, match="scales must lie"):
        Victim.at_scales(load_victim("glyph_net"), (9.0,))
