"""The documentation as a site: it builds without a warning, and nothing on it leads nowhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import uturn

ROOT = Path(__file__).parent.parent


class Page(HTMLParser):
    """What one page links to, loads, and can be linked to at."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value for key, value in attrs if value is not None}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag in ("script", "img", "iframe", "source"):
            self.loads |= {found[key] for key in ("src",) if key in found}
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loads |= {found["href"]}
        elif tag == "a" and "href" in found:
            self.links.add(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, or a skip with the reason."""
    beside = Path(sys.executable).with_name("mkdocs")
    program = str(beside) if beside.exists() else shutil.which("mkdocs")
    if program is None:
        pytest.skip("MkDocs is not installed; `pip install -e '.[docs]'` runs these tests")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [program, "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert not re.search(r"^(WARNING|ERROR)", told, re.MULTILINE), told
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {}
    for path in site.rglob("*.html"):
        if "figures" not in path.relative_to(site).parts:  # animations, with pages of their own
            found[path] = Page()
            found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_page_of_docs_is_on_the_site(site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        place = source.relative_to(ROOT / "docs").with_suffix("")
        built = site if place.name == "index" else site / place
        assert (built / "index.html").exists(), source
    assert (site / "CONTRIBUTING" / "index.html").exists()
    assert not list(site.rglob("*.py"))


def test_all_links_resolve(site: Path, pages: dict[Path, Page]) -> None:
    seen = 0
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are of the root of a server
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or not (parts.path or parts.fragment):
                continue
            target = path
            if parts.path:
                target = (path.parent / unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)} links to {link}"
            if parts.fragment and target in pages:
                known = pages[target].anchors
                assert unquote(parts.fragment) in known, f"{path.relative_to(site)}: {link}"
            seen += 1
    assert seen > 500


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [load for load in page.loads if urlsplit(load).netloc], path


def test_the_reference_describes_every_public_name(site: Path, pages: dict[Path, Page]) -> None:
    anchors = pages[site / "api" / "index.html"].anchors
    written = {anchor.rpartition(".")[2] for anchor in anchors if anchor.startswith("uturn.")}
    not_described = {"attacks", "__version__", "PRESETS"}  # a module, a string, a dictionary
    assert {*uturn.__all__, *uturn.attacks.__all__} - not_described <= written


def test_examples_in_docstrings_are_code(site: Path) -> None:
    text = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert "load_victim" in text
    assert "<blockquote>" not in text
