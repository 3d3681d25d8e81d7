"""What the works are done on: how large, where data and weights are, and what stands in for them.

Real weights and real pictures are used where ``--data`` (or ``UTURN_BENCH_DATA``) names a folder
with ``market1501/`` and ``osnet_x0_25_market1501.pth``; random ones take their place elsewhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from PIL import Image

from benchmarks.harness import MissingError
from uturn import load_data
from uturn.data.split import Split
from uturn.specs import Spec
from uturn.victims import zoo
from uturn.victims.victim import Precision, Victim

HERE = Path(__file__).parent

QUICKEST: Precision = "bfloat16"
FLOAT, EAGER = "uturn float32", "uturn fp32 eager"
OURS: dict[str, Precision | None] = {"uturn": QUICKEST, FLOAT: "float32", EAGER: None}
"""Our own contenders and what they search in; None: on the network as it was loaded, with its
batch norms. The last is the one that the others' results are held to."""

WORKERS = "uturn, a worker per core"
"""Ours as ``--engine ray:local,workers=CORES,threads=1`` has it: processes of one thread each."""


def ready(victim: Victim, precision: Precision | None) -> Victim:
    """A loaded victim as a contender attacks it, and as sweeps do."""
    return victim if precision is None else victim.folded().searched_in(precision)


_REAL = {"osnet_x0_25": "osnet_x0_25_market1501.pth"}
_CLASSES = 751


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that a work may ask for; ``scratch`` is removed afterwards."""

    scratch: Path
    data: Path | None = None
    quick: bool = False
    """Tiny sizes that show that a work runs; its times mean nothing."""

    queries: int = 500
    """Of the sweep end to end."""

    share: float = 1.0
    """Of those queries, what the original's steps are done on; their time is scaled up."""

    def size(self, whole: int, quick: int) -> int:
        """A number of things, or a tiny one."""
        return quick if self.quick else whole

    def spec(self, architecture: str) -> str:
        """A victim's spec at 256×128 (quick: 64×32), with the weights that there are."""
        size = "64x32" if self.quick else "256x128"
        weights = self._weights(architecture)
        return f"{architecture}:weights={weights},size={size}"

    def real(self, architecture: str) -> bool:
        """Whether trained weights of it are here."""
        name = _REAL.get(architecture)
        return self.data is not None and name is not None and (self.data / name).exists()

    def _weights(self, architecture: str) -> Path:
        if self.real(architecture):
            assert self.data is not None
            return self.data / _REAL[architecture]
        file = self.scratch / f"{architecture}.pth"
        if not file.exists():
            torch.save(_random(architecture), file)
        return file

    def market(self) -> str:
        """The spec of Market-1501, whole (quick: a little noise).

        Raises:
            MissingError: it is not here.
        """
        if self.quick:
            return self.made_market(24, 64)
        if self.data is None or not (self.data / "market1501").is_dir():
            raise MissingError(
                "Market-1501 is not here; name a folder with market1501/ by UTURN_BENCH_DATA"
            )
        return f"market1501:{self.data / 'market1501'}"

    def small_market(self) -> str:
        """The spec of a part of Market-1501 in its own layout: its first identities, by links.

        Raises:
            MissingError: Market-1501 is not here.
        """
        if self.quick:
            return self.market()
        source = Path(self.market().removeprefix("market1501:"))
        root = self.scratch / "market_part"
        sizes = {"query": 200, "bounding_box_test": 2000, "bounding_box_train": 8}
        for folder, count in sizes.items():
            if (root / folder).is_dir():
                continue
            (root / folder).mkdir(parents=True)
            names = sorted(path.name for path in (source / folder).glob("*.jpg"))
            # Junk and distractors sort first; half of a gallery are pictures that count.
            known = [name for name in names if name[:4] not in ("-1_c", "0000")]
            others = [name for name in names if name not in set(known)]
            kept = [*known[: count - count // 3], *others[: count // 3]] if others else known
            for name in kept[:count]:
                (root / folder / name).symlink_to((source / folder / name).resolve())
        return f"market1501:{root}"

    def made_market(self, queries: int, gallery: int) -> str:
        """The spec of noise in Market-1501's layout: work of its size where it may not go."""
        root = self.scratch / f"noise_{queries}_{gallery}"
        rng = np.random.default_rng(0)
        counts = {"query": queries, "bounding_box_test": gallery, "bounding_box_train": 8}
        for number, (folder, count) in enumerate(counts.items()):
            if (root / folder).is_dir():
                continue
            (root / folder).mkdir(parents=True)
            for i in range(count):
                identity, camera = 1 + i % 750, 1 + (i // 750 + number) % 6
                name = f"{identity:04d}_c{camera}s1_{i:06d}_00.jpg"
                noise = rng.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((64, 128)).save(root / folder / name)
        return f"market1501:{root}"

    def pictures(self, count: int) -> list[np.typing.NDArray[np.uint8]]:
        """Decoded queries: real ones where there are, else glyphs."""
        try:
            split = _split(self.market())
        except MissingError:
            split = _split("glyphs")
        sample = split.sample(count, seed=0).query
        return [sample.read(i) for i in range(count)]


@functools.cache
def _split(spec: str) -> Split:
    return load_data(spec)


@functools.cache
def _random(architecture: str) -> dict[str, torch.Tensor]:
    """Random weights with a classifier, batch norms settled so that features keep their size."""
    torch.manual_seed(0)
    network = zoo.empty(Spec.parse(architecture))
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over what it sees
    with torch.no_grad():
        features = network.train()(torch.randn(8, 3, 128, 64))
    classifier = torch.nn.Linear(features.shape[1], _CLASSES)
    head = {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
    return {**network.state_dict(), **head}
