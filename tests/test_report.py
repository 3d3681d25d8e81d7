"""The report: what it says, that strangers' names stay text, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uturn.errors import RunFolderError
from uturn.report import figures, html
from uturn.report.text import table
from uturn.retrieval.intervals import identity_bootstrap
from uturn.sweep import Plan, run

EVIL = "<img src=x onerror=alert(1)><script>alert(2)<&'\""
"""As much of an injection as a file name can hold (it can hold no slash)."""


@pytest.fixture(scope="module")
def glyph_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run"
    plan = Plan(victim="glyph_net", data="glyphs", eps=(16, 2, 8), queries=24, batch_size=24)
    run(plan, out, progress=False)
    html.write(out)
    return out


@pytest.fixture(scope="module")
def evil_run(glyph_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which every query, every gallery picture and the data spec try to be markup."""
    out = tmp_path_factory.mktemp("evil") / "run"
    shutil.copytree(glyph_run, out)
    for picture in (*out.rglob("images/**/*.png"), *out.rglob("thumbnails/*.png")):
        picture.rename(picture.with_name(f"{picture.stem}{EVIL}.png"))
    for name in ("ranklists.json", "results.json", "run.json"):
        content = json.loads((out / name).read_bytes())
        for entry in content.get("queries", []):
            entry["query"] += EVIL
            for item in entry["items"]:
                item["name"] += EVIL
        for row in content.get("rows", []):
            row["data"] = f"market1501:/{EVIL}"
        (out / name).write_text(json.dumps(content))
    table = pq.read_table(out / "queries.parquet")
    renamed = [f"{query}{EVIL}" for query in table["query"].to_pylist()]
    place = table.schema.get_field_index("query")
    pq.write_table(table.set_column(place, "query", pa.array(renamed)), out / "queries.parquet")
    return out


def test_the_page_is_self_contained_and_escapes_names(evil_run: Path) -> None:
    page = html.write(evil_run).read_text(encoding="utf-8")
    assert page.count("<script") == 2  # the data and the page's own
    assert "<img" not in page  # pictures are made by the script
    assert "onerror=alert(1)>" not in page
    assert page.count("<h1>") == 1
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "http" not in page.replace("http://www.w3.org", "")
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["queries"][0]["name"].endswith(EVIL)


def test_rewriting_a_report_gives_the_same_page(glyph_run: Path) -> None:
    before = (glyph_run / "report.html").read_bytes()
    assert html.write(glyph_run).read_bytes() == before


def test_the_report_does_not_import_torch(glyph_run: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from uturn.report import html
html.write(Path({str(glyph_run)!r}))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_is_no_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"has no run\.json"):
        html.write(tmp_path)
    (tmp_path / "run.json").write_text('{"finished": null}')
    with pytest.raises(RunFolderError, match="has not finished"):
        html.write(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="cannot read"):
        html.write(tmp_path)
    (tmp_path / "run.json").write_text('{"finished": "now"}')
    (tmp_path / "results.json").write_text('{"rows": []}')
    with pytest.raises(RunFolderError, match="do not fit together"):
        html.write(tmp_path)


def test_a_foreign_run_cannot_put_other_files_into_the_page(
    glyph_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(glyph_run, out)
    shutil.copy(next((out / "thumbnails").glob("*.png")), tmp_path / "secret.png")
    content = json.loads((out / "ranklists.json").read_bytes())
    for name in ("../../secret", str(tmp_path / "secret")):
        content["queries"][0]["items"][0]["name"] = name
        (out / "ranklists.json").write_text(json.dumps(content))
        with pytest.raises(RunFolderError, match="outside itself"):
            html.write(out)


def test_the_headline_and_the_curves_go_by_ascending_eps(glyph_run: Path) -> None:
    page = (glyph_run / "report.html").read_text(encoding="utf-8")
    assert "more\n    than 16 of 255 levels" in page
    for line in re.findall(r'<polyline points="([^"]+)"', page):
        positions = [float(point.split(",")[0]) for point in line.split()]
        assert positions == sorted(positions)


def test_the_strongest_attack_leaves_least_where_most_is_allowed() -> None:
    """As the card has it, whatever the attacks do at smaller ε; equals are told apart there."""

    def rows(attack: str, *left: tuple[float, float, float]) -> list[dict[str, Any]]:
        keys = ("eps", "recall@1", "map")
        return [{"attack": attack, **dict(zip(keys, each, strict=True))} for each in left]

    early = rows("early", (2, 0.5, 0.4), (8, 0.05, 0.1))
    late = rows("late", (2, 0.9, 0.8), (8, 0.03, 0.2))
    assert html._left(late, "late") < html._left(early, "early")
    assert html._left(rows("x", (8, 0.03, 0.2), (2, 0.8, 0.8)), "x") < html._left(late, "late")
    assert html._left(rows("x", (2, 0.9, 0.8), (8, 0.03, 0.1)), "x") < html._left(late, "late")


def test_the_change_is_amplified_around_grey() -> None:
    clean = np.full((2, 2, 3), 100, dtype=np.uint8)
    scored = clean.copy()
    scored[0, 0], scored[1, 1] = 108, 92
    shown = np.asarray(html._amplified(Image.fromarray(clean), Image.fromarray(scored), 8))
    assert shown[0, 0].tolist() == [255] * 3
    assert shown[1, 1].tolist() == [0] * 3
    assert shown[0, 1].tolist() == [127] * 3


def test_the_text_table_aligns_and_confesses() -> None:
    row: dict[str, Any] = {
        "attack": "odfa",
        "eps": 8,
        "recall@1": 0.25,
        "recall@5": 0.5,
        "recall@10": None,
        "map": 0.125,
        "cosine": -0.5,
        "ci95": {"recall@1": [0.1, 0.4]},
        "gradients": 10,
        "flags": ["tied: 2"],
    }
    text = table([row])
    assert "0.100–0.400" in text
    assert "odfa ε=8: tied: 2" in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def test_figures_escape_names() -> None:
    line = figures.Series("<b>", "#000", "circle", [figures.Point(2, 0.5, 0.4, 0.6)])
    drawn = figures.curves("R", [line], 0.9)
    assert "<b>" not in drawn
    assert "&lt;b&gt;, ε=2: 50.0 % (95 %: 40.0 % to 60.0 %)" in drawn


def test_cameras_have_intervals_of_their_own_queries(glyph_run: Path) -> None:
    queries = pq.read_table(glyph_run / "queries.parquet").to_pylist()
    for row in json.loads((glyph_run / "results.json").read_bytes())["rows"]:
        own = [q for q in queries if (q["attack"], q["eps"]) == (row["attack"], row["eps"])]
        assert set(row["cameras"]) == {f"{camera}" for camera in cameras(glyph_run)}
        for camera, said in row["cameras"].items():
            seen = [q for q in own if f"{q['camera']}" == camera]
            hits = np.array([float(q["first_match_rank"] == 1) for q in seen])
            people = np.array([q["identity"] for q in seen])
            assert said["queries"] == len(seen)
            assert said["recall@1"] == pytest.approx(hits.mean())
            ends = identity_bootstrap(hits, people, 0)
            assert said["ci95"] == (None if ends is None else pytest.approx(list(ends)))


def cameras(folder: Path) -> set[int]:
    return set(pq.read_table(folder / "queries.parquet")["camera"].to_pylist())


# -- in a real browser ---------------------------------------------------------------------------


def opened(browser: Any, run: Path, width: int = 1280) -> tuple[Any, list[str]]:
    """The report in a new page without network, and everything that the page complains about."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.context.set_offline(True)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
    page.goto(html.write(run).as_uri())
    return page, complaints


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_in_chromium(browser: Any, glyph_run: Path, width: int) -> None:
    page, complaints = opened(browser, glyph_run, width)
    assert page.locator("svg.curve").count() == 4
    assert page.locator("svg.curve").nth(1).locator("polyline").count() == 4
    assert page.locator("svg.dial polygon").count() == 1 + 3
    assert page.locator("svg.ridges").count() == 4 + 1  # first matches by attack, smallest ε
    assert page.locator("svg.heat rect").count() == 4 * len(cameras(glyph_run))
    cards = page.locator("article.card")
    assert cards.count() == 8
    first = cards.first
    assert first.locator(".ranks").count() == 2
    assert first.locator(".ranks li").count() == 20
    assert first.locator(".query img").count() == 3
    assert first.locator(".ranks").first.locator("li.right").count() > 0
    loaded = "images => images.every(i => i.complete && i.naturalWidth > 0)"
    assert page.eval_on_selector_all("img", loaded)
    # No sideways scrolling on a telephone.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []


@pytest.mark.browser
def test_controls_change_the_rank_lists(browser: Any, glyph_run: Path) -> None:
    page, complaints = opened(browser, glyph_run)
    card = page.locator("article.card").first
    before = card.inner_text()
    page.select_option("#attack", "fast")
    page.locator('input[name="eps"][value="2"]').check()
    assert "after fast, ε = 2" in card.inner_text()
    assert card.inner_text() != before
    status = page.locator("#shown").inner_text()
    lost = page.locator(".lists > div:nth-child(2) li:first-child.wrong").count()
    assert status == f"fast, ε = 2: a wrong item stands first for {lost} of these 8 queries."
    wrong = {}
    for eps in (2, 16):
        page.select_option("#attack", "odfa")
        page.locator(f'input[name="eps"][value="{eps}"]').check()
        wrong[eps] = page.locator(".ranks:nth-child(2) li.wrong").count()
    assert wrong[16] > wrong[2]
    assert complaints == []


@pytest.mark.browser
def test_the_table_sorts(browser: Any, glyph_run: Path) -> None:
    page, complaints = opened(browser, glyph_run)
    head = page.locator("table.results thead th").nth(2)

    def column() -> list[float]:
        return [
            float(t)
            for t in page.locator("table.results tbody tr td:nth-child(3)").all_inner_texts()
        ]

    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    head.locator("button").click()
    assert column() == sorted(column(), reverse=True)
    page.locator("table.results thead th button").first.click()
    names = page.locator("table.results tbody tr th").all_inner_texts()
    assert names == sorted(names)
    assert complaints == []


@pytest.mark.browser
def test_names_that_try_to_be_markup_are_text(browser: Any, evil_run: Path) -> None:
    page, complaints = opened(browser, evil_run)
    assert EVIL in page.locator("article.card h3").first.inner_text()
    assert EVIL in page.locator(".lead").inner_text()
    assert EVIL in page.locator(".ranks img").first.get_attribute("alt")
    assert page.locator("body script").count() == 2
    assert complaints == []


@pytest.mark.browser
def test_a_keyboard_reaches_everything(browser: Any, glyph_run: Path) -> None:
    page, complaints = opened(browser, glyph_run)
    focused = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focused}.textContent") == "Skip to the results"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # the first of what can be opened
    assert page.evaluate(f"{focused}.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    table = page.locator("details[open] table").first
    assert table.is_visible()
    assert table.locator("thead th").first.get_attribute("scope") == "col"
    page.focus("#attack")
    page.keyboard.type("fast")
    assert "fast, ε = 8" in page.locator("#shown").inner_text()
    page.locator("table.results thead button").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator("table.results thead th").nth(2).get_attribute("aria-sort") == "ascending"
    assert complaints == []


@pytest.mark.browser
def test_a_screen_reader_is_told_everything(browser: Any, glyph_run: Path) -> None:
    page, _ = opened(browser, glyph_run)
    for drawing in page.locator("svg[role=img]").all():
        assert drawing.get_attribute("aria-label")
    # What is drawn of queries also stands in a table.
    for kind in ("ridges", "heat"):
        for drawing in page.locator(f"svg.{kind}").all():
            assert drawing.locator("xpath=..").locator("details table tbody tr").count() >= 1
    for picture in page.locator("img").all():
        assert picture.get_attribute("alt")
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"


CONTRAST = r"""() => {
  const parts = (c) => c.match(/[\d.]+/g).map(Number);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => {
    const [r, g, b] = parts(c).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const clear = (node) => parts(getComputedStyle(node).backgroundColor)[3] === 0;
  const behind = (node) => {
    while (node.parentElement && clear(node)) node = node.parentElement;
    return getComputedStyle(clear(node) ? document.body : node).backgroundColor;
  };
  const kinds = "h1, h1 span, h2, p, td, th, dt, dd, figcaption, summary, label, .key";
  return [...document.querySelectorAll(kinds)]
    .filter((node) => node.textContent.trim() && node.offsetParent)
    .map((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(behind(node))];
      const told = node.textContent.trim().slice(0, 40);
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), told];
    });
}"""
"""The contrast of every text with what is behind it (WCAG 2)."""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_by_day_and_night(browser: Any, glyph_run: Path, scheme: str) -> None:
    page, _ = opened(browser, glyph_run)
    page.emulate_media(color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert len(found) > 100
    assert min(found)[0] >= 4.5, min(found)


def test_three_hundred_queries_stay_below_five_megabytes(tmp_path: Path) -> None:
    plan = Plan(victim="glyph_net", data="glyphs", queries=300, batch_size=50)
    run(plan, tmp_path, progress=False)
    assert html.write(tmp_path).stat().st_size <= 5_000_000


def test_large_pictures_are_shrunk_until_the_page_can_be_sent(
    glyph_run: Path, tmp_path: Path
) -> None:
    """Noise of 224×224, which no codec likes."""
    out, rng = tmp_path / "run", np.random.default_rng(0)
    shutil.copytree(glyph_run, out)
    for file in (*out.rglob("images/**/*.png"), *out.rglob("thumbnails/*.png")):
        Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(
            file, compress_level=0
        )
    page = html.write(out)
    assert 1_000_000 <= page.stat().st_size <= 5_000_000


def test_twenty_attacks_look_different() -> None:
    assert len({figures.style(position) for position in range(24)}) == 24
