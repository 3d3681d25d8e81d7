"""Training: what a batch holds, what is made small, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests import shim
from uturn.cli import train as command
from uturn.data.pictures import encode
from uturn.errors import ArgumentError, CheckpointError, DataError, SpecError
from uturn.rng import generator
from uturn.train import augment, loop, losses
from uturn.train.batches import load_sampler
from uturn.train.loop import train
from uturn.train.recipe import Recipe
from uturn.victims import checkpoints, zoo
from uturn.victims.blank import blank
from uturn.victims.load import load_victim
from uturn.victims.victim import to_pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight colours to learn, four more to be tested on; 6 noisy pictures each."""
    root = tmp_path_factory.mktemp("colours")
    draw = generator(0, "colours")
    for part, classes in (("train", range(8)), ("test", range(8, 12))):
        for one in classes:
            colour = draw.integers(0, 256, 3)
            for n in range(6):
                noise = draw.normal(0, 12, (32, 32, 3))
                picture = np.clip(colour + noise, 0, 255).astype(np.uint8)
                encode(root / part / f"{one:02d}" / f"{n}.png", picture)
    return root


def recipe(folder: Path, **changed: object) -> Recipe:
    given: dict[str, object] = {
        "data": f"folder:{folder}",
        "arch": "glyph_net",
        "epochs": 3,
        "batch_size": 8,
        "lr": 2e-3,
        **changed,
    }
    return Recipe(**given)  # type: ignore[arg-type]


# -- what a batch holds --------------------------------------------------------------------------


@given(
    counts=st.lists(st.integers(1, 9), min_size=4, max_size=12),
    pictures=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_pk_batches_hold_k_pictures_of_each_of_p_classes(
    counts: list[int], pictures: int, seed: int
) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    size = 3 * pictures
    batches = load_sampler(f"pk:pictures={pictures}")(classes, size, generator(seed))
    assert len(batches) == len(classes) // size
    for batch in batches:
        assert sorted(Counter(classes[batch]).values()) == [pictures] * 3


def test_pk_shows_every_picture_once_where_classes_are_alike() -> None:
    classes = np.repeat(np.arange(6), 8)
    batches = load_sampler("pk:pictures=4")(classes, 8, generator(0))
    assert sorted(np.concatenate(batches)) == list(range(48))
    assert len(batches) == 6


def test_shuffled_shows_every_picture_at_most_once() -> None:
    batches = load_sampler("shuffled")(np.zeros(21, dtype=np.int64), 5, generator(0))
    assert [len(batch) for batch in batches] == [5] * 4
    assert len(set(np.concatenate(batches))) == 20


def test_batches_that_cannot_be() -> None:
    with pytest.raises(ArgumentError, match="no multiple of 4"):
        load_sampler("pk:pictures=4")(np.arange(9), 6, generator(0))
    with pytest.raises(ArgumentError, match="up to 2 classes"):
        load_sampler("pk:pictures=2")(np.array([0, 0, 1, 1]), 8, generator(0))
    with pytest.raises(SpecError, match="pk, shuffled"):
        load_sampler("sorted")


def images(count: int = 64, height: int = 24, width: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=rng, dtype=torch.uint8)


def test_crop_moves_each_picture_and_leaves_black() -> None:
    clean, reach = images(24, 18, 12), 2
    moved = augment.load_augmentation("crop:pad=0.17")(clean, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(clean, moved, strict=True):
        found = [
            (y, x)
            for y in range(-reach, reach + 1)
            for x in range(-reach, reach + 1)
            if torch.equal(after, slid(before, y, x))
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 10


def slid(picture: torch.Tensor, y: int, x: int) -> torch.Tensor:
    """Moved up by y and left by x, one pixel at a time."""
    out = torch.zeros_like(picture)
    _, height, width = picture.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + y < height and 0 <= column + x < width:
                out[:, row, column] = picture[:, row + y, column + x]
    return out


def test_erase_fills_one_rectangle_with_the_mean() -> None:
    clean = images(400)
    erased = augment.load_augmentation("erase:share=0.5")(clean, torch.Generator().manual_seed(0))
    hit = 0
    for before, after in zip(clean, erased, strict=True):
        changed = (before != after).any(0)
        if not changed.any():
            continue
        hit += 1
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        hole = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        mean = before.float().mean((1, 2)).round()
        assert (hole == mean[:, None, None]).all()
        assert 0.01 < hole[0].numel() / before[0].numel() < 0.5
    assert 160 < hit < 240


def test_jitter_stays_in_reach_and_flip_mirrors_half() -> None:
    grey = torch.full((100, 3, 8, 8), 100, dtype=torch.uint8)
    changed = augment.load_augmentation("jitter:reach=0.1")(grey, torch.Generator().manual_seed(0))
    assert changed.min() >= 90
    assert changed.max() <= 110
    assert changed.unique().numel() > 10
    clean = images(200)
    flipped = augment.load_augmentation("flip")(clean, torch.Generator().manual_seed(0))
    same = (flipped == clean).flatten(1).all(1)
    assert 70 < same.sum() < 130
    assert torch.equal(flipped[~same], clean[~same].flip(-1))


# -- what is made small --------------------------------------------------------------------------


def features(count: int, parts: int, dim: int) -> torch.Tensor:
    return torch.randn(count, parts, dim, generator=torch.Generator().manual_seed(2))


CLASSES = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def test_identity_is_cross_entropy_of_its_head() -> None:
    found = features(8, 1, 5)
    loss = losses.load_loss("identity:head=linear,smoothing=0.1,weight=2", losses.Shape(1, 5, 4))
    head = loss.head()
    assert head is not None
    logits = head(found[:, 0])
    log = logits.log_softmax(1)
    wanted = -(0.9 * log[range(8), CLASSES] + 0.1 * log.mean(1)).mean()
    torch.testing.assert_close(loss(found, CLASSES), 2 * wanted)


def test_identity_by_parts_is_the_mean_over_parts() -> None:
    found = features(8, 3, 5)
    loss = losses.load_loss("identity:bottleneck=6", losses.Shape(3, 5, 4)).eval()
    head = loss.head()
    assert head is not None
    each = [F.cross_entropy(head(found)[:, p], CLASSES) for p in range(3)]
    torch.testing.assert_close(loss(found, CLASSES), torch.stack(each).mean())


def test_triplet_takes_the_hardest_of_the_batch() -> None:
    found = features(8, 2, 5)
    unit = F.normalize(F.normalize(found, dim=2).flatten(1), dim=1)
    distance = torch.cdist(unit, unit)
    same = CLASSES[:, None] == CLASSES
    hardest = []
    for i in range(8):
        others = [distance[i, j] for j in range(8) if same[i, j] and i != j]
        rivals = [distance[i, j] for j in range(8) if not same[i, j]]
        hardest.append(max(others) - min(rivals) + 0.3)
    positive = [value for value in hardest if value > 0]  # the mean of what is not lost yet
    loss = losses.load_loss("triplet:margin=0.3", losses.Shape(2, 5, 4))
    torch.testing.assert_close(loss(found, CLASSES), torch.stack(positive).mean())
    assert loss.head() is None


def test_arcface_without_margin_is_the_cosine_softmax_of_its_head() -> None:
    found = features(8, 1, 5)
    loss = losses.load_loss("arcface:margin=0,scale=12", losses.Shape(1, 5, 4))
    head = loss.head()
    assert head is not None
    torch.testing.assert_close(
        loss(found, CLASSES), F.cross_entropy(head(found[:, 0]), CLASSES), rtol=1e-4, atol=1e-4
    )


def test_losses_refuse_nonsense() -> None:
    with pytest.raises(SpecError, match="arcface, identity, multi_similarity, triplet"):
        losses.known("softmax")
    with pytest.raises(SpecError, match="smoothing"):
        losses.known("identity:smooth=1")
    with pytest.raises(ArgumentError, match="by parts"):
        losses.load_loss("arcface", losses.Shape(2, 5, 4))


# -- the loop ------------------------------------------------------------------------------------


def test_it_learns_and_the_checkpoint_says_what_it_is(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    made = recipe(
        folder,
        size=(24, 16),
        loss=("identity:head=linear,smoothing=0.1", "triplet"),
        sampler="pk:pictures=2",
        augment=("flip", "crop", "erase"),
        epochs=8,
    )
    trained = train(made, out, look=4, progress=False)
    assert trained.recall > 0.8  # chance is 5 / 23
    assert trained.history[-1]["loss"] < 0.8 * trained.history[0]["loss"]
    assert [("early recall@1" in epoch) for epoch in trained.history] == [False] * 3 + [
        True,
        *[False] * 4,
    ]
    alone, named = load_victim(str(out)), load_victim(f"glyph_net:weights={out}")
    assert alone.preprocessing.size == (24, 16)
    pixels = to_pixels(images(4))
    assert torch.equal(alone.embed(pixels), named.embed(pixels))
    assert alone.logits(pixels).shape == (4, 8)
    assert load_victim(f"{out}:flip=yes").test_time.count == 2
    assert train(made, out, progress=False) == trained  # at once: nothing is done again


def test_a_finished_training_is_not_overwritten_by_another(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    train(recipe(folder, epochs=1), out, progress=False)
    with pytest.raises(CheckpointError, match=r"lr: 0\.002 there, 0\.1 now"):
        train(recipe(folder, epochs=1, lr=0.1), out, progress=False)
    foreign = tmp_path / "foreign.safetensors"
    checkpoints.write_tensors(foreign, {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not written by uturn train"):
        train(recipe(folder), foreign, progress=False)
    with pytest.raises(SpecError, match="does not say what network"):
        load_victim(str(foreign))


def test_a_training_remembers_the_weights_that_it_started_from(
    folder: Path, tmp_path: Path
) -> None:
    start, out = tmp_path / "start.safetensors", tmp_path / "net.safetensors"
    train(recipe(folder, epochs=1), start, progress=False)
    made = recipe(folder, epochs=1, weights=str(start))
    trained = train(made, out, progress=False)
    assert train(made, out, progress=False) == trained
    start.unlink()
    assert train(made, out, progress=False) == trained  # nothing there says otherwise
    train(recipe(folder, epochs=1, seed=1), start, progress=False)
    with pytest.raises(CheckpointError, match="was trained from other weights than those in"):
        train(made, out, progress=False)


def test_kill_9_and_resume_give_the_undisturbed_weights(folder: Path, tmp_path: Path) -> None:
    changed = {"epochs": 6, "augment": ("crop", "erase"), "sampler": "pk:pictures=2"}
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    undisturbed = train(recipe(folder, **changed), whole, progress=False)
    line = [
        *(sys.executable, "-m", "uturn", "train", "--data", f"folder:{folder}"),
        *("--arch", "glyph_net", "--epochs", "6", "--batch-size", "8", "--lr", "2e-3"),
        *("--augment", "crop,erase", "--sampler", "pk:pictures=2", "--device", "cpu"),
        *("--out", str(killed), "--quiet"),
    ]
    state = tmp_path / ".killed.safetensors.training"
    process = subprocess.Popen(line)
    deadline = time.monotonic() + 120
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not killed.exists()
    resumed = train(recipe(folder, **changed), killed, progress=False)
    assert not state.exists()
    assert [e["loss"] for e in resumed.history] == [e["loss"] for e in undisturbed.history]
    one, other = checkpoints.read(whole), checkpoints.read(killed)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)


def test_a_damaged_or_foreign_state_is_told(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    state = tmp_path / ".net.safetensors.training"
    state.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(CheckpointError, match="remove it to train from the start"):
        train(recipe(folder), out, progress=False)
    torch.save({"recipe": {**recipe(folder).as_dict(), "seed": 7}}, state)
    with pytest.raises(CheckpointError, match="seed: 7 there, 0 now"):
        train(recipe(folder), out, progress=False)


def test_weights_to_start_from_fill_the_backbone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = zoo.ZOO["mobilenet_v2"].build()
    network = zoo.empty(zoo.specs.Spec.parse("ft_net:backbone=mobilenet_v2,last_stride=1"))
    filled = zoo.start(network, {f"net.{k}": t for k, t in backbone.state_dict().items()}, "it")
    assert len(filled) == len(backbone.state_dict())
    assert all(key.startswith("model.") for key in filled)
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(network.state_dict()[f"model.{key}"], tensor)
    with pytest.raises(CheckpointError, match=r"it fits .* same network, or of its backbone"):
        zoo.start(zoo.ZOO["glyph_net"].build(), backbone.state_dict(), "it")


def peer(name: str) -> Any:
    shim.declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name.split(".")[0], reason=f"{name} is not installed (the zoo extra)")
        return import_module(name)


@pytest.mark.parametrize(
    ("arch", "file", "place"),
    [
        ("resnet18", "resnet18", ""),
        ("ft_net:backbone=resnet18", "resnet18", "model."),
        ("mobilenet_v2", "mobilenet_v2", ""),
    ],
)
def test_torchvisions_files_are_a_start(
    arch: str, file: str, place: str, folder: Path, tmp_path: Path
) -> None:
    """What one downloads from torchvision: its keys, a classifier of a thousand classes."""
    theirs = getattr(peer("torchvision.models"), file)().state_dict()
    torch.save(theirs, tmp_path / "downloaded.pth")
    made = recipe(
        folder,
        arch=arch,
        size=(32, 32),
        epochs=1,
        batch_size=48,
        lr=1e-9,
        weights=str(tmp_path / "downloaded.pth"),
    )
    train(made, tmp_path / "net.safetensors", progress=False)
    found = checkpoints.read(tmp_path / "net.safetensors").tensors
    compared = 0
    for key, tensor in theirs.items():
        if not key.startswith(("fc.", "classifier.")) and key.endswith(("weight", "bias")):
            torch.testing.assert_close(found[f"{place}{key}"], tensor, rtol=0, atol=1e-6)
            compared += 1
    assert compared > 50


def test_a_timm_model_is_an_architecture(folder: Path, tmp_path: Path) -> None:
    timm = peer("timm")
    theirs = timm.create_model("test_resnet", num_classes=5).state_dict()
    checkpoints.write_tensors(tmp_path / "theirs.safetensors", theirs)
    out = tmp_path / "net.safetensors"
    made = recipe(
        folder,
        arch="timm:test_resnet",
        size=(32, 32),
        epochs=1,
        batch_size=48,
        lr=1e-9,
        weights=str(tmp_path / "theirs.safetensors"),
    )
    train(made, out, progress=False)
    alone, named = load_victim(str(out)), load_victim(f"timm:test_resnet,weights={out}")
    assert alone.preprocessing.size == named.preprocessing.size == (32, 32)
    pixels = to_pixels(images(4, 32, 32))
    assert torch.equal(alone.embed(pixels), named.embed(pixels))
    assert alone.logits(pixels).shape == (4, 8)
    assert load_victim(f"{out}:flip=yes").test_time.count == 2
    found = alone.network.state_dict()  # at this rate it is still what it started from
    torch.testing.assert_close(
        found["model.conv1.0.weight"], theirs["conv1.0.weight"], rtol=0, atol=1e-6
    )
    begun = blank("timm:test_resnet").network
    assert zoo.start(begun, checkpoints.read(out).tensors, "it") == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in begun.state_dict().items())


def test_an_architecture_has_no_weights_and_a_size_that_it_takes(
    folder: Path, tmp_path: Path
) -> None:
    for arch, says in (
        ("glyph_net:weights=a.pth", "take weights=a.pth out of .* --weights glyph_net:weights"),
        ("timm:test_vit,pretrained=yes", "write --weights timm:test_vit,pretrained=yes"),
        ("resnet_18", "unknown architecture 'resnet_18'; known: .*resnet18"),
    ):
        with pytest.raises(SpecError, match=says):
            train(recipe(folder, arch=arch), tmp_path / "net.safetensors", progress=False)
    made = recipe(folder, arch="densenet121", size=(8, 8))
    with pytest.raises(ArgumentError, match="densenet121 does not take pictures of 8×8"):
        train(made, tmp_path / "net.safetensors", progress=False)


@pytest.mark.parametrize("name", ["glyph_net", "glyph_net:"])
def test_weights_to_start_from_may_be_another_victim(
    name: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.safetensors"
    train(recipe(folder, epochs=1, weights=name, lr=1e-9), out, progress=False)
    shipped = load_victim("glyph_net").network.state_dict()
    found = checkpoints.read(out).tensors
    torch.testing.assert_close(found["conv1.weight"], shipped["conv1.weight"], rtol=0, atol=1e-6)
    made = recipe(folder, weights="nowhere")
    with pytest.raises(CheckpointError, match="no weights file at nowhere"):
        train(made, tmp_path / "other.safetensors", progress=False)


def test_the_body_learns_at_its_own_rate(folder: Path, tmp_path: Path) -> None:
    """At rate 0 what was filled stays, but for the running statistics; the head learns."""
    first, out = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    train(recipe(folder, epochs=1), first, progress=False)
    made = recipe(folder, epochs=1, weights=str(first), body_lr=0.0, weight_decay=0.0)
    train(made, out, progress=False)
    before, after = checkpoints.read(first).tensors, checkpoints.read(out).tensors
    for key in before:
        stays = torch.equal(before[key], after[key])
        if "running" not in key and "num_batches" not in key:
            assert stays != key.startswith("classifier.weight")


def test_parts_train_too(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "pcb.safetensors"
    made = recipe(
        folder, arch="pcb:backbone=mobilenet_v2,parts=2", size=(32, 32), epochs=1, lr=1e-3
    )
    train(made, out, progress=False)
    victim = load_victim(str(out))
    assert victim.parts(to_pixels(images(2))).shape == (2, 2, 1280)
    assert victim.logits(to_pixels(images(2))).shape == (2, 8)


def test_divergence_is_told(folder: Path, tmp_path: Path) -> None:
    made = recipe(folder, optimiser="sgd", lr=1e12, loss=("identity:head=linear",))
    with pytest.raises(ArgumentError, match="smaller learning rate than 1e\\+12"):
        train(made, tmp_path / "net.safetensors", progress=False)


def test_recipes_refuse_nonsense(folder: Path) -> None:
    for changed, says in (
        ({"augment": ("blur",)}, "crop, erase, flip"),
        ({"optimiser": "adam"}, "adamw, sgd"),
        ({"epochs": 0}, "at least 1 epoch"),
        ({"loss": ()}, "needs a loss"),
        ({"warm_up": 1.0}, "shares"),
        ({"adversary": "odfa", "adv_eps": -1}, "ε|eps"),
    ):
        with pytest.raises((ArgumentError, SpecError), match=says):
            recipe(folder, **changed)


def test_a_batch_larger_than_the_data_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="48 training pictures do not fill a batch of 64"):
        train(recipe(folder, batch_size=64), tmp_path / "net.safetensors", progress=False)


def test_the_command_has_the_defaults_of_the_recipe() -> None:
    needed = ["--data", "glyphs", "--arch", "glyph_net", "--out", "net.safetensors"]
    stated = command.make_context("train", needed).params
    for field in fields(Recipe):
        if field.name in ("data", "arch", "device"):
            continue
        default = stated[field.name]
        if field.name in ("loss", "augment"):
            default = tuple(str(default).split(","))
        assert default == field.default, field.name


def single(folder: Path, root: Path, matched: int) -> Path:
    """The folder's training colours, and test identities of which so many have two pictures."""
    (root / "train").symlink_to(folder / "train")
    draw = generator(0, "single")
    for one in range(12):
        for n in range(2 if one < matched else 1):
            picture = draw.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            encode(root / "test" / f"{one:02d}" / f"{n}.png", picture)
    return root


def test_an_early_look_that_finds_no_match_is_left_out(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loop, "EARLY", 1)
    made = recipe(single(folder, tmp_path, matched=1), epochs=2)
    trained = train(made, tmp_path / "net.safetensors", look=1)
    assert "epoch 1: no early look, none of the 1 queries" in capsys.readouterr().err
    assert "early recall@1" not in trained.history[0]
    assert not math.isnan(trained.recall)


def test_data_that_nothing_can_be_told_of_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    made = recipe(single(folder, tmp_path, matched=0))
    with pytest.raises(DataError, match="none of the 12 queries"):
        train(made, tmp_path / "net.safetensors", progress=False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts the only process of a team."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    for name, value in {
        **{"TORCHELASTIC_RUN_ID": "test", "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
    }.items():
        monkeypatch.setenv(name, str(value))


def test_a_team_carries_what_its_devices_hold_and_parts(
    launched: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    opened = dist.init_process_group

    def watched(backend: str, **options: Any) -> None:
        used.append(backend)
        opened(backend, **options)

    monkeypatch.setattr(dist, "init_process_group", watched)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("one", "two", "two"):  # a process may train several, or find one finished
        train(recipe(folder, epochs=1), tmp_path / f"{name}.safetensors", progress=False)
        assert not dist.is_initialized()
    assert used == ["gloo"] * 3


def test_a_process_without_a_gpu_of_its_own_is_told(
    launched: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    made = recipe(folder, device="cuda")
    with pytest.raises(ArgumentError, match="process 2 finds 2 GPUs here"):
        train(made, tmp_path / "net.safetensors", progress=False)
    assert not dist.is_initialized()


@pytest.mark.slow
def test_two_processes_train_one_network(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "team.safetensors"
    line = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "uturn"),
        *("train", "--data", f"folder:{folder}", "--arch", "glyph_net", "--epochs", "8"),
        *("--batch-size", "16", "--lr", "2e-3", "--device", "cpu", "--out", str(out), "--quiet"),
        *("--look", "2"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(line, check=True, env=environment, capture_output=True)
    told = json.loads(checkpoints.read_metadata(out)["training"])
    assert told["values"]["recall@1"] > 0.8
    assert not math.isnan(told["history"][-1]["loss"])
    load_victim(str(out))
