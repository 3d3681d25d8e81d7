"""The way in: fits, crops, looks and whitening, held against other people's implementations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import uturn
from tests import shim
from tests.conftest import RAW, Linear, Tiny, normal
from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.retrieval.extract import extract, extract_decoded
from uturn.victims.preprocessing import Preprocessing, by_shape
from uturn.victims.test_time import TestTime
from uturn.victims.victim import Victim, to_pixels
from uturn.victims.whitening import Whitening

SIDES = st.integers(5, 90)


def picture(height: int, width: int) -> np.ndarray:  # type: ignore[type-arg]
    """A smooth picture: resizers agree on it to a level."""
    rng = np.random.default_rng(height * 1000 + width)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(24, 24, 28), (24, 16, 24), (16, 24, None)]))
def test_crop_is_torchvisions(height: int, width: int, sizes: tuple[int, int, int | None]) -> None:
    shim.declare()
    transforms = pytest.importorskip("torchvision.transforms")
    h, w, crop_from = sizes
    ours = Preprocessing(size=(h, w), fit="crop", crop_from=crop_from, interpolation="bicubic")
    theirs = transforms.Compose(
        [
            transforms.Resize(crop_from or max(h, w), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop((h, w)),
        ]
    )
    seen = picture(height, width)
    if seen.shape[:2] != (h, w):  # a picture of the network's size is taken as it is
        assert np.array_equal(ours.on_grid(seen), np.asarray(theirs(Image.fromarray(seen))))


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES)
def test_within_keeps_proportions_and_never_enlarges(height: int, width: int) -> None:
    ours = Preprocessing(size=(40, 40), fit="within")
    got = ours.on_grid(picture(height, width)).shape
    thumbnail = Image.fromarray(picture(height, width))
    thumbnail.thumbnail((40, 40), reducing_gap=None)
    assert abs(got[0] - thumbnail.height) <= 1
    assert abs(got[1] - thumbnail.width) <= 1
    assert max(got[:2]) <= 40
    assert ours.on_grid(ours.on_grid(picture(height, width))).shape == got


@pytest.mark.parametrize("fit", ["stretch", "crop", "within"])
@pytest.mark.parametrize("size", [(50, 20), (20, 50), (33, 33), (12, 9)])
def test_the_differentiable_way_in_is_pillows_to_a_level(fit: str, size: tuple[int, int]) -> None:
    ours = Preprocessing(size=(24, 20), fit=fit)  # type: ignore[arg-type]
    seen = picture(*size)
    pixels = to_pixels(torch.from_numpy(seen).permute(2, 0, 1)[None]).requires_grad_()
    resized = ours.resize(pixels)
    expected = torch.from_numpy(ours.on_grid(seen).copy()).permute(2, 0, 1)[None]
    assert resized.shape == expected.shape
    assert float((resized.detach() * 255 - expected).abs().max()) <= 1.51
    (slope,) = torch.autograd.grad(resized.sum(), pixels)
    assert bool(slope.any())


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 3, 1, 1), (3, 3, 1, 4)])
def test_normalising_gives_the_same_bits_in_every_layout(
    order: Literal["RGB", "BGR"], shape: tuple[int, ...]
) -> None:
    ours = Preprocessing(size=(7, 5), mean=(0.48, 0.45, 0.4), std=(0.2, 0.21, 0.22), order=order)
    weights, results = normal(*shape, seed=1), []
    for layout in (torch.contiguous_format, torch.channels_last):
        pixels = normal(*shape).sigmoid().contiguous(memory_format=layout).requires_grad_()
        found = ours.normalise(pixels)
        assert found.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad((found * weights).sum(), pixels)
        results.append((found.detach(), grad))
    (plain, grad), (rows, along) = results
    assert torch.equal(plain, rows)
    assert torch.equal(grad, along)


def test_bgr_networks_get_their_channels_in_their_order() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    ours = Preprocessing(size=(4, 4), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), order="BGR")
    blue = (pixels[:, 2] - 0.1) / 1.0
    assert torch.allclose(ours.normalise(pixels)[:, 0], blue)
    assert torch.allclose(ours.normalise(pixels)[:, 2], (pixels[:, 0] - 0.3) / 4.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fit": "zoom"}, "fit must be one of"),
        ({"order": "GBR"}, "order must be one of"),
        ({"crop_from": 30}, "crop_from needs fit='crop'"),
        ({"fit": "crop", "crop_from": 10}, "must hold a crop"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"mean": ("a", 0, 0)}, "three numbers"),
        ({"size": 24}, "size must be"),
        ({"size": (True, 24)}, "size must be"),
    ],
)
def test_impossible_preprocessing_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        Preprocessing(**{"size": (24, 24), **options})  # type: ignore[arg-type]
    assert Preprocessing(size=[24, 24]) == Preprocessing(size=(24, 24))  # type: ignore[arg-type]


class Mean(nn.Module):
    """Features that tell where in the picture something is, and in which colour."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(5, 3, 6, 6, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,dchw->bd", F.adaptive_avg_pool2d(x, 6), self.weight).abs()


def looking(**options: object) -> Victim:
    plain = Preprocessing(size=(12, 10), mean=(0, 0, 0), std=(1, 1, 1))
    test_time = TestTime(**options)  # type: ignore[arg-type]
    return Victim(name="mean", network=Mean(), preprocessing=plain, test_time=test_time)


def test_ten_crop_is_torchvisions() -> None:
    shim.declare()
    functional = pytest.importorskip("torchvision.transforms.functional")
    pixels = torch.rand(3, 3, 12, 10)
    crops = functional.ten_crop(pixels, [8, 6])
    network = Mean()
    expected = F.normalize(torch.stack([F.normalize(network(c), dim=1) for c in crops]).mean(0))
    victim = looking(crops=(8, 6), flip=True)
    assert victim.test_time.count == 10
    assert torch.allclose(victim.embed(pixels), expected, atol=1e-6)


def test_flips_are_averaged_raw_or_as_units() -> None:
    pixels, network = torch.rand(3, 3, 12, 10), Mean()
    seen = [network(pixels), network(pixels.flip(3))]
    raw = F.normalize(seen[0] + seen[1], dim=1)
    unit = F.normalize(F.normalize(seen[0], dim=1) + F.normalize(seen[1], dim=1), dim=1)
    assert torch.allclose(looking(flip=True, average="raw").embed(pixels), raw, atol=1e-6)
    assert torch.allclose(looking(flip=True).embed(pixels), unit, atol=1e-6)
    assert not torch.allclose(raw, unit, atol=1e-4)


def test_a_mirrored_picture_looks_the_same_to_a_flipping_victim() -> None:
    pixels = torch.rand(2, 3, 12, 10)
    victim = looking(flip=True)
    assert torch.allclose(victim.embed(pixels), victim.embed(pixels.flip(3)), atol=1e-6)


def test_the_power_mean_over_scales() -> None:
    """Radenović et al.: (mean fᵖ)^(1/p) of unit features, then unit length."""
    pixels, p = torch.rand(2, 3, 12, 10), 3.0
    victim = looking(scales=(1.0, 0.5), power=p)
    each = [looking(scales=(scale,)).embed(pixels) for scale in (1.0, 0.5)]
    expected = F.normalize(((each[0] ** p + each[1] ** p) / 2) ** (1 / p), dim=1)
    assert torch.allclose(victim.embed(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"crops": (13, 4)}, {"scales": ()}, {"average": "sum"}, {"power": 0.0}],
)
def test_impossible_looks_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError):
        looking(**options).embed(torch.rand(1, 3, 12, 10))


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True},
        {"crops": (8, 6), "flip": True},
        {"scales": (1.0, 0.5), "power": 3.0},
        {"flip": True, "average": "raw"},
    ],
)
def test_the_whole_pipeline_has_a_gradient(options: dict[str, object]) -> None:
    """Autograd agrees with a difference along a random direction, whitening included."""
    victim = looking(**options)
    learned = Whitening.pca(victim.features(torch.rand(40, 3, 12, 10)), 3)
    victim = Victim(
        name="all",
        network=victim.network.double(),
        preprocessing=victim.preprocessing,
        test_time=victim.test_time,
        whitening=learned.double(),
    )
    pixels = torch.rand(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    weight, direction = torch.rand(2, 3), torch.randn(2, 3, 12, 10, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (victim.embed(x) * weight).sum()

    (slope,) = torch.autograd.grad(value(pixels), pixels)
    step = 1e-3
    difference = (value(pixels + step * direction) - value(pixels - step * direction)) / (2 * step)
    assert torch.allclose((slope * direction).sum(), difference.double(), rtol=2e-2, atol=1e-3)


def test_a_power_mean_is_refused_where_features_have_signs() -> None:
    with pytest.raises(ArgumentError, match="never negative"):
        uturn.load_victim("glyph_net:flip=yes,power=3").embed(torch.rand(1, 3, 32, 32))


# -- networks of one's own that are not as they should be -------------------------------------


class Returns(nn.Module):
    """A network that makes of pictures what it is told to."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> object:
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda x: torch.zeros(2 * len(x), 5), r"returns \(4, 5\) for 2 pictures"),
        (lambda x: torch.zeros(1, 5), r"returns \(1, 5\) for 2 pictures"),
        (lambda x: torch.zeros(len(x), 0), r"returns \(2, 0\) for 2 pictures"),
        (lambda x: torch.zeros(len(x), 5, 1), r"returns \(2, 5, 1\) for 2 pictures"),
        (lambda x: [x], "returns list for 2 pictures"),
        (lambda x: x.flatten(1) @ torch.zeros(7, 2), r"fails on pictures of shape \(2, 3, 8, 4\)"),
    ],
)
def test_networks_that_return_no_features_are_named(
    make: Callable[[Tensor], object], says: str
) -> None:
    victim = Victim(name="odd", network=Returns(make), preprocessing=RAW)
    with pytest.raises(ArgumentError, match=says):
        victim.embed(torch.rand(2, 3, 8, 4))


def test_a_network_without_gradients_says_so() -> None:
    blind = Returns(lambda x: x.detach().flatten(1))
    victim = Victim(name="blind", network=blind, preprocessing=RAW)
    images = torch.full((1, 3, 8, 4), 90, dtype=torch.uint8)
    with pytest.raises(ArgumentError, match="no gradient reaches the pixels"):
        uturn.attacks.odfa(eps=2)(victim, images)


def test_networks_in_half_precision_are_run_in_full() -> None:
    pixels = torch.rand(2, 3, 8, 4)
    for kind in (torch.float16, torch.bfloat16):
        victim = Victim(name="half", network=a_module().to(kind), preprocessing=RAW)
        assert torch.allclose(victim.embed(pixels), a_victim().embed(pixels), atol=0.02)


# -- whitening ------------------------------------------------------------------------------


def test_pca_whitening_is_scikit_learns() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    features = normal(200, 8, seed=5) * torch.linspace(1, 3, 8) + 1
    unit = F.normalize(features, dim=1).numpy().astype(np.float64)
    theirs = decomposition.PCA(5, whiten=True, svd_solver="full").fit(unit).transform(unit)
    ours = Whitening.pca(features, 5)(features).numpy()
    signs = np.sign((ours * theirs).sum(0))
    assert np.abs(ours - theirs * signs).max() < 1e-4
    assert np.allclose(np.cov(ours.T), np.eye(5), atol=1e-3)


def test_whitening_survives_the_disk_and_changes_the_fingerprint(tmp_path: Path) -> None:
    plain = uturn.load_victim("glyph_net")
    features = normal(300, 128, seed=1)
    Whitening.pca(features, 16).save(tmp_path / "w.safetensors")
    victim = uturn.load_victim(f"glyph_net:whitening={tmp_path / 'w.safetensors'}")
    pixels = torch.rand(3, 3, 32, 32)
    expected = Whitening.pca(features, 16)(plain.features(pixels))
    assert torch.allclose(victim.features(pixels), expected, atol=1e-5)
    assert victim.fingerprint != plain.fingerprint
    assert "whitened" in repr(victim)


def test_whitening_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    features = normal(20, 8)
    with pytest.raises(ArgumentError, match="span 8 dimensions, 9"):
        Whitening.pca(features, 9)
    with pytest.raises(ArgumentError, match="span 1 dimension"):
        Whitening.pca(features[:2], 4)
    with pytest.raises(ArgumentError, match="learned from 8 dimensions"):
        Whitening.pca(features)(normal(2, 5))
    safetensors.torch.save_file({"mean": normal(4)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="holds no whitening"):
        uturn.load_victim(f"glyph_net:whitening={tmp_path / 'w.safetensors'}")


# -- pictures of many shapes ------------------------------------------------------------------


def test_features_do_not_depend_on_who_shares_the_batch() -> None:
    keeps = Preprocessing(size=(20, 20), mean=(0, 0, 0), std=(1, 1, 1), fit="within")
    victim = Victim(name="tiny", network=Tiny(0), preprocessing=keeps)
    pictures = [picture(*size) for size in [(30, 10), (10, 30), (30, 10), (15, 18)]]
    together = extract_decoded(victim, pictures)
    for one, found in zip(pictures, together, strict=True):
        alone = extract(victim, by_shape([keeps.on_grid(one)])[0][1])[0]
        assert torch.allclose(found, alone, atol=1e-6)
    with pytest.raises(ArgumentError, match="shapes fit no single batch"):
        victim.grid(pictures)


# -- specs --------------------------------------------------------------------------------------


def test_general_options_reach_every_part() -> None:
    victim = uturn.load_victim(
        "glyph_net:size=40x24,mean=0.1+0.2+0.3,interpolation=bicubic,fit=crop,crop_from=44,"
        "order=BGR,flip=yes,crops=32x20,average=raw,similarity=euclidean"
    )
    assert victim.preprocessing == Preprocessing(
        size=(40, 24),
        mean=(0.1, 0.2, 0.3),
        std=(0.25, 0.25, 0.25),
        interpolation="bicubic",
        fit="crop",
        crop_from=44,
        order="BGR",
    )
    assert victim.test_time == TestTime(flip=True, crops=(32, 20), average="raw")
    assert victim.similarity == "euclidean"
    assert victim.embed(torch.rand(1, 3, 60, 50)).shape == (1, 128)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("glyph_net:size=40", "size takes 2 numbers, such as 256x128"),
        ("glyph_net:flip=true", "flip must be yes or no"),
        ("glyph_net:fit=zoom", "fit must be one of stretch, crop, within"),
        ("glyph_net:colour=BGR", "no option 'colour'"),
        ("no_such_net", "unknown victim 'no_such_net'; known: .*glyph_net.*package.module"),
        ("no_such_module:build", "cannot import 'no_such_module'"),
        ("tests.test_preprocessing:nothing", "has no function 'nothing'"),
        ("tests.test_preprocessing:a_list,size=8x4", "returned a list"),
        ("tests.test_preprocessing:a_module", "add size=HxW"),
        ("tests.test_preprocessing:a_module,depth=3,size=8x4", "no option 'depth'"),
    ],
)
def test_specs_that_name_no_victim(spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        uturn.load_victim(spec)


def a_list() -> list[int]:
    return [1]


def a_module(seed: int = 0) -> nn.Module:
    return Linear(normal(6, 3, 8, 4, seed=seed), torch.zeros(6))


def a_small_network() -> nn.Module:
    return Tiny(0)


def a_victim() -> Victim:
    return Victim(name="mine", network=a_module(), preprocessing=RAW)


def test_a_factory_of_ones_own() -> None:
    pixels = torch.rand(2, 3, 8, 4)
    bare = uturn.load_victim(
        "tests.test_preprocessing:a_module,seed=0,size=8x4,mean=0+0+0,std=1+1+1"
    )
    whole = uturn.load_victim("tests.test_preprocessing:a_victim")
    assert torch.equal(bare.features(pixels), whole.features(pixels))
    other = uturn.load_victim("tests.test_preprocessing:a_module,seed=1,size=8x4")
    assert bare.fingerprint != other.fingerprint


def test_factories_as_people_write_them() -> None:
    expected = uturn.load_victim("tests.test_preprocessing:a_module,seed=3,size=8x4")
    for name in ("anything_goes", "half_done", "typed_elsewhere"):
        seed = "" if name == "half_done" else ",seed=3"
        found = uturn.load_victim(f"tests.test_preprocessing:{name}{seed},size=8x4")
        assert found.fingerprint == expected.fingerprint


def anything_goes(**options: str) -> nn.Module:
    return a_module(seed=int(options["seed"]))


half_done = functools.partial(a_module, 3)


def typed_elsewhere(seed: Unheard) -> nn.Module:  # noqa: F821
    return a_module(seed=int(seed))


def test_a_victim_without_a_fingerprint_gets_one() -> None:
    """Else a sweep could not tell it from another and would hand back the other's numbers."""
    assert uturn.load_victim("tests.test_preprocessing:a_victim").fingerprint
