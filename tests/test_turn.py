"""The U-turn picture: what is measured on victims whose features are known, and how it is drawn."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from tests.conftest import linear_victim, normal
from uturn.attacks import load_attack
from uturn.data.pictures import Picture, Pictures, decode
from uturn.data.split import Split
from uturn.errors import ArgumentError, CheckpointError, RunFolderError
from uturn.report import plates
from uturn.report import turn as report
from uturn.reproduce.turn import RIVALS, circle, turn
from uturn.rng import generator
from uturn.victims import checkpoints
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.load import load_victim
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim, to_pixels

CLASSES = ("north", "east", "south", "elsewhere")
DIRECTIONS = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])


@dataclass(frozen=True)
class Noise:
    """Random pictures (8, 4), each by its name, away from black and white."""

    def read(self, name: str) -> Picture:
        return generator(0, name).integers(60, 196, (8, 4, 3)).astype(np.uint8)

    def stamp(self, name: str) -> str:
        return name


def plane() -> Victim:
    """Two linear features around 0, and the compass under them."""
    weight = normal(2, 3, 8, 4, seed=3)
    bias = -(weight * 128 / 255).sum((1, 2, 3))  # 0 at mid-grey
    head = nn.Linear(2, 4, bias=False)
    head.weight.data.copy_(DIRECTIONS)
    return linear_victim(weight, bias, head)


def compass(count: int = 12) -> Split:
    """Random pictures, each of the class that `plane` says it is."""
    names = tuple(f"n{n}" for n in range(count))
    images = np.stack([Noise().read(name) for name in names]).transpose(0, 3, 1, 2)
    classes = plane().logits(to_pixels(torch.from_numpy(images))).argmax(1).numpy()
    pictures = Pictures(Noise(), names, classes, np.zeros(count, dtype=np.int64))
    protocol = "same-identity"
    return Split(
        name="compass", query=pictures, gallery=pictures, protocol=protocol, classes=CLASSES
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("turn")
    return turn(plane(), compass(), eps=(2, 60), queries=12, out=out, progress=False)


def content(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_bytes())
    return loaded


# -- what is measured ----------------------------------------------------------------------------


def test_features_are_those_of_the_saved_pictures(measured: Path) -> None:
    told, victim = content(measured), plane()
    names = compass().sample(12, 0).query.names
    for panel in told["panels"]:
        folder = measured.parent / "images" / f"eps{panel['eps']:g}"
        saved = victim.grid(decode(folder / f"{name}.png") for name in names)
        assert np.allclose(panel["features"], victim.features(to_pixels(saved)), atol=1e-4)


def test_angles_and_accuracy_against_brute_force(measured: Path) -> None:
    told = content(measured)
    labels, clean = np.array(told["labels"]), np.array(told["panels"][0]["features"])
    assert [panel["eps"] for panel in told["panels"]] == [0, 2, 60]
    assert told["panels"][0]["top1"] == 1  # the classes are what the victim said
    for panel in told["panels"]:
        now = np.array(panel["features"])
        turned = np.degrees(
            [
                abs((np.arctan2(*a) - np.arctan2(*b) + np.pi) % (2 * np.pi) - np.pi)
                for a, b in zip(clean, now, strict=True)
            ]
        )
        assert panel["angle"] == pytest.approx(turned.mean(), abs=0.1)
        assert panel["top1"] == ((now @ DIRECTIONS.numpy().T).argmax(1) == labels).mean()
        for label, mean in enumerate(panel["by_class"]):
            own = turned[labels == label]
            assert mean == (pytest.approx(own.mean(), abs=0.1) if len(own) else None)


def test_linear_features_turn_round(measured: Path) -> None:
    """−f lies within reach of 60 levels, so nothing keeps the features from it."""
    angles = [panel["angle"] for panel in content(measured)["panels"]]
    assert angles[0] == 0
    assert 0 < angles[1] < angles[2]
    assert angles[2] > 170


def test_paths_are_the_attacks_own_iterates(measured: Path) -> None:
    told, victim = content(measured), plane()
    assert [path["label"] for path in told["paths"]] == sorted(set(told["labels"]))
    path = told["paths"][0]
    assert set(path["walks"]) == {*RIVALS, "odfa"}
    image = victim.grid([Noise().read(path["name"])])

    def features(spec: str, eps: float) -> np.ndarray[Any, Any]:
        found = load_attack(spec, eps=eps)(victim, image, names=[path["name"]]).images
        return victim.features(to_pixels(found)).numpy()

    logits = victim.logits(to_pixels(image))
    assert (path["highest"], path["lowest"]) == (int(logits.argmax()), int(logits.argmin()))
    clean = victim.features(to_pixels(image)).numpy()
    for name, walk in path["walks"].items():
        assert np.allclose(walk[0], clean, atol=1e-4)
        assert np.allclose(walk[-1], features(name, 60), atol=1e-4)
    for steps in (1, 7, 64):
        for name in ("basic", "least_likely"):
            expected = features(f"{name}:steps={steps}", 60)
            assert np.allclose(path["walks"][name][steps], expected, atol=1e-4)
        # The U-turn begins beside the picture, and that is a station too.
        expected = features(f"odfa:steps={steps}", 60)
        assert np.allclose(path["walks"]["odfa"][steps + 1], expected, atol=1e-4)
    assert np.allclose(path["walks"]["fast"][5], features("fast", 5), atol=1e-4)


def test_what_is_there_is_not_measured_again(measured: Path) -> None:
    before = measured.stat().st_mtime_ns
    again = turn(plane(), compass(), eps=(60, 2), queries=12, out=measured.parent, progress=False)
    assert again == measured
    assert measured.stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match="was measured otherwise"):
        turn(plane(), compass(), eps=(4,), queries=12, out=measured.parent, progress=False)


def test_other_victims_and_data_are_refused(tmp_path: Path) -> None:
    biased = replace(plane(), classifier=nn.Linear(2, 4))
    with pytest.raises(ArgumentError, match="without bias"):
        turn(biased, compass(), out=tmp_path, progress=False)
    wide = linear_victim(normal(3, 3, 8, 4), torch.zeros(3), nn.Linear(3, 4, bias=False))
    with pytest.raises(ArgumentError, match="2 features"):
        turn(wide, compass(), out=tmp_path, progress=False)
    with pytest.raises(ArgumentError, match="closed set of 4 classes"):
        turn(plane(), replace(compass(), classes=None), out=tmp_path, progress=False)


# -- the networks --------------------------------------------------------------------------------


def small(features: int | None = None) -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet((4, 4, 8), blocks=1, stem_stride=2, features=features)


def test_a_feature_layer_is_linear_and_last() -> None:
    network, plain = small(2).eval(), small().eval()
    body = {k: v for k, v in network.state_dict().items() if not k.startswith("feature.")}
    plain.load_state_dict(body)
    x = normal(3, 3, 16, 16)
    assert network(x).shape == (3, 2)
    expected = plain(x) @ network.feature.weight.T + network.feature.bias
    assert torch.allclose(network(x), expected, atol=1e-6)


@pytest.mark.parametrize("spec", ["glyph_net:features=2", "cifar_resnet20:features=2"])
def test_architectures_take_features(spec: str, tmp_path: Path) -> None:
    from uturn import specs
    from uturn.victims.zoo import architecture, empty

    network = empty(specs.Spec.parse(spec))
    head = nn.Linear(2, 10, bias=False)
    tensors = {**network.state_dict(), "classifier.weight": head.weight.data}
    card = architecture(spec.partition(":")[0]).card
    checkpoints.write(tmp_path / "net.safetensors", tensors, card)
    victim = load_victim(f"{spec},weights={tmp_path / 'net.safetensors'}")
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(victim.logits(pixels), victim.features(pixels) @ head.weight.T)
    with pytest.raises(CheckpointError, match=r"feature\.weight"):
        load_victim(f"{spec.partition(':')[0]}:weights={tmp_path / 'net.safetensors'}")


@pytest.mark.parametrize("bias", [True, False])
def test_a_circle_lays_logits_out(tmp_path: Path, bias: bool) -> None:
    """f = Σ z_c (cos φ_c, sin φ_c) with each φ once, so that Σ (cos, sin) = 0."""
    network, head = small(), nn.Linear(8, 5, bias=bias)
    raw = Preprocessing(size=(16, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    victim = Victim(name="small", network=network, preprocessing=raw, classifier=head)
    out = circle(victim, tmp_path / "start.safetensors")
    start = small(2).eval()
    start.load_state_dict(dict(checkpoints.read(out).tensors))
    x = normal(6, 3, 16, 16)
    logits = head(victim.network(x))
    around = torch.linalg.lstsq(logits, start(x)).solution  # (5, 2)
    if not bias:
        around = torch.linalg.lstsq(head.weight.T, start.feature.weight.T).solution
    turns = (torch.atan2(around[:, 1], around[:, 0]) / (2 * torch.pi) * 5).sort().values
    assert torch.allclose(around.norm(dim=1), torch.ones(5), atol=1e-3)
    assert torch.allclose(turns.diff(), torch.ones(4), atol=1e-3)
    written = out.stat().st_mtime_ns
    assert circle(victim, out).stat().st_mtime_ns == written  # not done again
    with pytest.raises(CheckpointError, match="is not of small as it is now"):
        circle(replace(victim, fingerprint="trained anew"), out)
    with pytest.raises(ArgumentError, match="cannot be laid out on a circle"):
        circle(plane(), tmp_path / "other.safetensors")


# -- how it is drawn -----------------------------------------------------------------------------


def test_figures_repeat_to_the_byte_and_say_no_date(measured: Path, tmp_path: Path) -> None:
    turned = report.read(measured)
    first, second = (
        [
            *report.panels(turned, tmp_path / where / "panels"),
            *report.concept(turned, tmp_path / where / "concept"),
        ]
        for where in "ab"
    )
    assert [file.name for file in first] == [
        *("panels.pdf", "panels.png", "concept.svg", "concept.pdf", "concept.png"),
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one
    assert "<dc:date>" not in first[2].read_text()
    assert b"CreationDate" not in first[0].read_bytes()
    with Image.open(first[1]) as picture:
        assert picture.width == pytest.approx(plates.TEXT * plates.DPI, abs=1)
        assert picture.info["dpi"][0] >= 200


def test_the_gif_holds_on_every_eps_and_loops(measured: Path, tmp_path: Path) -> None:
    with Image.open(report.animation(report.read(measured), tmp_path / "turn.gif")) as gif:
        assert gif.info["loop"] == 0
        times = []
        for number in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(number)
            times.append(gif.info["duration"])
    assert sum(time > 1000 for time in times) == 3
    assert times[-1] == max(times)
    assert len(times) > 20


def test_marks_are_the_shortest_that_differ(measured: Path) -> None:
    turned = report.read(measured)
    named = replace(turned, classes=("airplane", "automobile", "bird", "deer", "dog"))
    assert named.marks == ("ai", "au", "b", "de", "do")
    assert replace(turned, classes=("1", "10", "2")).marks == ("1", "10", "2")


def test_what_lies_far_out_is_drawn_in_its_direction(measured: Path) -> None:
    turned = report.read(measured)
    reach = turned.reach
    points = np.array([[0.3 * reach, 0], [0, 5 * reach], [-3 * reach, 3 * reach], [0, 0]])
    expected = [[0.3 * reach, 0], [0, reach], [-(0.5**0.5) * reach, 0.5**0.5 * reach], [0, 0]]
    assert np.allclose(turned.within(points), expected)


def test_almost_all_lies_in_the_circle_and_the_figure_says_what_does_not(measured: Path) -> None:
    turned, rng = report.read(measured), np.random.default_rng(0)
    long = replace(turned.panels[0], features=10 * rng.normal(size=(1000, 2)))
    short = replace(turned.panels[1], features=0.1 * rng.normal(size=(1000, 2)))
    mixed = replace(turned, panels=(long, short))
    beyond = [(np.hypot(*panel.features.T) > mixed.reach).sum() for panel in mixed.panels]
    assert beyond == [10, 0]
    assert "W, the class directions. 0.5 % of the features lie beyond the circle" in mixed.key


def test_the_panels_say_whose_they_are(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(plates, "save", lambda figure, *_: kept.append(figure) or [])
    turned = report.read(measured)
    report.panels(turned, tmp_path / "panels")
    assert kept[0].get_suptitle() == f"odfa on compass, {turned.victim}"
    assert kept[0].legends[0].get_title().get_text() == turned.key


def test_the_table_of_angles(measured: Path) -> None:
    told = content(measured)
    lines = report.angles(report.read(measured)).splitlines()
    assert lines[0] == "| class | ε = 2 | ε = 60 |"
    assert len(lines) == 2 + len(CLASSES) + 1
    overall = [f"**{panel['angle']:.1f}°**" for panel in told["panels"][1:]]
    assert lines[-1] == f"| **all** | {' | '.join(overall)} |"


def test_the_concept_is_of_the_picture_whose_w_min_is_farthest_from_its_opposite(
    measured: Path, tmp_path: Path
) -> None:
    def walk(degrees: float) -> report.Walk:  # W_min is (1, 0), and −f so many degrees from it
        angle = np.radians(degrees)
        path = -np.array([[np.cos(angle), np.sin(angle)], [1, 1]])
        return report.Walk(f"{degrees}", 0, 3, 1, {"odfa": path})

    turned = replace(report.read(measured), walks=tuple(map(walk, (10, -40, 25))))
    chosen, apart = report.widest(turned)
    assert chosen.name == "-40"
    assert apart == pytest.approx(40)
    drawn = [
        report.concept(turned, tmp_path / f"{n}", picture=n)[0].read_bytes() for n in (None, 1)
    ]
    assert drawn[0] == drawn[1]


def test_the_concepts_labels_stand_on_no_line(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(plates, "save", lambda figure, *_: kept.append(figure) or [])
    turned = report.read(measured)
    for number in range(len(turned.walks)):
        report.concept(turned, tmp_path / "concept", picture=number)
        kept[-1].draw_without_rendering()
        (axes,) = kept[-1].axes
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        reach = max(np.hypot(*line.get_xydata().T).max() for line in axes.lines[:4])
        for text in axes.texts:
            if text.get_text() in ("$f$", "$-f$"):
                place = np.array(text.get_position())
                tip = turned.walks[number].paths["odfa"][0]
                for line in axes.lines:
                    ends = line.get_xydata()
                    assert np.hypot(*(ends - place).T).min() > 0.03 * reach
                assert abs(tip[0] * place[1] - tip[1] * place[0]) > 0.03 * reach * np.hypot(*tip)


def test_the_concept_shows_the_picture_asked_for(measured: Path, tmp_path: Path) -> None:
    turned = report.read(measured)
    drawn = [report.concept(turned, tmp_path / f"{n}", picture=n)[0].read_bytes() for n in (0, 1)]
    assert drawn[0] != drawn[1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "turn.json"
    for text in ("{", "[]", '{"data": 1}'):
        file.write_text(text)
        with pytest.raises(RunFolderError, match=r"turn\.json"):
            report.read(file)


def test_the_page_is_whole_and_names_stay_text(measured: Path, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    turned = replace(report.read(measured), classes=(evil, *CLASSES[1:]), data=evil)
    text = report.page(turned, tmp_path / "turn.html").read_text()
    assert evil not in text
    addresses = re.findall(r"https?://[^\"'\s]+", text)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.browser
def test_the_animation_in_chromium(browser: Any, measured: Path, tmp_path: Path) -> None:
    turned = report.read(measured)
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.context.set_offline(True)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.page(turned, tmp_path / "turn.html").as_uri())

    def place() -> list[float]:
        found: list[float] = page.evaluate(
            "['cx', 'cy'].map((a) => Number(document.querySelector('circle[fill-opacity]')"
            ".getAttribute(a)))"
        )
        return found

    page.wait_for_function("Number(document.getElementById('eps').value) > 0.5")  # it plays
    page.click("#play")
    assert page.inner_text("#play") == "Play"
    still = place()
    page.wait_for_timeout(150)
    assert place() == still

    first = int(np.flatnonzero(turned.labels == turned.labels.min())[0])
    for key, panel in (("Home", turned.panels[0]), ("End", turned.panels[-1])):
        page.focus("#eps")
        page.keyboard.press(key)
        x, y = 1000 * turned.within(panel.features)[first] / turned.reach
        assert place() == pytest.approx([x, -y], abs=1)
    assert f"turned by {turned.panels[-1].angle:.0f}°" in page.inner_text("#says")
    page.click("#play")  # from the end it begins again
    page.wait_for_function("Number(document.getElementById('eps').value) < 40")
    page.locator("#legend button").nth(1).click()
    assert page.locator("g.faint").count() == len(CLASSES) - 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert complaints == []
