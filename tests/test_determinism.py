"""Same seed, other batches, workers and stops: equal draws, numbers within the tolerance.

The victim here sums picture by picture, so that nothing but what is drawn could make a difference:
then pictures and places have to be the same to the bit. What floating point adds on a real network
is measured in docs/durability.md and held to that by the slow test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.conftest import RAW, Linear, normal
from tests.test_craft import data, pictures  # noqa: F401  (the fixture)
from tests.test_durability import stopped_after
from uturn.attacks.presets import PRESETS, load_attack
from uturn.attacks.problem import draws, knowledge
from uturn.sweep import Plan, run
from uturn.sweep.checks import CLIMBED
from uturn.sweep.engines import load_engine
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim

ME = "tests.test_determinism:one_by_one"

ROUNDED = {"cosine_to_clean", "ap", "inp", "normalised_rank", "r_precision", "tpr", *CLIMBED}
"""Columns that are sums of floats."""

ATTACKS = (
    *("noise", "odfa", "momentum", "odfa:views=identity+noise+pad", "uturn:restart=1"),
    *("pire", "tma:steps=3", "qa_minus:steps=2", "fna:steps=2", "square:max_queries=12"),
    *("nes:max_queries=12", "minimal:by=odfa"),
)
"""All kinds of draws: starts, noise, views, restarts, targets, rivals, known pictures, probes."""


class Logits(nn.Module):
    """Of features, one picture at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(5, 6, seed=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, None] * self.weight).sum(2)


def one_by_one() -> Victim:
    network = Linear(normal(6, 3, 12, 12), normal(6, seed=1))
    preprocessing = replace(RAW, size=(12, 12))
    return Victim(
        name="one by one", network=network, preprocessing=preprocessing, classifier=Logits()
    )


@pytest.fixture(scope="module")
def plan(data: str) -> Plan:  # noqa: F811
    return Plan(victim=ME, data=data, attacks=ATTACKS, eps=(4,), seed=3, seeds=2, batch_size=12)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All queries in one batch, without a stop."""
    out = tmp_path_factory.mktemp("determinism") / "whole"
    run(plan, out, progress=False)
    return out


def same(out: Path, whole: Path) -> None:
    """Equal pictures, places, what was asked and targets; values of floats but for rounding."""
    assert pictures(out) == pictures(whole)
    for one, other in zip(
        *(pq.read_table(path / "queries.parquet").to_pylist() for path in (out, whole)),
        strict=True,
    ):
        for key, value in one.items():
            if key in ROUNDED and value is not None:
                assert value == pytest.approx(other[key], rel=1e-5, abs=1e-6), key
            else:
                assert value == other[key], key


@given(batch_size=st.integers(1, 11), stop=st.integers(0, 20))
@settings(max_examples=2)
def test_batches_and_stops_change_nothing_that_is_drawn(
    plan: Plan, whole: Path, batch_size: int, stop: int
) -> None:
    cut = replace(plan, batch_size=batch_size)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        out = stopped_after(stop, cut, Path(folder) / "run", patch)
        run(cut, out, progress=False)
        same(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing_that_is_drawn(
    plan: Plan, whole: Path, tmp_path: Path, workers: int
) -> None:
    pytest.importorskip("ray")
    engine = load_engine(f"ray:workers={workers},threads=1")
    run(replace(plan, batch_size=2), tmp_path / "run", engine=engine, progress=False)
    same(tmp_path / "run", whole)


@pytest.mark.parametrize("spec", sorted(set(PRESETS) - {"universal", "prgf"}))
def test_what_is_drawn_belongs_to_the_picture_and_not_to_its_place(spec: str) -> None:
    """Alone, in a batch and in another order a picture is changed alike."""
    attack = load_attack(spec, eps=4)
    if knowledge(attack):
        return  # in the sweeps above
    victim, rng = load_victim(ME), np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (3, 3, 12, 12), dtype=np.uint8))
    names = ["a", "b", "c"]
    found = attack(victim, images, names=names, seed=1).images
    turned = attack(victim, images.flip(0), names=names[::-1], seed=1).images
    assert torch.equal(turned.flip(0), found)
    for place, name in enumerate(names):
        alone = attack(victim, images[[place]], names=[name], seed=1).images
        assert torch.equal(alone[0], found[place])
    if draws(attack):
        assert not torch.equal(attack(victim, images, names=names, seed=2).images, found)


@pytest.mark.slow
def test_on_market1501_batches_move_numbers_within_the_tolerance(
    shared_data: Path, tmp_path: Path
) -> None:
    """docs/durability.md: the draws are the same to the bit, Recall@k and mAP within 0.01."""
    plan = Plan(
        victim=f"osnet_x0_25:weights={shared_data / 'osnet_x0_25_market1501.pth'}",
        data=f"market1501:{shared_data / 'market1501'}",
        attacks=("noise", "basic", "odfa"),
        eps=(4,),
        queries=100,
        seed=1,
    )
    one = run(plan, tmp_path / "32", progress=False)
    other = run(replace(plan, batch_size=8), tmp_path / "8", progress=False)
    for before, after in zip(one, other, strict=True):
        for metric in ("recall@1", "recall@10", "map"):
            assert after[metric] == pytest.approx(before[metric], abs=0.01)
    files = pictures(tmp_path / "32"), pictures(tmp_path / "8")
    assert files[0].keys() == files[1].keys()
    for name in files[0]:
        if name.startswith(("clean/", "noise/")):
            assert files[0][name] == files[1][name]
