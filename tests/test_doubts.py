"""Runs that doubt themselves: every flag fires on a victim built for it, none on a healthy one."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor, nn

from tests.conftest import RAW, normal
from tests.test_masking import Masked, elsewhere, quantised, shattered
from uturn import load_data, load_victim
from uturn.cli import main
from uturn.data.pictures import Picture, encode
from uturn.doctor.finding import Finding
from uturn.doctor.run import NEEDS, look_into
from uturn.report.flags import FLAGS, named
from uturn.rng import generator
from uturn.sweep import Plan, run
from uturn.sweep.compare import compare
from uturn.sweep.doubts import BLIND
from uturn.types import LEVELS
from uturn.verify import verify
from uturn.victims.test_time import TestTime
from uturn.victims.victim import Victim

DOCS = Path(__file__).parent.parent / "docs" / "doctor.md"
IDENTITIES = 16
GRID = 32
"""Levels between the values of the clean pictures, so that a victim can know what was added."""


def pattern(identity: int) -> np.ndarray:
    """Grey, and one step of the grid up or down in every seventh value."""
    draw = generator(0, "doubted", identity)
    return 128 + GRID * draw.choice((-1, 0, 1), (*RAW.size, 3), p=(1 / 14, 6 / 7, 1 / 14))


def picture(identity: int, number: int) -> Picture:
    """A pattern with every thirtieth value one step of the grid higher."""
    draw = generator(0, "doubted", identity, number)
    raised = draw.random((*RAW.size, 3)) < 1 / 30
    made: Picture = (pattern(identity) + GRID * raised).astype(np.uint8)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("doubted")
    for identity in range(IDENTITIES):
        for number in range(3):
            encode(folder / f"{identity:02d}" / f"{number}.png", picture(identity, number))
    return f"folder:{folder}"


def clean_of(x: Tensor) -> Tensor:
    """The clean picture, from one that is less than half a step of the grid away."""
    return (x * LEVELS / GRID).round() * GRID / LEVELS


# -- victims ---------------------------------------------------------------------------------------


def prototypes(network: nn.Module, size: tuple[int, int] = RAW.size) -> nn.Linear:
    """A classifier by the nearest prototype, as soft as is usual."""
    pixels = torch.stack([torch.from_numpy(pattern(i)) for i in range(IDENTITIES)])
    pixels = F.interpolate(pixels.permute(0, 3, 1, 2).float() / LEVELS, size)
    with torch.no_grad():
        features = network.eval()(pixels)
        head = nn.Linear(features.shape[1], IDENTITIES)
        scale = 4 / torch.pdist(features).square().median()
        head.weight.copy_(2 * scale * features)
        head.bias.copy_(-scale * features.square().sum(1))
    return head


def of(network: nn.Module, **options: Any) -> Victim:
    """A victim on raw pixels with a classifier of its own training identities."""
    options = {"classifier": prototypes(Masked()), "preprocessing": RAW, **options}
    return Victim(name="doubted", network=network, **options)


def plain() -> Victim:
    return of(Masked())


def dropping() -> Victim:
    return of(Masked(lambda x: F.dropout(x, 0.2)))


class Mixing(Masked):
    """Features less their mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = super().forward(x)
        return found - 0.9 * found.mean(0)


def mixing() -> Victim:
    return of(Mixing())


def constant() -> Victim:
    return of(Masked(lambda x: 0 * x + 0.7))


def rooted() -> Victim:
    """Finite features, and a gradient that is not: the slope of a root at zero."""
    return of(Masked(lambda x: x + 0 * (x - clean_of(x).detach()).abs().sqrt()))


def rounding() -> Victim:
    return of(Masked(quantised))


def saturated() -> Victim:
    """A sigmoid that is 0 or 1 in float32 wherever a clean value may be."""
    middle = 4.5 * GRID / LEVELS
    return of(Masked(lambda x: torch.sigmoid(5000 * (x - middle))))


def misled() -> Victim:
    return of(Masked(elsewhere))


def rippled() -> Victim:
    return of(Masked(shattered))


class Once(torch.autograd.Function):
    """The picture as it is, with a slope at the clean picture and none beside it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.clean = (x * LEVELS).round().remainder(GRID) == 0
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.clean


def once() -> Victim:
    return of(Masked(lambda x: Once.apply(x)))  # type: ignore[no-untyped-call]


def purifying() -> Victim:
    """Changes of more than four levels are seen through: they are put back."""

    def front(x: Tensor) -> Tensor:
        clean = clean_of(x)
        return torch.where((x - clean).abs() * LEVELS > 4.5, clean.detach(), x)

    return of(Masked(front))


class Aside(Masked):
    """Features with a corner that the ranking does not notice."""

    def forward(self, x: Tensor) -> Tensor:
        top, rest = x[:, :, :2], x[:, :, 2:]
        corner = ((top[:, None] - 0.5) * normal(4, 3, 2, RAW.size[1], seed=5)).sum((2, 3, 4))
        ranked = super().forward(torch.cat([0 * top + 0.5, rest], 2))
        return torch.cat([ranked, 1e-3 * corner], 1)


def aside() -> Victim:
    """A classifier that looks at nothing but that corner."""
    head = nn.Linear(16, 8)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:, 12:] = 2e4 * normal(8, 4, seed=6)
    return of(Aside(), classifier=head)


# -- the broken ------------------------------------------------------------------------------------

BROKEN: list[tuple[str, Callable[[], Victim], tuple[str, ...], tuple[int, ...]]] = [
    ("randomness", dropping, ("odfa",), (4,)),
    ("batch", mixing, ("odfa",), (4,)),
    ("collapse", constant, ("odfa:target=raw",), (4,)),
    ("tied", constant, ("odfa:target=raw",), (4,)),
    ("unchanged", saturated, ("fast",), (4,)),
    ("not-finite", rooted, ("fast",), (4,)),
    ("zero-gradient", rounding, ("odfa",), (4,)),
    ("zero-gradient", saturated, ("odfa",), (4,)),
    ("zero-gradient", plain, ("sma:start=clean",), (4,)),
    ("zero-gradient", plain, ("odfa:start=clean",), (4,)),
    ("no-rise", rounding, ("odfa",), (8,)),
    ("no-rise", saturated, ("odfa",), (8,)),
    ("noise", rounding, ("noise", "odfa"), (15,)),
    ("one-step", once, ("fast", "basic"), (12,)),
    ("more-steps", purifying, ("odfa:steps=3", "odfa:steps=12"), (12,)),
    ("larger-eps", purifying, ("odfa",), (4, 12)),
    ("black-box", rounding, ("odfa", "square:max_queries=40"), (15,)),
    ("black-box", misled, ("odfa", "square:max_queries=40"), (15,)),
    ("black-box", rippled, ("odfa", "square:max_queries=40"), (15,)),
    ("objective", aside, ("basic:steps=8",), (4,)),
    ("under-iterated", plain, ("odfa:steps=2", "odfa:steps=12"), (12,)),
]


def swept(data: str, out: Path, factory: Callable[[], Victim], **options: Any) -> list[dict]:
    torch.manual_seed(0)
    victim = f"{factory.__module__}:{factory.__name__}"
    plan = Plan(victim=victim, data=data, **{"batch_size": 24, **options})
    return run(plan, out, progress=False)


def kinds(rows: list[dict[str, Any]]) -> set[str]:
    return {named(flag)[0] for row in rows for flag in row["flags"]}


def told(folder: Path, **options: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in look_into(folder, **options)}


@pytest.mark.parametrize(("flag", "factory", "attacks", "eps"), BROKEN)
def test_a_broken_victim_is_flagged_and_explained(
    flag: str,
    factory: Callable[[], Victim],
    attacks: tuple[str, ...],
    eps: tuple[int, ...],
    data: str,
    tmp_path: Path,
) -> None:
    rows = swept(data, tmp_path / "run", factory, attacks=attacks, eps=eps)
    assert flag in kinds(rows), [row["flags"] for row in rows]
    found = told(tmp_path / "run")[flag]
    assert found.verdict == FLAGS[flag].verdict
    assert found.cause
    assert found.remedy
    assert any(each.partition(": ")[2] in found.says for row in rows for each in row["flags"])


def test_kept_features_of_another_network_are_flagged(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache asks one picture of each file anew; what else is wrong in it, the run notices."""
    monkeypatch.setenv("UTURN_CACHE", str(tmp_path / "cache"))
    rows = swept(data, tmp_path / "run", plain, attacks=("odfa",), eps=(4,))
    assert "stale-cache" not in kinds(rows)
    files = list((tmp_path / "cache").rglob("*.npy"))
    assert files
    for file in files:
        features = np.load(file)
        features[1:] = np.roll(features[1:], 1, 0)
        np.save(file, features)
    rows = swept(data, tmp_path / "again", plain, attacks=("odfa",), eps=(4,))
    assert kinds(rows[:1]) == {"stale-cache"}
    assert "UTURN_CACHE" in told(tmp_path / "again")["stale-cache"].remedy


def test_a_climb_that_still_rises_is_flagged_where_more_steps_do_more_harm(
    data: str, tmp_path: Path
) -> None:
    """By its own objective alone: nobody else in the run has more steps."""
    rows = swept(data, tmp_path / "run", plain, attacks=("odfa:steps=5",), eps=(12,))
    (flag,) = rows[1]["flags"]
    assert flag.startswith("under-iterated: the last 25% of the steps brought ")
    longer = swept(data, tmp_path / "longer", plain, attacks=("odfa:steps=20",), eps=(12,))
    assert rows[1]["recall@1"] - longer[1]["recall@1"] > 0.05
    assert "under-iterated" not in kinds(longer)


def test_pictures_of_a_twin_that_do_more_harm_are_told_by_compare(
    data: str, tmp_path: Path
) -> None:
    swept(data, tmp_path / "white", rounding, attacks=("odfa",), eps=(15,))
    target = "tests.test_doubts:rounding"
    swept(data, tmp_path / "twin", plain, attacks=("odfa",), eps=(15,), transfer_to=(target,))
    found = compare([tmp_path / "white", tmp_path / "twin"])
    (note,) = [note for note in found.notes if ", transfer: " in note]
    assert note.startswith(f"{tmp_path / 'white'}, transfer: odfa at ε=15 crafted in ")
    assert note.endswith("(docs/doctor.md#flag-transfer)")
    assert note in found.markdown()
    assert "docs/doctor.md#flag-transfer" in found.html()
    # What a run confesses is not lost in a comparison, either.
    assert [note for note in found.notes if note.startswith(f"{tmp_path / 'white'}, no-rise: odfa")]


# -- the healthy -----------------------------------------------------------------------------------


class Squashed(nn.Module):
    """Smooth from one end to the other: no kink, no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(normal(32, 3, *RAW.size) / 8), normal(12, 32, seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, None] - 0.5) * self.first).sum((2, 3, 4)).tanh() @ self.second.T


class Residual(nn.Module):
    """Convolutions, batch norms with statistics of their own, and a way past them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.pool, self.out = nn.AdaptiveAvgPool2d((4, 2)), nn.Linear(128, 12)
        with torch.no_grad():
            self.train()(torch.rand(64, 3, *RAW.size))

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm(self.stem(4 * (x - 0.5))).relu()
        return self.out(self.pool(found + self.block(found)).flatten(1))  # type: ignore[no-any-return]


class Striped(nn.Module):
    """Features by parts, as PCB has them: ``(B, P, D)`` of four stripes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(6, 3, 2, RAW.size[1], seed=2))

    def forward(self, x: Tensor) -> Tensor:
        stripes = (x - 0.5).unflatten(2, (4, 2)).transpose(1, 2)  # (B, 4, 3, 2, W)
        return (stripes[:, :, None] * self.weight).sum((3, 4, 5)).flatten(1)


def squashed() -> Victim:
    return of(Squashed(), classifier=prototypes(Squashed()))


def residual() -> Victim:
    return of(Residual(), classifier=prototypes(Residual()))


def striped() -> Victim:
    return of(Striped(), classifier=prototypes(Striped()))


def flipped() -> Victim:
    return of(Masked(), test_time=TestTime(flip=True))


def euclidean() -> Victim:
    return of(Squashed(), classifier=prototypes(Squashed()), similarity="euclidean")


def whitened() -> Victim:
    """Another basis with unit variance, as `uturn whiten` learns it."""
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(pattern(i)) for i in range(IDENTITIES)])
        features = Masked()(pixels.permute(0, 3, 1, 2).float() / LEVELS)
        _, sizes, basis = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        head = nn.Linear(12, 8)
        head.weight.copy_(basis[:8] / sizes[:8, None])
        head.bias.copy_(-head.weight @ features.mean(0))
    return of(Masked(), whitening=head)


HEALTHY = (
    *(plain, squashed, residual, striped, flipped, whitened),
    pytest.param(euclidean, marks=pytest.mark.slow),
)
EVERYTHING = ("noise", "fast", "basic", "odfa", "odfa:steps=15", "sma", "square:max_queries=8")


@pytest.mark.parametrize("factory", HEALTHY)
def test_no_healthy_victim_is_accused(
    factory: Callable[[], Victim], data: str, tmp_path: Path
) -> None:
    """All that may be told is of an attack: that it was stopped while it still won."""
    options: dict[str, Any] = {"eps": (4, 12), "batch_size": 32, "queries": 32}
    rows = swept(data, tmp_path / "run", factory, attacks=EVERYTHING, **options)
    assert rows[0]["recall@1"] > 0.5
    assert kinds(rows) <= {"under-iterated", "tied"}, [row["flags"] for row in rows]
    found = told(tmp_path / "run")
    assert not [finding for finding in found.values() if finding.verdict == "failed"]
    looked = {name for name in NEEDS if found[name].verdict in ("ok", "warning")}
    assert looked == set(NEEDS) - {"transfer"}


# -- the doctor on a run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("examined") / "run"
    swept(data, out, rounding, attacks=("noise", "odfa"), eps=(15,))
    return out


def test_a_flagged_run_verifies(finished: Path) -> None:
    """Flags follow from what the run keeps, and nothing that is sealed is written again."""
    assert {"noise", "no-rise", "zero-gradient"} <= kinds(rows_of(finished))
    assert not verify(finished, device="cpu", progress=False).findings


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_bytes())["rows"]
    return rows


def test_a_flag_that_was_taken_out_is_found(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    content = json.loads((tmp_path / "run" / "results.json").read_bytes())
    content["rows"][2]["flags"] = []
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    found = [str(each) for each in verify(tmp_path / "run", device="cpu", progress=False).findings]
    assert any("odfa at ε=15" in each and "flags" in each for each in found)
    seen = told(tmp_path / "run")
    assert seen["record"].verdict == "failed"
    assert seen["noise"].verdict == "failed"  # by the rows per query


def test_the_command_reads_a_run_and_exits_with_1(finished: Path) -> None:
    result = CliRunner().invoke(main, ["doctor", str(finished), "--json", "--quiet"])
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert said["run"] == str(finished)
    found = {each["name"]: each for each in said["findings"]}
    assert list(found) == ["record", *FLAGS, "weights", "scores"]
    assert found["noise"]["verdict"] == "failed"
    assert found["weights"]["verdict"] == "not checked"
    shown = CliRunner().invoke(main, ["doctor", str(finished), "--quiet"]).stdout
    assert "remedy: do not report the white box's number" in shown


@pytest.mark.parametrize(
    ("line", "says"),
    [([], "give --victim, a run folder, or both"), (["RUN", "--masking"], "give --victim")],
)
def test_half_a_command_is_told(line: list[str], says: str, finished: Path) -> None:
    line = [str(finished) if word == "RUN" else word for word in line]
    result = CliRunner().invoke(main, ["doctor", *line])
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_victim_is_held_against_the_record(finished: Path, data: str) -> None:
    own = load_victim("tests.test_doubts:rounding")
    here = told(finished, victim=own, split=load_data(data))
    assert here["weights"].verdict == "ok", here["weights"]
    assert "data fingerprint" in here["weights"].says
    assert here["scores"].verdict == "ok"
    there = told(finished, victim=load_victim("tests.test_doubts:squashed"))
    assert there["weights"].verdict == "failed"
    assert there["weights"].says.startswith("victim weights is ")
    assert there["weights"].measured == {"differing": "victim weights"}
    assert there["scores"].verdict == "failed"
    swapped = dataclasses.replace(own, preprocessing=dataclasses.replace(RAW, order="BGR"))
    assert told(finished, victim=swapped)["weights"].measured == {"differing": "preprocessing"}
    assert told(finished, victim=dropping())["scores"].verdict == "failed"


def test_a_stopped_run_is_read_from_its_batches(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    module = importlib.import_module("uturn.sweep.run")  # the package's own ``run`` is a function
    monkeypatch.setattr(module._Reduction, "__call__", stop)
    options: dict[str, Any] = {"attacks": ("odfa",), "eps": (8,), "batch_size": 20}
    with pytest.raises(KeyboardInterrupt):
        swept(data, tmp_path / "run", saturated, **options)
    (tmp_path / "run" / "parts" / "odfa" / "eps8" / "00002.json").unlink()
    found = told(tmp_path / "run")
    assert found["record"].verdict == "note"
    assert "40 of 40 queries" in found["zero-gradient"].says
    assert found["no-rise"].verdict == "failed"
    assert found["collapse"].verdict == "not checked"  # what the end would have looked at


def test_the_first_gradient_is_measured_against_the_objectives_rounding(
    glyph_victim: Victim,
) -> None:
    """The trap of the unit target: at x its gradient is noise, beside x it is not."""
    from uturn import attacks

    query = load_data("glyphs").query
    images = glyph_victim.grid([query.read(i) for i in range(0, 60, 10)])
    at, beside = (attacks.odfa(eps=8, start=s)(glyph_victim, images) for s in ("clean", "sign"))
    for found, blind in ((at, True), (beside, False)):
        assert found.rise is not None
        assert bool((found.rise <= BLIND * found.losses[0].abs()).all()) is blind
    # And it is the slope along its own sign: the objective rises so much within half a level.
    gain = beside.losses[1] - beside.losses[0]
    assert bool((gain > 0).all())
    assert math.isfinite(float(at.rise.sum()))  # type: ignore[union-attr]


def test_every_flag_is_documented_with_an_anchor() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for name in FLAGS:
        assert f'| <a id="flag-{name}"></a>`{name}` |' in page, name
