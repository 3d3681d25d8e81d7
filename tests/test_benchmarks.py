"""The benchmarks' mathematics, and that contenders do the same work. Nothing is timed here."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import child, original, peers, results
from benchmarks.child import apart, side_by_side
from benchmarks.harness import (
    Case,
    Contender,
    Do,
    Done,
    Measured,
    MissingError,
    Target,
    measure,
    rounds,
)
from benchmarks.setting import EAGER, FLOAT, OURS, Setting
from benchmarks.works import WORKS, end_to_end, evaluation, memory, recall, startup, step, sweep

from uturn import load_data
from uturn.attacks import load_attack
from uturn.attacks.loop import iterations

# -- the harness -----------------------------------------------------------------------------------


def contender(name: str, calls: list[str], seconds: Iterator[float], **facts: float) -> Contender:
    def do() -> Done:
        calls.append(name)
        return Done(name, next(seconds), facts)

    return Contender(name, "peer", lambda: do)


def case(*contenders: Contender, **more: Any) -> Case:
    given: dict[str, Any] = {"work": "step", "name": "one", "title": "Some work"}
    return Case(**given | {"contenders": contenders, "reference": "A"} | more)


def pair(repeats: int = 3, **more: Any) -> tuple[Measured, list[str]]:
    """A takes 9 s to warm up, then 1, 2, 4; B 10, then 3, 1, 2 (medians 2 and 2)."""
    calls = list[str]()
    one = contender("A", calls, iter([9.0, 1.0, 2.0, 4.0]), gradients=3)
    other = contender("B", calls, iter([10.0, 3.0, 1.0, 2.0]), gradients=5)
    return measure(case(one, other, **more), repeats), calls


def test_contenders_take_turns() -> None:
    assert rounds(["A", "B", "C"], 2) == ["A", "B", "C", "A", "B", "C"]
    _, calls = pair()
    assert calls == list("ABABABAB")


def test_medians_leave_the_warm_up_out() -> None:
    measured, _ = pair()
    times = {timed.name: (timed.median, timed.warm_up) for timed in measured.timed}
    assert times == {"A": (2.0, 9.0), "B": (2.0, 10.0)}


def test_ratios_are_of_medians_and_the_spread_of_rounds() -> None:
    measured, _ = pair()
    timed = measured.of("B")
    assert timed is not None
    assert measured.ratio(timed) == 1.0
    assert measured.spread(timed) == (0.5, 3.0)
    assert timed.facts == {"gradients": 5}


def test_a_cold_case_counts_the_first_time() -> None:
    measured, calls = pair(cold=True)
    assert calls == list("ABABAB")
    timed = measured.of("A")
    assert timed is not None
    assert timed.warm_up is None
    assert timed.runs == (9.0, 1.0, 2.0)


@pytest.mark.parametrize(("asked", "got"), [(1, 2), (2, 2), (9, 3)])
def test_repeats_are_held_between_least_and_most(asked: int, got: int) -> None:
    measured, _ = pair(asked, least=2, most=3)
    assert {len(timed.runs) for timed in measured.timed} == {got}


def test_the_harness_keeps_time_where_the_contender_does_not() -> None:
    clock = itertools.count(0, 0.25).__next__  # a quarter of a second from look to look
    lazy = Contender("A", "ours", lambda: lambda: Done())
    measured = measure(case(lazy), 2, clock=clock)
    assert measured.timed[0].runs == (0.25, 0.25)


def test_who_cannot_take_part_is_left_out_with_the_reason() -> None:
    def make() -> Do:
        raise MissingError("not installed")

    there = contender("B", [], itertools.repeat(1.0))
    measured = measure(case(Contender("A", "peer", make), there), 1)
    assert measured.skipped == {"A": "not installed"}
    row = results.record(measured)
    assert [one["ratio"] for one in row["contenders"]] == [None]  # the reference is missing
    assert "A: not installed" in results.markdown(content(row))


def test_targets() -> None:
    targets = (
        Target("B", 1.0),
        Target("B", -0.1, "over"),
        Target("B", 4, "gradients"),
        Target("C", 1.0),
    )
    measured, _ = pair(targets=targets)
    verdicts = [measured.verdict(target) for target in targets]
    assert [verdict.value for verdict in verdicts] == [1.0, 0.0, 5, None]
    assert [verdict.reached for verdict in verdicts] == [True, False, False, None]


def test_unequal_work_is_told() -> None:
    def unequal(done: Any) -> list[str]:
        return [f"{name} made {one.product}" for name, one in done.items() if name != "A"]

    measured, _ = pair(same_work=unequal)
    assert measured.complaints == ("B made B",)  # asked once, of one round
    assert "B made B" in results.markdown(content(results.record(measured)))


def _counting(start: int) -> Do:
    if start < 0:
        raise MissingError("nothing to count from")
    numbers = itertools.count(start)
    return lambda: Done(next(numbers), facts={"process": os.getpid()})


def test_a_contender_in_a_process_of_its_own_keeps_its_state_and_time() -> None:
    do = apart(partial(_counting, 5))()
    first, second = do(), do()
    assert (first.product, second.product) == (5, 6)
    assert first.facts == second.facts != {"process": os.getpid()}
    assert first.seconds is not None
    with pytest.raises(MissingError, match="nothing to count from"):
        apart(partial(_counting, -1))()


def test_a_contender_is_begun_anew_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SPARE", float("inf"))
    do = apart(partial(_counting, 5))()
    first, second, third = do(), do(), do()
    assert first.product == 5
    assert second.product == third.product == 6  # after one that does not count
    assert len({done.facts["process"] for done in (first, second, third)}) == 3


def _napping(folder: Path) -> Do:
    def do() -> Done:
        time.sleep(0.3)
        (folder / str(os.getpid())).touch()
        return Done(facts={"threads": torch.get_num_threads()})

    return do


def test_workers_of_one_thread_each_are_told_per_piece_of_work(tmp_path: Path) -> None:
    do = side_by_side(partial(_napping, tmp_path), 3)()
    for turn in (1, 2):  # children of its own each time
        done = do()
        assert len(list(tmp_path.iterdir())) == 3 * turn
        assert done.facts == {"threads": 1}
        assert done.seconds is not None
        assert done.seconds >= 0.3 / 3


# -- results ---------------------------------------------------------------------------------------

AROUND = {"machine": "an abacus", "threads": 1, "versions": {"python": "3"}}


def content(*rows: Any) -> dict[str, Any]:
    return {"schema": results.SCHEMA, **AROUND, "rows": list(rows)}


def test_a_row_is_json_with_all_of_its_keys() -> None:
    measured, _ = pair(targets=(Target("B", 2.0),))
    row = json.loads(json.dumps(results.record(measured)))
    assert set(row) == {
        *("work", "case", "title", "reference", "unit", "per", "contenders", "targets"),
        *("skipped", "complaints", "measured"),
    }
    assert set(row["contenders"][0]) == {
        *("name", "role", "ratio", "spread", "median", "runs", "warm_up", "facts", "note"),
    }
    assert row["targets"] == [
        {"contender": "B", "of": "ratio", "at_most": 2.0, "value": 1.0, "reached": True}
    ]


def test_the_surroundings_name_machine_and_versions() -> None:
    around = results.surroundings()
    assert set(around) == {"machine", "threads", "versions"}
    assert {"python", "torch", "numpy"} <= set(around["versions"])


def test_the_table_has_a_line_per_case_and_a_cell_per_role() -> None:
    measured, _ = pair(targets=(Target("B", 2.0),))
    text = results.markdown(
        content(results.record(measured), results.skipped("gpu", "no CUDA device here"))
    )
    assert "| one | – | A **1**<br>B **1** | – | B ≤ 2 | yes (1) |" in text
    assert "| gpu | – | – | – | – | not measured: no CUDA device here |" in text
    assert "| B | **1** | 0.5 – 3 | 2 | 10 | gradients 5 |" in text


def test_results_keep_other_works_of_the_same_surroundings_only(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    gpu, start = (results.skipped(work, "later") for work in ("gpu", "startup"))
    results.update(file, AROUND, {"gpu": [gpu]})
    both = results.update(file, AROUND, {"startup": [start]})
    assert [row["work"] for row in both["rows"]] == ["startup", "gpu"]  # the table's order
    again = results.update(file, AROUND, {"gpu": [gpu | {"reason": "now"}]})
    assert [row["reason"] for row in again["rows"]] == ["later", "now"]
    elsewhere = results.update(file, AROUND | {"machine": "another"}, {"gpu": [gpu]})
    assert [row["work"] for row in elsewhere["rows"]] == ["gpu"]
    assert json.loads(file.read_text(encoding="utf-8")) == elsewhere


# -- the same work ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(scratch=tmp_path_factory.mktemp("scratch"), quick=True)


def done_by(name: str, found: Case) -> Done:
    """What one contender does, or a skip with the reason."""
    make = next(one.make for one in found.contenders if one.name == name)
    try:
        return make()()
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def problem(setting: Setting) -> step.Problem:
    return step.Problem.of(setting, "osnet_x0_25")


@pytest.fixture(scope="module")
def turning(setting: Setting) -> Case:
    return step.turning(setting, "osnet_x0_25")


@pytest.fixture(scope="module")
def eager(turning: Case) -> Done:
    return done_by(EAGER, turning)


def share_equal(one: Any, other: Any) -> float:
    return float((one == other).float().mean())


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peer_takes_the_same_steps(
    name: str, turning: Case, problem: step.Problem, eager: Done
) -> None:
    """From one start, by one step, to the same pictures: but where a gradient is the last bit's."""
    found = done_by(name, turning)
    assert step.same_turn(problem, {EAGER: eager, name: found}) == []
    assert share_equal(found.product, eager.product) > 0.99


def test_ours_take_the_same_steps(turning: Case, problem: step.Problem, eager: Done) -> None:
    done = {name: done_by(name, turning) for name in (*OURS, step.FURTHER)}
    assert step.same_turn(problem, {EAGER: eager, **done}) == []
    assert torch.equal(done[step.FURTHER].product, done["uturn"].product)
    assert int((eager.product.int() - problem.images.int()).abs().max()) <= 1 + problem.steps


def test_the_original_loop_turns_as_far(turning: Case, problem: step.Problem, eager: Done) -> None:
    """Its steps are 0.99 to 1.01 levels long, so that the pictures are others."""
    found = done_by("original loop", turning)
    assert step.same_turn(problem, {EAGER: eager, "original loop": found}) == []


@pytest.mark.parametrize("name", ["fast", "basic", "least_likely"])
def test_the_original_loop_is_what_paper_mode_reproduces(name: str, problem: step.Problem) -> None:
    """Two ways to one result: but for what is truncated a rounding error below a whole level."""
    victim, white = problem.victim, original.Whitening.of(problem.victim)
    ours = load_attack(name, eps=4, mode="paper")(victim, problem.images)
    assert victim.classifier is not None
    logits = torch.nn.Sequential(victim.network, victim.classifier)
    attack, clean = original.by_class(logits, name), white.white(problem.images / 255)
    if name == "fast":
        found, gradients = attack.leap(white, clean, 4)
    else:
        found, gradients = attack.climb(white, clean, 4, iterations(4))
    apart = (white.levels(found).int() - ours.images.int()).abs()
    assert gradients == ours.gradients
    assert float((apart <= 1).float().mean()) > 0.98
    assert int(ours.delta.abs().max()) >= 4


def test_a_lazy_contender_is_found_out(problem: step.Problem, eager: Done) -> None:
    stopped = Done(problem.images, facts={"gradients": problem.steps - 1})
    told = " ".join(step.same_turn(problem, {EAGER: eager, "lazy": stopped}))
    assert "took 2 gradients of 3" in told
    assert "cosine of 1.000" in told


def test_the_original_stays_within_its_budget_and_in_range(problem: step.Problem) -> None:
    white = original.Whitening.of(problem.victim)
    dark = torch.zeros(2, 3, 64, 32)
    dark[1] = 1.0
    turn = original.u_turn(problem.victim.network)
    found, gradients = turn.climb(white, white.white(dark), eps=2, steps=3)
    assert gradients == 3
    back = found * white.std + white.mean
    assert bool(((back > -1e-6) & (back < 1 + 1e-6)).all())
    assert float((found - white.white(dark)).abs().max()) <= 2 * original.STEP + 1e-6


def test_a_sweep_at_once_makes_the_same_pictures(setting: Setting) -> None:
    small = sweep.sweeping(setting, "glyph_net", setting.market(), 4)
    done = {one.name: done_by(one.name, small) for one in small.contenders}
    assert small.same_work(done) == []
    jobs = 2 * 2
    assert len(done["uturn"].product) == (jobs + 1) * 4  # and the clean ones
    assert done["uturn"].facts[sweep.GRADIENTS] < done[sweep.APART].facts[sweep.GRADIENTS] == 14

    picture = next(iter(done["uturn"].product.values()))
    picture.write_bytes(picture.read_bytes()[:-1])
    assert "1 of 20 PNGs differ" in small.same_work(done)[0]


def test_recall_lost_to_half_precision_is_found_out() -> None:
    exact = Done(facts={"R@1 at ε=2": 0.62})
    near, far = Done(facts={"R@1 at ε=2": 0.628}), Done(facts={"R@1 at ε=2": 0.64})
    assert recall.within_a_point({"uturn": near, FLOAT: exact}) == []
    assert "uturn: R@1 at ε=2 is 0.6400" in recall.within_a_point({"uturn": far, FLOAT: exact})[0]


@pytest.fixture(scope="module")
def scored() -> evaluation.Benchmark:
    return evaluation.benchmark(60, 300, 24)


WAYS: dict[str, Callable[[evaluation.Benchmark], Done]] = {
    "original": evaluation.by_original,
    "torchreid": lambda both: evaluation.by_torchreid(both)(),
    "counting": evaluation.by_counting,
}


@pytest.mark.parametrize("name", WAYS)
def test_everybody_finds_the_same_numbers(name: str, scored: evaluation.Benchmark) -> None:
    try:
        found = WAYS[name](scored)
    except MissingError as missing:
        pytest.skip(str(missing))
    ours = evaluation.by_us(scored)
    assert set(found.facts) <= set(ours.facts)
    assert len(found.facts) == 2
    assert evaluation.same_numbers({"uturn": ours, name: found}) == []
    assert 0 < ours.facts["R@1"] < 1  # neither too easy nor hopeless: it can tell them apart


def test_wrong_numbers_are_found_out(scored: evaluation.Benchmark) -> None:
    ours = evaluation.by_us(scored)
    wrong = Done(facts={"R@1": ours.facts["R@1"] + 0.01})
    assert evaluation.same_numbers({"uturn": ours, "wrong": wrong})


# -- the works -------------------------------------------------------------------------------------


def test_every_work_says_what_it_lacks(tmp_path: Path) -> None:
    whole = Setting(scratch=tmp_path)
    with pytest.raises(MissingError, match="UTURN_BENCH_DATA"):
        next(end_to_end.cases(whole))
    with pytest.raises(MissingError, match="UTURN_BENCH_DATA"):
        next(recall.cases(whole))
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="no CUDA device"):
            next(WORKS["gpu"](whole))


def test_whole_works_have_the_sizes_that_they_are_named_for(tmp_path: Path) -> None:
    whole = Setting(scratch=tmp_path)
    assert "10000 queries" in next(memory.cases(whole)).title
    assert {target.at_most for found in startup.cases(whole) for target in found.targets} == {
        *(0.3, 1.1)
    }
    assert sweep.GRADIENTS in {t.of for t in sweep.sweeping(whole, "v", "glyphs", 512).targets}


def test_the_original_sweep_makes_every_picture(setting: Setting, tmp_path: Path) -> None:
    split = load_data(setting.market()).sample(3, seed=0)
    spent = original.sweep("glyph_net", split, sweep.ATTACKS, (2.0,), tmp_path)
    assert spent.gradients == 1 + 2 + 2 + 2
    assert {path.parent.parent.name for path in tmp_path.rglob("*.jpg")} == {*sweep.ATTACKS}
    assert len(list(tmp_path.rglob("*.jpg"))) == 3 * 4
