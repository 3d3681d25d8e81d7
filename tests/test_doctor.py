"""The doctor: every check fires on a victim that was broken for it, and on no healthy one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from tests.conftest import Tiny
from uturn import Preprocessing, Victim, load_data, load_victim
from uturn.cli import main
from uturn.data.pictures import Picture
from uturn.data.split import Split
from uturn.doctor.alternatives import alternatives
from uturn.doctor.finding import Finding, text
from uturn.doctor.patient import Patient, built, features
from uturn.doctor.victim import CHECKS, examine
from uturn.errors import ArgumentError
from uturn.victims import zoo

DOCS = Path(__file__).parent.parent / "docs" / "doctor.md"
SIZE = Preprocessing(size=(24, 16))
IMAGENET = (SIZE.mean, SIZE.std)


class Through(nn.Module):
    """A function of pictures as a network."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def victim_of(network: nn.Module | Callable[[Tensor], Tensor], **options: object) -> Victim:
    module = network if isinstance(network, nn.Module) else Through(network)
    return Victim(name="test", network=module, preprocessing=SIZE, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return built(16)


@pytest.fixture(scope="module")
def glyphs() -> Split:
    return load_data("glyphs")


@pytest.fixture(scope="module")
def glyph_patient(glyphs: Split) -> Patient:
    return Patient.of(load_victim("glyph_net"), glyphs, queries=25)


def ask(check: str, victim: Victim, pictures: list[Picture]) -> Finding:
    return CHECKS[check](Patient(victim=victim, pictures=pictures))


def tiny(x: Tensor) -> Tensor:
    """Smooth features ``(B, 6)``, different for different pictures."""
    weight = torch.randn(6, 3, 24, 16, generator=torch.Generator().manual_seed(0))
    return (x[:, None] * weight).sum((2, 3, 4)).tanh() + 0.1 * x.mean((2, 3)).repeat(1, 2)


class Rounded(torch.autograd.Function):
    """Rounding to 8 bits that pretends to have a slope."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return (x * 255).round() / 255

    @staticmethod
    def backward(ctx: object, *slopes: Tensor) -> Tensor:
        return slopes[0]


class Boxed(torch.autograd.Function):
    """What the ONNX adapter does."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return tiny(x)

    @staticmethod
    def backward(ctx: object, *_: Tensor) -> Tensor:
        raise ArgumentError("a box without gradients; attack another victim")


def unnormalised(f: Callable[[Tensor], Tensor]) -> Victim:
    plain = Preprocessing(size=(24, 16), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return replace(victim_of(f), preprocessing=plain)


BROKEN: list[tuple[str, str, str, Callable[[], Victim]]] = [
    ("randomness", "failed", "move", lambda: victim_of(lambda x: F.dropout(tiny(x), 0.3))),
    ("batch", "failed", "beside others", lambda: victim_of(lambda x: tiny(x) - tiny(x).mean(0))),
    (
        "finite",
        "failed",
        "black, white, grey",
        lambda: unnormalised(lambda x: tiny(x) / x.std((1, 2, 3))[:, None]),
    ),
    ("finite", "warning", "zero", lambda: unnormalised(lambda x: x.mean((2, 3)))),
    ("gradient", "failed", "no gradient", lambda: victim_of(lambda x: tiny(x).detach())),
    ("gradient", "failed", "zero", lambda: unnormalised(lambda x: tiny((x * 255).round() / 255))),
    (
        "gradient",
        "failed",
        "contradicts",
        lambda: unnormalised(lambda x: tiny(Rounded.apply(x))),  # type: ignore[no-untyped-call]
    ),
    (
        "gradient",
        "failed",
        "contradicts",
        lambda: victim_of(lambda x: tiny(x) + 2 * tiny(x.flip(3)).detach()),
    ),
    (
        "gradient",
        "failed",
        "not finite",
        lambda: victim_of(lambda x: tiny(x) + (x.mean((2, 3)) * 0).abs().sqrt().repeat(1, 2)),
    ),
    (
        "gradient",
        "warning",
        "black box",
        lambda: victim_of(lambda x: Boxed.apply(x)),  # type: ignore[no-untyped-call]
    ),
    ("gradient", "failed", "zero", lambda: victim_of(lambda x: 0 * x.mean((2, 3)) + 1)),
    ("collapse", "failed", "ignores", lambda: victim_of(lambda x: 0 * x.mean((2, 3)) + 1)),
    (
        "collapse",
        "failed",
        "ignores",
        lambda: victim_of(lambda x: 0 * x.mean((2, 3)) + 1, similarity="euclidean"),
    ),
    ("collapse", "warning", "mean cosine", lambda: victim_of(lambda x: tiny(x) + 100)),
    ("range", "note", "90°", lambda: victim_of(lambda x: tiny(x).relu())),
    ("classifier", "note", "fast", lambda: victim_of(tiny)),
]


@pytest.mark.parametrize(("check", "verdict", "word", "broken"), BROKEN)
def test_a_broken_victim_is_named(
    check: str, verdict: str, word: str, broken: Callable[[], Victim], pictures: list[Picture]
) -> None:
    found = ask(check, broken(), pictures)
    assert found.name == check
    assert found.verdict == verdict, found
    assert word in found.says


def test_a_broken_victim_fails_only_what_it_breaks(pictures: list[Picture]) -> None:
    """One cause is not told as many: NaN are neither random nor batch-dependent."""
    nowhere = victim_of(lambda x: tiny(x) * torch.nan)
    assert ask("finite", nowhere, pictures).verdict == "failed"
    for check in ("randomness", "batch"):
        assert ask(check, nowhere, pictures).verdict == "ok"
    constant = victim_of(lambda x: 0 * x.mean((2, 3)) + 1 + 1e-7 * len(x))
    for check in ("randomness", "batch"):
        assert ask(check, constant, pictures).verdict == "ok"
    drawing = victim_of(lambda x: F.dropout(tiny(x), 0.3))
    assert ask("batch", drawing, pictures).verdict == "not checked"


def test_what_raises_is_a_failed_check() -> None:
    def refuse(x: Tensor) -> Tensor:
        raise RuntimeError("size mismatch\nat line 3")

    verdicts = {finding.name: finding for finding in examine(victim_of(refuse))}
    assert list(verdicts) == list(CHECKS)
    for name in ("finite", "gradient"):
        assert verdicts[name].verdict == "failed"
        assert verdicts[name].says.startswith("the victim raised ")
        assert verdicts[name].says.endswith("size mismatch")  # the first line of it


def test_train_mode_is_named_and_left_as_it_is(glyph_patient: Patient) -> None:
    victim = replace(glyph_patient.victim, network=copy.deepcopy(glyph_patient.victim.network))
    victim.network.train()
    before = {key: each.clone() for key, each in victim.network.state_dict().items()}
    found = {finding.name: finding for finding in examine(victim)}
    assert found["train-mode"].verdict == "failed"
    assert "network" in found["train-mode"].says
    assert found["batch"].verdict == "failed"
    assert all(module.training for module in victim.network.modules())
    for key, after in victim.network.state_dict().items():
        assert torch.equal(after, before[key]), key


def test_a_sub_module_that_trains_is_named_by_its_path(pictures: list[Picture]) -> None:
    network = nn.Sequential(Tiny(0), nn.Dropout(0.5))
    victim = victim_of(network)
    network[1].train()
    found = ask("train-mode", victim, pictures)
    assert found.verdict == "failed"
    assert "network.1" in found.says
    assert ask("randomness", victim, pictures).verdict == "failed"


# The makers' transform


def makers(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """A transform as makers write it, independent of `Preprocessing`."""

    def transform(image: Image.Image) -> Tensor:
        height, width = preprocessing.size
        array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        normal = (array / 255 - preprocessing.mean) / preprocessing.std
        return torch.from_numpy(normal.astype(np.float32)).permute(2, 0, 1)

    return transform


def wrong(right: Preprocessing) -> dict[str, Preprocessing]:
    """The three mistakes that the issue names, and two more."""
    m, s = np.array(right.mean), np.array(right.std)
    return {
        "swapped": replace(right, mean=right.std, std=right.mean),
        "BGR": replace(right, order="BGR"),
        "double": replace(right, mean=tuple((m + m * s).tolist()), std=tuple((s * s).tolist())),
        "none": replace(right, mean=(0.0,) * 3, std=(1.0,) * 3),
        "0 … 255": replace(right, mean=(0.0,) * 3, std=(1 / 255,) * 3),
    }


@pytest.mark.parametrize("mistake", [None, *wrong(SIZE)])
def test_own_transform(mistake: str | None, pictures: list[Picture]) -> None:
    stated = SIZE if mistake is None else wrong(SIZE)[mistake]
    victim = victim_of(Tiny(0), own_transform=makers(SIZE))
    found = ask("own-transform", replace(victim, preprocessing=stated), pictures)
    if mistake is None:
        assert found.verdict == "ok"
        assert found.measured["input differs by (levels)"] < 0.01
        assert found.measured["moved"] < 1e-4
        assert 0 < found.measured["by the differentiable resize (levels)"] < 1.5
    else:
        assert found.verdict == "failed"
        assert found.measured["input differs by (levels)"] > 10


def test_own_transform_of_another_size_or_resize(pictures: list[Picture]) -> None:
    victim = victim_of(Tiny(0), own_transform=makers(SIZE))
    other = replace(victim, preprocessing=Preprocessing(size=(16, 24)))
    found = ask("own-transform", other, pictures)
    assert found.verdict == "failed"
    assert "(3, 16, 24)" in found.says
    sharper = replace(victim, preprocessing=replace(SIZE, interpolation="bicubic"))
    assert ask("own-transform", sharper, pictures).verdict in ("warning", "failed")


def test_timms_own_transform(pictures: list[Picture]) -> None:
    """A ViT has no batch norm: only its makers' transform, and labels, can tell."""
    from tests import shim

    shim.declare()
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    config = timm.data.resolve_model_data_config(model)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    side = config["input_size"][-1]
    right = Preprocessing(
        size=(side, side),
        mean=mean,
        std=std,
        fit="crop",
        crop_from=int(side / config["crop_pct"]),
        interpolation=config["interpolation"],
    )
    transform = timm.data.create_transform(**config, is_training=False)
    victim = replace(victim_of(model, own_transform=transform), preprocessing=right)
    assert ask("own-transform", victim, pictures).verdict == "ok"
    assert ask("running-statistics", victim, pictures).verdict == "not checked"
    assert ask("gradient", victim, pictures).verdict == "ok"
    swapped = replace(victim, preprocessing=replace(right, order="BGR"))
    assert ask("own-transform", swapped, pictures).verdict == "failed"


# Running statistics


def warm(count: int, skip: int = 0) -> list[Picture]:
    """Reddish pictures: the order of their channels can be told."""
    tint = np.array([1.0, 0.8, 0.55])
    return [(picture * tint).astype(np.uint8) for picture in built(count + skip)[skip:]]


@pytest.fixture(scope="module")
def trained() -> Victim:
    """A network whose batch norms have seen warm pictures under ImageNet's preprocessing."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, bias=False),
        nn.BatchNorm2d(16, momentum=None),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, bias=False),
        nn.BatchNorm2d(16, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with torch.no_grad():
        network.train()(SIZE.normalise(SIZE.grid(warm(40, skip=40)).float() / 255))
    return victim_of(network)


@pytest.mark.parametrize("mistake", [None, *wrong(SIZE)])
def test_running_statistics(mistake: str | None, trained: Victim) -> None:
    stated = SIZE if mistake is None else wrong(SIZE)[mistake]
    found = ask("running-statistics", replace(trained, preprocessing=stated), warm(40))
    if mistake is None:
        assert found.verdict == "ok"
        return
    assert found.verdict == "failed", found
    cure = {"swapped": "swapped", "BGR": "order RGB"}.get(mistake, "ImageNet's")
    assert cure in found.says
    # The remedy, as a spec, is the right preprocessing again.
    assert "mean=0.485+0.456+0.406,std=0.229+0.224+0.225,order=RGB" in found.remedy


def test_a_network_that_normalises_by_itself(trained: Victim) -> None:
    """The other way to normalise twice: nothing is wrong with what is stated but its place."""
    inside = nn.Sequential(Through(SIZE.normalise), trained.network)
    twice = victim_of(inside)
    found = ask("running-statistics", twice, warm(40))
    assert found.verdict == "failed"
    assert "0 … 1, not normalised" in found.says
    once = replace(twice, preprocessing=replace(SIZE, mean=(0.0,) * 3, std=(1.0,) * 3))
    assert ask("running-statistics", once, warm(40)).verdict == "ok"


def test_running_statistics_of_other_pictures_accuse_nobody(glyph_patient: Patient) -> None:
    odd = [np.full((24, 16, 3), level, np.uint8) for level in range(0, 256, 8)]
    found = CHECKS["running-statistics"](replace(glyph_patient, pictures=odd))
    assert found.verdict == "not checked"
    assert "--data" in found.says


def test_running_statistics_that_remember_nothing(pictures: list[Picture]) -> None:
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    assert ask("running-statistics", victim_of(fresh), pictures).verdict == "warning"


def test_the_divergence_is_that_of_gaussians(trained: Victim) -> None:
    """Against torch's own KL divergence, in the first layer."""
    from uturn.doctor import running_statistics as room

    images = SIZE.grid(warm(12))
    layers = room._learned(trained.network)
    first = dict([next(iter(layers.items()))])
    even = np.full((1, 12), 1 / 12)
    found = room._divergence(trained, first, SIZE, [images], even)
    norm = trained.network[1]  # type: ignore[index]
    x = trained.network[0](SIZE.normalise(images.float() / 255)).double()  # type: ignore[index]
    spread = (x.var((0, 2, 3), correction=0) + norm.eps).sqrt()
    ours = torch.distributions.Normal(x.mean((0, 2, 3)), spread)
    memory = torch.distributions.Normal(norm.running_mean, (norm.running_var + norm.eps).sqrt())
    expected = torch.distributions.kl_divergence(ours, memory).log1p().mean()
    assert found is not None
    assert found.value == pytest.approx(float(expected), rel=1e-3)


# Labels


@pytest.mark.parametrize(("mistake", "verdict"), [(None, "ok"), ("none", "failed")])
def test_recall(mistake: str | None, verdict: str, glyph_patient: Patient) -> None:
    victim = glyph_patient.victim
    stated = victim.preprocessing
    if mistake is not None:
        stated = wrong(stated)[mistake]
    patient = replace(glyph_patient, victim=replace(victim, preprocessing=stated))
    found = CHECKS["recall"](patient)
    assert found.verdict == verdict, found
    assert found.measured["queries"] == 25


def test_recall_needs_labels(pictures: list[Picture], glyphs: Split, glyph_victim: Victim) -> None:
    assert ask("recall", glyph_victim, pictures).verdict == "not checked"
    few = replace(glyphs, query=glyphs.query.subset(np.arange(12)))  # one identity
    patient = Patient(victim=glyph_victim, pictures=pictures, split=few)
    assert CHECKS["recall"](patient).verdict == "not checked"


def test_chance_is_exact_for_few_identities() -> None:
    from uturn.doctor.recall import _by_chance

    gain = np.array([0.5, 0.5, 0.2, 0.1])
    identities = np.array([0, 0, 1, 2])
    # Of the 8 ways to sign 1, 0.2, 0.1 only one sums to as much.
    assert _by_chance(gain, identities, 0) == pytest.approx(1 / 8, abs=0.01)
    assert _by_chance(np.zeros(4), identities, 0) == 1.0


# Alternatives


def test_every_mistake_is_undone_by_an_alternative() -> None:
    for right in (SIZE, replace(SIZE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))):
        for name, mistaken in wrong(right).items():
            if name in ("none", "0 … 255") and right != SIZE:
                continue  # what was there before cannot be known
            close = [
                np.allclose(each.mean, right.mean) and np.allclose(each.std, right.std)
                for each in alternatives(mistaken).values()
                if each.order == right.order
            ]
            assert any(close), name


def test_twice_is_twice() -> None:
    pixels = torch.rand(1, 3, 24, 16)
    twice = alternatives(SIZE)["normalised twice"].normalise(pixels)
    assert torch.allclose(SIZE.normalise(SIZE.normalise(pixels)), twice, atol=1e-4)


# The whole examination


def fired(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.verdict in ("warning", "failed")]


def test_nothing_fires_on_the_shipped_victim(glyph_patient: Patient) -> None:
    found = examine(glyph_patient.victim, glyph_patient.split, queries=25)
    assert [finding.name for finding in found] == list(CHECKS)
    assert not fired(found)


def test_nothing_fires_on_a_random_network() -> None:
    victim = victim_of(Tiny(0), own_transform=makers(SIZE))
    assert not fired(examine(victim))


def test_nothing_fires_on_a_trained_batch_norm(trained: Victim) -> None:
    assert not fired(examine(trained))


def test_the_command_fails_and_names_the_cure() -> None:
    spec = "glyph_net:mean=0.25+0.25+0.25,std=0.5+0.5+0.5"
    options = ("--data", "glyphs", "--queries", "25", "--device", "cpu", "--quiet", "--json")
    result = CliRunner().invoke(main, ("doctor", "--victim", spec, *options))
    assert result.exit_code == 1, result.output
    found = {each["name"]: each for each in json.loads(result.output)["findings"]}
    assert list(found) == list(CHECKS)
    assert found["running-statistics"]["verdict"] == "failed"
    assert "mean and std swapped" in found["running-statistics"]["says"]
    assert "mean=0.5+0.5+0.5,std=0.25+0.25+0.25" in found["running-statistics"]["remedy"]


def test_the_command_passes_a_healthy_victim() -> None:
    result = CliRunner().invoke(
        main, ("doctor", "--victim", "glyph_net", "--device", "cpu", "--quiet")
    )
    assert result.exit_code == 0, result.output
    for name in CHECKS:
        assert name in result.output


def test_findings_as_text_and_json() -> None:
    finding = Finding(
        name="batch",
        verdict="failed",
        says="it moves",
        measured={"moved": float("nan"), "pictures": 8},
        cause="a cause",
        remedy="a remedy",
    )
    for words in ("failed", "batch", "it moves", "moved nan, pictures 8", "remedy: a remedy"):
        assert words in text([finding])
    assert json.loads(json.dumps(finding.as_dict(), allow_nan=False))["measured"] == {
        "moved": "nan",
        "pictures": 8,
    }
    with pytest.raises(ValueError, match="without a cause"):
        Finding(name="batch", verdict="failed", says="it moves")


def test_built_pictures_are_of_many_proportions_and_speak_of_no_order() -> None:
    pictures = built(64)
    assert len({picture.shape for picture in pictures}) == 8
    means = np.mean([picture.mean((0, 1)) for picture in pictures], 0) / 255
    stds = np.mean([picture.std((0, 1)) for picture in pictures], 0) / 255
    assert means == pytest.approx([0.45] * 3, abs=0.03)
    assert stds == pytest.approx([0.22] * 3, abs=0.03)


def test_features_of_a_patient_are_of_one_batch(pictures: list[Picture]) -> None:
    patient = Patient(victim=victim_of(tiny), pictures=pictures)
    assert patient.pixels.shape == (8, 3, 24, 16)
    assert features(patient.victim, patient.pixels).shape == (8, 6)


def test_every_check_is_documented() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name in CHECKS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert len([cell for cell in row.split("|") if cell.strip()]) == 4, row


# Real weights


@pytest.mark.slow
def test_real_weights_of_osnet(shared_data: Path) -> None:
    """The acceptance of the issue: no transform of the makers, only weights and pictures."""
    victim = load_victim(f"osnet_x0_25:weights={shared_data / 'osnet_x0_25_market1501.pth'}")
    split = load_data(f"market1501:{shared_data / 'market1501'}")
    patient = Patient.of(victim, split)
    right = victim.preprocessing
    assert CHECKS["running-statistics"](patient).verdict == "ok"
    for name, stated in wrong(right).items():
        mistaken = replace(patient, victim=replace(victim, preprocessing=stated))
        found = CHECKS["running-statistics"](mistaken)
        assert found.verdict == "failed", name
    assert not fired(examine(victim, split))
    for name in ("BGR", "double"):
        mistaken = replace(patient, victim=replace(victim, preprocessing=wrong(right)[name]))
        assert CHECKS["recall"](mistaken).verdict == "failed", name


def test_a_network_whose_weights_were_never_loaded_is_told(glyph_victim: Victim) -> None:
    fresh = replace(glyph_victim, network=zoo.ZOO["glyph_net"].build())
    (told,) = (f for f in examine(fresh) if f.name == "running-statistics")
    assert told.verdict == "warning"
    assert "remember nothing" in told.says
