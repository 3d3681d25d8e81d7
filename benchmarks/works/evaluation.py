"""Evaluation: CMC and average precision of a benchmark under the camera and junk rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import original
from benchmarks.harness import Case, Contender, Do, Done, Target
from benchmarks.original import Ints
from benchmarks.peers import torchreid_rank
from benchmarks.setting import Setting
from uturn.data.split import JUNK
from uturn.retrieval import metrics
from uturn.retrieval.index import ExactIndex
from uturn.retrieval.judge import CrossCamera, Labels
from uturn.retrieval.ranking import rank

BARE = "bare similarity matmul"
CPU = torch.device("cpu")


def cases(setting: Setting) -> Iterator[Case]:
    """Of Market-1501's size."""
    yield evaluating(benchmark(*((90, 400, 32) if setting.quick else (3368, 19732, 512))))


@final
@dataclass(frozen=True, eq=False)
class Pictures:
    """Unit features ``(N, D)``, identities and cameras ``(N,)``."""

    features: Tensor
    identities: Ints
    cameras: Ints

    def labels(self) -> Labels:
        """As our judge reads them; every picture has a name of its own."""
        return Labels(
            torch.from_numpy(self.identities),
            torch.from_numpy(self.cameras),
            torch.arange(len(self.identities)),
        )


@final
@dataclass(frozen=True, eq=False)
class Benchmark:
    """Queries and gallery."""

    query: Pictures
    gallery: Pictures


def benchmark(queries: int, gallery: int, dimensions: int) -> Benchmark:
    """Features around a centre per identity; Market-1501's shares of junk and distractors.

    A fifth of the gallery is junk, a seventh distractors that nobody asks for; six cameras; the
    noise is such that most queries, not all, find their identity first.
    """
    rng = np.random.default_rng(0)
    known = max(2, queries * 750 // 3368)
    asked = np.arange(queries) % known + 1
    there = rng.integers(1, known + 1, gallery)
    there[: gallery // 5] = JUNK
    there[gallery // 5 : gallery // 5 + gallery // 7] = 0
    centres = rng.normal(size=(known + 2, dimensions)).astype(np.float32)

    def pictures(identities: Ints) -> Pictures:
        noise = rng.normal(size=(len(identities), dimensions)).astype(np.float32)
        around = torch.from_numpy(centres[identities] + 2.4 * noise)
        cameras = rng.integers(1, 7, len(identities))
        return Pictures(F.normalize(around, dim=1), identities, cameras)

    return Benchmark(pictures(asked), pictures(there))


def evaluating(both: Benchmark) -> Case:
    """Everybody who scores it, from unit features to the two numbers."""
    queries, gallery = len(both.query.features), len(both.gallery.features)
    ways: dict[str, Callable[[], Do]] = {
        "original evaluate": lambda: lambda: by_original(both),
        "torchreid's Python": lambda: by_torchreid(both),
        "naive counting loop": lambda: lambda: by_counting(both),
    }
    return Case(
        work="evaluation",
        name="evaluation",
        title=f"CMC and AP of {queries} × {gallery} × {both.query.features.shape[1]}, camera and "
        "junk rules",
        contenders=(
            Contender(BARE, "limit", lambda: lambda: _bare(both)),
            Contender("uturn", "ours", lambda: lambda: by_us(both), "both conventions of AP"),
            *(Contender(name, "peer", make) for name, make in ways.items()),
        ),
        reference=BARE,
        targets=(Target("uturn", 2.0),),
        same_work=same_numbers,
        most=5,
    )


def _bare(both: Benchmark) -> Done:
    _ = both.query.features @ both.gallery.features.T
    return Done()


def _scores(first: float, mean: float, trapezoid: bool) -> Done:
    kind = "mAP (trapezoid)" if trapezoid else "mAP (plain)"
    return Done(facts={"R@1": first, kind: mean})


def by_us(both: Benchmark) -> Done:
    """`rank`, and metrics of the ranking."""
    index = ExactIndex(both.gallery.features)
    query, gallery = both.query, both.gallery
    ranking = rank(index, query.features, query.labels(), gallery.labels(), CrossCamera())
    found = {
        "R@1": metrics.recall_at(ranking, 1),
        "R@10": metrics.recall_at(ranking, 10),
        "mAP (plain)": metrics.ap_plain(ranking),
        "mAP (trapezoid)": metrics.ap_trapezoid(ranking),
    }
    return Done(facts={name: float(values.nanmean()) for name, values in found.items()})


def by_original(both: Benchmark) -> Done:
    """Query by query, a full sort each (`benchmarks.original`)."""
    query, gallery = both.query, both.gallery
    curve, mean = original.evaluate(
        query.features,
        query.identities,
        query.cameras,
        gallery.features,
        gallery.identities,
        gallery.cameras,
    )
    return _scores(float(curve[0]), mean, trapezoid=True)


def by_torchreid(both: Benchmark) -> Do:
    """torchreid's evaluation in Python; it has no junk, which its data sets leave out."""
    module, kept = torchreid_rank(), both.gallery.identities != JUNK
    query, gallery = both.query, both.gallery

    def do() -> Done:
        features = gallery.features[torch.from_numpy(kept)]
        distances = (1 - query.features @ features.T).numpy()
        curve, mean = module.evaluate_rank(
            distances,
            query.identities,
            gallery.identities[kept],
            query.cameras,
            gallery.cameras[kept],
            use_cython=False,
        )
        return _scores(float(curve[0]), float(mean), trapezoid=False)

    return do


def by_counting(both: Benchmark) -> Done:
    """Query by query, how many pictures score at least as much as each match; no sort."""
    query, gallery = both.query.labels(), both.gallery.labels()
    firsts, means = [], []
    junk = gallery.identities == JUNK
    for number, feature in enumerate(both.query.features):
        same = gallery.identities == query.identities[number]
        near = gallery.cameras == query.cameras[number]
        scores = both.gallery.features @ feature
        good = scores[same & ~near & ~junk].sort(descending=True).values
        if not len(good):
            continue
        others = scores[~same & ~junk]
        rank_of = torch.arange(1, len(good) + 1)
        positions = rank_of + (others[None] >= good[:, None]).sum(1)
        firsts.append(float(positions[0] == 1))
        means.append(float((rank_of / positions).mean()))
    return _scores(float(np.mean(firsts)), float(np.mean(means)), trapezoid=False)


def same_numbers(done: Mapping[str, Done]) -> list[str]:
    """The same Recall@1 and average precision, but for what rounding does to a near tie."""
    ours = done["uturn"].facts
    return [
        f"{name}: {key} is {value:.5f}, ours {ours[key]:.5f}"
        for name, one in done.items()
        for key, value in one.facts.items()
        if abs(value - ours[key]) > 1e-3
    ]
