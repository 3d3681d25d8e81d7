"""Adapters: other people's networks, held against the same networks behind their own transforms."""

from __future__ import annotations

import importlib
import inspect
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import uturn
from tests import shim
from tests.conftest import Tiny, write_market
from tests.test_docs import blocks
from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.victims import load
from uturn.victims.adapters import lifting
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim, to_pixels

SHAPES = {
    "landscape": (60, 97),
    "portrait": (131, 50),
    "square": (80, 80),
    "tiny": (7, 5),
    "long": (24, 300),
}
"""(H, W), among them such as leave half a pixel on both sides of a crop."""


def peer(name: str) -> Any:
    shim.declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchreid's Cython, onnxruntime's GPU
        pytest.importorskip(name.split(".")[0], reason=f"{name} is not installed")
        return importlib.import_module(name)


def picture(height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise: no resizer's rounding goes unnoticed."""
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels_of(victim: Victim, *shapes: tuple[int, int]) -> Tensor:
    return to_pixels(victim.grid([picture(*shape) for shape in shapes]))


def agree(victim: Victim, transform: Any, model: Callable[[Tensor], Tensor]) -> None:
    """The victim on pixels is the model behind its makers' transform, to float32's rounding."""
    for shape in SHAPES.values():
        with torch.no_grad():
            theirs = model(transform(Image.fromarray(picture(*shape)))[None])
        ours = victim.features(pixels_of(victim, shape))
        assert float(theirs.std()) > 1e-3  # features that say something
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-5)


def slopes(victim: Victim) -> None:
    """Gradients pass from the embedding of a native-size picture to its pixels."""
    pixels = to_pixels(torch.from_numpy(picture(90, 70)).permute(2, 0, 1)[None]).requires_grad_()
    victim.embed(pixels).square().sum().sub(victim.features(pixels).sum()).backward()
    assert pixels.grad is not None
    assert float((pixels.grad != 0).float().mean()) > 0.3


def test_every_adapter_introduces_itself() -> None:
    for name, build in load.ADAPTERS.items():
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        assert summary.startswith(f"{name}:"), name
        assert summary.endswith("."), name


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        ("timm:resnet18,weights=x", "timm", "zoo"),
        ("torchreid:osnet_x0_25,weights=x", "torchreid", "zoo"),
        ("hf:x", "transformers", "zoo"),
        ("oml:vits16_dino,weights=x", "oml.registry", "oml"),
        ("onnx:x", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    spec: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SpecError, match=rf"needs {package}.*uturn\[{extra}\]"):
        uturn.load_victim(spec)


# timm


@pytest.fixture(scope="module")
def timm() -> Any:
    return peer("timm")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_on_pixels_is_timm_on_pictures(timm: Any, name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, tmp_path / "best.pth")
    victim = uturn.load_victim(f"timm:{name},weights={tmp_path / 'best.pth'}")
    config = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**config, is_training=False)
    assert victim.preprocessing.mean == config["mean"]
    exact = picture(*victim.preprocessing.size)  # already fits: not made larger and cropped again
    assert np.array_equal(victim.preprocessing.on_grid(exact), exact)
    agree(
        victim,
        transform,
        lambda x: theirs.forward_head(theirs.forward_features(x), pre_logits=True),
    )
    inputs = torch.stack([transform(Image.fromarray(picture(*s))) for s in SHAPES.values()])
    torch.testing.assert_close(
        victim.logits(pixels_of(victim, *SHAPES.values())), theirs(inputs), atol=1e-5, rtol=1e-5
    )
    slopes(victim)


def test_timm_weights_without_a_classifier_and_classifiers_that_are_convolutions(
    timm: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    path = tmp_path / "x.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    assert uturn.load_victim(f"timm:test_resnet,weights={path}").classifier is None
    theirs = timm.create_model("resnetv2_18", num_classes=3).eval()
    save_file(theirs.state_dict(), path)
    victim = uturn.load_victim(f"timm:resnetv2_18,weights={path}")
    pixels = pixels_of(victim, (60, 97))
    expected = theirs(victim.preprocessing.normalise(pixels))
    torch.testing.assert_close(victim.logits(pixels), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(5, 90), st.integers(5, 90)),
    st.integers(16, 33),
    st.sampled_from(["center", "squash"]),
    st.sampled_from([0.875, 0.9, 0.95, 0.965, 1.0]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_what_timms_transform_does_is_read_from_it(
    shape: tuple[int, int], side: int, mode: str, pct: float, interpolation: str
) -> None:
    timm = peer("timm")
    transform = timm.data.create_transform(
        (3, side, side), crop_mode=mode, crop_pct=pct, interpolation=interpolation
    )
    if mode == "squash" and int(side / pct) != side:
        with pytest.raises(SpecError, match="which uturn cannot follow; write package"):
            lifting.of_torchvision(transform, "timm:x")
        return
    ours = lifting.of_torchvision(transform, "timm:x")
    if shape == (side, side):
        return  # a picture of the network's size is taken as it is
    seen = picture(*shape)
    expected = transform(Image.fromarray(seen))
    got = ours.normalise(to_pixels(ours.grid([seen])))[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"input_size": (3, 32, 32), "crop_mode": "border"},
        {"input_size": (3, 32, 24), "crop_mode": "center"},
        {"input_size": (3, 32, 32), "interpolation": "lanczos"},
        {"input_size": (3, 32, 32), "crop_border_pixels": 4},
    ],
)
def test_transforms_that_cannot_be_followed_are_refused(
    timm: Any, options: dict[str, object]
) -> None:
    with pytest.raises(SpecError, match=r"^timm:x .*write package\.module:function"):
        lifting.of_torchvision(timm.data.create_transform(**options), "timm:x")


def test_a_wrongly_read_preprocessing_does_not_pass() -> None:
    right = Preprocessing(size=(32, 32), fit="crop", crop_from=36)

    def own(seen: Image.Image) -> Tensor:
        return right.normalise(to_pixels(right.grid([np.array(seen)])))[0]

    wrong = {
        "fine": {},
        "stretch": {"fit": "stretch", "crop_from": None},
        "zoom": {"crop_from": 40},
        "size": {"size": (30, 30)},
        "mean": {"mean": (0.5, 0.5, 0.5)},
        "order": {"order": "BGR"},
    }
    for name, change in wrong.items():
        options = {"size": (32, 32), "fit": "crop", "crop_from": 36, **change}
        preprocessing = Preprocessing(**options)  # type: ignore[arg-type]
        victim = Victim(name=name, network=Tiny(0), preprocessing=preprocessing, own_transform=own)
        if name == "fine":
            assert lifting.proven(victim) is victim
            continue
        with pytest.raises(SpecError, match=f"{name} has a way of preparing pictures"):
            lifting.proven(victim)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("timm:resnet18", "either timm:resnet18,weights=PATH, or timm:resnet18,pretrained=yes"),
        ("timm:resnet18,weights=x,pretrained=yes", "needs trained weights; write either"),
        ("timm:resnet_18,weights=x", "no model 'resnet_18'; near: .*resnet18"),
        ("timm:hf-hub:a/b,weights=x", "no model 'hf-hub:a/b'"),
        ("timm:local-dir:/tmp/x,pretrained=yes", "reads tensors only"),
        ("timm:test_vit.nope,pretrained=yes", r"cannot make test_vit.nope \(Invalid pretrained"),
        ("timm:resnet18,weight=x", "no option 'weight'; valid options: model, weights, pretrained"),
    ],
)
def test_timm_specs_that_lead_nowhere(timm: Any, spec: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        uturn.load_victim(spec)


def test_timm_downloads_fail_plainly(
    timm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constants = peer("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        SpecError, match=r"cannot make test_vit .*finds no connection, write weights"
    ):
        uturn.load_victim("timm:test_vit,pretrained=yes")


def test_a_size_that_the_network_refuses_is_named(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    victim = uturn.load_victim(f"timm:test_vit,weights={path},size=100x90")
    with pytest.raises(ArgumentError, match="timm:test_vit refuses pictures of 100×90"):
        victim.embed(torch.rand(1, 3, 50, 50))


# torchreid


@pytest.fixture(scope="module")
def torchreid() -> Any:
    return peer("torchreid.reid.models")


def reid(torchreid: Any, name: str, classes: int, path: Path) -> Any:
    """A torchreid model with random weights, stored as its trainings do."""
    torch.manual_seed(0)
    model = torchreid.build_model(name, classes, pretrained=False, use_gpu=False).train()
    with torch.no_grad():
        model(torch.randn(4, 3, 256, 128))  # so that its batch norms have seen something
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "rank1": 0.9, "epoch": 7}, path)
    return model.eval()


def test_torchreid_on_pixels_is_torchreid_on_pictures_and_is_our_osnet(
    torchreid: Any, tmp_path: Path
) -> None:
    theirs = reid(torchreid, "osnet_x0_25", 13, tmp_path / "x.pth")
    victim = uturn.load_victim(f"torchreid:osnet_x0_25,weights={tmp_path / 'x.pth'}")
    transforms = peer("torchvision.transforms")
    own = transforms.Compose(
        [
            transforms.Resize((256, 128)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    agree(victim, own, theirs)
    slopes(victim)
    ours = uturn.load_victim(f"osnet_x0_25:weights={tmp_path / 'x.pth'}")
    assert victim.preprocessing == ours.preprocessing
    assert victim.similarity == ours.similarity == "euclidean"
    assert victim.fingerprint == ours.fingerprint
    pixels = pixels_of(ours, *SHAPES.values())
    torch.testing.assert_close(victim.features(pixels), ours.features(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(victim.logits(pixels), ours.logits(pixels), atol=1e-5, rtol=0)


def test_torchreid_prints_nothing_and_needs_no_classifier(
    torchreid: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    theirs = reid(torchreid, "osnet_ain_x0_25", 5, path)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("classifier")}
    torch.save(state, path)
    victim = uturn.load_victim(f"torchreid:osnet_ain_x0_25,weights={path}")
    assert victim.classifier is None
    assert victim.similarity == "cosine"
    assert capsys.readouterr().out == ""
    pixels = pixels_of(victim, (60, 97))
    with torch.no_grad():
        expected = theirs(victim.preprocessing.normalise(pixels))
    torch.testing.assert_close(victim.features(pixels), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of its own forward
def test_torchreid_models_with_several_classifiers_and_other_sizes(
    torchreid: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    theirs = torchreid.build_model("hacnn", 4, pretrained=False, use_gpu=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    victim = uturn.load_victim(f"torchreid:hacnn,weights={tmp_path / 'x.pth'}")
    assert victim.preprocessing.size == (160, 64)
    assert victim.classifier is None  # it has two, of which each sees half of the feature
    pixels = pixels_of(victim, (60, 97))
    with torch.no_grad():
        expected = theirs(victim.preprocessing.normalise(pixels))
    torch.testing.assert_close(victim.features(pixels), expected)


def test_torchreid_models_that_do_not_exist_or_fit(torchreid: Any, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    reid(torchreid, "osnet_x0_25", 3, path)
    with pytest.raises(SpecError, match="torchreid: Unknown model: osnet"):
        uturn.load_victim(f"torchreid:osnet,weights={path}")
    with pytest.raises(CheckpointError, match="does not fit OSNet"):
        uturn.load_victim(f"torchreid:osnet_x0_5,weights={path}")
    with pytest.raises(SpecError, match="needs weights; write torchreid:weights=…"):
        uturn.load_victim("torchreid:osnet_x0_5")


# Hugging Face

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {**VISION, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CLIP = {  # as openai/clip-vit-base-patch32 has it, made small
    "crop_size": 32,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "size": 32,
}
DINO = {  # as facebook/dinov2-small has it, made small
    "crop_size": {"height": 28, "width": 28},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}
HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "do_resize": True}
VIT = {**HALVES, "image_processor_type": "ViTImageProcessor", "resample": 2, "size": 32}
SIGLIP = {
    **HALVES,
    "image_processor_type": "SiglipImageProcessor",
    "resample": 3,
    "size": {"height": 32, "width": 32},
}
CONVNEXT = {
    **HALVES,
    "image_processor_type": "ConvNextImageProcessor",
    "crop_pct": 0.875,
    "resample": 3,
    "size": {"shortest_edge": 32},
}
RESNET = {**CONVNEXT, "size": {"shortest_edge": 400}}


@pytest.fixture(scope="module")
def transformers() -> Any:
    library = peer("transformers")
    library.utils.logging.disable_progress_bar()
    return library


def clip(library: Any) -> Any:
    return library.CLIPModel(
        library.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    )


def siglip(library: Any) -> Any:
    return library.SiglipModel(library.SiglipConfig(text_config=TEXT, vision_config=VISION))


def dino(library: Any) -> Any:
    config = {**VISION, "image_size": 28, "patch_size": 14}
    return library.Dinov2Model(library.Dinov2Config(**config))


def vit(library: Any) -> Any:
    return library.ViTForImageClassification(library.ViTConfig(**VISION, num_labels=5))


def convnext(library: Any) -> Any:
    config = library.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_labels=5)
    return library.ConvNextForImageClassification(config)


def resnet(library: Any) -> Any:
    config = library.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        layer_type="basic",
        num_labels=5,
    )
    return library.ResNetForImageClassification(config)


def saved(folder: Path, model: nn.Module, processor: dict[str, Any]) -> Path:
    model.eval().save_pretrained(folder)  # type: ignore[operator]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


TOWERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], Callable[[Any, Tensor], Tensor]]] = {
    "clip": (clip, CLIP, lambda m, x: m.get_image_features(pixel_values=x).pooler_output),
    "siglip": (siglip, SIGLIP, lambda m, x: m.get_image_features(pixel_values=x).pooler_output),
    "dinov2": (dino, DINO, lambda m, x: m(x).last_hidden_state[:, 0]),
    "vit": (vit, VIT, lambda m, x: m.vit(x).last_hidden_state[:, 0]),
    "convnext": (convnext, CONVNEXT, lambda m, x: m.convnext(x).pooler_output),
    "resnet": (resnet, RESNET, lambda m, x: m.resnet(x).pooler_output.flatten(1)),
}


@pytest.mark.parametrize("name", TOWERS)
def test_hf_on_pixels_is_hf_on_pictures(transformers: Any, name: str, tmp_path: Path) -> None:
    build, processor, read = TOWERS[name]
    torch.manual_seed(0)
    theirs = build(transformers)
    folder = saved(tmp_path / name, theirs, processor)
    victim = uturn.load_victim(f"hf:{folder}")
    own = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")

    def transform(seen: Image.Image) -> Tensor:
        found: Tensor = own(seen, return_tensors="pt")["pixel_values"][0]
        return found

    agree(victim, transform, lambda x: read(theirs, x))
    slopes(victim)
    if hasattr(theirs, "classifier"):
        pixels = pixels_of(victim, *SHAPES.values())
        expected = theirs(victim.preprocessing.normalise(pixels)).logits
        torch.testing.assert_close(victim.logits(pixels), expected, atol=1e-5, rtol=1e-5)
    else:
        assert victim.classifier is None


def test_hfs_other_resizer_differs_by_levels(transformers: Any, tmp_path: Path) -> None:
    """transformers resizes by torchvision where it can; by Pillow it is what we do, to the bit."""
    victim = uturn.load_victim(f"hf:{saved(tmp_path, dino(transformers), DINO)}")
    fast = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")
    assert victim.own_transform is not None
    ramp = Image.fromarray(picture(4, 6)).resize((160, 90), Image.Resampling.BICUBIC)
    theirs = fast(ramp, return_tensors="pt")["pixel_values"][0]
    std = torch.tensor(victim.preprocessing.std)[:, None, None]
    levels = (theirs - victim.own_transform(ramp)).abs() * std * 255
    assert 0.9 < float(levels.max()) < 1.1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "cannot follow"),
        ({"size": {"longest_edge": 32}}, "cannot follow"),
        ({"resample": 1}, "interpolation must be one of bilinear, bicubic"),
        ({"size": {"shortest_edge": 20}}, "must hold a crop"),
        ({"do_rescale": False}, "has a way of preparing pictures that uturn does not know"),
        ({"rescale_factor": 1 / 127.5}, "has a way of preparing pictures"),
        ({"do_pad": True, "pad_size": {"height": 40, "width": 40}}, r"is \(3, 40, 40\)"),
        ({"do_resize": False}, "has a way of preparing pictures"),
    ],
)
def test_hf_processors_that_cannot_be_followed_are_refused(
    transformers: Any, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    saved(tmp_path, dino(transformers), {**DINO, **change})
    with pytest.raises(SpecError, match=says):
        uturn.load_victim(f"hf:{tmp_path}")


def test_hf_folders_that_lack_something(transformers: Any, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", dino(transformers), DINO)

    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        folder = Path(shutil.copytree(whole, tmp_path / name.partition(".")[0]))
        (folder / name).unlink()
        torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(SpecError, match=r"lacks .*is a folder with .*as \.bin are not read"):
            uturn.load_victim(f"hf:{folder}")


def test_hf_ids_are_not_fetched_unasked(transformers: Any) -> None:
    with pytest.raises(
        SpecError, match=r"no folder nobody/nothing.*hf:nobody/nothing,download=yes"
    ):
        uturn.load_victim("hf:nobody/nothing")


def test_hf_weights_that_are_missing_or_of_another_shape(transformers: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path, dino(transformers), DINO)
    state = dino(transformers).state_dict()
    lost = next(key for key in state if key.endswith("layernorm.weight"))
    save_file({k: v for k, v in state.items() if k != lost}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks 1 weights of Dinov2Model.*{lost}"):
        uturn.load_victim(f"hf:{folder}")
    save_file({**state, lost: torch.ones(5)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="in another shape"):
        uturn.load_victim(f"hf:{folder}")
    half = (folder / "model.safetensors").read_bytes()[:2000]
    (folder / "model.safetensors").write_bytes(half)
    with pytest.raises(CheckpointError, match=r"transformers cannot load .*; download or copy"):
        uturn.load_victim(f"hf:{folder}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}, "does not know"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"model_type": "blip", "vision_config": {}}, "is a blip, of whose towers"),
    ],
)
def test_hf_configurations_that_ask_for_more_than_a_known_network(
    transformers: Any, change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path, dino(transformers), DINO)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(SpecError, match=says):
        uturn.load_victim(f"hf:{folder}")
    assert not (tmp_path / "owned").exists()


# open-metric-learning


def test_oml_on_pixels_is_oml_on_pictures(tmp_path: Path) -> None:
    registry = peer("oml.registry.transforms")
    models = peer("oml.models")
    torch.manual_seed(0)
    cases = {
        "vits16_dino": models.ViTExtractor(None, "vits16", normalise_features=False),
        "resnet18_imagenet1k_v1": models.ResnetExtractor(
            None, "resnet18", gem_p=None, remove_fc=True, normalise_features=False
        ),
    }
    for name, theirs in cases.items():
        state = {f"model.{key}": value for key, value in theirs.eval().state_dict().items()}
        state["criterion.weight"] = torch.ones(3, 4)
        torch.save({"state_dict": state}, tmp_path / "x.ckpt")
        victim = uturn.load_victim(f"oml:{name},weights={tmp_path / 'x.ckpt'}")
        transform, _ = registry.get_transforms_for_pretrained(name)
        agree(victim, transform, theirs)
        slopes(victim)
    with pytest.raises(SpecError, match=r"PadIfNeeded.* cannot follow"):
        uturn.load_victim("oml:vits16_cub,weights=x")
    with pytest.raises(SpecError, match=r"no model 'vits16'; known: .*vits16_dino"):
        uturn.load_victim("oml:vits16,weights=x")


# TorchScript


class Several(nn.Module):
    """Features among other outputs."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.body, self.extra = Tiny(0), extra

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.body(x)
        return (x if self.extra == 0 else found * 2), found


def script(network: nn.Module, path: Path, *, freeze: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network.eval(), torch.rand(1, 3, 20, 16))
        torch.jit.save(torch.jit.freeze(traced) if freeze else traced, path)
    return path


@pytest.mark.parametrize("freeze", [False, True])
def test_torchscript_has_features_and_gradients(tmp_path: Path, freeze: bool) -> None:
    path = script(Tiny(0), tmp_path / "net.pt", freeze=freeze)
    victim = uturn.load_victim(f"torchscript:{path},size=20x16,mean=0.5+0.5+0.5,std=1+1+1")
    pixels = pixels_of(victim, *SHAPES.values())
    torch.testing.assert_close(victim.features(pixels), Tiny(0)(pixels - 0.5))
    slopes(victim)
    change = uturn.attacks.odfa(eps=2)(victim, victim.grid([picture(30, 30)])).delta
    assert 0 < int(change.abs().max()) <= 2


def test_torchscript_with_several_outputs(tmp_path: Path) -> None:
    one = uturn.load_victim(f"torchscript:{script(Several(0), tmp_path / 'a.pt')},size=20x16")
    pixels = pixels_of(one, (60, 97))
    expected = Tiny(0)(one.preprocessing.normalise(pixels))
    torch.testing.assert_close(one.features(pixels), expected)
    two = uturn.load_victim(f"torchscript:{script(Several(1), tmp_path / 'b.pt')},size=20x16")
    with pytest.raises(ArgumentError, match=r"\(1, 6\), \(1, 6\)\], among which 2 can be features"):
        two.features(pixels)


def test_torchscript_files_that_are_something_else(tmp_path: Path) -> None:
    torch.save(Tiny(0).state_dict(), tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="is no TorchScript archive"):
        uturn.load_victim(f"torchscript:{tmp_path / 'state.pt'},size=20x16")
    with pytest.raises(CheckpointError, match=r"cannot read .*none\.pt"):
        uturn.load_victim(f"torchscript:{tmp_path / 'none.pt'},size=20x16")
    path = script(Tiny(0), tmp_path / "net.pt")
    with pytest.raises(
        SpecError, match=r"add size=HxW, such as torchscript:.*net\.pt,size=256x128"
    ):
        uturn.load_victim(f"torchscript:{path}")


# ONNX


def onnx(path: Path, shape: list[Any], kind: str = "FLOAT", inputs: int = 1) -> Path:
    """`Tiny(0)` as an ONNX file, for pictures of ``shape``; it heeds the first input only."""
    helper = peer("onnx.helper")
    proto, convert = peer("onnx").TensorProto, peer("onnx.numpy_helper").from_array
    number = getattr(proto, kind)
    dtype = {"FLOAT": np.float32, "FLOAT16": np.float16}[kind]
    state = {k: convert(v.numpy().astype(dtype), k) for k, v in Tiny(0).state_dict().items()}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "out.weight", "out.bias"], ["y"], transB=1),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, number, shape) for name in "xzu"[:inputs]],
        [helper.make_tensor_value_info("y", number, None)],
        list(state.values()),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_onnx_is_its_network_in_batches_of_any_size(batch: str | int, tmp_path: Path) -> None:
    peer("onnxruntime")
    path = onnx(tmp_path / "tiny.onnx", [batch, 3, 20, 16])
    victim = uturn.load_victim(f"onnx:{path}")
    assert victim.preprocessing == Preprocessing(size=(20, 16))
    pixels = pixels_of(victim, *SHAPES.values())  # five of them
    expected = Tiny(0)(victim.preprocessing.normalise(pixels))
    torch.testing.assert_close(victim.features(pixels), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(victim.embed(pixels).norm(dim=1), torch.ones(5))


def test_onnx_of_any_size_and_of_half_precision(tmp_path: Path) -> None:
    peer("onnxruntime")
    path = onnx(tmp_path / "tiny.onnx", ["n", 3, "h", "w"])
    with pytest.raises(SpecError, match="add size=HxW, such as onnx:"):
        uturn.load_victim(f"onnx:{path}")
    victim = uturn.load_victim(f"onnx:{path},size=24x20,std=0.5+0.5+0.5")
    pixels = pixels_of(victim, (60, 97))
    expected = Tiny(0)(victim.preprocessing.normalise(pixels))
    torch.testing.assert_close(victim.features(pixels), expected, atol=1e-5, rtol=1e-4)
    half = uturn.load_victim(
        f"onnx:{onnx(tmp_path / 'half.onnx', ['n', 3, 24, 20], kind='FLOAT16')},std=0.5+0.5+0.5"
    )
    assert half.features(pixels).dtype == torch.float32
    torch.testing.assert_close(half.features(pixels), expected, atol=1e-2, rtol=1e-2)


def test_an_attack_on_onnx_says_that_it_is_a_black_box(tmp_path: Path) -> None:
    peer("onnxruntime")
    victim = uturn.load_victim(f"onnx:{onnx(tmp_path / 'tiny.onnx', ['n', 3, 20, 16])}")
    with pytest.raises(ArgumentError, match=r"is a black box: .*score this one with uturn eval"):
        uturn.attacks.odfa(eps=2)(victim, victim.grid([picture(30, 30)]))


def test_onnx_files_that_cannot_be_used(tmp_path: Path) -> None:
    peer("onnxruntime")
    with pytest.raises(SpecError, match="export it with channels first"):
        uturn.load_victim(f"onnx:{onnx(tmp_path / 'a.onnx', ['n', 20, 16, 3])}")
    two = onnx(tmp_path / "b.onnx", ["n", 3, 20, 16], inputs=2)
    with pytest.raises(SpecError, match=r"takes x .*, z .*; export it with one input"):
        uturn.load_victim(f"onnx:{two}")
    (tmp_path / "c.onnx").write_bytes(b"no protobuf")
    with pytest.raises(CheckpointError, match="onnxruntime cannot run"):
        uturn.load_victim(f"onnx:{tmp_path / 'c.onnx'}")
    with pytest.raises(CheckpointError, match="No such file"):
        uturn.load_victim(f"onnx:{tmp_path / 'd.onnx'}")
    victim = uturn.load_victim(f"onnx:{onnx(tmp_path / 'e.onnx', ['n', 3, 20, 16])},size=9x9")
    with pytest.raises(ArgumentError, match=r"refuses pictures of \(1, 3, 9, 9\)"):
        victim.embed(torch.rand(1, 3, 9, 9))


# Three lines, as the README has them


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photos of two kinds, and the work of two people."""
    monkeypatch.chdir(tmp_path)
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(40 + len(path.parts), 60)).save(path)
    write_market(tmp_path / "market1501", ["0001_c2s1_000002_01.jpg"], ["0001_c1s1_000001_00.jpg"])
    return tmp_path


def run(mark: str, **names: object) -> None:
    """Run the README's block that has ``mark`` in it, and look at what it found."""
    (code,) = (block for block in blocks("README.md", "python") if mark in block)
    assert len(code.strip().splitlines()) == 3
    exec(code, {"uturn": uturn}, names)
    found = names["found"]
    assert isinstance(found, uturn.Perturbation)
    assert 0 < int(found.delta.abs().max()) <= 4


def test_three_lines_for_timm_on_folders(timm: Any, here: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("resnet18").state_dict(), "resnet18.safetensors")
    run("timm:")


def test_three_lines_for_torchreid_on_market(torchreid: Any, here: Path) -> None:
    reid(torchreid, "osnet_x0_25", 3, here / "osnet_x0_25_market1501.pth")
    run("torchreid:")


def test_three_lines_for_clip(transformers: Any, here: Path) -> None:
    saved(here / "clip-vit-base-patch32", clip(transformers), CLIP)
    run("hf:")


def test_three_lines_for_any_module(here: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(9))
    network(torch.rand(1, 3, 224, 224))
    run("uturn.Victim(", network=network, photos=uturn.load_data("folder:photos").query)


def test_modules_that_view_their_maps_are_as_welcome(here: Path) -> None:
    class Old(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.deep = nn.Conv2d(3, 4, 3, stride=2), nn.Conv3d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).view(len(x), -1)

    inputs = uturn.Preprocessing(size=(16, 12))
    victim = Victim(name="old", network=Old(), preprocessing=inputs)
    assert victim.embed(pixels_of(victim, (20, 30))).shape == (1, 4 * 7 * 5)
