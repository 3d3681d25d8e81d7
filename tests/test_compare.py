"""Runs compared: paired differences, what is refused, and that names stay text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from uturn import load_data
from uturn.cli import main
from uturn.data.pictures import encode
from uturn.errors import ArgumentError, RunFolderError
from uturn.report.compare import Difference, write
from uturn.retrieval.intervals import holm, identity_bootstrap, paired_bootstrap, sign_flip
from uturn.sweep import Plan, run
from uturn.sweep.compare import compare

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two victims on the same glyphs, one of them also on fewer queries and at another ε."""
    root, gallery = tmp_path_factory.mktemp("glyphs"), load_data("glyphs").gallery
    for identity in np.unique(gallery.identities)[:16]:
        for number in np.flatnonzero(gallery.identities == identity)[:5]:
            encode(root / f"g{identity}" / f"{number}.png", gallery.read(int(number)))
    out = tmp_path_factory.mktemp("runs")
    flipped = "glyph_net:flip=yes"
    plans = {
        name: Plan(
            victim=victim, data=f"folder:{root}", attacks=("fast", "odfa"), eps=(2, 8), queries=30
        )
        for name, victim in (("plain", "glyph_net"), ("flipped", flipped))
    }
    plans["fewer"] = replace(plans["flipped"], attacks=("odfa",), eps=(8, 16), queries=12)
    for name, plan in plans.items():
        run(plan, out / name, progress=False)
    return {name: out / name for name in plans}


def changed(folder: Path, out: Path, change: Callable[[Any], None], name: str = "run.json") -> Path:
    shutil.copytree(folder, out)
    content = json.loads((out / name).read_bytes())
    change(content)
    (out / name).write_text(json.dumps(content))
    return out


def relabelled(folder: Path, out: Path, column: str, label: Callable[[Any], Any]) -> Path:
    """A copy whose table of queries has other values in a column."""
    shutil.copytree(folder, out)
    table = pq.read_table(out / "queries.parquet")
    values = pa.array([label(value) for value in table[column].to_pylist()])
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), out / "queries.parquet")
    return out


def ranks(folder: Path) -> dict[tuple[str, str, float], int]:
    rows = pq.read_table(folder / "queries.parquet").to_pylist()
    return {(row["query"], row["attack"], row["eps"]): row["first_match_rank"] for row in rows}


def test_differences_are_of_the_same_queries(runs: dict[str, Path]) -> None:
    found = compare([runs["plain"], runs["flipped"]])
    one, two = ranks(runs["plain"]), ranks(runs["flipped"])
    assert found.queries == 30
    (pair,) = found.pairs
    assert [line.name for line in pair.lines] == [
        *("clean", "fast ε=2", "fast ε=8", "odfa ε=2", "odfa ε=8")
    ]
    assert pair.missing == ()
    for line in pair.lines:
        told = line.differences["recall@5"]
        assert told is not None
        keys = [key for key in one if key[1:] == (line.attack, line.eps)]
        before, after = ([each[key] <= 5 for key in keys] for each in (one, two))
        assert told.first == pytest.approx(np.mean(before))
        assert told.other == pytest.approx(np.mean(after))
        assert told.interval is not None
        assert told.interval[0] <= told.change + 1e-12
        assert told.change <= told.interval[1] + 1e-12
    assert ("victim", ("glyph_net", "glyph_net:flip=yes")) in found.settings
    assert not [key for key, _ in found.settings if key.startswith("jobs")]


def test_p_values_are_corrected_over_the_whole_comparison(runs: dict[str, Path]) -> None:
    found = compare([runs["plain"], runs["flipped"]])
    one, two = (
        {
            (row["query"], row["attack"], row["eps"]): row
            for row in pq.read_table(runs[name] / "queries.parquet").to_pylist()
        }
        for name in ("plain", "flipped")
    )

    def value(row: dict[str, Any], metric: str) -> float:
        hit = float(row["first_match_rank"] <= int(metric.partition("@")[2] or 0))
        return row["ap"] if metric == "map" else hit

    told, raw = [], []
    for line in found.pairs[0].lines:
        keys = [key for key in one if key[1:] == (line.attack, line.eps)]
        for metric, difference in line.differences.items():
            changes = [value(two[key], metric) - value(one[key], metric) for key in keys]
            raw.append(
                sign_flip(np.array(changes), np.array([one[key]["identity"] for key in keys]))
            )
            assert difference is not None
            told.append(difference)
    assert len(told) == 4 * 5
    assert min(raw) < 1
    assert [difference.p for difference in told] == pytest.approx(holm(raw))
    assert [difference.sure for difference in told] == [p <= 0.05 for p in holm(raw)]


def test_a_run_beside_its_copy_differs_in_nothing_and_says_so_carefully(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["plain"], copy)
    found = compare([runs["plain"], copy])
    assert found.settings == ()
    clean = pq.read_table(runs["plain"] / "queries.parquet", filters=[("attack", "==", "clean")])
    _, counts = np.unique(clean["identity"].to_numpy(), return_counts=True)
    slack = 1 - 0.025 ** ((counts**2).sum() / counts.sum() ** 2)  # as many of equal size
    for line in found.pairs[0].lines:
        for told in line.differences.values():
            assert told is not None
            assert told.change == 0
            assert told.interval == pytest.approx((-slack, slack))
            assert told.p == 1
            assert not told.sure


def test_fewer_queries_and_other_eps_leave_what_both_have(runs: dict[str, Path]) -> None:
    found = compare([runs["plain"], runs["flipped"], runs["fewer"]])
    assert found.queries == 12
    full, fewer = found.pairs
    assert len(full.lines) == 5
    assert [line.name for line in fewer.lines] == ["clean", "odfa ε=8"]
    assert set(fewer.missing) == {"fast ε=2", "fast ε=8", "odfa ε=2", "odfa ε=16"}
    told, same = fewer.lines[1].differences["map"], full.lines[4].differences["map"]
    assert told is not None
    assert same is not None
    assert told.first == same.first  # the first run's mean over the queries that all have
    assert told.other == pytest.approx(same.other)  # the same attack on the same victim


def also(folder: Path, out: Path, target: str) -> Path:
    """A copy, as if a target had scored every picture just as the victim did."""

    def add(content: Any) -> None:
        content["rows"] += [{**row, "victim": target} for row in content["rows"]]

    changed(folder, out, add, "results.json")
    table = pq.read_table(out / "queries.parquet").to_pylist()
    table += [{**row, "victim": target} for row in table]
    pq.write_table(pa.Table.from_pylist(table), out / "queries.parquet")
    return out


def test_targets_are_compared_by_their_name(runs: dict[str, Path], tmp_path: Path) -> None:
    folders = [also(runs[name], tmp_path / name, "target") for name in ("plain", "flipped")]
    (pair,) = compare(folders).pairs
    own, other = pair.lines[:5], pair.lines[5:]
    assert [line.name for line in other] == [f"{line.name} on target" for line in own]
    assert [line.differences for line in other] == [line.differences for line in own]


def test_runs_that_score_each_others_pictures_say_who_fools_whom(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    one = also(runs["plain"], tmp_path / "one", "glyph_net:flip=yes")
    two = also(runs["flipped"], tmp_path / "two", "glyph_net")
    found = compare([one, two])
    assert found.called == {"glyph_net": "victim 1", "glyph_net:flip=yes": "victim 2"}
    assert [(matrix.attack, matrix.eps) for matrix in found.matrices] == [("fast", 8), ("odfa", 8)]
    rows = [json.loads((each / "results.json").read_bytes())["rows"] for each in (one, two)]
    left = [next(r for r in each if (r["attack"], r["eps"]) == ("odfa", 8)) for each in rows]
    matrix = found.matrices[1]
    assert matrix.attacked.tolist() == [[row["recall@1"]] * 2 for row in left]
    assert matrix.white.tolist() == [[True, False], [False, True]]
    for cells, frames in zip(
        re.findall('<svg class="heat".*?</svg>', found.html()), (2, 2), strict=True
    ):
        assert cells.count("<rect") == 4 + frames
    assert "victim 1 |" in found.markdown()
    assert compare([runs["plain"], runs["flipped"]]).matrices == ()


# -- refused --------------------------------------------------------------------------------------


def test_one_run_or_one_run_twice_is_no_comparison(runs: dict[str, Path]) -> None:
    with pytest.raises(ArgumentError, match="at least two"):
        compare([runs["plain"]])
    with pytest.raises(ArgumentError, match="twice"):
        compare([runs["plain"], runs["plain"] / ".." / "plain"])


def test_runs_on_other_data_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    def elsewhere(content: Any) -> None:
        content["configuration"] |= {"data": "folder:/other", "data fingerprint": "0"}

    other = changed(runs["flipped"], tmp_path / "data", elsewhere)
    with pytest.raises(RunFolderError, match="has the data folder:/other"):
        compare([runs["plain"], other])

    def grown(content: Any) -> None:
        content["configuration"]["data fingerprint"] = "0"
        content["gallery"] += 1

    other = changed(runs["flipped"], tmp_path / "gallery", grown)
    with pytest.raises(RunFolderError, match="number of gallery pictures 81"):
        compare([runs["plain"], other])
    other = relabelled(runs["flipped"], tmp_path / "labels", "identity", lambda old: old + 1)
    with pytest.raises(RunFolderError, match="other identities"):
        compare([runs["plain"], other])
    other = relabelled(runs["flipped"], tmp_path / "names", "query", lambda old: f"x{old}")
    with pytest.raises(RunFolderError, match="no query is in all"):
        compare([runs["plain"], other])


def test_no_attack_in_common_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    def renamed(name: str) -> str:
        return name if name == "clean" else f"{name}:steps=3"

    other = relabelled(runs["flipped"], tmp_path / "run", "attack", renamed)
    with pytest.raises(RunFolderError, match=r"share no attack .* the other fast:steps=3 ε=2"):
        compare([runs["plain"], other])


def test_an_unfinished_or_damaged_run_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        compare([runs["plain"], tmp_path])
    other = changed(runs["flipped"], tmp_path / "run", lambda content: content.pop("versions"))
    with pytest.raises(RunFolderError, match="do not fit together"):
        compare([runs["plain"], other])


def test_other_conventions_leave_map_out(runs: dict[str, Path], tmp_path: Path) -> None:
    def trapezoid(content: Any) -> None:
        content["configuration"]["convention"] = "trapezoid"

    other = changed(runs["flipped"], tmp_path / "run", trapezoid)
    found = compare([runs["plain"], other])
    assert found.metrics == ("recall@1", "recall@5", "recall@10")
    told, few = found.notes
    assert told == "mAP is left out: the runs average precision by plain and by trapezoid."
    assert few.startswith(f"{found.identities} identities say little")
    assert found.notes[0] in found.markdown()
    assert found.notes[0] in found.html()


# -- shown ----------------------------------------------------------------------------------------


def test_pages_hold_every_difference(runs: dict[str, Path], tmp_path: Path) -> None:
    found = compare([runs["plain"], runs["flipped"]])
    page, text = (path.read_text(encoding="utf-8") for path in write(found, tmp_path))
    for line in found.pairs[0].lines:
        for told in line.differences.values():
            assert told is not None
            assert f"{told.first:.4f} → {told.other:.4f}" in text
            assert f"{told.change:+.4f}" in page
    assert page.count("<circle") == 2 * len(found.pairs[0].lines)  # Recall@1 and mAP
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page


def test_a_sure_difference_stands_out() -> None:
    assert Difference(0.5, 0.7, (0.1, 0.3), 0.01, 0.14).sure
    assert Difference(0.7, 0.5, (-0.3, -0.1), 0.05, 0.14).sure
    assert not Difference(0.5, 0.6, (-0.1, 0.3), 0.2, 0.29).sure
    assert not Difference(0.5, 0.6, None, 1.0, None).sure


def test_strangers_names_are_text(runs: dict[str, Path], tmp_path: Path) -> None:
    def inject(content: Any) -> None:
        content["configuration"] |= {"victim": EVIL, EVIL: EVIL}

    out = tmp_path / EVIL
    changed(runs["flipped"], out, inject)
    found = compare([runs["plain"], out])
    assert "<img" not in found.html()
    text = found.markdown()
    assert "<img" not in text.replace(r"\<", "")
    assert r"\<img" in text


def test_the_command(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["compare", str(runs["plain"]), str(runs["flipped"]), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert re.match(r"30 queries of \d+ identities that 2 runs share", done.output)
    assert re.search(r"odfa ε=8 +\d\.\d{4} +\d\.\d{4} +[+-]\d\.\d{4} +[+-]\d", done.output)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.html", "compare.md"}
    alone = CliRunner().invoke(main, ["compare", str(runs["plain"])])
    assert alone.exit_code == 1
    assert "at least two run folders" in alone.output


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_chromium(
    runs: dict[str, Path], tmp_path: Path, chromium: str, width: int
) -> None:
    from playwright.sync_api import sync_playwright

    out = tmp_path / EVIL
    changed(runs["flipped"], out, lambda content: content["configuration"].update(victim=EVIL))
    page_file, _ = write(compare([runs["plain"], out]), tmp_path / "out")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.context.set_offline(True)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
        page.goto(page_file.as_uri())
        assert page.locator("svg.forest circle").count() == 2 * 5
        assert EVIL in page.locator("td code").all_inner_texts()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    assert complaints == []


# -- the interval ---------------------------------------------------------------------------------


def test_paired_intervals_cover_the_truth_and_are_narrower() -> None:
    """Queries that both runs find hard: 0.6 of identities right in the first, a third lost."""
    rng, covered, widths, apart = np.random.default_rng(0), 0, [], []
    for trial in range(200):
        before = np.repeat((rng.random(60) < 0.6).astype(float), 5)
        lost = np.repeat((rng.random(60) < 1 / 3).astype(float), 5)
        after, identities = before * (1 - lost), np.repeat(np.arange(60), 5)
        low, high = paired_bootstrap(before, after, identities, seed=trial)
        covered += low <= -0.2 <= high
        widths.append(high - low)
        first, second = (identity_bootstrap(each, identities, trial) for each in (before, after))
        apart.append(second[1] - first[0] - (second[0] - first[1]))
    assert 0.89 <= covered / 200 <= 1.0
    assert np.mean(widths) < 0.6 * np.mean(apart)


@pytest.mark.parametrize("same", [-1.0, 0.0, 1.0])
def test_differences_that_are_all_alike_are_not_certain(same: float) -> None:
    before = np.full(40, max(0.0, -same))
    slack = 1 - 0.025 ** (1 / 40)
    interval = paired_bootstrap(before, before + same, np.arange(40), seed=0)
    assert interval == pytest.approx((same - slack * (1 + same), same + slack * (1 - same)))
    assert -1 <= interval[0] <= same <= interval[1] <= 1


def test_pairs_without_a_match_are_left_out() -> None:
    before, after = np.array([1, 0, 1, np.nan, 1.0]), np.array([0, 0, 1, 1, np.nan])
    identities = np.arange(5)
    found = paired_bootstrap(before, after, identities, seed=0)
    assert found == paired_bootstrap(before[:3], after[:3], identities[:3], seed=0)
    assert paired_bootstrap(before[:3], after[:3], np.zeros(3, dtype=np.int64), seed=0) is None
