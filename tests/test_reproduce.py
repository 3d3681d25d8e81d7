"""Experiments: resumed after a kill, missing data told, claims computed, pages and plans whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.conftest import write_market
from uturn.cli import main
from uturn.errors import ArgumentError, SpecError, UturnError
from uturn.reproduce import draw as draw_steps
from uturn.reproduce import machine
from uturn.reproduce.claims import (
    AtLeast,
    AtMost,
    Below,
    Cell,
    Claim,
    Fact,
    Lowest,
    Nearer,
    Printed,
    Tables,
    Verdict,
    Within,
)
from uturn.reproduce.experiment import PRESETS, Experiment, Table
from uturn.reproduce.experiments import EXPERIMENTS
from uturn.reproduce.files import read_json
from uturn.reproduce.page import flags_of, spent
from uturn.reproduce.place import GIVEN, NEEDS, Place, names_in
from uturn.reproduce.published import published, rows
from uturn.reproduce.run import keep_times, plan, reproduce
from uturn.reproduce.steps import Check, Circle, Draw, Figure, Sweep, Train
from uturn.sweep import Plan
from uturn.train.recipe import Recipe

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "uturn_paper.json"
"""Beside the checkout, where there is one."""
DATA = "market1501:{market1501}"
LEARNED = Train(
    "learned",
    Recipe(data=DATA, arch="glyph_net", size=(16, 8), epochs=2, batch_size=4, lr=1e-3),
)
ATTACKED = Sweep(
    "attacked",
    Plan(
        victim=LEARNED.spec,
        data=DATA,
        attacks=("fast", "odfa:steps=2"),
        eps=(8, 16),
        seed=1,
        transfer_to=("glyph_net",),
        batch_size=2,
    ),
)


def draw(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    count = len(read_json(made["attacked"] / "results.json")["rows"])
    (folder / "rows.svg").write_text(f"<svg><!-- {count} --></svg>", encoding="utf-8")
    (folder / "rows.txt").write_text(f"{count}", encoding="utf-8")
    return [Figure("rows.svg", "The rows", ("rows.txt",))]


TINY = Experiment(
    name="tiny",
    title="A tiny experiment",
    repeats="Nothing, quickly.",
    presets={"tiny": (LEARNED, ATTACKED, Draw("tiny", (ATTACKED,), draw))},
    tables=(
        Table(title="All of it", run="attacked", published="market1501/resnet50"),
        Table(title="Elsewhere", run="attacked", victim="glyph_net"),
    ),
    claims=(
        Claim("nobody scores more than everything", AtMost(Cell("attacked", "fast", 8), 1.0)),
        Claim("nobody is ever lower than nothing", AtMost(Cell("attacked", "fast", 8), -0.1)),
        Claim("what was not measured", AtMost(Cell("attacked", "fast", 2), 1.0)),
    ),
    differs=("There is | nothing to compare.",),
)

SCRIPT = """
from pathlib import Path
import sys
from tests.test_reproduce import TINY
from uturn.reproduce.place import Place
from uturn.reproduce.run import reproduce
reproduce([TINY], "tiny", Place(out=Path(sys.argv[1]), data_root=Path(sys.argv[2])), progress=False)
"""


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    people = range(1, 13)
    market = write_market(
        root / "market1501",
        [f"{i:04d}_c{c}s1_000001_01.jpg" for i in people for c in (2, 3)],
        [f"{i:04d}_c1s1_000003_01.jpg" for i in people],
    )
    for path in (market / "query").iterdir():  # the same pictures under other people's numbers
        copy = market / "bounding_box_train" / f"1{path.name[1:]}"
        copy.write_bytes(path.read_bytes())
    return root


def place(out: Path, data_root: Path) -> Place:
    return Place(out=out, data_root=data_root)


def told(out: Path, data_root: Path, *experiments: Experiment) -> tuple[list[Any], str]:
    said: list[str] = []
    done = reproduce(experiments, "tiny", place(out, data_root), say=said.append, progress=False)
    return done, "\n".join(said)


@pytest.fixture(scope="module")
def finished(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reproduced")
    (outcome,), said = told(out, data_root, TINY)
    assert (outcome.name, outcome.state) == ("tiny", "done"), outcome.told
    assert "[1/2] train learned; left: 2 steps of unknown time" in said
    return out


def measured(out: Path) -> list[dict[str, Any]]:
    found = read_json(out / "runs" / "attacked" / "results.json")["rows"]
    drop = ("seconds", "victim", "crafted_on", "data")
    return [{k: v for k, v in row.items() if k not in drop} for row in found]


# -- doing it ------------------------------------------------------------------------------------


def test_a_killed_reproduction_goes_on_to_the_same_numbers(
    data_root: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(out), str(data_root)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    parts = out / "runs" / "attacked" / "parts" / "fast"
    while not list(parts.rglob("*.json")):
        assert running.poll() is None, "finished before it could be killed"
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    weights = (out / "victims" / "learned.safetensors").stat().st_mtime_ns
    assert not (out / "results").exists()
    (outcome,), said = told(out, data_root, TINY)
    assert outcome.state == "done"
    assert "[1/1] sweep attacked" in said
    assert "train learned" not in said
    assert (out / "victims" / "learned.safetensors").stat().st_mtime_ns == weights
    assert measured(out) == measured(finished)
    page = (out / "results" / "tiny.md").read_text(encoding="utf-8")
    assert "in 2 sittings, of which 1 was killed" in page


def test_nothing_is_done_twice_and_other_settings_are_refused(
    data_root: Path, finished: Path
) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for folder in ("victims", "runs")
        for path in (finished / folder).rglob("*")
        if path.is_file()
    }
    times = {path: path.read_text() for path in (finished / "times").iterdir()}
    assert len(times) == 2
    (again,), said = told(finished, data_root, TINY)
    assert again.state == "done"
    assert "[1/" not in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert times == {path: path.read_text() for path in (finished / "times").iterdir()}
    other = replace(TINY, presets={"tiny": (replace_lr(LEARNED), ATTACKED)})
    (refused,), said = told(finished, data_root, other)
    assert refused.state == "failed"
    assert "lr" in refused.told
    assert "tiny failed:" in said


def replace_lr(step: Train) -> Train:
    return replace(step, recipe=replace(step.recipe, lr=2e-3))


def test_what_lacks_data_or_fails_does_not_stop_the_rest(
    data_root: Path, finished: Path, tmp_path: Path
) -> None:
    birds = replace(ATTACKED.plan, data="cifar10:{cifar10}", victim="glyph_net", transfer_to=())
    lacking = replace(
        TINY, name="lacking", presets={"tiny": (Sweep("birds", birds),)}, tables=(), claims=()
    )

    def breaks(**_: object) -> list[dict[str, Any]]:
        raise ZeroDivisionError("a bug")

    broken = replace(TINY, name="broken", presets={"tiny": (Check("bug", breaks, ()),)})
    also = replace(broken, name="also")
    outcomes, said = told(finished, data_root, lacking, broken, also, TINY)
    assert [each.state for each in outcomes] == ["skipped", "failed", "failed", "done"]
    assert str(data_root / "cifar10") in outcomes[0].told
    assert "uturn data get cifar10" in outcomes[0].told
    assert outcomes[1].told == "ZeroDivisionError: a bug"
    assert "Traceback" in said  # a bug of ours shows where it is
    assert said.count("Traceback") == 1  # and is not run into again
    assert outcomes[2].told == "check bug: a bug"


def test_the_plan_says_what_is_done_missing_and_how_long(
    data_root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "uturn.reproduce.run.expected",
        lambda preset: ("a machine", {"train learned": 3.0, "sweep attacked": 4.5}),
    )
    new = plan([TINY, replace(TINY, name="same")], "tiny", place(tmp_path, data_root))
    assert "to do at preset tiny: about 7.5 min\ntimes were measured on a machine" in new
    assert new.count("as above") == 2
    old = plan([TINY], "tiny", place(finished, data_root))
    assert "to do at preset tiny: figures and pages" in old
    nowhere = plan([TINY], "tiny", place(tmp_path, tmp_path))
    assert "skipped: there is no" in nowhere
    assert "train learned" not in nowhere


def test_a_damaged_product_stops_its_own_experiment_only(
    data_root: Path, finished: Path, tmp_path: Path
) -> None:
    header = tmp_path / "runs" / "damaged" / "run.json"
    header.parent.mkdir(parents=True)
    header.write_text("")
    (tmp_path / "victims").mkdir()
    for file in (finished / "victims").iterdir():
        (tmp_path / "victims" / file.name).write_bytes(file.read_bytes())
    damaged = replace(
        TINY,
        name="damaged",
        presets={"tiny": (LEARNED, replace(ATTACKED, name="damaged"))},
        tables=(),
        claims=(),
    )
    assert "time not measured" in plan([damaged], "tiny", place(tmp_path, data_root))
    outcomes, _ = told(tmp_path, data_root, damaged, replace(TINY, presets={"tiny": (LEARNED,)}))
    assert [each.state for each in outcomes] == ["failed", "done"]
    assert str(header) in outcomes[0].told


def test_another_spelling_of_a_folder_is_the_same_folder(
    data_root: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_root.parent)
    (again,), said = told(finished, Path(data_root.name), TINY)
    assert again.state == "done", again.told
    assert "[1/" not in said


def test_checks_are_kept_and_asked_once(tmp_path: Path) -> None:
    asked, findings = [], [{"name": "noise", "verdict": "ok", "measured": {"recall@1": 0.5}}]

    def ask(victim: str, device: str, progress: bool) -> list[dict[str, Any]]:
        asked.append((victim, device, progress))
        return findings

    here, weights = place(tmp_path, tmp_path), tmp_path / "victims" / "a.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"trained")
    check = Check("masking", ask, (("victim", "{victims}/a.safetensors"),))
    for _ in range(2):
        check.run(here, progress=False)
    assert asked == [(str(tmp_path / "victims" / "a.safetensors"), "cpu", False)]
    assert check.findings(here) == findings
    assert check.facts(here) == {
        **dict.fromkeys(("note", "warning", "failed", "not checked"), 0),
        "ok": 1,
        "noise: recall@1": 0.5,
    }
    with pytest.raises(UturnError, match=r"another configuration \(its victim, weights differ\)"):
        replace(check, arguments=(("victim", "b"),)).run(here, progress=False)
    weights.write_bytes(b"trained anew")
    with pytest.raises(UturnError, match=r"another configuration \(its weights differ\)"):
        check.run(here, progress=False)


# -- pages ----------------------------------------------------------------------------------------


def test_the_page_says_all_that_is_needed_to_judge_it(finished: Path, data_root: Path) -> None:
    page = (finished / "results" / "tiny.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("$ uturn reproduce"))
    assert command == "$ uturn reproduce tiny --preset tiny --data-root DATA"
    assert str(finished) not in page  # other paths hold where a page is read
    assert str(data_root) not in page
    assert machine.machine("cpu") in page
    assert "| train learned |" in page
    assert "| sweep attacked |" in page
    fast = next(row for row in measured(finished) if (row["attack"], row["eps"]) == ("fast", 8))
    paper = next(r for r in rows("market1501/resnet50") if (r["attack"], r["eps"]) == ("fast", 8))
    cells = [
        text
        for metric in ("recall@1", "recall@10", "map")
        for text in (
            f"{fast[metric]:.4f}",
            f"{paper[metric]:.4f}",
            f"{fast[metric] - paper[metric]:+.4f}",
        )
    ]
    assert f"| `fast` | 8 | {' | '.join(cells)} |" in page
    # The pictures that were crafted on the trained victim, as the shipped network scores them.
    elsewhere = page.partition("## Elsewhere")[2]
    found = read_json(finished / "runs" / "attacked" / "results.json")["rows"]
    other = next(r for r in found if (r["victim"], r["attack"]) == ("glyph_net", "fast"))
    assert f"| `fast` | 8 | {other['recall@1']:.4f} | {other['recall@10']:.4f} |" in elsewhere
    assert "| nobody scores more than everything | yes | R@1 fast ε=8 (attacked): " in page
    assert "| nobody is ever lower than nothing | **no** |" in page
    assert "| what was not measured | not measured |" in page
    assert "There is | nothing" in page
    link = "![The rows](../figures/tiny/rows.svg)"
    assert link in page
    assert "\nThe rows (also as [TXT](../figures/tiny/rows.txt))\n" in page
    assert (finished / "results" / "../figures/tiny/rows.svg").read_text() == (
        "<svg><!-- 10 --></svg>"
    )


def test_a_training_took_no_less_than_its_epochs(
    data_root: Path, finished: Path, tmp_path: Path
) -> None:
    here, epochs = (
        place(finished, data_root),
        60 * LEARNED.facts(place(finished, data_root))["minutes"],
    )
    timed, lost = machine.Clock(here.times, "m"), machine.Clock(tmp_path, "m")
    assert spent(LEARNED, here, timed) == timed.time(LEARNED.key)
    assert spent(LEARNED, here, lost) == machine.Time(epochs)
    (tmp_path / "train_learned.json").write_text('{"sittings": [{"seconds": 0, "finished": true}]}')
    assert spent(LEARNED, here, lost) == machine.Time(epochs)
    assert spent(ATTACKED, here, lost) is None


def test_figures_are_drawn_from_run_folders(finished: Path, tmp_path: Path) -> None:
    made = {"attacked": finished / "runs" / "attacked"}
    (drawn,) = draw_steps.curves(made, tmp_path)
    assert drawn.caption.startswith("R@1, R@10, mAP over ε")
    matrices = draw_steps.transfer(made, tmp_path)
    assert [figure.caption for figure in matrices] == [
        "`fast` at ε = 16: R@1 left",
        "`odfa:steps=2` at ε = 16: R@1 left",
    ]
    assert (drawn.file, drawn.also) == ("curves.png", ("curves.svg", "curves.pdf"))
    for figure in (drawn, *matrices):
        for file in (figure.file, *figure.also):
            assert (tmp_path / file).stat().st_size > 1000


def test_times_are_added_over_sittings(tmp_path: Path) -> None:
    clock = machine.Clock(tmp_path, "m")
    with pytest.raises(KeyboardInterrupt), clock.sitting("a"):
        raise KeyboardInterrupt
    with clock.sitting("a"):
        time.sleep(0.15)
    again = machine.Clock(tmp_path, "n")
    assert again.time("a") == clock.time("a")
    assert clock.time("a").seconds >= 0.1
    assert str(again.time("a")).endswith("in 2 sittings")
    assert again.machines(["a"]) == ["m"]
    assert again.time("b") is None
    with again.sitting("a"):  # it was finished; its product is gone, so it counts anew
        pass
    assert str(again.time("a")) == "0 s"
    (tmp_path / "a.json").write_text("[")
    with pytest.raises(UturnError, match="damaged"):
        again.time("a")


def test_two_programs_keep_the_times_of_their_own_steps(tmp_path: Path) -> None:
    one, other = machine.Clock(tmp_path, "m"), machine.Clock(tmp_path, "n")
    with one.sitting("train a"):
        with other.sitting("train b"):
            time.sleep(0.02)
        assert other.time("train b") == one.time("train b")
    assert one.machines(["train a", "train b"]) == ["m", "n"]


def test_a_killed_sitting_has_counted_up_to_its_last_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "BEAT", 0.02)
    clock = machine.Clock(tmp_path, "m")
    with clock.sitting("a"):
        deadline = time.monotonic() + 10
        while (counted := read_json(tmp_path / "a.json")["sittings"][0]["seconds"]) < 0.1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed = machine.Clock(tmp_path, "m").time("a")
    assert killed is not None
    assert killed.killed == 1
    assert killed.seconds >= counted
    assert "of which 1 was killed" in str(killed)
    assert str(clock.time("a")) == "0 s"


@pytest.mark.parametrize("same", [True, False])
def test_times_are_kept_for_the_plans_of_others(
    data_root: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    on = machine.machine("cpu")
    before = {"machine": on if same else "another", "minutes": {"sweep elsewhere": 7.0}}
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"tiny": before}))
    monkeypatch.setattr(machine, "MEASURED", file)
    machine.expected.cache_clear()
    with pytest.raises(UturnError, match="no finished step"):
        keep_times([TINY], "tiny", place(tmp_path, data_root))
    assert json.loads(file.read_text())["tiny"] == before
    keep_times([TINY], "tiny", place(finished, data_root))
    found = machine.expected("tiny")
    machine.expected.cache_clear()
    assert found[0] == on
    # No time stands under a machine that did not take it.
    assert set(found[1]) - {"sweep elsewhere"} == {"train learned", "sweep attacked"}
    assert found[1].get("sweep elsewhere") == (7.0 if same else None)


# -- claims ---------------------------------------------------------------------------------------


def row(attack: str, eps: float, recall: float, ap: float, **more: Any) -> dict[str, Any]:
    ends = [max(0.0, recall - 0.1), recall + 0.1]
    return {
        "attack": attack,
        "eps": eps,
        "victim": "v",
        "recall@1": recall,
        "map": ap,
        "ci95": {"recall@1": ends},
        "metrics": {"top5": recall / 2},
        **more,
    }


ROWS = Tables(
    {
        "r": [
            row("clean", 0, 0.9, 0.8),
            row("basic", 2, 0.5, 0.4),
            row("basic", 8, 0.2, 0.1),
            row("basic", 16, 0.0, 0.1),
            row("odfa", 2, 0.6, 0.5),
            row("odfa", 8, 0.1, 0.05),
            row("odfa", 16, 0.0, 0.2),
            row("odfa", 16, 0.7, 0.6, victim="w", crafted_on="v"),
        ]
    },
    {"t": {"recall@1": 0.85, "ci95": {"recall@1": [0.8, 0.9]}}},
)


def lowest(**changes: Any) -> Verdict:
    given = {"run": "r", "attack": "odfa", "among": ("basic", "odfa"), "since": 8.0}
    return Lowest(**given | changes)(ROWS)


def test_the_lowest_is_asked_at_every_level_and_metric() -> None:
    kept = lowest(metrics=("recall@1",))
    assert (kept.holds, kept.evidence) == (True, "in all 2 comparisons, 1 of them ties")
    broken = lowest()
    assert (broken.holds, broken.word) == (False, "**no**")
    assert broken.evidence == "mAP at ε=16: 0.2000, basic 0.1000"
    assert lowest(since=2.0, metrics=("recall@1",)).holds is False
    assert lowest(among=("sma",)).holds is None
    assert lowest(since=32.0).holds is None
    assert lowest(run="other").word == "not measured"


def test_numbers_are_compared_with_bounds_and_each_other() -> None:
    low, high = Cell("r", "odfa", 8), Cell("r", "clean", 0)
    assert AtMost(low, 0.1)(ROWS).holds is True
    assert AtMost(low, 0.09)(ROWS).holds is False
    assert AtLeast(high, 0.91)(ROWS).holds is False
    assert AtLeast(Fact("t"), 0.84)(ROWS).holds is True
    assert AtLeast(Fact("u"), 0.84)(ROWS).holds is None
    assert AtMost(Cell("r", "odfa", 8, "top5"), 0.05)(ROWS).holds is True
    assert Below(low, high)(ROWS).holds is True
    assert Below(high, low)(ROWS).holds is False
    assert Below(low, Cell("r", "basic", 8))(ROWS).holds is True
    # 0.1 ± 0.1 and 0.2 ± 0.1 overlap; 0.1 ± 0.1 and 0.9 ± 0.1 do not.
    assert Below(low, Cell("r", "basic", 8), apart="intervals")(ROWS).holds is False
    assert Below(low, high, apart="intervals")(ROWS).holds is True
    assert Below(low, Fact("t"), apart="intervals")(ROWS).holds is True
    assert Below(low, Cell("r", "fast", 8))(ROWS).holds is None
    assert Within(high, Fact("t"), 0.06)(ROWS).holds is True
    assert Within(high, Fact("t"), 0.03)(ROWS).holds is False


def test_the_papers_numbers_can_be_compared_with() -> None:
    paper = Printed("market1501/resnet50", "odfa", 8)
    assert paper.of(ROWS) == pytest.approx(0.0582, abs=5e-5)
    near = Within(Cell("r", "odfa", 8), paper, 0.05)(ROWS)
    assert near.holds is True
    assert near.evidence == "R@1 odfa ε=8 (r): 0.1000; R@1 odfa ε=8 (paper): 0.0582"
    assert Below(Cell("r", "odfa", 8), paper)(ROWS).holds is False
    assert Within(Fact("t"), replace(paper, eps=3), 1)(ROWS).holds is None  # it has no such row
    assert Below(paper, Fact("t"), apart="intervals")(ROWS).holds is None


def test_nearness_to_the_paper_is_asked_attack_by_attack() -> None:
    def measured(recall: float) -> list[dict[str, Any]]:
        return [row("clean", 0, 0.9, 0.8), row("odfa", 8, recall, 0.1), row("fast", 8, 0.5, 0.4)]

    def nearer(own: float, attacks: tuple[str, ...] = ("odfa", "fast")) -> Verdict:
        asked = Nearer(run="a", than="b", published="market1501/resnet50", attacks=attacks)
        return asked(Tables({"a": measured(own), "b": measured(0.0)}))

    assert nearer(0.1) == Verdict(True, "in all 2 comparisons")  # the paper has 0.0582
    assert nearer(0.2).holds is False
    assert nearer(0.2).evidence == "odfa ε=8: 0.2000, 0.0000, paper 0.0582"
    assert nearer(0.1, ("sma",)).holds is None
    assert (
        Nearer(run="c", than="b", published="market1501/resnet50", attacks=("odfa",))(
            Tables({"b": measured(0.0)})
        ).word
        == "not measured"
    )


def test_a_flag_of_many_rows_is_told_once() -> None:
    rows = [
        {"attack": attack, "eps": eps, "flags": ["beyond: all", *more]}
        for attack, eps, more in (("fast", 2.0, []), ("fast", 4.0, ["tied: one"]), ("odfa", 2, []))
    ]
    assert flags_of(rows).splitlines()[-2:] == [
        "- beyond: all: fast ε=2, 4; odfa ε=2",
        "- tied: one: fast ε=4",
    ]
    assert flags_of([{"attack": "fast", "eps": 2, "flags": []}]) == ""


def test_who_scored_is_told_apart() -> None:
    assert Cell("r", "odfa", 16).of(ROWS) == 0.0
    assert Cell("r", "odfa", 16, victim="w").of(ROWS) == 0.7
    assert Cell("r", "odfa", 8, victim="w").of(ROWS) is None


# -- the experiments ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_preset_is_whole(name: str) -> None:
    """Recipes and plans are constructed with the module; here they are filled with paths."""
    experiment = EXPERIMENTS[name]
    assert experiment.name == name
    assert set(experiment.presets) == set(PRESETS)
    steps = [step for each in experiment.presets.values() for step in each]
    runs = {step.name for step in steps if isinstance(step, Sweep)}
    for preset in PRESETS:
        assert not isinstance(experiment.presets[preset][0], Draw)
        names = {step.name for step in experiment.presets[preset]}
        asked = [claim for claim in experiment.claims if claim.sources <= names]
        assert asked or not experiment.claims
        given = {*experiment.needs(preset), *GIVEN}
        assert all(names_in(t.victim or "") <= given for t in experiment.tables if t.run in names)
    for table in experiment.tables:
        assert table.run in runs
        assert table.published is None or rows(table.published)
    for claim in experiment.claims:
        assert claim.sources
        assert any(claim.sources <= {s.name for s in each} for each in experiment.presets.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_what_experiments_share_is_the_same(preset: str) -> None:
    steps: dict[str, Any] = {}
    for experiment in EXPERIMENTS.values():
        for step in experiment.presets[preset]:
            assert steps.setdefault(step.key, step) == step


def test_specs_are_filled_with_what_is_there(tmp_path: Path) -> None:
    here = place(tmp_path / "out", tmp_path)
    with pytest.raises(SpecError, match="uturn data get grocery"):
        here.fill(Plan(victim="glyph_net", data="grocery:{grocery}"))
    (tmp_path / "grocery_store").mkdir()
    filled = here.fill(Plan(victim=LEARNED.spec, data="grocery:{grocery}"))
    assert filled.data == f"grocery:{tmp_path / 'grocery_store'}"
    assert filled.victim == str(tmp_path / "out" / "victims" / "learned.safetensors")
    (tmp_path / "grocery").mkdir()
    assert here.find("grocery") == tmp_path / "grocery"
    for name in NEEDS:
        assert str(tmp_path) in here.missing(name)
    with pytest.raises(SpecError, match="unknown"):
        here.fill("{nonsense}")


def test_an_experiment_uses_only_what_was_made_before() -> None:
    with pytest.raises(ArgumentError, match="before it is made"):
        replace(TINY, presets={"tiny": (ATTACKED, LEARNED)})
    with pytest.raises(ArgumentError, match=r"uses \{victims\}/learned.safetensors before"):
        replace(TINY, presets={"tiny": (ATTACKED,)})
    flat = EXPERIMENTS["turn_cifar10"]
    uncircled = tuple(step for step in flat.presets["cpu"] if not isinstance(step, Circle))
    with pytest.raises(ArgumentError, match="cifar10_circle"):
        replace(flat, presets={"cpu": uncircled})
    with pytest.raises(ArgumentError, match="share a name"):
        replace(TINY, presets={"tiny": (LEARNED, LEARNED)})
    data = replace(ATTACKED, plan=replace(ATTACKED.plan, data="folder:{nonsense}"))
    with pytest.raises(ArgumentError, match="nonsense"):
        replace(TINY, presets={"tiny": (LEARNED, data)})
    assert names_in(ATTACKED.plan) == {"victims", "market1501"}


def test_published_numbers_are_the_references() -> None:
    if not REFERENCE.exists():
        pytest.skip(f"there is no {REFERENCE} to compare with")
    reference, ours = json.loads(REFERENCE.read_bytes()), published()
    for part in ("protocol", "traps", "clean"):
        assert ours[part] == reference[part]
    for key, found in ours["attacked"].items():
        expected = reference["attacked"][key]
        if key == "market1501/pcb":  # the first trap: these rows mean nothing
            expected = [each for each in expected if each["attack"] != "universal"]
        assert found == expected
    assert ours["attacked"].keys() == reference["attacked"].keys()


def test_a_published_table_begins_clean_and_leaves_other_protocols_out() -> None:
    first, *others = rows("market1501/resnet50")
    assert (first["attack"], first["eps"], first["map"]) == ("clean", 0, 0.7108)
    assert all("note" not in each for each in others)
    transfer = rows("market1501/transfer resnet50->densenet121")
    assert [each["attack"] for each in transfer].count("pire") == 1
    with pytest.raises(SpecError, match="unknown published victim"):
        rows("market1501/vit")


# -- the command ----------------------------------------------------------------------------------


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["reproduce", *arguments])


def test_the_command_exits_with_1_if_anything_is_missing(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = dict.fromkeys(PRESETS, TINY.presets["tiny"])
    here = {"tiny": replace(TINY, presets=every)}
    monkeypatch.setattr("uturn.reproduce.experiments.EXPERIMENTS", here)
    options = ["--out", str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    planned = call("all", "--plan", *options, "--data-root", str(data_root))
    assert planned.exit_code == 0
    assert not (tmp_path / "out").exists()
    lacking = call("all", *options, "--data-root", str(tmp_path))
    assert lacking.exit_code == 1
    assert "tiny             skipped: there is no" in lacking.output
    assert "uturn data get market1501" in lacking.output
    good = call("tiny", *options, "--data-root", str(data_root))
    assert good.exit_code == 0, good.output
    assert str(tmp_path / "out" / "results" / "tiny.md") in good.output


def test_an_unknown_name_lists_the_known_ones() -> None:
    result = call("glyfs")
    assert result.exit_code == 1
    assert "unknown experiment 'glyfs'; known: " in result.output
    assert "glyphs" in result.output
