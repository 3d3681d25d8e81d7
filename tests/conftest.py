"""Shared victims, data and markers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before PyTorch is loaded: threads that spin, waiting for work, take the other workers' cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor, nn

from uturn import load_victim
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

os.environ["UTURN_CACHE"] = ""  # tests of the cache have one of their own
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So begins what a shell runs behind itself, and so would all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("here", deadline=None)  # how quick a machine is, is no property
settings.load_profile("here")

RAW = Preprocessing(size=(8, 4), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Linear(nn.Module):
    """Features ``x · Wᵀ + b``, summed picture by picture so that batches cannot mix."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum((2, 3, 4)) + self.bias


class Tiny(nn.Module):
    """A small convolutional network with random weights."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).relu().mean((2, 3)))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_victim(weight: Tensor, bias: Tensor, classifier: nn.Module | None = None) -> Victim:
    """A victim on raw pixels ``(3, 8, 4)`` with a known optimum for every attack."""
    return Victim(
        name="linear", network=Linear(weight, bias), preprocessing=RAW, classifier=classifier
    )


@pytest.fixture
def pictures() -> Tensor:
    """uint8 pictures far enough from black and white that no budget reaches them."""
    return torch.randint(60, 196, (5, 3, 8, 4), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="session")
def glyph_victim() -> Victim:
    return load_victim("glyph_net")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium to drive, or a skip with the reason."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path:
            return path
    pytest.skip("no Chromium on this machine; `apt-get install chromium` runs these tests")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """Playwright's, of a Chromium that asks nobody else."""
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=quiet)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data and weights, or a skip with the reason."""
    folder = os.environ.get("UTURN_TEST_DATA")
    if not folder:
        pytest.skip("UTURN_TEST_DATA does not name the folder with Market-1501 and weights")
    return Path(folder)


@pytest.fixture(autouse=True)
def kept_features(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Slow tests embed a real gallery once for all of them."""
    if request.node.get_closest_marker("slow"):
        monkeypatch.setenv("UTURN_CACHE", str(tmp_path_factory.getbasetemp() / "features"))


def write_market(root: Path, gallery_names: list[str], query_names: list[str]) -> Path:
    """A miniature Market-1501 in its official layout, with random pictures."""
    rng = np.random.default_rng(0)
    folders = {"query": query_names, "bounding_box_test": gallery_names}
    folders["bounding_box_train"] = ["0007_c1s1_000001_01.jpg"]
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            array = rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)
            Image.fromarray(array).save(root / folder / name, "JPEG")
    return root
