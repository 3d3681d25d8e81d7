"""The explorer without a browser: answers, attacks frame by frame, uploads, cards, run folders."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from tests.conftest import Tiny
from uturn import load_data
from uturn.attacks import load_attack
from uturn.attacks.loop import Attack
from uturn.attacks.problem import Batch, Problem
from uturn.attacks.together import ways
from uturn.cli import main
from uturn.data.channels import CHANNELS
from uturn.data.pictures import decode, encode
from uturn.data.split import Split
from uturn.errors import ArgumentError, DataError, RunFolderError, SpecError, UturnError
from uturn.explorer import ahead, card, draw, uploads
from uturn.explorer.climb import OFFERED, Frame, Order, command, frames, survivals
from uturn.explorer.desk import Desk, Session
from uturn.explorer.runs import WORST, RunBook
from uturn.explorer.serve import FromHere, furnish
from uturn.explorer.studio import RANKS, Answer, Place, Query, Studio
from uturn.retrieval.cache import Shelf
from uturn.rng import generator
from uturn.sweep import Plan, run
from uturn.types import Scene
from uturn.victims.preprocessing import to_images
from uturn.victims.victim import Victim

EVIL = "<img src=x onerror=alert(1)><script>alert(2)<&'\""


@pytest.fixture(scope="module")
def split() -> Split:
    """Twelve letters in twelve faces."""
    whole, some = load_data("glyphs"), np.arange(144)
    return replace(whole, query=whole.query.subset(some), gallery=whole.gallery.subset(some))


@pytest.fixture(scope="module")
def studio(split: Split) -> Studio:
    return Studio.open("glyph_net", "glyphs", split, device="cpu").embed(progress=False)


@pytest.fixture(scope="module")
def other(split: Split) -> Studio:
    return Studio.open("glyph_net:flip=yes", "glyphs", split, device="cpu").embed(progress=False)


def test_who_waits_for_a_gallery_is_told_why_it_does_not_come(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise DataError("there is no picture at none")

    monkeypatch.setattr("uturn.explorer.studio.extract_all", broken)
    unready = Studio.open("glyph_net", "glyphs", split, device="cpu")
    waiting = Desk((unready,), (), Path())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(waiting.ask, Session(Path()), "glyph_net", split.query.names[0])
        with pytest.raises(UturnError, match="none"):
            unready.embed(progress=False)
        assert "none" in asked.result(20)


@pytest.fixture
def query(studio: Studio) -> Query:
    return studio.query(5)


def upload(studio: Studio) -> Query:
    """A letter that the data set does not ask for, and larger than the victim's grid."""
    assert studio.split.train is not None
    return studio.upload("mine.png", np.kron(studio.split.train.read(7), np.ones((2, 2, 1), "u1")))


# -- answers -------------------------------------------------------------------------------------


def test_an_answer_against_brute_force(studio: Studio, split: Split) -> None:
    for position in (0, 5, 77):
        query = studio.query(position)
        identity, camera = split.query.identities[position], split.query.cameras[position]
        scores = studio.system.index.scores(studio.look(query.picture))[0].numpy()
        order = np.argsort(-scores)
        same = split.gallery.identities == identity
        ignored = same & (split.gallery.cameras == camera)
        answer = studio.answer(studio.look(query.picture), query)
        ranked = [item for item in order if not ignored[item]]
        assert [p.item for p in answer.places if p.rank] == ranked[:RANKS]
        assert [p.rank for p in answer.places if p.rank] == [*range(1, RANKS + 1)]
        assert answer.first_match == 1 + [bool(same[item]) for item in ranked].index(True)
        for place in answer.places:
            expected = "ignored" if ignored[place.item] else "wrong"
            expected = "right" if same[place.item] and not ignored[place.item] else expected
            assert place.verdict == expected
            assert place.score == pytest.approx(scores[place.item], abs=1e-5)
            assert place.name == split.gallery.names[place.item]


def test_what_is_ignored_is_shown_where_it_stands_and_takes_no_place(studio: Studio) -> None:
    """The same letter in the same face is the closest picture, and the protocol ignores it."""
    query = studio.query(5)
    places = studio.answer(studio.look(query.picture), query).places
    out = [place for place in places if place.verdict == "ignored"]
    assert [place.name for place in out] == [query.name]
    assert all(place.rank is None for place in out)
    assert [p.score for p in places] == sorted((p.score for p in places), reverse=True)


def test_of_an_upload_nobody_can_say_what_is_right(studio: Studio) -> None:
    query = upload(studio)
    answer = studio.answer(studio.look(query.picture), query)
    assert {place.verdict for place in answer.places} == {"unknown"}
    assert [place.rank for place in answer.places] == [*range(1, RANKS + 1)]
    assert answer.first_match is None
    assert query.picture.shape == (32, 32, 3)  # the victim's grid


def test_a_gallery_smaller_than_the_list(split: Split) -> None:
    few = replace(split, gallery=split.gallery.subset(np.array([3, 4, 20])))
    small = Studio.open("glyph_net", "glyphs", few, device="cpu").embed(progress=False)
    answer = small.answer(small.look(small.query(5).picture), small.query(5))
    assert {place.item for place in answer.places} == {0, 1, 2}


def test_queries_are_found_by_name(studio: Studio) -> None:
    names = studio.split.query.names
    assert studio.find(names[7]).name == names[7]
    assert studio.find(f" {names[7]} ").name == names[7]
    # One name may begin another's: it is still found.
    assert any(other.startswith(names[0]) for other in names[1:])
    assert studio.find(names[0]).name == names[0]
    code = names[0].split("_")[0]
    unique = next(n for n in names if n.endswith("SerifBold") or n.endswith("Serif-BoldItalic"))
    assert studio.find(unique[:-2]).name == unique
    with pytest.raises(ArgumentError, match="12 queries begin with"):
        studio.find(f"{code}_")
    for nothing in ("nobody", ""):
        with pytest.raises(ArgumentError, match="write a whole name, such as"):
            studio.find(nothing)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0041_DejaVuSans-Bold", "0041_DejaVuSans-Bold"),
        ("a/b/c d", "c_d"),
        ("../../etc/passwd", "passwd"),
        ("..", "query"),
        ("-rf", "rf"),
        (EVIL, "_img_src=x_onerror=alert_1___script_alert_2_____"),
        ("x" * 300, "x" * 100),
    ],
)
def test_keys_are_safe_stems(name: str, key: str) -> None:
    assert Query(name, np.zeros((1, 1, 3), np.uint8)).key == key


# -- ways ----------------------------------------------------------------------------------------


def problem(attack: Attack, victim: Victim) -> tuple[Problem, Batch]:
    drawn = torch.randint(0, 256, (3, 3, 8, 6), generator=torch.Generator().manual_seed(2)).byte()
    batch = Batch(victim, drawn, Scene(), ["a", "b", "c"], 4)
    return attack.pose(batch), batch


@pytest.mark.parametrize(
    "spec", ["odfa", "uturn:steps=7", "momentum", "fast", "boosted", "pire:steps=4"]
)
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_way_of_an_attack_ends_where_the_attack_does(spec: str, keep: Any) -> None:
    from uturn.victims.preprocessing import Preprocessing

    victim = Victim(
        name="tiny",
        network=Tiny(0),
        preprocessing=Preprocessing(size=(8, 6)),
        classifier=torch.nn.Linear(6, 5),
    )
    found = load_attack(spec, eps=6)
    assert isinstance(found, Attack)
    attack = replace(found, keep=keep)
    way = [*ways(problem(attack, victim)[0], attack)]
    assert len(way) == attack.steps + 1
    assert [len(climber.losses) for climber in way] == [*range(attack.steps + 1)]
    alone = attack.climb(problem(attack, victim)[0])
    delta, losses = alone.delta, alone.losses
    assert torch.equal(way[-1].delta, delta)
    assert all(map(torch.equal, way[-1].losses, losses))
    start = problem(attack, victim)[0].start(attack.start, attack.threat)
    assert torch.equal(way[0].delta, start)
    # With the same number of steps ahead, fewer of them lead to the same place.
    if spec == "odfa" and keep == "last":
        for steps in (1, 4):
            shorter = replace(attack, steps=steps)
            assert torch.equal(way[steps].delta, shorter.climb(problem(shorter, victim)[0]).delta)


# -- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["odfa", "uturn", "sma"])
def test_frames_lead_from_the_clean_picture_to_the_attacks_own(
    name: str, studio: Studio, query: Query, tmp_path: Path
) -> None:
    order = Order(name=name, eps=8)
    attack = load_attack(name, eps=8)
    assert isinstance(attack, Attack)
    seen = [*frames(studio, query, order, tmp_path)]
    assert [frame.step for frame in seen] == [*range(attack.steps + 1)]
    assert {frame.steps for frame in seen} == {attack.steps}
    assert np.array_equal(seen[0].picture, query.picture)
    assert seen[0].looks[0].cosine == pytest.approx(1)
    assert seen[0].looks[0].answer.first_match == 1
    found = attack(studio.victim, to_images([query.picture]), names=[query.key], seed=0)
    assert np.array_equal(seen[-1].picture, found.images[0].permute(1, 2, 0))
    assert np.allclose(seen[-1].losses, found.losses[:, 0])
    assert [len(frame.losses) for frame in seen] == [*range(attack.steps + 1)]
    assert [frame.gradients for frame in seen] == [n * attack.looks for n in range(len(seen))]
    assert seen[-1].looks[0].cosine < (0.2 if name == "sma" else 0)
    for frame in seen:
        assert frame.picture.dtype == np.uint8
        change = np.abs(frame.picture.astype(int) - query.picture).max()
        assert frame.levels == change <= 8
    assert [frame.file for frame in seen[:-1]] == [None] * attack.steps
    assert seen[-1].file == tmp_path / f"{query.key}.png"
    assert np.array_equal(decode(seen[-1].file), seen[-1].picture)
    assert np.array_equal(decode(tmp_path / "clean" / f"{query.key}.png"), query.picture)


def test_a_frames_look_is_what_the_system_says_of_its_picture(
    studio: Studio, other: Studio, query: Query, tmp_path: Path
) -> None:
    *_, last = frames(studio, query, Order(eps=6), tmp_path, beside=[other])
    assert len(last.looks) == 2
    for look, each in zip(last.looks, (studio, other), strict=True):
        now, then = each.look(last.picture), each.look(query.picture)
        assert look.cosine == pytest.approx(float(torch.cosine_similarity(now, then)), abs=1e-5)
        expected = each.answer(now, query)
        assert [p.item for p in look.answer.places] == [p.item for p in expected.places]
        assert look.answer.first_match == expected.first_match


def test_whoever_stops_listening_stops_the_attack(
    studio: Studio, query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slopes, slope = list[int](), Problem.slope

    def counted(self: Problem, *args: Any, **kwargs: Any) -> Any:
        slopes.append(1)
        return slope(self, *args, **kwargs)

    monkeypatch.setattr(Problem, "slope", counted)
    running = frames(studio, query, Order(steps=50), tmp_path)
    for _ in range(4):  # the clean picture and three steps
        next(running)
    running.close()
    assert len(slopes) == 3
    assert not (tmp_path / f"{query.key}.png").exists()


@pytest.mark.parametrize("name", OFFERED)
def test_every_attack_that_is_offered_works_on_a_labelled_query(
    name: str, studio: Studio, query: Query, tmp_path: Path
) -> None:
    takes = "steps" in load_attack_options(name)
    seen = [*frames(studio, query, Order(name=name, eps=4, steps=2 if takes else None), tmp_path)]
    assert seen[-1].file is not None
    assert seen[-1].levels <= 4
    assert len(seen) == seen[-1].steps + 1
    if name in ("apgd", "minimal", "noise"):  # these keep their steps to themselves
        assert len(seen) == 2


def load_attack_options(name: str) -> set[str]:
    import inspect

    from uturn.attacks import PRESETS

    return set(inspect.signature(PRESETS[name]).parameters)


def test_an_upload_is_attacked_unless_the_attack_must_know_whom_it_shows(
    studio: Studio, tmp_path: Path
) -> None:
    query = upload(studio)
    *_, last = frames(studio, query, Order(eps=8), tmp_path)
    assert last.looks[0].cosine < 0.5
    for name in ("tma", "fna", "minimal", "qa_plus"):
        with pytest.raises(ArgumentError, match="of an upload nobody does; choose odfa or uturn"):
            [*frames(studio, query, Order(name=name), tmp_path)]


@pytest.mark.parametrize(
    ("order", "error"),
    [
        ({"name": "universal"}, "'universal' is not offered here"),
        ({"name": EVIL}, "is not offered here"),
        ({"steps": 0}, "take 1 to 500 steps"),
        ({"steps": 501}, "take 1 to 500 steps"),
        ({"scales": (1.0,) * 6}, "up to 5 scales"),
        ({"scales": (9.0,)}, "between 0.25 and 2"),
        ({"scales": (float("nan"),)}, "between 0.25 and 2"),
        ({"eps": 0}, "eps must lie between"),
        ({"eps": float("nan")}, "eps must lie between"),
        ({"name": "fast", "steps": 3}, "has no option 'steps'"),
    ],
)
def test_what_a_visitor_may_not_ask_for(order: dict[str, Any], error: str) -> None:
    with pytest.raises((ArgumentError, SpecError), match=error):
        Order(**order).attack()


def test_orders_are_specs() -> None:
    assert Order().spec == "odfa"
    order = Order(name="uturn", steps=5, scales=(1, 0.7071, 0.5))
    assert order.spec == "uturn:steps=5,scales=1+0.7071+0.5"
    attack = order.attack()
    assert isinstance(attack, Attack)
    assert attack.gradients == 15


@pytest.mark.parametrize(
    "order", [Order(), Order(name="uturn", eps=5, steps=3, seed=7), Order(scales=(1, 0.5))]
)
def test_the_command_line_makes_the_same_picture(
    order: Order, studio: Studio, query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = frames(studio, query, order, tmp_path / "seen")
    monkeypatch.chdir(tmp_path)
    shutil.copy(tmp_path / "seen" / "clean" / f"{query.key}.png", tmp_path)
    words = shlex.split(command(studio, query, order))
    assert words[:2] == ["uturn", "attack"]
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code == 0, result.output
    assert np.array_equal(decode(tmp_path / "adversarial" / f"{query.key}.png"), last.picture)


def test_commands_are_quoted_and_sweep_where_the_gallery_must_be_known(studio: Studio) -> None:
    spec = "mine.module:net,weights=my weights; rm -rf ~"
    line = command(replace(studio, spec=spec), upload(studio), Order(eps=2.5))
    words = shlex.split(line)
    assert words[words.index("--victim") + 1] == spec
    assert words[words.index("--eps") + 1] == "2.5"
    swept = shlex.split(command(studio, studio.query(0), Order(name="tma")))
    assert swept[:4] == ["uturn", "sweep", "--data", "glyphs"]
    isinstance(main, click_group())
    main.commands["sweep"].make_context("sweep", swept[2:])  # type: ignore[attr-defined]


def click_group() -> type:
    import click

    return click.Group


def test_what_survives_a_channel(studio: Studio, query: Query, tmp_path: Path) -> None:
    *_, last = frames(studio, query, Order(eps=8), tmp_path)
    found = survivals(studio, query, last.picture)
    assert [one.channel for one in found] == [*CHANNELS]
    for one in found:
        behind = studio.look(CHANNELS[one.channel](last.picture))
        expected = torch.cosine_similarity(behind, studio.look(query.picture))
        assert one.attacked.cosine == pytest.approx(float(expected), abs=1e-5)
        assert one.attacked.answer.first_match == studio.answer(behind, query).first_match
        assert one.clean.cosine > one.attacked.cosine


# -- uploads -------------------------------------------------------------------------------------


def test_an_uploaded_picture_is_decoded(tmp_path: Path) -> None:
    picture = generator(0, "picture").integers(0, 256, (9, 7, 3)).astype(np.uint8)
    encode(tmp_path / "a.png", picture)
    assert np.array_equal(uploads.read(tmp_path / "a.png"), picture)
    (tmp_path / "a.png").rename(tmp_path / "a.txt")  # what counts is what is in it
    assert np.array_equal(uploads.read(tmp_path / "a.txt"), picture)


def _huge(path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(path, "PNG")


def _bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def _long(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(uploads.BYTES + 1)


def _cut(path: Path) -> None:
    buffer = io.BytesIO()
    noise = generator(0, "noise").integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:2000])


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_huge, "has more than 32 megapixels"),
        (_bomb, "has more than 32 megapixels"),
        (_long, "has 20 MiB, and 20 MiB are taken"),
        (_cut, "is damaged"),
        (lambda path: path.write_text("no picture"), "is no picture that can be read here"),
        (lambda path: path.write_bytes(b""), "is no picture that can be read here"),
        (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "no picture"),
        (lambda path: Image.new("F", (3, 3)).save(path, "TIFF"), "without a white"),
    ],
)
def test_other_uploads_are_refused_in_a_sentence(
    make: Callable[[Path], object], error: str, tmp_path: Path
) -> None:
    path = tmp_path / "upload.png"
    make(path)
    with pytest.raises(DataError, match=error) as raised:
        uploads.read(path)
    assert str(tmp_path) not in str(raised.value)  # where the server keeps files is its own affair


# -- the card ------------------------------------------------------------------------------------


def test_the_card_is_a_picture_of_the_attack(studio: Studio, query: Query, tmp_path: Path) -> None:
    first, *_, last = frames(studio, query, Order(eps=12), tmp_path)
    drawn = card.draw(studio, query, Order(eps=12), first, last)
    again = Image.open(io.BytesIO(card.png(drawn)))
    assert again.format == "PNG"
    assert again.size == (card.WIDTH, card.HEIGHT)
    pixels = np.asarray(again)

    def count(verdict: Any, rows: slice) -> int:
        wanted = [int(card.COLOURS[verdict][n : n + 2], 16) for n in (1, 3, 5)]
        return int((pixels[rows] == wanted).all(2).sum())

    before, after = slice(358, 490), slice(498, 630)
    assert count("right", before) > count("right", after)
    assert count("wrong", after) > count("wrong", before)
    # Both pictures are there as they are, pixels enlarged.
    enlarged = np.asarray(card._fitted(last.picture, 190))
    assert any(
        np.array_equal(pixels[122 : 122 + 190, left : left + 190], enlarged)
        for left in range(0, 700)
    )


def test_no_name_breaks_the_card(studio: Studio, tmp_path: Path) -> None:
    query = replace(upload(studio), name=EVIL + "\n\x00\u202e" + "long" * 300)
    first, *_, last = frames(studio, query, Order(eps=2, steps=1), tmp_path)
    drawn = card.draw(replace(studio, spec="net " * 200), query, Order(eps=2), first, last)
    edge = np.asarray(drawn)[:, -20:]
    assert (edge == 255).all()  # no text runs over the edge


def test_the_change_is_amplified_around_grey() -> None:
    clean = np.full((2, 2, 3), 100, np.uint8)
    attacked = clean.copy()
    attacked[0, 0], attacked[1, 1] = 108, 92
    shown = card.amplified(clean, attacked, 8)
    assert shown[0, 0].tolist() == [255] * 3
    assert shown[1, 1].tolist() == [0] * 3
    assert shown[0, 1].tolist() == [127] * 3


# -- run folders ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glyph_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explorer") / "run"
    plan = Plan(
        victim="glyph_net", data="glyphs", attacks=("fast", "odfa"), eps=(2.0, 8.0), queries=16
    )
    run(plan, out, progress=False)
    return out


@pytest.fixture(scope="module")
def book(glyph_run: Path) -> RunBook:
    return RunBook.open(glyph_run)


def test_a_run_is_read_as_it_was_written(book: RunBook, glyph_run: Path) -> None:
    assert book.attacks == ("fast", "odfa")
    assert book.budgets == (2, 8)
    assert book.setting("victim") == "glyph_net"
    assert len(book.falls) == 16 * 4
    rows = pq.read_table(glyph_run / "queries.parquet").to_pylist()
    clean = {row["query"]: row["first_match_rank"] for row in rows if row["attack"] == "clean"}
    for fall in book.falls:
        row = next(
            r
            for r in rows
            if (r["query"], r["attack"], r["eps"]) == (fall.query, fall.attack, fall.eps)
        )
        assert fall.after == row["first_match_rank"]
        assert fall.before == clean[fall.query]
    drawn = book.curves()
    assert len(drawn) >= 2
    assert all(svg.startswith("<svg") for svg in drawn)


def test_the_easiest_to_turn_fell_farthest(book: RunBook) -> None:
    easiest = book.choose("odfa", 8)
    ranks = [fall.after for fall in easiest]
    assert len(easiest) == 16
    assert ranks == sorted(ranks, key=lambda rank: -(rank or 0))
    hardest = book.choose("odfa", 8, first="hardest")
    assert [fall.after for fall in hardest] == ranks[::-1]


def test_the_worst_of_a_query_is_no_better_than_any(book: RunBook) -> None:
    worst = {fall.query: fall for fall in book.choose(WORST, 8)}
    assert len(worst) == 16
    for fall in book.falls:
        assert fall.depth <= worst[fall.query].depth
    for fall in book.choose(WORST, 2):
        assert fall.eps == 2


def test_filters_by_identity_and_camera(book: RunBook) -> None:
    some = book.falls[0]
    chosen = book.choose("odfa", 8, identity=some.identity)
    assert {fall.identity for fall in chosen} == {some.identity}
    assert some.query in [fall.query for fall in chosen]
    seen = book.choose("odfa", 8, camera=some.camera)
    assert {fall.camera for fall in seen} == {some.camera}
    assert book.choose("odfa", 8, identity=-7) == []
    counted = sum(len(book.choose("odfa", 8, camera=camera)) for camera in book.cameras)
    assert counted == 16


def test_a_querys_pictures_and_rank_lists(book: RunBook, glyph_run: Path) -> None:
    every = json.loads((glyph_run / "ranklists.json").read_bytes())["queries"]
    fall = book.fall(every[0]["query"], "odfa", 8)
    clean, attacked = book.pictures(fall)
    assert np.abs(clean.astype(int) - attacked).max() == fall.levels
    (before, first), (after, then) = book.ranks(fall)
    assert (before, after) == ("before", "after odfa, ε = 8")
    assert len(first) == len(then) == 10
    assert book.thumbnail(first[0]["name"]).shape == (32, 32, 3)
    lists = {entry["query"] for entry in every}
    without = next(fall for fall in book.falls if fall.query not in lists)
    assert book.ranks(without) == []
    with pytest.raises(ArgumentError, match="no query 'nobody'"):
        book.fall("nobody", "odfa", 8)


def test_names_lead_to_no_file_outside_of_the_run(book: RunBook, tmp_path: Path) -> None:
    secret = book.path.parent / "secret.png"
    encode(secret, np.zeros((2, 2, 3), np.uint8))
    for name in ("../../../secret", "../../secret", str(secret.with_suffix("")), "a\0b"):
        with pytest.raises(RunFolderError, match=r"outside itself|cannot read"):
            book.pictures(replace(book.falls[0], query=name))
        with pytest.raises(RunFolderError, match=r"outside itself|cannot read"):
            book.thumbnail(name)
    (book.path / "thumbnails" / "link.png").symlink_to(secret)
    with pytest.raises(RunFolderError, match="outside itself"):
        book.thumbnail("link")


def test_what_is_no_finished_run_is_named(glyph_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        RunBook.open(tmp_path)
    (tmp_path / "run.json").write_text('{"finished": null}')
    with pytest.raises(RunFolderError, match="has not finished"):
        RunBook.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunFolderError, match="expected an object"):
        RunBook.open(tmp_path)
    (tmp_path / "run.json").write_text('{"finished": "now"}')
    (tmp_path / "results.json").write_text('{"rows": []}')
    with pytest.raises(RunFolderError, match="do not fit together"):
        RunBook.open(tmp_path)
    shutil.copy(glyph_run / "results.json", tmp_path)
    (tmp_path / "queries.parquet").write_text("no table")
    with pytest.raises(RunFolderError, match="do not fit together"):
        RunBook.open(tmp_path)


# -- what is drawn -------------------------------------------------------------------------------


def is_text(html: str) -> bool:
    """Whether no markup of EVIL is left in HTML that holds it."""
    return "&lt;img src=x" in html and "<img src=x" not in html and "<script" not in html


def test_names_that_try_to_be_markup_are_text(
    studio: Studio, query: Query, book: RunBook, tmp_path: Path
) -> None:
    evil = replace(studio, spec=EVIL, data=EVIL)
    named = replace(query, name=EVIL)
    answer = Answer((Place(0, EVIL, 0.5, "right", 1),), 1)
    assert is_text(draw.ranking([evil], named, [answer], [lambda item: "src=''"]))
    seen = [
        replace(frame, looks=tuple(replace(look, answer=answer) for look in frame.looks))
        for frame in frames(studio, named, Order(eps=2), tmp_path)
    ]
    order = Order(eps=2)
    shown = draw.attack(
        [evil, evil], named, order, _twice(seen[0]), _twice(seen[-1]), [lambda item: "src=''"] * 2
    )
    assert is_text(shown)
    assert is_text(draw.commanded(command(evil, named, order), named.key))
    assert is_text(draw.sentence(EVIL))
    assert is_text(draw.note(EVIL))
    fall = replace(book.falls[0], query=EVIL, attack=EVIL)
    assert is_text(draw.falls([fall], 5))
    renamed = replace(
        book,
        header={"configuration": {"victim": EVIL, "data": EVIL}},
        results=[book.results[0], *({**row, "attack": EVIL} for row in book.results[1:])],
    )
    assert is_text(draw.run(renamed))


def _twice(frame: Frame) -> Frame:
    return replace(frame, looks=frame.looks * 2)


def test_an_evil_run_is_leafed_through(glyph_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(glyph_run, out)
    for picture in (*out.rglob("images/**/*.png"), *out.rglob("thumbnails/*.png")):
        picture.rename(picture.with_name(f"{picture.stem}{EVIL}.png"))
    lists = json.loads((out / "ranklists.json").read_bytes())
    for entry in lists["queries"]:
        entry["query"] += EVIL
        for item in entry["items"]:
            item["name"] += EVIL
    (out / "ranklists.json").write_text(json.dumps(lists))
    table = pq.read_table(out / "queries.parquet")
    renamed = pa.array([f"{name}{EVIL}" for name in table["query"].to_pylist()])
    place = table.schema.get_field_index("query")
    pq.write_table(table.set_column(place, "query", renamed), out / "queries.parquet")
    desk = Desk((), (RunBook.open(out),), tmp_path)
    listed, names = desk.leaf(str(out), "odfa", 8, "easiest", "", "")
    assert is_text(listed)
    assert len(names) == 16
    shown = [desk.fallen(str(out), name, "odfa", 8) for name in names]
    assert all(map(is_text, shown))
    assert sum('class="ranks"' in each for each in shown) == 8


def test_small_pictures_are_sent_as_they_are() -> None:
    picture = generator(0, "small").integers(0, 256, (32, 20, 3)).astype(np.uint8)
    assert np.array_equal(_opened(draw.uri(picture)), picture)
    large = np.zeros((600, 300, 3), np.uint8)
    assert _opened(draw.uri(large)).shape == (256, 128, 3)


def _opened(uri: str) -> np.ndarray[Any, Any]:
    import base64

    head, _, text = uri.partition(",")
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_the_line_of_losses_follows_the_values() -> None:
    import re

    drawn = draw.losses([0.0, 1.0, 4.0], 10)
    points = re.search(r'polyline points="([^"]+)"', drawn)
    assert points is not None
    xs, ys = zip(*(map(float, pair.split(",")) for pair in points[1].split()), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)
    assert ys[0] - ys[2] == pytest.approx(4 * (ys[0] - ys[1]), abs=0.5)
    for nothing in ([], [1.0], [2.0, 2.0]):
        assert "nan" not in draw.losses(nothing, 1)


# -- the desk ------------------------------------------------------------------------------------


@pytest.fixture
def desk(studio: Studio, other: Studio, book: RunBook, tmp_path: Path) -> Desk:
    return Desk((studio, other), (book,), tmp_path)


@pytest.fixture
def session(desk: Desk) -> Session:
    entered = desk.enter()
    desk.ask(entered, "glyph_net", desk.names()[0])
    return entered


def test_asking_shows_a_ranking_of_both_victims(desk: Desk) -> None:
    session, name = desk.enter(), desk.names()[3]
    shown = desk.ask(session, "glyph_net", name)
    assert session.query == name
    assert shown.count('<ol class="ranks">') == 2
    assert shown.index("what glyph_net answers") < shown.index("what glyph_net:flip=yes answers")
    turned = desk.ask(session, "glyph_net:flip=yes", None)
    assert turned.index("what glyph_net:flip=yes answers") < turned.index("what glyph_net answers")
    assert "no query is called so" in desk.ask(session, "glyph_net", "nobody")
    assert session.query == name


def test_an_attack_is_shown_until_its_end(desk: Desk, session: Session) -> None:
    shown = [*desk.attack(session, "glyph_net", "odfa", 8, 30, "1")]
    assert 'data-step="0"' in shown[0].view
    end = shown[-1]
    assert "Done: step 30 of 30" in end.view
    assert "uturn attack" in end.command
    assert all(channel in end.survived for channel in CHANNELS)
    for file in (end.adversarial, end.clean, end.card):
        assert file is not None
        assert file.is_relative_to(session.folder)
        with Image.open(file) as image:
            assert image.format == "PNG"
    assert all(one.adversarial is None for one in shown[:-1])
    again = [*desk.attack(session, "glyph_net:flip=yes", "fast", 4, None, "1")]
    assert "glyph_net:flip=yes (attacked)" in again[-1].view
    assert end.adversarial is not None
    assert not end.adversarial.exists()  # one attack's files at a time


def test_cancel_ends_an_attack_after_the_present_step(desk: Desk, session: Session) -> None:
    running = desk.attack(session, "glyph_net", "odfa", 8, 500, "1")
    next(running)
    session.stop.set()
    rest = [*running]
    assert len(rest) == 1
    assert "Stopped after step" in rest[0].view
    assert rest[0].adversarial is None
    # The next attack is not stopped by that.
    assert "Done" in [*desk.attack(session, "glyph_net", "fast", 8, None, "")][-1].view


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (("odfa", 8, 1e6, "1"), "take 1 to 500 steps"),
        (("odfa", 8, None, "a,b"), "scales are numbers"),
        (("odfa", 0, None, "1"), "eps must lie between"),
        (("universal", 8, None, "1"), "is not offered here"),
        ((EVIL, 8, None, EVIL), "scales are numbers"),
    ],
)
def test_wrong_orders_get_a_sentence(
    asked: tuple[Any, ...], error: str, desk: Desk, session: Session
) -> None:
    (shown,) = desk.attack(session, "glyph_net", *asked)
    assert error in shown.view
    assert 'role="alert"' in shown.view
    assert "<img src=x" not in shown.view


def test_nothing_chosen_gets_a_sentence(desk: Desk) -> None:
    (shown,) = desk.attack(desk.enter(), "glyph_net", "odfa", 8, None, "1")
    assert "choose a query first" in shown.view


def test_uploads_at_the_desk(desk: Desk, session: Session, tmp_path: Path) -> None:
    path = tmp_path / f"{EVIL.replace('/', '')}.png"
    encode(path, upload(desk.studios[0]).picture)
    shown = desk.upload(session, "glyph_net", path)
    assert is_text(shown)
    assert "nothing is right or wrong" in shown
    end = [*desk.attack(session, "glyph_net", "odfa", 8, None, "1")][-1]
    assert "of the first 10 kept" in end.view
    assert is_text(end.view) or "<img src=x" not in end.view
    (tmp_path / "no.png").write_text("no picture")
    assert "is no picture" in desk.upload(session, "glyph_net", tmp_path / "no.png")
    assert session.query == path.name  # what was chosen stays
    desk.ask(session, "glyph_net", desk.names()[0])
    assert session.uploaded is None


def test_another_query_is_another(desk: Desk, session: Session) -> None:
    name = desk.another(session)
    assert name in desk.names()
    assert name != session.query


def test_leaving_removes_the_files(desk: Desk, session: Session) -> None:
    [*desk.attack(session, "glyph_net", "fast", 8, None, "1")]
    Desk.leave(session)
    assert not session.folder.exists()
    assert session.stop.is_set()
    Desk.leave(None)


def test_runs_at_the_desk(desk: Desk, book: RunBook) -> None:
    run = str(book.path)
    assert desk.attacks_of(run) == ["fast", "odfa", WORST]
    assert desk.overview(run).count('<svg class="curve"') >= 2
    camera = str(book.cameras[0])
    _, names = desk.leaf(run, WORST, 8, "hardest", "", camera)
    assert len(names) == len(book.choose(WORST, 8, camera=book.cameras[0]))
    assert "whole numbers" in desk.leaf(run, "odfa", 8, "easiest", "x", "")[0]
    assert "adversarial query" in desk.fallen(run, book.falls[0].query, "odfa", 8)
    for wrong in ("/etc", f"{run}/..", ""):
        assert "none of the run folders" in desk.overview(wrong)
    assert "0 of 0 queries" in desk.leaf(run, "odfa", 8, "easiest", "-9", "")[0]


def test_a_run_whose_data_are_gone_is_leafed_through(
    glyph_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(glyph_run, out)
    header = json.loads((out / "run.json").read_bytes())
    header["configuration"]["data"] = "market1501:/nowhere"
    (out / "run.json").write_text(json.dumps(header))
    desk = furnish(tmp_path, runs=[out], device="cpu")
    assert desk.studios == ()
    assert "can be leafed through" in capsys.readouterr().err
    with pytest.raises(DataError):
        furnish(tmp_path, data="market1501:/nowhere", device="cpu")


# -- the server, as far as it goes without Gradio --------------------------------------------------


def test_nothing_of_the_explorer_imports_gradio_by_itself() -> None:
    code = """
import sys
import time
import uturn.cli
import uturn.explorer.desk, uturn.explorer.page, uturn.explorer.serve
assert not {"gradio", "fastapi", "uvicorn", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def respond(kind: bytes, body: bytes) -> tuple[dict[bytes, bytes], bytes, list[Any]]:
    """What a browser receives, and the headers that the inner application was asked with."""
    sent: list[Any] = []
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.extend(scope["headers"])
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", kind), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    headers = [(b"accept", b"text/html,*/*"), (b"accept-encoding", b"br")]
    asyncio.run(FromHere(app)({"type": "http", "headers": headers}, receive, send))
    whole = b"".join(message.get("body", b"") for message in sent)
    return dict(sent[0]["headers"]), whole, asked


def test_pages_ask_nobody_else() -> None:
    page = b"""<link rel="preconnect" href="https://fonts.googleapis.com" />
<link
    rel="preconnect"
    href="https://fonts.gstatic.com"
    crossorigin="anonymous"
/><link rel="stylesheet" href="/theme.css" /><script src="./assets/a.js"></script>
<script src="https://cdnjs.cloudflare.com/a.js" async></script><script>own()</script>
<script
    src="//elsewhere.example/b.js"></script><p>https://example.org is text</p>"""
    headers, received, asked = respond(b"text/html; charset=utf-8", page)
    for host in (b"googleapis", b"gstatic", b"cdnjs", b"elsewhere"):
        assert host not in received
    kept = (b'href="/theme.css"', b'src="./assets/a.js"', b"own()", b"https://example.org is text")
    assert all(part in received for part in kept)
    assert headers[b"content-length"] == str(len(received)).encode()
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"accept-encoding" not in dict(asked)


def test_what_is_no_page_passes_untouched() -> None:
    body = b'{"link": "<script src=\\"https://x\\"></script>"}'
    headers, received, _ = respond(b"application/json", body)
    assert received == body
    assert b"content-security-policy" not in headers


# -- a gallery begun elsewhere -------------------------------------------------------------------


def labelled_folder(where: Path) -> str:
    """Three classes of two pictures each; the data spec."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        (where / f"{number % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(where / f"{number % 3}" / f"{number}.png")
    return f"folder:{where}"


def test_what_another_process_embeds_need_not_be_embedded_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = labelled_folder(tmp_path / "data")
    monkeypatch.setenv("UTURN_CACHE", str(tmp_path / "cache"))
    with ahead.begun("glyph_net", data, "cpu") as end:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "cache").rglob("*.npy")) and time.monotonic() < deadline:
            time.sleep(0.1)
        end()
        end()  # and once more when the block is left
    opened = Studio.open("glyph_net", data, load_data(data), device="cpu")
    monkeypatch.setattr(Shelf, "add", lambda *_: pytest.fail("embedded again"))
    features = opened.embed(progress=False).features
    monkeypatch.setenv("UTURN_CACHE", "")
    torch.testing.assert_close(features, opened_anew(data), rtol=1e-4, atol=1e-5)


def opened_anew(data: str) -> torch.Tensor:
    """The gallery's features where nothing is kept."""
    anew = Studio.open("glyph_net", data, load_data(data), device="cpu")
    return anew.embed(progress=False).features


def test_what_goes_wrong_elsewhere_is_not_told_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UTURN_CACHE", str(tmp_path / "cache"))
    ahead.main("no_such_victim", "glyphs", "cpu")
    ahead.main("glyph_net", f"folder:{tmp_path / 'nowhere'}", "cpu")
    monkeypatch.setenv("UTURN_CACHE", "")
    ahead.main("glyph_net", labelled_folder(tmp_path / "data"), "cpu")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "cache").exists()


def test_it_begins_before_torch_is_there() -> None:
    code = "import sys, uturn.explorer.ahead; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
