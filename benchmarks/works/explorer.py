"""The explorer in a real browser: from command to first ranking, from click to first frame."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness import Case, Contender, Do, Done, MissingError, Target
from benchmarks.setting import Setting

FIRST_RANKING, FIRST_UPDATE = 10.0, 1.0
"""Seconds: after that long people look elsewhere."""

_PATIENCE = 120_000
"""Milliseconds."""


def cases(setting: Setting) -> Iterator[Case]:
    """The glyphs, whose gallery was never embedded before; `odfa` at ε = 8 on the first query."""
    yield Case(
        work="explorer",
        name="uturn serve",
        title="From `uturn serve` to the first ranking in Chromium, nothing kept from before",
        contenders=(
            Contender("import torch, gradio", "limit", lambda: _imports),
            Contender("uturn serve", "ours", _browser),
        ),
        reference="import torch, gradio",
        targets=(
            Target("uturn serve", FIRST_RANKING, "first ranking, s"),
            Target("uturn serve", FIRST_UPDATE, "first update, s"),
        ),
        least=3,
    )


def _imports() -> Done:
    subprocess.run([sys.executable, "-c", "import torch, gradio"], check=True, capture_output=True)
    return Done()


def _browser() -> Do:
    """One that is open already, as people's are."""
    for module, extra in (("gradio", "web"), ("playwright", "dev")):
        if find_spec(module) is None:
            raise MissingError(f"{module} is not installed: pip install 'uturn[{extra}]'")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise MissingError("there is no Chromium on the PATH: apt install chromium")
    from playwright.sync_api import sync_playwright

    running = sync_playwright().start()
    browser = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
    return lambda: _once(browser)


def _once(browser: Any) -> Done:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "uturn", "serve", "--port", "0", "--quiet"],
            stdout=subprocess.PIPE,
            stderr=(Path(folder) / "log").open("w"),
            text=True,
            env={**os.environ, "UTURN_CACHE": folder},
        )
        assert process.stdout is not None
        with process.stdout as told:
            page = browser.new_page()
            page.goto(told.readline().split()[4])
            page.wait_for_selector("#view ol.ranks li", timeout=_PATIENCE)
            ranked = time.perf_counter()
            page.click("#go")
            page.wait_for_selector("#view .say[data-step]", timeout=_PATIENCE)
            updated = time.perf_counter()
            page.close()
            process.send_signal(signal.SIGINT)
        process.wait(20)
    first, update = ranked - began, updated - ranked
    return Done(seconds=first, facts={"first ranking, s": first, "first update, s": update})
