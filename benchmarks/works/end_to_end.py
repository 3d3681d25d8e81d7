"""The whole of `uturn sweep` on Market-1501, against the original's steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import torch

from benchmarks import original
from benchmarks.harness import Case, Contender, Do, Done, Target
from benchmarks.setting import QUICKEST, WORKERS, Setting
from benchmarks.works.sweep import ATTACKS, EPS
from uturn import load_data

ORIGINAL = "original's steps"


def cases(setting: Setting) -> Iterator[Case]:
    """500 queries against the full gallery, which is embedded too.

    Raises:
        MissingError: Market-1501 is not here.
    """
    data = setting.market()
    queries = setting.size(setting.queries, 8)
    attacks, eps = (ATTACKS[2:], EPS[:1]) if setting.quick else (ATTACKS, EPS)
    measured = max(1, round(queries * setting.share))
    gallery = len(load_data(data).gallery)

    def ours(*more: str) -> Callable[[], Do]:
        return lambda: lambda: _uturn(setting, data, queries, attacks, eps, more)

    def theirs() -> Do:
        return lambda: _original(setting, data, queries, measured, attacks, eps)

    scaled = "" if measured == queries else f"measured on {measured} queries, scaled linearly"
    note = "; ".join(["gallery embedded once, no mirrored look", *filter(None, [scaled])])
    yield Case(
        work="end_to_end",
        name="end to end",
        title=f"`uturn sweep`, {len(attacks)} attacks × {len(eps)} ε, {queries} queries of "
        f"Market-1501 against {gallery} gallery pictures, their embedding included",
        contenders=(
            Contender("uturn", "ours", ours(), "a process of its own, nothing cached"),
            Contender(WORKERS, "ours", ours("--engine", _engine()), "the same, by Ray"),
            Contender(ORIGINAL, "peer", theirs, note),
        ),
        reference=ORIGINAL,
        targets=(Target("uturn", 0.2), Target(WORKERS, 0.2)),
        same_work=same_count,
        most=1,
        cold=True,
    )


def _engine() -> str:
    """A worker on each core: they wait for each other less than the threads of one process do."""
    return f"ray:local,workers={torch.get_num_threads()},threads=1"


def _uturn(
    setting: Setting,
    data: str,
    queries: int,
    attacks: tuple[str, ...],
    eps: tuple[float, ...],
    more: tuple[str, ...],
) -> Done:
    out, cache = setting.scratch / "end_to_end", setting.scratch / "cold_cache"
    for folder in (out, cache):  # what an earlier round left would be found again
        shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "uturn", "sweep", "--out", str(out), "--data", data]
    command += ["--victim", setting.spec("osnet_x0_25"), "--precision", QUICKEST]
    command += ["--queries", str(queries), "--attack", ",".join(attacks)]
    command += ["--eps", ",".join(f"{e:g}" for e in eps), *more]
    environment = os.environ | {"UTURN_CACHE": str(cache)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    pictures = sum(1 for _ in (out / "images").rglob("*.png"))
    return Done(facts={"pictures": pictures - queries})  # the clean ones lie there too


def _original(
    setting: Setting,
    data: str,
    queries: int,
    measured: int,
    attacks: tuple[str, ...],
    eps: tuple[float, ...],
) -> Done:
    out = setting.scratch / "original"
    shutil.rmtree(out, ignore_errors=True)
    split = load_data(data).sample(measured, seed=0)
    spent = original.sweep(setting.spec("osnet_x0_25"), split, attacks, eps, out)
    scale = queries / measured
    pictures = sum(1 for _ in out.rglob("*.jpg"))
    return Done(
        seconds=spent.gallery + scale * spent.queries,
        facts={
            "pictures": pictures * scale,
            "gradients per query": spent.gradients,
            "seconds for the gallery": spent.gallery,
        },
    )


def same_count(done: Mapping[str, Done]) -> list[str]:
    """As many adversarial pictures from both."""
    made = {name: one.facts["pictures"] for name, one in done.items()}
    return [] if len(set(made.values())) == 1 else [f"adversarial pictures made: {made}"]
