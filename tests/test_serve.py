"""`uturn serve` in a real browser: what is seen, what is clicked, and how long it takes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import write_market
from uturn import load_data
from uturn.data.pictures import encode
from uturn.errors import ArgumentError
from uturn.explorer.serve import open_at
from uturn.sweep import Plan, run

pytest.importorskip("gradio", reason="Gradio is not installed: pip install 'uturn[web]'")

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=alert(1)><script>alert(2)<&'\""
SCREENSHOTS = os.environ.get("UTURN_TEST_SCREENSHOTS")
"""A folder in which pictures of the page are kept."""


@dataclass(frozen=True)
class Server:
    url: str
    run: Path


@pytest.fixture(scope="module")
def market_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a miniature Market-1501 in its official layout."""
    folder = tmp_path_factory.mktemp("market")
    gallery = [f"{p:04d}_c{c}s1_00000{p}_01.jpg" for p in range(1, 7) for c in (1, 2, 3)]
    queries = [f"{p:04d}_c{c}s1_00009{p}_01.jpg" for p in range(1, 7) for c in (1, 2)]
    data = write_market(folder / "data", gallery, queries)
    plan = Plan(
        victim="glyph_net",
        data=f"market1501:{data}",
        attacks=("fast", "odfa"),
        eps=(2.0, 8.0),
    )
    run(plan, folder / "run", progress=False)
    return folder / "run"


@contextmanager
def serving(folder: Path, *words: str, **settings: str) -> Iterator[str]:
    """The address of `uturn serve` with these ``words``; it must end in order, leaving nothing."""
    scratch, log = folder / "scratch", folder / "log"
    scratch.mkdir()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "uturn", "serve", *words, "--port", "0", "--quiet"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "TMPDIR": str(scratch), **settings},
        )
    assert process.stdout is not None
    try:
        told = re.match(r"the explorer is at (http://127\.0\.0\.1:\d+)", process.stdout.readline())
        assert told, log.read_text()
        yield told[1]
    finally:
        process.terminate()
        process.stdout.close()
        status = process.wait(20)
    assert status == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert [*scratch.iterdir()] == []  # uploads and downloads are gone


@pytest.fixture(scope="module")
def server(
    market_run: Path, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """An explorer that has just begun; the browser is open already."""
    words = (str(market_run), "--victim", "glyph_net", "--data", "glyphs", "--device", "cpu")
    with serving(tmp_path_factory.mktemp("serve"), *words) as url:
        yield Server(url, market_run)


@dataclass(frozen=True)
class Tab:
    """A page, and everything that it complains about or asks somebody else for."""

    page: Any
    complaints: list[str]

    def ask(self, name: str) -> None:
        """Type a query's name."""
        field = self.page.locator("#query input")
        field.fill(name)
        field.press("Enter")
        self.page.wait_for_function(
            "name => document.querySelector('#view .say')?.innerText === name", arg=name
        )

    def attack(self) -> None:
        self.page.click("#go")

    def done(self) -> float:
        """The cosine at the end."""
        self.page.wait_for_selector("#view .say:has-text('Done')", timeout=60_000)
        return float(self.page.get_attribute("#view .say[data-cosine]", "data-cosine"))

    def names(self) -> list[str]:
        """Of the gallery pictures in the last rank list."""
        return [
            item.get_attribute("title") for item in self.page.query_selector_all("#view ol >> li")
        ]

    def shot(self, name: str) -> None:
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(SCREENSHOTS) / f"{name}.png"), full_page=True)


@contextmanager
def opened(browser: Any, url: str, width: int) -> Iterator[Tab]:
    """A window of this width, which must not complain."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    complaints: list[str] = []

    def logged(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            complaints.append(f"asks {request.url}")

    page.on("console", logged)
    page.on("request", asked)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append("dialog"), dialog.dismiss()))
    page.goto(url)
    page.wait_for_selector("#view ol.ranks li", timeout=60_000)
    yield Tab(page, complaints)
    page.close()
    assert complaints == []


@pytest.fixture(params=[1280])
def tab(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Tab]:
    with opened(browser, server.url, request.param) as tab:
        yield tab


def test_the_page_opens_with_a_ranking(tab: Tab) -> None:
    """How soon is for `make bench` to say."""
    assert len(tab.names()) >= 10


def test_an_attack_is_watched_to_its_end(tab: Tab, tmp_path: Path) -> None:
    query = load_data("glyphs").query.names[5]
    tab.ask(query)
    before = tab.names()
    tab.attack()
    assert tab.done() < 0
    lists = tab.page.query_selector_all("#view ol.ranks")
    assert len(lists) == 2
    after = [item.get_attribute("title") for item in lists[1].query_selector_all("li")]
    assert [item.get_attribute("title") for item in lists[0].query_selector_all("li")] == before
    assert after != before
    assert tab.page.locator("#view svg.dial").count() == 1
    assert tab.page.locator("#view svg.curve polyline").count() == 1
    assert "uturn attack" in tab.page.inner_text("#command")
    assert "jpeg75" in tab.page.inner_text("#survived")
    loaded = "images => images.every(i => i.complete && i.naturalWidth > 0)"
    assert tab.page.eval_on_selector_all("#view img", loaded)
    saved = {}
    for name in ("adversarial", "clean", "card"):
        with tab.page.expect_download() as download:
            tab.page.click(f"#{name}")
        download.value.save_as(tmp_path / name)
        before_it = {"clean": ""}.get(name, f"{name}-")
        assert download.value.suggested_filename == f"{before_it}{query}.png"
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            saved[name] = np.asarray(image.convert("RGB")).astype(int)
    assert 0 < np.abs(saved["adversarial"] - saved["clean"]).max() <= 8
    assert saved["card"].shape == (675, 1200, 3)
    tab.shot("attack-1280")


def test_cancel_stops_an_attack(tab: Tab) -> None:
    tab.page.get_by_text("Steps and scales").click()
    tab.page.get_by_label("Steps").fill("500")
    tab.attack()
    tab.page.wait_for_selector("#view .say[data-step]")
    tab.page.click("#cancel")
    tab.page.wait_for_selector("#view .say:has-text('Stopped after step')", timeout=60_000)
    assert tab.page.is_disabled("#adversarial")
    tab.page.get_by_label("Steps").fill("3")
    tab.attack()
    tab.done()


def test_another_query_and_a_typed_one(tab: Tab) -> None:
    before = tab.page.inner_text("#view .say")
    tab.page.click("#another")
    tab.page.wait_for_function(
        "before => document.querySelector('#view .say')?.innerText !== before", arg=before
    )
    field = tab.page.locator("#query input")
    field.fill(EVIL)
    field.press("Enter")
    tab.page.wait_for_selector("#view .error")
    assert EVIL[:-2] in tab.page.inner_text("#view .error")  # the rest is quoted


def test_uploads(tab: Tab, tmp_path: Path) -> None:
    mine = tmp_path / f"{EVIL}.png"
    letters = load_data("glyphs").train
    assert letters is not None
    encode(mine, letters.read(7))
    tab.page.set_input_files("input[type=file]", str(mine))
    tab.page.wait_for_selector("#view .unknown")
    assert "nothing is right or wrong" in tab.page.inner_text("#view")
    tab.attack()
    assert tab.done() < 0.5
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    for name, says in (
        ("text.png", "is no picture that can be read here"),
        ("huge.png", "has more than 32 megapixels"),
    ):
        tab.page.set_input_files("input[type=file]", str(tmp_path / name))
        tab.page.wait_for_selector(f"#view .error:has-text('{says}')")


def test_a_run_is_leafed_through(tab: Tab) -> None:
    tab.page.get_by_role("tab", name="Leaf through a run").click()
    tab.page.wait_for_selector("#curves svg.curve")
    rows = tab.page.locator("#falls tbody tr")
    assert rows.count() == 12
    first = rows.first.inner_text()
    tab.page.locator("#run-order input").click()
    tab.page.get_by_role("option", name="hardest to turn first").click()
    tab.page.wait_for_function(
        "before => document.querySelector('#falls tbody tr')?.innerText !== before", arg=first
    )
    tab.page.get_by_label("Camera").fill("2")
    tab.page.get_by_label("Camera").press("Enter")
    tab.page.wait_for_function("document.querySelectorAll('#falls tbody tr').length === 6")
    tab.page.locator("#run-query input").click()
    tab.page.get_by_role("option").first.click()
    tab.page.wait_for_selector("#fallen .trio img")
    assert "first right picture at place" in tab.page.inner_text("#fallen")
    tab.shot("run-1280")


@pytest.mark.parametrize("tab", [390], indirect=True)
def test_on_a_telephone(tab: Tab) -> None:
    tab.attack()
    tab.done()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.shot("attack-390")
    tab.page.get_by_role("tab", name="Leaf through a run").click()
    tab.page.wait_for_selector("#curves svg.curve")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390
    tab.shot("run-390")


def test_files_of_the_machine_are_not_served(server: Server) -> None:
    import urllib.error
    import urllib.request

    for path in ("/etc/passwd", str(server.run / "run.json"), "../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}/gradio_api/file={path}")
        refused.value.close()
        assert refused.value.code in (403, 404)


def test_a_port_in_use_is_told() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with (
            pytest.raises(ArgumentError, match="choose another --port"),
            open_at("127.0.0.1", port),
        ):
            pass


def test_the_server_ends_quietly_while_a_window_is_open(browser: Any, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "uturn", "serve", "--port", "0", "--device", "cpu", "--quiet"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    with process.stdout as told:
        url = told.readline().split()[4]
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("#view ol.ranks li", timeout=60_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        page.close()
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.slow
def test_a_run_on_market_1501_is_opened(shared_data: Path, browser: Any, tmp_path: Path) -> None:
    """The whole gallery, in both tabs: the run's own queries are attacked again."""
    kept = {"UTURN_CACHE": str(tmp_path / "cache")}
    words = ["--victim", f"osnet_x0_25:weights={shared_data / 'osnet_x0_25_market1501.pth'}"]
    words += ["--data", f"market1501:{shared_data / 'market1501'}", "--queries", "16"]
    words += ["--attack", "odfa", "--eps", "2,8", "--out", str(tmp_path / "run"), "--quiet"]
    sweep = [sys.executable, "-m", "uturn", "sweep", *words]
    subprocess.run(sweep, check=True, capture_output=True, env={**os.environ, **kept})
    with (
        serving(tmp_path, str(tmp_path / "run"), **kept) as url,
        opened(browser, url, 1280) as tab,
    ):
        tab.attack()
        assert tab.done() < 0.5
        tab.shot("market1501-attack-1280")
        tab.page.get_by_role("tab", name="Leaf through a run").click()
        tab.page.wait_for_selector("#curves svg.curve")
        assert tab.page.locator("#falls tbody tr").count() == 16
        tab.page.locator("#run-query input").click()
        tab.page.get_by_role("option").first.click()
        tab.page.wait_for_selector("#fallen .trio img")
        tab.shot("market1501-run-1280")
