"""Masked gradients are told from robustness: checks fire on victims that were masked for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from tests.conftest import RAW, normal
from uturn import Victim, load_data, load_victim
from uturn.cli import main
from uturn.data.pictures import Picture, Pictures, encode
from uturn.data.split import Split
from uturn.doctor import masking
from uturn.doctor.finding import Finding
from uturn.doctor.masking import unmask
from uturn.errors import ArgumentError
from uturn.rng import generator
from uturn.types import LEVELS

DOCS = Path(__file__).parent.parent / "docs" / "doctor.md"
HEIGHT, WIDTH = RAW.size
IDENTITIES = 24


@dataclass(frozen=True)
class Patterns:
    """Identity patterns ``<identity>_<camera>``, with noise of three levels; all are even."""

    def read(self, name: str) -> Picture:
        identity, _ = name.split("_")
        pattern = generator(0, "pattern", identity).normal(128, 16, (HEIGHT, WIDTH, 3))
        noise = generator(0, "noise", name).normal(0, 3, pattern.shape)
        picture: Picture = np.clip(2 * np.rint((pattern + noise) / 2), 0, 254).astype(np.uint8)
        return picture

    def stamp(self, name: str) -> str:
        return name


@pytest.fixture(scope="module")
def patterns() -> Split:
    def of(cameras: range) -> Pictures:
        every = [(i, c) for i in range(IDENTITIES) for c in cameras]
        identities, cams = np.array(every, dtype=np.int64).T
        return Pictures(Patterns(), tuple(f"{i}_{c}" for i, c in every), identities, cams)

    return Split(name="patterns", query=of(range(2)), gallery=of(range(2, 5)))


class Masked(nn.Module):
    """Linear features of what a front leaves of the picture."""

    def __init__(self, front: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.front = front
        self.weight = nn.Parameter(normal(12, 3, HEIGHT, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return ((self.front(x) - 0.5)[:, None] * self.weight).sum((2, 3, 4))


def victim_of(network: nn.Module) -> Victim:
    return Victim(name="masked", network=network, preprocessing=RAW)


def asked(victim: Victim, split: Split, **options: object) -> Mapping[str, Finding]:
    found = unmask(victim, split, **{"queries": 48, **options})  # type: ignore[arg-type]
    return {finding.name: finding for finding in found}


def quantised(x: Tensor) -> Tensor:
    """To 32 values: the slope is zero wherever there is one."""
    return (x * 31).round() / 31


def shattered(x: Tensor) -> Tensor:
    """A ripple of two levels, whose slope drowns the picture's."""
    return x + 2 / LEVELS * torch.sin(9 * LEVELS * x)


class Backwards(torch.autograd.Function):
    """The picture as it is, with a slope of nothing to do with it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.roll((3, 1), (2, 3)) * normal(*grad.shape[1:]).to(grad)


def elsewhere(x: Tensor) -> Tensor:
    found: Tensor = Backwards.apply(x)  # type: ignore[no-untyped-call]
    return found


class Momentary(torch.autograd.Function):
    """The picture as it is, with a slope at odd levels only: one level from the queries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.odd = (x * LEVELS).round().remainder(2) == 1
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.odd


def momentary(x: Tensor) -> Tensor:
    found: Tensor = Momentary.apply(x)  # type: ignore[no-untyped-call]
    return found


def tossed(x: Tensor) -> Tensor:
    """A ripple of a level with a phase that is drawn at every look."""
    return x + torch.sin(6 * LEVELS * x + 2 * torch.pi * torch.rand_like(x)) / LEVELS


# -- the healthy -----------------------------------------------------------------------------------


def test_a_linear_victim_is_not_accused(patterns: Split) -> None:
    found = asked(victim_of(Masked()), patterns, twin=victim_of(Masked()))
    assert not [f for f in found.values() if f.verdict == "failed"]
    whole = found["white-box"].measured
    assert whole["recall@1 clean"] == 1
    assert whole["recall@1 odfa"] < 0.2  # type: ignore[operator]
    assert found["noise"].measured["recall@1 noise"] > 0.9  # type: ignore[operator]
    assert found["lowest"].measured["recall@1"] == 0
    assert "R@1 0.000" in found["lowest"].says


def test_what_a_victim_bears_is_told_as_it_is(patterns: Split) -> None:
    """At ε = 1 nothing is lost, and nobody is accused of that."""
    found = asked(victim_of(Masked()), patterns, eps=1, twin=victim_of(Masked()))
    assert found["white-box"].measured["recall@1 odfa"] == 1
    assert not [f for f in found.values() if f.verdict in ("failed", "warning")]


def test_glyph_net_is_not_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "STEPS", 20)
    monkeypatch.setattr(masking, "RESTARTS", 1)
    monkeypatch.setattr(masking, "MEMBERS", ("uturn:steps=5",))
    whole = load_data("glyphs")
    some = np.arange(120)
    split = replace(whole, query=whole.query.subset(some), gallery=whole.gallery.subset(some))
    victim = load_victim("glyph_net")
    found = asked(victim, split, queries=10, eps=6)
    assert not [f for f in found.values() if f.verdict == "failed"]
    assert found["white-box"].measured["recall@1 clean"] > 0.8  # type: ignore[operator]
    assert found["white-box"].measured["recall@1 odfa"] < 0.5  # type: ignore[operator]


# -- the masked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("front", [quantised, shattered, elsewhere])
def test_pictures_of_an_unmasked_twin_beat_the_white_box(
    front: Callable[[Tensor], Tensor], patterns: Split
) -> None:
    found = asked(victim_of(Masked(front)), patterns, twin=victim_of(Masked()))
    transfer = found["transfer"]
    assert transfer.verdict == "failed"
    assert transfer.measured["lower by"] > 0.5  # type: ignore[operator]
    assert transfer.measured["at least (95 %)"] > 0.3  # type: ignore[operator]
    assert "of the twin" in transfer.says
    assert "masked" in transfer.cause
    assert transfer.remedy
    assert found["lowest"].measured["recall@1"] < found["white-box"].measured["recall@1 odfa"]


@pytest.mark.parametrize("front", [quantised, shattered])
def test_without_a_twin_an_unbounded_attack_tells(
    front: Callable[[Tensor], Tensor], patterns: Split
) -> None:
    found = asked(victim_of(Masked(front)), patterns)
    assert found["transfer"].verdict == "not checked"
    assert "--twin" in found["transfer"].says
    assert found["unbounded"].verdict == "failed"
    assert found["unbounded"].measured["recall@1"] > 0.5  # type: ignore[operator]


def test_noise_that_beats_an_attack_is_told(patterns: Split) -> None:
    """Zero slopes leave the ±1 start; noise of 20 levels is more than that."""
    found = asked(victim_of(Masked(quantised)), patterns, eps=40)
    assert found["noise"].verdict == "failed"


def test_one_step_that_beats_many_is_told(patterns: Split) -> None:
    """A slope at the start and none behind it, as after training on one step only."""
    found = asked(victim_of(Masked(momentary)), patterns)
    assert found["one-step"].verdict == "failed"
    assert "one step" in found["one-step"].cause or "one step" in found["one-step"].remedy
    assert found["one-step"].measured["lower by"] > 0.2  # type: ignore[operator]


def test_a_random_victim_is_told_and_attacked_in_the_mean(patterns: Split) -> None:
    torch.manual_seed(0)
    draws = asked(victim_of(Masked(tossed)), patterns)["draws"]
    assert draws.verdict == "failed"
    assert f"mean gradient of {masking.DRAWS} draws" in draws.says
    assert draws.measured["lower by"] > 0.1  # type: ignore[operator]


def test_a_victim_without_gradients_is_told_and_judged_by_its_twin(patterns: Split) -> None:
    found = asked(victim_of(Masked(lambda x: x.detach())), patterns, twin=victim_of(Masked()))
    assert list(found) == ["white-box", "transfer", "lowest"]
    assert found["white-box"].verdict == "failed"
    assert "no gradient reaches" in found["white-box"].says
    assert found["white-box"].measured["recall@1 odfa"] == 1
    assert found["transfer"].verdict == "failed"
    assert found["lowest"].measured["recall@1"] < 0.5  # type: ignore[operator]


def test_a_twin_without_gradients_proves_nothing(patterns: Split) -> None:
    twin = victim_of(Masked(lambda x: x.detach()))
    transfer = asked(victim_of(Masked()), patterns, twin=twin)["transfer"]
    assert transfer.verdict == "not checked"
    assert "twin gives no gradient" in transfer.says


def test_a_better_attack_warns_with_the_number_to_report(patterns: Split) -> None:
    found = asked(victim_of(Masked()), patterns)
    steps = found["steps"]
    assert steps.verdict == "warning"
    assert steps.measured["lower by"] == pytest.approx(  # type: ignore[operator]
        steps.measured["recall@1 odfa"] - steps.measured["recall@1 100 steps"]  # type: ignore[operator]
    )
    assert f"R@1 {steps.measured['recall@1 100 steps']:.3f}" in steps.says
    assert "worst" in steps.remedy


def test_what_is_measured_repeats(patterns: Split) -> None:
    """Whatever the batches."""
    victim = victim_of(Masked())
    one, other = (asked(victim, patterns, queries=9, batch_size=size) for size in (4, 9))
    assert {k: f.as_dict() for k, f in one.items()} == {k: f.as_dict() for k, f in other.items()}


def test_eps_out_of_range_is_told(patterns: Split) -> None:
    with pytest.raises(ArgumentError, match="levels"):
        unmask(victim_of(Masked()), patterns, eps=0.03)


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = generator(0, "masking", "colours")
    for number in range(10):
        colour = draw.integers(0, 256, 3)
        for n in range(2):
            noise = draw.normal(0, 9, (32, 32, 3))
            picture = np.clip(colour + noise, 0, 255).astype(np.uint8)
            encode(tmp_path / "colours" / f"{number}" / f"{n}.png", picture)
    return tmp_path / "colours"


def test_the_command_adds_the_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "STEPS", 12)
    monkeypatch.setattr(masking, "RESTARTS", 1)
    monkeypatch.setattr(masking, "MEMBERS", ("sma:steps=2",))
    line = ["doctor", "--victim", "glyph_net", "--data", f"folder:{folder}", "--queries", "10"]
    line += ["--json", "--quiet", "--device", "cpu"]
    said = json.loads(CliRunner().invoke(main, line).stdout)
    assert not {"transfer", "lowest"} & {f["name"] for f in said["findings"]}
    monkeypatch.setattr(masking, "UNBOUNDED", 8)
    line += ["--masking", "--eps", "2", "--twin", "glyph_net"]
    result = CliRunner().invoke(main, line)
    said = json.loads(result.stdout)
    names = [finding["name"] for finding in said["findings"]]
    assert {"train-mode", "recall", "transfer", "one-step", "lowest"} <= set(names)
    assert (said["eps"], said["twin"]) == (2, "glyph_net")
    failed = any(finding["verdict"] == "failed" for finding in said["findings"])
    assert result.exit_code == int(failed)


@pytest.mark.parametrize(
    ("extra", "says"),
    [(["--masking"], "give --data"), (["--data", "glyphs", "--twin", "glyph_net"], "--masking")],
)
def test_half_a_command_is_told(extra: list[str], says: str) -> None:
    result = CliRunner().invoke(main, ["doctor", "--victim", "glyph_net", *extra])
    assert result.exit_code == 2
    assert says in result.stderr


def test_every_check_is_documented(patterns: Split) -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name in asked(victim_of(Masked()), patterns, queries=4):
        assert f"| `{name}` |" in page, name
