"""The robustness card: what it states, that it fits one page, and that names stay text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from uturn import load_data
from uturn.cli import main
from uturn.data.pictures import encode
from uturn.errors import RunFolderError
from uturn.report import card, distributions, html
from uturn.report.flags import FLAGS
from uturn.report.folder import Run
from uturn.report.text import verbatim
from uturn.sweep import Plan, run

EVIL = "a`b|c\\|<img src=x onerror=alert(1)> [x](javascript:alert(2))\n# no\\"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on sixteen glyphs, five pictures each."""
    root, gallery = tmp_path_factory.mktemp("glyphs"), load_data("glyphs").gallery
    for identity in np.unique(gallery.identities)[:16]:
        for number in np.flatnonzero(gallery.identities == identity)[:5]:
            encode(root / f"g{identity}" / f"{number}.png", gallery.read(int(number)))
    out = tmp_path_factory.mktemp("card") / "run"
    attacks = ("fast", "odfa", "minimal:by=odfa")
    plan = Plan(victim="glyph_net", data=f"folder:{root}", attacks=attacks, eps=(2, 8), queries=20)
    run(plan, out, progress=False)
    html.write(out)
    return out


def changed(folder: Path, out: Path, name: str, change: Callable[[Any], None]) -> Run:
    shutil.copytree(folder, out)
    content = json.loads((out / name).read_bytes())
    change(content)
    (out / name).write_text(json.dumps(content))
    return Run.read(out)


def test_the_worst_case_is_the_row_that_leaves_least(folder: Path) -> None:
    rows = json.loads((folder / "results.json").read_bytes())["rows"]
    made = card.Card.of(Run.read(folder))
    assert [line.eps for line in made.lines] == [0, 2, 8]
    for line in made.lines:
        own = [row for row in rows if row["eps"] == line.eps]
        least = min(own, key=lambda row: (row["recall@1"], row["map"]))
        assert line.attack == least["attack"]
        low, high = (100 * end for end in least["ci95"]["recall@1"])
        assert line.cells[0] == f"{100 * least['recall@1']:.1f} % ({low:.1f}–{high:.1f})"
        assert line.cells[2].startswith(f"{100 * least['map']:.1f} % (")
    assert made.left in made.lines[-1].cells[0]
    assert made.clean in made.lines[0].cells[0]


def test_both_cards_state_victim_protocol_budget_and_flags(folder: Path) -> None:
    header = json.loads((folder / "run.json").read_bytes())
    own = header["configuration"]
    page, text = ((folder / name).read_text(encoding="utf-8") for name in ("card.html", "card.md"))
    for told in (page, text):
        for value in (own["victim"], own["victim weights"], own["data fingerprint"], own["ties"]):
            assert value in told
        assert "20 queries, drawn by seed 0" in told
        assert "minimal:by=odfa" in told
        assert header["finished"] in told
        assert "same identity" in told
        assert "another camera" not in told
        assert card.NOTE.split(".")[0] in told.replace("&#39;", "'")


def test_the_smallest_eps_is_found_in_the_runs_own_numbers(folder: Path) -> None:
    """`minimal` of a real run: what it found is at most the sweep's ε, and enough."""
    jobs = Run.read(folder).queries("glyph_net", *distributions.COLUMNS)
    assert Run.read(folder).searching == {"minimal:by=odfa"}
    coarse = distributions.smallest(jobs, "minimal:by=odfa")
    fine = distributions.found(jobs, "minimal:by=odfa")
    assert any(level < np.inf for level in fine)
    assert all(level <= eps for level, eps in zip(fine, coarse, strict=True))
    made = card.Card.of(Run.read(folder))
    told = dict(fact for _, facts in made.sections for fact in facts)
    worst = made.lines[-1].attack
    half = distributions.median(distributions.smallest(jobs, worst))
    assert told["half of the right queries lost"] == f"at ε = {half:g}, by {worst}"


def test_flags_are_told_once_for_each_kind(folder: Path, tmp_path: Path) -> None:
    def confess(content: Any) -> None:
        for row in content["rows"]:
            row["flags"] = ["tied: the first match of 2 queries ties with a wrong item"]
        content["rows"][1]["flags"].append("beyond: 1 queries")

    flags = card.Card.of(changed(folder, tmp_path / "run", "results.json", confess)).flags
    assert [flag for flag in flags if flag.startswith("tied, 7 of 7 rows, such as clean at ε=0: ")]
    assert "beyond, 1 of 7 rows, such as fast at ε=2: 1 queries" in flags


def test_flags_come_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    def confess(content: Any) -> None:
        for row in content["rows"]:
            row["flags"] = ["noise: noise at ε=2 does more harm"] * (row["attack"] == "odfa")

    run = changed(folder, tmp_path / "run", "results.json", confess)
    made = card.Card.of(run)
    assert made.remedies == (("noise", FLAGS["noise"].remedy),)
    assert "| noise | do not report the white box's number" in made.markdown()
    assert "do not report the white box" in made.html()
    page = html.write(run.path).read_text(encoding="utf-8")
    assert page.count('<a href="#flag-noise">noise</a>') == 2
    assert page.count('<dt id="flag-noise">') == 1


def test_no_flags_are_told_as_none(folder: Path, tmp_path: Path) -> None:
    def clear(content: Any) -> None:
        for row in content["rows"]:
            row["flags"] = row["caveats"] = []

    quiet = changed(folder, tmp_path / "run", "results.json", clear)
    quiet.header["nonnegative features"] = False
    made = card.Card.of(quiet)
    assert made.flags == ()
    assert "## Flags\n\nNone." in made.markdown()
    assert "<p>None.</p>" in made.html()


def test_paper_mode_promises_no_budget(folder: Path, tmp_path: Path) -> None:
    def old(content: Any) -> None:
        content["configuration"]["mode"] = "paper"

    made = card.Card.of(changed(folder, tmp_path / "run", "run.json", old))
    assert "8 of 255 levels before it is truncated and saved as JPEG." in made.markdown()
    assert [flag for flag in made.flags if flag.startswith("paper mode")]
    assert "JPEG" not in card.Card.of(Run.read(folder)).html()


def test_a_damaged_run_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    broken = changed(folder, tmp_path / "run", "results.json", lambda c: c["rows"][2].pop("map"))
    with pytest.raises(RunFolderError, match="do not fit together"):
        card.write(broken)


def rendered(markdown: str) -> str:
    """What is left of Markdown once its code spans and escaped characters are gone."""
    without = re.sub(r"\\[!-/:-@\[-`{-~]", "", markdown)
    return re.sub(r"`[^`\n]*`", "", without)


def test_strangers_names_are_text_in_both(folder: Path, tmp_path: Path) -> None:
    def inject(content: Any) -> None:
        for row in content["rows"]:
            row["data"] = EVIL
            row["flags"] = [f"{EVIL}: {EVIL}"]

    made = card.Card.of(changed(folder, tmp_path / "run", "results.json", inject))
    assert "<img" not in made.html()
    text = rendered(made.markdown())
    for markup in ("<", ">", "](", "\n# no"):
        assert markup not in text
    cells = [
        len(re.findall(r"(?<!\\)\|", re.sub(r"\\\\", "", line)))
        for line in made.markdown().splitlines()
        if line[:1] == "|"
    ]
    assert set(cells) == {3, 7}  # no name opens a cell


@pytest.mark.parametrize("name", ["a_b*c", EVIL, "`", "", "<b>", "x\ny", "&lt;", "|"])
def test_verbatim_leaves_no_markup(name: str) -> None:
    left = rendered(verbatim(name))
    assert not set(left) & set("<>`*_[]#&")
    assert "\n" not in left


def test_the_command_writes_the_cards(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(folder, out)
    for name in ("card.html", "card.md", "report.html"):
        (out / name).unlink()
    done = CliRunner().invoke(main, ["report", str(out)])
    assert done.exit_code == 0, done.output
    for name in ("card.html", "card.md", "report.html"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.browser
def test_the_card_is_one_printed_page(folder: Path, chromium: str) -> None:
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=quiet)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.context.set_offline(True)
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto((folder / "card.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        printed = page.pdf(prefer_css_page_size=True)
        browser.close()
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) == 1
    assert complaints == []
