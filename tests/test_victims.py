"""Victims: preprocessing, architectures, and checkpoints that are not to be trusted."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from uturn import load_data, load_victim
from uturn.errors import ArgumentError, CheckpointError, SpecError
from uturn.victims import checkpoints
from uturn.victims.backbones.osnet import OSNet
from uturn.victims.preprocessing import Preprocessing, by_shape
from uturn.victims.victim import Victim, to_pixels


def test_embeddings_are_unit_norm_and_deterministic(glyph_victim: Victim) -> None:
    query = load_data("glyphs").query
    pixels = to_pixels(glyph_victim.grid([query.read(i) for i in range(4)]))
    embeddings = glyph_victim.embed(pixels)
    assert embeddings.shape == (4, 128)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    assert torch.equal(embeddings, glyph_victim.embed(pixels))
    assert glyph_victim.logits(pixels).shape == (4, 1587)


def test_a_victim_is_in_evaluation_mode_and_frozen() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Dropout())
    victim = Victim(name="x", network=network.train(), preprocessing=Preprocessing(size=(2, 2)))
    assert not network.training
    assert not any(p.requires_grad for p in victim.network.parameters())


@pytest.mark.parametrize(("mode", "pillow"), [("bilinear", 2), ("bicubic", 3)])
@pytest.mark.parametrize("size", [(40, 24), (9, 11)])
def test_differentiable_resizing_equals_pillow_within_rounding(
    mode: str, pillow: int, size
) -> None:
    # Away from black and white, where Pillow clips the overshoot of each pass by itself.
    picture = np.random.default_rng(0).integers(90, 160, (20, 12, 3), dtype=np.uint8)
    preprocessing = Preprocessing(size=size, interpolation=mode)
    theirs = np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling(pillow)))
    grid = preprocessing.grid([picture])
    assert np.array_equal(grid[0].permute(1, 2, 0).numpy(), theirs)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    assert float((preprocessing.resize(pixels) * 255 - grid).abs().max()) <= 1.51


class Halves(nn.Module):
    """Two parts, the upper and the lower half: their mean colours, each of its own length."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        upper, lower = x.chunk(2, dim=2)
        return torch.stack([upper.mean((2, 3)), 3 * lower.mean((2, 3))], 1)  # (B, 2, 3)


def test_parts_lie_side_by_side_each_of_unit_length() -> None:
    plain = Preprocessing(size=(6, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    head = nn.Linear(3, 5)
    victim = Victim(name="pcb", network=Halves(), preprocessing=plain, classifier=head)
    pixels = torch.rand(3, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    parts = victim.parts(pixels)
    assert parts.shape == (3, 2, 3)
    torch.testing.assert_close(parts[:, 1], 3 * pixels[:, :, 3:].mean((2, 3)))
    unit = torch.nn.functional.normalize(parts, dim=2)
    torch.testing.assert_close(victim.features(pixels), unit.flatten(1))
    torch.testing.assert_close(victim.embed(pixels), unit.flatten(1) / 2**0.5)
    torch.testing.assert_close(victim.logits(pixels), head(parts).mean(1))


def test_several_scales_are_averaged(glyph_victim: Victim) -> None:
    query = load_data("glyphs").query
    pixels = to_pixels(glyph_victim.grid([query.read(i) for i in range(4)]))
    several = glyph_victim.at_scales((1.0, 0.5))
    alone = [glyph_victim.at_scales((scale,)).embed(pixels) for scale in (1.0, 0.5)]
    torch.testing.assert_close(alone[0], glyph_victim.embed(pixels))
    assert float((alone[0] * alone[1]).sum(1).max()) < 0.999
    mean = torch.nn.functional.normalize(alone[0] + alone[1], dim=1)
    torch.testing.assert_close(several.features(pixels), mean)
    torch.testing.assert_close(several.embed(pixels), mean)
    assert several.logits(pixels).shape == (4, 1587)
    with pytest.raises(ArgumentError, match="scales must lie between"):
        glyph_victim.at_scales(())
    with pytest.raises(ArgumentError, match="scales must lie between"):
        glyph_victim.at_scales((1.0, 0.0))


def test_canvases_are_the_models_grid_or_the_pictures_own_sizes(glyph_victim: Victim) -> None:
    rng = np.random.default_rng(0)
    sizes = [(40, 20), (32, 32), (40, 20)]
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    ((which, images),) = by_shape(glyph_victim.canvas(each, "model") for each in pictures)
    assert which == [0, 1, 2]
    assert torch.equal(images, glyph_victim.grid(pictures))
    native = by_shape(glyph_victim.canvas(each, "native") for each in pictures)
    assert [which for which, _ in native] == [[0, 2], [1]]
    for which, images in native:
        for i, image in zip(which, images, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pictures[i])


def test_resizing_lets_gradients_through(glyph_victim: Victim) -> None:
    pixels = torch.rand(1, 3, 48, 20, requires_grad=True)
    glyph_victim.features(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).any())


def test_wrong_shapes_and_types_are_named(glyph_victim: Victim) -> None:
    with pytest.raises(ArgumentError, match=r"got \(3, 32, 32\)"):
        glyph_victim.embed(torch.rand(3, 32, 32))
    with pytest.raises(ArgumentError, match="divide uint8 images by 255"):
        glyph_victim.embed(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_osnet_has_the_published_number_of_parameters() -> None:
    """Table 1 of the paper: 2.2 M for ×1.0; the classifier is not counted."""
    counts = {w: sum(p.numel() for p in OSNet(w).parameters()) for w in (0.25, 0.5, 0.75, 1.0)}
    assert {w: round(n / 1e6, 1) for w, n in counts.items()} == {
        0.25: 0.2,
        0.5: 0.6,
        0.75: 1.3,
        1.0: 2.2,
    }
    assert OSNet(0.25).eval()(torch.rand(1, 3, 64, 32)).shape == (1, 512)


def saved_osnet(folder: Path, name: str = "net.pth", **changes: object) -> Path:
    network = OSNet(0.25)
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    state |= {
        "module.classifier.weight": torch.rand(5, 512),
        "module.classifier.bias": torch.rand(5),
    }
    state |= changes
    torch.save({"epoch": 3, "state_dict": state}, folder / name)
    return folder / name


def test_usual_wrappings_are_taken_off(tmp_path: Path) -> None:
    victim = load_victim(f"osnet_x0_25:weights={saved_osnet(tmp_path)}")
    assert victim.logits(torch.rand(1, 3, 256, 128)).shape == (1, 5)


def test_safetensors_carry_their_preprocessing(tmp_path: Path) -> None:
    kept = Preprocessing(size=(64, 32), mean=(0.1, 0.2, 0.3), interpolation="bicubic")
    card = checkpoints.Card(kept, "cosine")
    checkpoints.write(tmp_path / "net.safetensors", OSNet(0.25).state_dict(), card)
    victim = load_victim(f"osnet_x0_25:weights={tmp_path / 'net.safetensors'}")
    assert (victim.preprocessing, victim.similarity) == (kept, "cosine")
    assert victim.classifier is None


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": Bomb(tmp_path / "ran")}}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran"), protocol=2))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(CheckpointError, match="refused"):
            load_victim(f"osnet_x0_25:weights={tmp_path / name}")
    assert not (tmp_path / "ran").exists()


def test_checkpoints_that_do_not_fit_say_how(tmp_path: Path) -> None:
    good = saved_osnet(tmp_path)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(good.read_bytes()[:20000])
    other = saved_osnet(tmp_path, "shape.pth", **{"module.conv1.conv.weight": torch.rand(1)})
    extra = saved_osnet(tmp_path, "extra.pth", surplus=torch.rand(1))
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"garbage")
    for path, message in (
        (tmp_path / "absent.pth", "there is no weights file"),
        (truncated, "truncated|damaged"),
        (other, r"differing shapes .*conv1\.conv\.weight \(1,\) instead of \(16, 3, 7, 7\)"),
        (extra, r"1 unexpected keys \(surplus\)"),
        (tmp_path / "list.pth", "holds no state dict, but a list"),
        (tmp_path / "broken.safetensors", "not a valid safetensors file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_victim(f"osnet_x0_25:weights={path}")
    with pytest.raises(CheckpointError, match=r"missing keys.* but it fits osnet_x0_25: write"):
        load_victim(f"glyph_net:weights={good}")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_checkpoints_never_escape_the_error(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    content = bytearray(pickle.dumps({"state_dict": {"a": [1.0, 2]}}, protocol=2))
    for position in rng.integers(0, len(content), 3):
        content[position] = rng.integers(0, 256)
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_victim(f"osnet_x0_25:weights={tmp_path / 'net.pth'}")


@pytest.mark.parametrize(
    "card",
    [
        {"preprocessing": {"size": [64, 32]}, "similarity": "foo"},
        {"preprocessing": {"size": "ab"}, "similarity": "cosine"},
        {"preprocessing": {"size": [10**6, 10**6]}, "similarity": "cosine"},
        {"preprocessing": {"size": [64, 32], "std": [0, 0, 0]}, "similarity": "cosine"},
        {"preprocessing": {"size": [64, 32], "interpolation": "nearest"}, "similarity": "cosine"},
        {"preprocessing": {"size": [64, 32], "colour": "BGR"}, "similarity": "cosine"},
        {"similarity": "cosine"},
        [],
    ],
)
def test_foreign_cards_are_checked(tmp_path: Path, card: object) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"x": torch.rand(1)}, path, {"uturn": json.dumps(card)})
    with pytest.raises(CheckpointError, match="unreadable card"):
        load_victim(f"osnet_x0_25:weights={path}")


def test_unknown_victims_and_options_list_the_valid_ones() -> None:
    with pytest.raises(SpecError, match=r"known: .*glyph_net, .*osnet_x0_25"):
        load_victim("osnet")
    with pytest.raises(SpecError, match="osnet_x0_25 needs trained weights"):
        load_victim("osnet_x0_25")
    with pytest.raises(SpecError, match="valid options: features, weights"):
        load_victim("glyph_net:wieghts=x")
