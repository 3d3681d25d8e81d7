"""Query by query: bins, smallest ε, cameras and victims, against tables small enough to count."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps

from uturn.report import distributions, figures
from uturn.report.figures import Bars
from uturn.report.folder import CLEAN

STYLES = {"odfa": ("#000", "circle"), "minimal:by=odfa": ("#111", "square")}


def job(ranks: list[int | None], levels: int, cameras: list[int]) -> dict[str, list[Any]]:
    return {
        "query": [f"q{n}" for n in range(len(ranks))],
        "first_match_rank": ranks,
        "linf_levels": [levels] * len(ranks),
        "camera": cameras,
    }


def by_camera(
    attack: str, eps: float, cameras: dict[int, tuple[int, float, tuple[float, float] | None]]
) -> dict[str, Any]:
    return {
        "attack": attack,
        "eps": eps,
        "cameras": {
            str(camera): {"queries": queries, "recall@1": share, "ci95": ends}
            for camera, (queries, share, ends) in cameras.items()
        },
    }


CAMERAS = [1, 1, 2, 2, 2, 1]
JOBS = {
    CLEAN: job([1, 1, 1, 1, 3, None], 0, CAMERAS),
    # Out of order, and found again at 8 what was lost at 2.
    ("odfa", 8): job([4, 1, 1, 30, 9, None], 8, CAMERAS),
    ("odfa", 2): job([1, 2, 1, 1, 9, None], 2, CAMERAS),
}


def test_the_smallest_eps_is_the_first_at_which_a_right_query_is_lost() -> None:
    assert distributions.smallest(JOBS, "odfa") == [8, 2, math.inf, 8]
    assert distributions.median([8, 2, math.inf, 8]) == 8
    assert distributions.median([math.inf, 2, math.inf]) == math.inf
    assert math.isnan(distributions.median([]))


def test_an_attack_that_searches_counts_by_what_it_found() -> None:
    own = job([2, 2, 1, 7, 3, None], 0, CAMERAS) | {"linf_levels": [3, 5, 8, 3, 0, 8]}
    jobs = {**JOBS, ("minimal:by=odfa", 8): own, ("minimal:by=odfa", 2): JOBS["odfa", 2]}
    assert distributions.found(jobs, "minimal:by=odfa") == [3, 5, math.inf, 3]
    grid, searched = distributions.enough(jobs, STYLES, {"minimal:by=odfa"})
    assert grid.head == ["", "2", "8", "never", "queries", "half are lost at"]
    assert grid.lines == [["odfa", "25.0 %", "50.0 %", "25.0 %", "4", "8"]]
    assert searched.head[1:7] == ["1", "2", "3", "4", "5", "never"]
    assert "|".join(searched.lines[0][1:]) == "0.0 %|0.0 %|50.0 %|0.0 %|25.0 %|25.0 %|4|3"


def test_no_right_query_no_smallest_eps() -> None:
    jobs = {CLEAN: job([2, None], 0, [1, 1]), ("odfa", 8): job([2, None], 8, [1, 1])}
    assert distributions.enough(jobs, STYLES, set()) == []


def test_first_matches_leave_out_queries_that_have_none() -> None:
    drawn = distributions.first_matches(JOBS, "odfa", "#000")
    assert drawn.head == ["", "1", "2", "3–5", "6–10", "11–20", "21–50", "queries"]
    assert [line[0] for line in drawn.lines] == ["clean", "ε = 2", "ε = 8"]
    assert "|".join(drawn.lines[0][1:]) == "80.0 %|0.0 %|20.0 %|0.0 %|0.0 %|0.0 %|5"
    assert "|".join(drawn.lines[2][1:]) == "40.0 %|0.0 %|20.0 %|20.0 %|0.0 %|20.0 %|5"
    assert "ε = 8, 21–50: 20.0 %, 1 queries" in drawn.svg
    assert drawn.svg.count('class="clean"') == 2  # the clean outline behind both ε


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=40))
def test_every_query_is_in_the_one_bin_that_holds_its_rank(ranks: list[int]) -> None:
    jobs = {CLEAN: job([*ranks], 0, [0] * len(ranks))}
    jobs["odfa", 4] = job([*ranks], 4, [0] * len(ranks))
    drawn = distributions.first_matches(jobs, "odfa", "#000")
    for name, cell in zip(drawn.head[1:-1], drawn.lines[1][1:-1], strict=True):
        low, high = (int(end) for end in (name.split("–") * 2)[:2])
        low, high = min(low, high), max(low, high)
        inside = sum(low <= rank <= high for rank in ranks)
        assert cell == f"{100 * inside / len(ranks):.1f} %"
    assert drawn.lines[1][-1] == str(len(ranks))


def test_a_rank_that_was_not_seen_has_a_bin_of_its_own() -> None:
    """An index that answers with its first ten says nothing of what lies deeper."""
    jobs = {CLEAN: job([1, 3], 0, [0, 0]), ("odfa", 4): job([7, 7], 4, [0, 0])}
    jobs["odfa", 4]["first_match_rank"] = [7, math.inf]
    drawn = distributions.first_matches(jobs, "odfa", "#000")
    assert drawn.head[-2] == "deeper"
    assert drawn.lines[0][-2:] == ["0.0 %", "2"]
    assert drawn.lines[1][-2:] == ["50.0 %", "2"]


@pytest.mark.parametrize("rank", [math.nan, 1e300])
def test_a_rank_that_is_none_is_refused(rank: float) -> None:
    """As in a stranger's run folder: no endless row of bins."""
    jobs = {CLEAN: job([1], 0, [0]), ("odfa", 4): job([1], 4, [0])}
    jobs["odfa", 4]["first_match_rank"] = [rank]
    with pytest.raises(ValueError, match=r"no position in a ranking|not a number"):
        distributions.first_matches(jobs, "odfa", "#000")


def test_a_change_beyond_black_and_white_is_refused() -> None:
    own = job([2], 10**12, [0])
    with pytest.raises(ValueError, match="levels of 255"):
        distributions.enough(
            {CLEAN: job([1], 0, [0]), ("odfa", 8): own}, {"odfa": STYLES["odfa"]}, {"odfa"}
        )


def test_cameras_are_counted_apart() -> None:
    rows = [
        by_camera("clean", 0, {10: (2, 1.0, (0.4, 1.0)), 9: (1, 1.0, None)}),
        by_camera("odfa", 8, {10: (2, 0.5, (0.1, 0.9)), 9: (1, 0.0, None)}),
        by_camera("odfa", 2, {10: (2, 0.75, (0.2, 1.0)), 9: (1, 1.0, None)}),
    ]
    drawn = distributions.by_camera(rows, "odfa")
    assert drawn is not None
    assert drawn.head == ["camera", "queries", "clean", "ε = 2", "ε = 8"]
    assert drawn.lines == [
        ["9", "1", "100.0 %", "100.0 %", "0.0 %"],
        ["10", "2", "100.0 % (40.0–100.0)", "75.0 % (20.0–100.0)", "50.0 % (10.0–90.0)"],
    ]
    assert distributions.by_camera([{**row, "cameras": {}} for row in rows], "odfa") is None
    old = [{key: row[key] for key in ("attack", "eps")} for row in rows]
    assert distributions.by_camera(old, "odfa") is None


def test_of_many_cameras_those_with_most_queries_are_shown() -> None:
    said = {camera: (1 + (5 <= camera < 29), 1.0, None) for camera in range(30)}
    rows = [by_camera("clean", 0, said), by_camera("odfa", 4, said)]
    drawn = distributions.by_camera(rows, "odfa")
    assert drawn is not None
    assert [line[:2] for line in drawn.lines] == [[str(c), "2"] for c in range(5, 29)]


def test_transfer_needs_two_victims_and_shows_what_is_left() -> None:
    rows = [
        {"victim": victim, "attack": attack, "eps": eps, "recall@1": left}
        | ({"ci95": {"recall@1": (0.7, 0.85)}} if (victim, eps) == ("b", 0) else {})
        for victim, attack, eps, left in (
            ("a", "clean", 0, 0.9),
            ("a", "odfa", 8, 0.1),
            ("b", "clean", 0, 0.8),
            ("b", "odfa", 8, None),
        )
    ]
    (drawn,) = distributions.transfer(rows, ["odfa"])
    assert distributions.titles(rows) == {"a": "itself", "b": "target 1"}
    assert drawn.head == ["attack", "itself", "target 1"]
    assert drawn.lines == [["clean", "90.0 %", "80.0 % (70.0–85.0)"], ["odfa", "10.0 %", "–"]]
    assert drawn.svg.count("<rect") == 4
    assert distributions.transfer(rows[:2], ["odfa"]) == []


# -- drawing --------------------------------------------------------------------------------------


def test_the_colours_are_cividis_and_can_be_written_on() -> None:
    for step in range(101):
        colour = figures.heat(step / 100)
        theirs = [255 * each for each in colormaps["cividis"](step / 100)[:3]]
        assert max(abs(a - b) for a, b in zip(colour, theirs, strict=True)) <= 8
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (each / 255 for each in colour)
        ]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        ink = {"white": 1.0, "black": 0.0}[figures.ink(*(each / 255 for each in colour))]
        high, low = max(luminance, ink) + 0.05, min(luminance, ink) + 0.05
        assert high / low >= 4.5


def test_bars_share_one_scale() -> None:
    rows = [Bars("a", "#000", [3, 1]), Bars("b", "#000", [1, 1])]
    drawn = figures.ridges("t", ["1", "2"], ["1", "2"], rows, "x")
    heights = [float(height) for height in re.findall(r'height="([\d.]+)" fill', drawn)]
    assert heights == pytest.approx(
        [heights[0] * share / 0.75 for share in (0.75, 0.25, 0.5, 0.5)], abs=0.1
    )


EVIL = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    "drawn",
    [
        figures.ridges(EVIL, [EVIL], [EVIL], [Bars(EVIL, "#000", [1])], EVIL),
        figures.heatmap(EVIL, [EVIL], [EVIL], [[0.5]]),
        figures.forest(EVIL, [(EVIL, 0.1, 0.0, 0.2)]),
    ],
    ids=["ridges", "heatmap", "forest"],
)
def test_strangers_names_are_text_in_every_figure(drawn: str) -> None:
    assert "<img" not in drawn
    assert "&lt;img" in drawn


def test_a_difference_is_filled_where_its_interval_leaves_zero_out() -> None:
    rows = [
        ("a", 0.1, 0.05, 0.2),
        ("b", -0.1, -0.2, 0.1),
        ("c", -0.1, -0.2, -0.1),
        ("d", 0, None, None),
    ]
    drawn = figures.forest("t", rows)
    assert re.findall(r'class="(sure|open)"', drawn) == ["sure", "open", "sure", "open"]
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', drawn)]
    assert places[0] > places[3] > places[1] == places[2]
