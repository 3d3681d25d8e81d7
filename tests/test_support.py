"""What queries cannot support: the differences they show, and that sound readings pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tests.test_craft import data  # noqa: F401  (the fixture)
from uturn.cli import main
from uturn.retrieval.intervals import identity_bootstrap, paired_bootstrap
from uturn.retrieval.support import caveats, resolution

PEOPLE = np.arange(200)


def told(
    hits: np.ndarray, clean: np.ndarray | None = None, people: np.ndarray = PEOPLE
) -> list[str]:
    people = people[: len(hits)]
    return caveats(hits, people, identity_bootstrap(hits, people, 0), 0, clean)


def kinds(found: list[str]) -> list[str]:
    return [caveat.partition(":")[0] for caveat in found]


def test_what_two_hundred_people_show_has_no_caveat() -> None:
    clean, attacked = np.r_[np.ones(190), np.zeros(10)], np.r_[np.ones(50), np.zeros(150)]
    assert told(clean) == []
    assert told(attacked, clean) == []


def test_none_found_bears_out_the_binomial_bound() -> None:
    (found,) = told(np.zeros(100))
    assert found == "bound: Recall@1 is 0 of 100 queries, which bears out at most 0.036"
    (found,) = told(np.ones(100))
    assert "1 of 100 queries, which bears out at least 0.964" in found


def test_few_people_are_named() -> None:
    hits = np.tile([1.0, 0.0], 40)
    assert kinds(told(hits, people=np.repeat(np.arange(19), 5))) == ["few-identities"]
    assert kinds(told(hits, people=np.repeat(np.arange(20), 4))) == []
    assert told(np.full(5, np.nan)) == []


def test_a_difference_that_may_be_none_says_how_many_would_show_it() -> None:
    """A share that falls by 0.05 with 20 and 10 of 200 changing: 1.96 + 0.84 standard errors."""
    clean = np.r_[np.ones(120), np.zeros(80)]
    hits = clean.copy()
    hits[:20], hits[120 : 115 + 20] = 0, 1
    change = hits - clean
    (found,) = told(hits, clean)
    assert found.startswith("unresolved: Recall@1 differs from the clean queries' by -0.025")
    error = change.std() / np.sqrt(200)
    shows = float(found.split("show differences of ")[1].split(";")[0])
    assert shows == pytest.approx((1.96 + 0.84) * error, rel=0.06)
    wanted = int(found.rsplit("about ", 1)[1].replace(",", ""))
    assert wanted == pytest.approx(200 * (2.8 * error / 0.025) ** 2, rel=0.12)


def test_what_is_resolved_is_found_four_times_of_five() -> None:
    """The power of a difference as large as the resolution, by simulation."""
    rng, people, found = np.random.default_rng(0), np.arange(100), 0
    none = np.zeros(100)
    equal = (rng.choice([-1.0, 0.0, 1.0], 100, p=[0.2, 0.6, 0.2]) for _ in range(20))
    shown = [resolution(paired_bootstrap(none, change, people, 0)) for change in equal]
    smallest = float(np.mean([each for each in shown if each is not None]))
    for trial in range(150):
        up, down = 0.2 + smallest / 2, 0.2 - smallest / 2
        change = rng.choice([-1.0, 0.0, 1.0], 100, p=[down, 0.6, up])
        ends = paired_bootstrap(none, change, people, trial)
        assert ends is not None
        found += ends[0] > 0
    assert 0.71 <= found / 150 <= 0.89
    assert resolution(None) is None


def test_seeds_are_told_together() -> None:
    hits = np.tile([[1.0, 0.0]], (100, 1))
    assert told(hits) == []
    assert kinds(told(np.zeros((100, 3)))) == ["bound"]


def test_eval_tells_and_prints_them(data: str) -> None:  # noqa: F811
    asked = ["eval", "--victim", "tests.test_craft:a_classifier", "--data", data, "--quiet"]
    values = json.loads(CliRunner().invoke(main, [*asked, "--json"]).output)
    assert kinds(values["caveats"])[0] == "few-identities"
    shown = CliRunner().invoke(main, asked).output
    for caveat in values["caveats"]:
        assert f"caveat: {caveat}" in shown
