"""The guard: signs of known size, rates against brute force, and an attacker who knows it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import RAW, linear_victim, normal
from tests.test_craft import stopping
from uturn import Scene, Victim, attacks, load_data, load_victim
from uturn.attacks.objectives import OppositeDirection, TowardsNearest, Unnoticed
from uturn.cli import main
from uturn.data.channels import CHANNELS
from uturn.data.split import Split
from uturn.errors import ArgumentError, CheckpointError, RunFolderError
from uturn.guard import Guard, Look
from uturn.guard.detector import MOVED, SIGNS, Usual, show, threshold
from uturn.guard.evaluate import ANSWERS, _calibration, _choices, _Seen, _verdict, try_guard
from uturn.guard.neighbourhood import NEIGHBOURS, Neighbourhood
from uturn.report.folder import CLEAN, Run
from uturn.retrieval.extract import extract, extract_all
from uturn.retrieval.intervals import RESAMPLES, auc, auc_bootstrap
from uturn.retrieval.support import ENOUGH
from uturn.rng import generator
from uturn.sweep import Plan, run
from uturn.sweep.watch import watch
from uturn.victims.victim import to_picture, to_pixels

PLAIN = {name: Usual(0.0, 1.0) for name in SIGNS}


class Halves(nn.Module):
    """The means of the left and of the right half; blind to what happens inside either."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=3)
        return torch.stack([left.mean((1, 2, 3)), right.mean((1, 2, 3))], 1)


def halves(left: float, right: float) -> Tensor:
    """One picture ``(1, 3, 8, 4)`` of two plain halves, in levels."""
    picture = torch.empty(1, 3, 8, 4, dtype=torch.uint8)
    picture[..., :2], picture[..., 2:] = left, right
    return picture


def plain(victim: Victim, gallery: Tensor, at: float = 3.0) -> Guard:
    """A guard whose signs are as they are measured."""
    return Guard(
        victim=victim,
        gallery=Neighbourhood.of(gallery),
        usual=PLAIN,
        threshold=at,
        fpr=0.01,
        pictures=100,
    )


# -- rates ---------------------------------------------------------------------------------------

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_auc_is_scikit_learns(attacked: list[float], clean: list[float]) -> None:
    """Few different values, so that most pairs of lists have ties."""
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    truth = [1] * len(attacked) + [0] * len(clean)
    expected = sklearn.roc_auc_score(truth, attacked + clean)
    assert auc(np.array(attacked), np.array(clean)) == pytest.approx(expected)


def test_auc_by_its_definition() -> None:
    assert auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert auc(np.array([1.0]), np.array([1.0, 1.0])) == 0.5
    assert auc(np.array([0.0]), np.array([1.0])) == 0


def test_the_interval_of_an_auc_draws_whole_identities() -> None:
    """Against areas of the drawn queries themselves, attacked and clean together."""
    draw = generator(3, "test")
    identities = np.array([5, 5, 7, 7, 7, 9, 11])
    attacked, clean = draw.normal(1, 1, 7).round(1), draw.normal(0, 1, 7).round(1)
    counts = generator(1, "identity bootstrap").multinomial(4, np.full(4, 1 / 4), RESAMPLES)
    areas = []
    for times in counts:
        chosen = np.concatenate(
            [
                np.tile(np.flatnonzero(identities == identity), n)
                for identity, n in zip((5, 7, 9, 11), times, strict=True)
            ]
        )
        areas.append(auc(attacked[chosen], clean[chosen]))
    found = auc_bootstrap(attacked, clean, identities, seed=1)
    assert found == pytest.approx(tuple(np.percentile(areas, [2.5, 97.5])))


def test_a_perfect_auc_is_not_certain() -> None:
    found = auc_bootstrap(np.ones(20), np.zeros(20), np.arange(20), seed=0)
    assert found == pytest.approx((1 - (1 - 0.025 ** (1 / 20)), 1))
    assert auc_bootstrap(np.ones(3), np.zeros(3), np.zeros(3, dtype=np.int64), seed=0) is None


@given(st.lists(st.integers(0, 9), min_size=9, max_size=60), st.sampled_from([0.1, 0.2, 0.5]))
def test_the_threshold_is_the_smallest_that_keeps_the_rate(scores: list[int], fpr: float) -> None:
    """With ties; one more query, exchangeable with these, counts against it."""
    found = threshold(torch.tensor(scores, dtype=torch.float32), fpr)
    allowed = fpr * (len(scores) + 1) + 1e-9

    def beyond(limit: float) -> int:
        return 1 + sum(score > limit for score in scores)

    assert beyond(found) <= allowed
    assert all(beyond(score) > allowed for score in scores if score < found)


def test_the_rate_holds_for_queries_not_seen() -> None:
    """The mean rate over many fits, whatever the scores' law."""
    rates = []
    for trial in range(200):
        draw = generator(trial, "rate")
        fitted, fresh = draw.exponential(size=99), draw.exponential(size=500)
        rates.append((fresh > threshold(torch.from_numpy(fitted), 0.05)).mean())
    assert 0.045 < np.mean(rates) < 0.055


# -- signs ---------------------------------------------------------------------------------------


def test_a_picture_moves_as_far_as_it_must() -> None:
    """Features (a, b) become (b, a) when the picture is mirrored: cos = 2ab / (a² + b²)."""
    victim = Victim(name="halves", network=Halves(), preprocessing=RAW)
    gallery = normal(20, 2).abs()
    a, b = 200 / 255, 40 / 255
    look = plain(victim, gallery).look(halves(200, 40))
    moved = dict(zip(SIGNS, look.signs[0].tolist(), strict=True))
    assert moved["flip"] == pytest.approx(np.log(1 - 2 * a * b / (a**2 + b**2)), abs=1e-4)
    resized = CHANNELS["resize"](to_picture(halves(200, 40)[0]))  # the halves run into each other
    c, d = resized[:, :2].mean(), resized[:, 2:].mean()
    cosine = (a * c + b * d) / np.hypot(a, b) / np.hypot(c, d)
    assert moved["resize"] == pytest.approx(np.log(1 - cosine), abs=1e-3)
    same = plain(victim, gallery).look(halves(90, 90))
    assert same.signs[0, MOVED.index("flip")] == pytest.approx(np.log(1e-6))  # no movement at all


def test_ways_of_showing_are_the_channels() -> None:
    pictures = torch.randint(0, 256, (2, 3, 9, 6), generator=torch.Generator().manual_seed(0))
    ways = show(pictures.byte())
    for name in ("jpeg75", "resize"):
        for before, after in zip(pictures.byte(), ways[name], strict=True):
            assert np.array_equal(CHANNELS[name](to_picture(before)), to_picture(after))
    assert torch.equal(ways["flip"].flip(-1), ways["query"])
    with pytest.raises(ArgumentError, match="uint8"):
        show(pictures.float())


def test_strangeness_by_brute_force() -> None:
    gallery, queries = normal(40, 5, seed=1), F.normalize(normal(3, 5, seed=2), dim=1)
    left_out = torch.rand(3, 40, generator=torch.Generator().manual_seed(3)) < 0.3
    found = Neighbourhood.of(gallery).strangeness(queries, left_out)
    unit = F.normalize(gallery, dim=1).numpy()
    for query, row, value in zip(queries.numpy(), left_out.numpy(), found.tolist(), strict=True):
        terms = []
        for item in np.argsort(-(unit @ query)):
            if not row[item]:
                others = np.delete(unit @ unit[item], item)
                terms.append(np.sort(others)[-NEIGHBOURS] - unit[item] @ query)
        assert value == pytest.approx(np.mean(terms[:NEIGHBOURS]), abs=1e-5)


def test_a_hub_is_no_stranger_and_its_opposite_is() -> None:
    gallery = normal(60, 16) + 2  # all to one side
    hub = F.normalize(gallery.mean(0, keepdim=True), dim=1)
    near = Neighbourhood.of(gallery)
    assert near.strangeness(hub) < 0 < near.strangeness(-hub)


def test_of_a_large_gallery_some_items_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uturn.guard.neighbourhood.LARGEST", 30)
    gallery, left_out = normal(100, 4), torch.zeros(1, 100, dtype=torch.bool)
    found = Neighbourhood.of(gallery)
    assert len(set(found.items.tolist())) == len(found.features) == 30
    left_out[:, found.items[:20]] = True
    query = found.features[:1]
    nearest = (query @ found.features[20:].T).topk(NEIGHBOURS, dim=1)
    expected = (found.reach[20:][nearest.indices] - nearest.values).mean()
    assert found.strangeness(query, left_out).item() == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("broken", ["few", "nan"])
def test_a_gallery_that_will_not_do_is_refused(broken: str) -> None:
    gallery = normal(NEIGHBOURS if broken == "few" else 20, 4)
    gallery[0, 0] = gallery[0, 0] if broken == "few" else torch.nan
    with pytest.raises(ArgumentError, match=r"more than 10 gallery items|not finite"):
        Neighbourhood.of(gallery)


# -- the guard -----------------------------------------------------------------------------------


def test_what_is_not_a_number_is_flagged() -> None:
    signs = torch.tensor([[0.0, 0, 0, 0], [0, torch.nan, 0, 0], [0, 0, 0, 4]])
    assert Look({}, signs, threshold=3.0).flags.tolist() == [False, True, True]
    assert Look({}, signs, threshold=4.0).flags.tolist() == [False, True, False]  # a tie passes


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The gallery is embedded once for all trials here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UTURN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def glyphs() -> Split:
    return load_data("glyphs")


@pytest.fixture(scope="module")
def gallery(glyph_victim: Victim, glyphs: Split) -> Tensor:
    return extract_all(glyph_victim, glyphs.gallery, "gallery", progress=False)


@pytest.fixture(scope="module")
def clean(glyph_victim: Victim, glyphs: Split) -> Tensor:
    return glyph_victim.grid(glyphs.sample(240, 0).query.read(i) for i in range(240))


@pytest.fixture(scope="module")
def guard(glyph_victim: Victim, gallery: Tensor, clean: Tensor) -> Guard:
    return Guard.fit(glyph_victim, gallery, clean[:200], fpr=0.02)


def test_it_flags_as_many_clean_queries_as_it_may(guard: Guard, clean: Tensor) -> None:
    assert int(guard.flags(clean[:200]).sum()) == 3  # ⌊0.02 · 201⌋ − 1, no ties among these
    assert guard.pictures == 200


def test_it_catches_odfa_but_not_who_knows_it(
    guard: Guard, clean: Tensor, gallery: Tensor, glyph_victim: Victim, tmp_path: Path
) -> None:
    pytest.importorskip("kornia", reason="Kornia is not installed")
    own, nobody = clean[200:224], torch.zeros(24, len(gallery), dtype=torch.bool)
    images = attacks.odfa(eps=8)(glyph_victim, own).images
    assert guard.flags(images).float().mean() > 0.9
    assert auc(guard.score(images).numpy(), guard.score(own).numpy()) > 0.99
    guard.save(tmp_path / "guard.json")
    scene = Scene(
        others=gallery[:500].expand(24, -1, -1),
        watch=watch(str(tmp_path / "guard.json"), glyph_victim, gallery, nobody),
    )
    aware = attacks.lookalike(eps=8, guard=str(tmp_path / "guard.json"))
    assert aware.gradients == 5 * 20
    adapted = aware(glyph_victim, own, scene).images
    assert guard.score(adapted).mean() < guard.score(images).mean() - 3
    assert guard.flags(adapted).float().mean() < 0.3


def test_a_sweep_by_who_knows_it_is_resumed(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folders are called like files, by the name of the guard's."""
    pytest.importorskip("kornia", reason="Kornia is not installed")
    guard.save(tmp_path / "guard.json")
    monkeypatch.chdir(tmp_path)
    attack, sizes = "lookalike:steps=1,guard=guard.json", {"queries": 6, "batch_size": 2}
    plan = Plan(victim="glyph_net", data="glyphs", attacks=(attack,), eps=(4,), **sizes)
    with monkeypatch.context() as patch:
        stopping(patch)[0] = 4
        with pytest.raises(KeyboardInterrupt):
            run(plan, tmp_path / "run", progress=False)
    before = [path for path in (tmp_path / "run" / "parts").rglob("*.json") if path.is_dir()]
    assert before
    rows = run(plan, tmp_path / "run", progress=False)
    assert [row["attack"] for row in rows] == ["clean", attack]


def test_an_attacker_sees_what_the_guard_sees(
    guard: Guard, clean: Tensor, gallery: Tensor, glyph_victim: Victim, tmp_path: Path
) -> None:
    """Mirrored and among others exactly; after JPEG and smaller but for rounding to 8 bits."""
    pytest.importorskip("kornia", reason="Kornia is not installed")
    guard.save(tmp_path / "guard.json")
    left_out = torch.rand(8, len(gallery), generator=torch.Generator().manual_seed(0)) < 0.5
    seen = watch(str(tmp_path / "guard.json"), glyph_victim, gallery, left_out)
    pixels = to_pixels(clean[:8]).requires_grad_()
    signs, own = seen(pixels), guard.look(clean[:8], left_out).signs
    for name, tolerance in (("flip", 1e-3), ("stranger", 1e-3), ("resize", 0.2), ("jpeg75", 1.0)):
        place = SIGNS.index(name)
        torch.testing.assert_close(signs[:, place], own[:, place], atol=tolerance, rtol=0)
        (grad,) = torch.autograd.grad(signs[:, place].sum(), pixels, retain_graph=True)
        assert bool((grad.flatten(1).abs().amax(1) > 0).all()), name


def test_the_nearest_of_others_is_approached() -> None:
    """On a linear victim the objective is the cosine to whichever other is nearest to the query."""
    victim = linear_victim(normal(6, 3, 8, 4), normal(6, seed=1))
    clean = torch.rand(4, 3, 8, 4, generator=torch.Generator().manual_seed(2))
    others = normal(4, 9, 6, seed=3)
    loss = TowardsNearest().bind(victim, clean, Scene(others=others))
    unit, own = F.normalize(others, dim=2), victim.embed(clean)
    changed = (clean + 0.1 * normal(4, 3, 8, 4, seed=4)).clamp(0, 1)
    for i, value in enumerate(loss(changed)):
        nearest = max(range(9), key=lambda j: float(unit[i, j] @ own[i]))
        assert value.item() == pytest.approx(
            float(victim.embed(changed)[i] @ unit[i, nearest]), abs=1e-5
        )


def test_signs_cost_only_beyond_what_is_usual(pictures: Tensor) -> None:
    victim, clean = linear_victim(normal(6, 3, 8, 4), normal(6, seed=1)), to_pixels(pictures)
    seen = torch.tensor([[0.0, 0.9, -4.0]] * 4 + [[2.0, 0.0, 4.0]])
    plain_loss = OppositeDirection().bind(victim, clean, Scene())
    loss = Unnoticed(OppositeDirection(), "FILE", weight=0.5).bind(
        victim, clean, Scene(watch=lambda pixels: seen)
    )
    expected = plain_loss(clean) - 0.5 * torch.tensor([0.0, 0, 0, 0, 1 + 3])
    torch.testing.assert_close(loss(clean), expected)
    with pytest.raises(ArgumentError, match=r"Scene\(watch=…\)"):
        Unnoticed(OppositeDirection(), "FILE", weight=1).bind(victim, clean, Scene())


def test_pictures_are_scored_alone(guard: Guard, clean: Tensor) -> None:
    together = guard.look(clean[:6])
    alone = torch.stack([guard.look(one[None]).signs[0] for one in clean[:6]])
    torch.testing.assert_close(together.signs, alone, atol=1e-3, rtol=1e-3)
    assert torch.equal(together.score, together.signs.max(1).values)


def test_answers_are_those_features(guard: Guard, clean: Tensor, glyph_victim: Victim) -> None:
    look, ways = guard.look(clean[:4]), show(clean[:4])
    expected = {way: extract(glyph_victim, images) for way, images in ways.items()}
    for way, features in expected.items():
        torch.testing.assert_close(look.answer(way), features)
    torch.testing.assert_close(look.answer("mean"), sum(expected.values()) / 4)


def test_pictures_of_many_shapes_fit(glyph_victim: Victim, gallery: Tensor, clean: Tensor) -> None:
    """In whatever order; each with the items that it is not held against."""
    other = clean[:30, :, :24].contiguous()
    left_out = torch.zeros(60, len(gallery), dtype=torch.bool)
    left_out[::2, :1000] = True
    mixed = [one for pair in zip(clean[:30], other, strict=True) for one in pair]
    found = Guard.fit(glyph_victim, gallery, mixed, fpr=0.1, left_out=left_out)
    apart = Guard.fit(
        glyph_victim,
        gallery,
        [*clean[:30], *other],
        fpr=0.1,
        left_out=torch.cat([left_out[::2], left_out[1::2]]),
    )
    assert found.threshold == pytest.approx(apart.threshold, abs=1e-4)
    assert found.usual["stranger"].mean == pytest.approx(apart.usual["stranger"].mean, abs=1e-5)


@pytest.mark.parametrize(("fpr", "count"), [(0.01, 98), (0.1, 8), (0.0, 99), (1.0, 99)])
def test_too_few_pictures_for_a_rate_are_refused(
    fpr: float, count: int, glyph_victim: Victim, gallery: Tensor, clean: Tensor
) -> None:
    with pytest.raises(ArgumentError, match="false positive rate"):
        Guard.fit(glyph_victim, gallery, clean[:count], fpr=fpr)


def test_a_victim_that_breaks_is_not_fitted_to(clean: Tensor) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) / 0

    victim = Victim(name="broken", network=Broken(), preprocessing=RAW)
    with pytest.raises(ArgumentError, match="not finite"):
        Guard.fit(victim, normal(20, 3), clean[:100])


# -- its file ------------------------------------------------------------------------------------


def test_a_guard_is_read_back(guard: Guard, gallery: Tensor, clean: Tensor, tmp_path: Path) -> None:
    guard.save(tmp_path / "guard.json")
    assert (tmp_path / "guard.json").stat().st_size < 2000
    found = Guard.load(tmp_path / "guard.json", guard.victim, gallery)
    assert torch.equal(found.score(clean[:8]), guard.score(clean[:8]))
    assert (found.threshold, found.fpr, found.pictures) == (guard.threshold, 0.02, 200)


def test_a_guard_of_another_victim_is_refused(
    guard: Guard, gallery: Tensor, tmp_path: Path
) -> None:
    guard.save(tmp_path / "guard.json")
    with pytest.raises(CheckpointError, match="fit it again"):
        Guard.load(tmp_path / "guard.json", load_victim("glyph_net:flip=yes"), gallery)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_files_are_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A file is refused or is a guard; nothing else happens."""
    victim = Victim(name="halves", network=Halves(), preprocessing=RAW)
    gallery = normal(20, 2)
    path = tmp_path_factory.mktemp("guard") / "guard.json"
    plain(victim, gallery).save(path)
    content = json.loads(path.read_bytes())
    place = content
    key = data.draw(st.sampled_from(["threshold", "fpr", "pictures", "signs", "schema", "victim"]))
    if key == "signs" and data.draw(st.booleans()):
        place, key = content["signs"][data.draw(st.sampled_from(SIGNS))], "spread"
    junk = st.one_of(
        st.none(), st.text(max_size=3), st.just([]), st.just(float("nan")), st.just({})
    )
    place[key] = data.draw(junk)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"guard\.json"):
        Guard.load(path, victim, gallery)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"null"])
def test_what_is_no_guard_is_refused(content: bytes, tmp_path: Path) -> None:
    victim = Victim(name="halves", network=Halves(), preprocessing=RAW)
    (tmp_path / "guard.json").write_bytes(content)
    for path in (tmp_path / "guard.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(CheckpointError, match="no guard that can be read"):
            Guard.load(path, victim, normal(20, 2))


# -- on trial ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded") / "run"
    plan = Plan(victim="glyph_net", data="glyphs", attacks=("odfa",), queries=40, eps=(2, 8))
    run(plan, folder, progress=False)
    return folder


def test_a_run_is_tried(swept: Path, glyphs: Split, tmp_path: Path) -> None:
    fitted, trial = try_guard(swept, calibrate=150, progress=False)
    clean, weak, strong = trial.verdicts
    assert [(v.attack, v.eps) for v in trial.verdicts] == [("clean", 0), ("odfa", 2), ("odfa", 8)]
    assert clean.auc is None
    assert weak.auc is not None
    assert strong.auc is not None
    assert 0.5 < weak.auc < strong.auc
    assert strong.flagged > 0.9
    held = glyphs.query.identities[_calibration(glyphs.query.identities, 150, 0)]
    for job, verdict in zip(((CLEAN), ("odfa", 2), ("odfa", 8)), trial.verdicts, strict=True):
        scored = Run.read(swept).queries("glyph_net", "identity", "first_match_rank")[job]
        kept = ~np.isin(scored["identity"], held)
        first = np.array(scored["first_match_rank"])[kept]
        assert verdict.queries == len(first)
        assert verdict.recall["query"] == pytest.approx((first == 1).mean())
    assert trial.calibrated_on >= 150
    assert fitted.pictures == trial.calibrated_on
    assert trial.identities >= ENOUGH
    assert "few-identities" not in trial.text()
    for page in ("text", "markdown"):
        assert "few-identities: 19" in getattr(dataclasses.replace(trial, identities=19), page)()


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(1, 50), st.integers(0, 3))
def test_whole_identities_are_fitted_to(listed: list[int], count: int, seed: int) -> None:
    """As many as are needed, and no more; the same whatever a run asks."""
    identities = np.array(listed, dtype=np.int64)
    held = _calibration(identities, count, seed)
    inside = np.isin(np.arange(len(identities)), held)
    assert not set(identities[inside]) & set(identities[~inside])
    assert len(held) >= min(count, len(identities))
    largest = max(np.unique(identities, return_counts=True)[1])
    assert len(held) < count + largest


def test_nobody_who_is_evaluated_is_fitted_to(swept: Path, glyphs: Split) -> None:
    asked = glyphs.sample(40, 0).query.identities
    held = glyphs.query.identities[_calibration(glyphs.query.identities, 800, 0)]
    _, trial = try_guard(swept, calibrate=800, progress=False)
    assert trial.calibrated_identities == len(set(held))
    assert trial.verdicts[0].queries == sum(~np.isin(asked, held))
    with pytest.raises(RunFolderError, match="take all identities"):
        try_guard(swept, calibrate=len(glyphs.query), progress=False)


def test_who_is_fooled_was_right_is_wrong_and_passes() -> None:
    """Of five queries that were right before, two are lost, one of them unflagged."""
    nothing = np.zeros(6)
    before = np.array([1.0, 1, 1, 1, 1, 0])
    after = np.array([0.0, 0, 1, 1, 1, 0])
    flagged = np.array([1.0, 0, 1, 0, 0, 0])
    clean = _Seen(nothing, nothing, dict.fromkeys(ANSWERS, before))
    found = _Seen(np.array([3.0, 2, 1, 1, 0, 0]), flagged, dict.fromkeys(ANSWERS, after))
    verdict = _verdict(("odfa", 4), found, clean, np.arange(6), seed=0)
    assert verdict.fooled == pytest.approx(1 / 5)
    assert verdict.flagged == pytest.approx(2 / 6)
    assert verdict.auc == pytest.approx((4 + 2 * 0.5) / 6)
    assert verdict.recall["mean"] == pytest.approx(3 / 6)
    assert _verdict(CLEAN, clean, clean, np.arange(6), seed=0).fooled is None
    other = _Seen(nothing, nothing, dict.fromkeys(ANSWERS, np.array([1.0, 1, 1, 0, 1, 0])))
    seen = {CLEAN: clean, ("odfa", 4): found, ("fast", 4): other, ("odfa", 2): other}
    (choice,) = _choices(seen, np.arange(6), seed=0)  # one of them lost to each attack
    assert (choice.eps, choice.fooled) == (4, pytest.approx(2 / 5))


def test_the_command_writes_the_table(swept: Path, tmp_path: Path) -> None:
    out, saved = tmp_path / "out", tmp_path / "guard.json"
    options = ["--calibrate", "150", "--out", str(out), "--save", str(saved), "--quiet"]
    done = CliRunner().invoke(main, ["guard", str(swept), *options])
    assert done.exit_code == 0, done.output
    assert "odfa" in done.output
    table = json.loads((out / "guard.json").read_bytes())
    assert {each["attack"] for each in table["verdicts"]} == {"clean", "odfa"}
    assert (out / "guard.md").read_text(encoding="utf-8").count("| `odfa` |") == 2
    victim, glyphs = load_victim("glyph_net").folded(), load_data("glyphs")
    features = extract_all(victim, glyphs.gallery, "gallery", progress=False)
    assert Guard.load(saved, victim, features).threshold == table["threshold"]


def test_other_weights_are_refused(swept: Path, tmp_path: Path) -> None:
    for name in ("results.json", "ranklists.json", "queries.parquet"):
        (tmp_path / name).write_bytes((swept / name).read_bytes())
    header = json.loads((swept / "run.json").read_bytes())
    header["configuration"]["victim weights"] = "others"
    (tmp_path / "run.json").write_text(json.dumps(header))
    with pytest.raises(RunFolderError, match="other weights"):
        try_guard(tmp_path, progress=False)
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        try_guard(tmp_path / "nothing", progress=False)
