"""What is left of Recall@1 by a search in half precision, against one in float32."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping

import torch

from benchmarks.harness import Case, Contender, Do, Done, MissingError
from benchmarks.setting import FLOAT, QUICKEST, Setting
from uturn.sweep import Plan, run
from uturn.victims.victim import Precision

LEVELS = (2.0, 4.0)
"""Budgets that leave something: at larger ones everything is lost, whoever searches."""


def cases(setting: Setting) -> Iterator[Case]:
    """Recall@1 after U-turns by each of ours, scored by the same network in float32.

    Raises:
        MissingError: the weights or the pictures are not here.
    """
    if not setting.quick and not setting.real("osnet_x0_25"):
        raise MissingError(
            "OSNet's trained weights are not here; name a folder with "
            "osnet_x0_25_market1501.pth by UTURN_BENCH_DATA"
        )
    queries, data = setting.size(500, 8), setting.market()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def by(name: str, precision: Precision) -> Callable[[], Do]:
        plan = Plan(
            victim=setting.spec("osnet_x0_25"),
            data=data,
            attacks=("odfa",),
            eps=LEVELS,
            queries=queries,
            precision=precision,
            device=device,
        )
        out = setting.scratch / "recall" / name.replace(" ", "_")

        def do() -> Done:
            shutil.rmtree(out, ignore_errors=True)  # or it would only be carried on
            rows = run(plan, out, progress=False)[-len(LEVELS) :]
            return Done(facts={f"R@1 at ε={row['eps']}": row["recall@1"] for row in rows})

        return lambda: do

    yield Case(
        work="recall",
        name="recall, osnet_x0_25",
        title=f"Recall@1 of {queries} queries after U-turns at ε = 2, 4, scored in float32, "
        "the gallery embedded before",
        contenders=(
            Contender("uturn", "ours", by("uturn", QUICKEST)),
            Contender(FLOAT, "ours", by(FLOAT, "float32")),
        ),
        reference=FLOAT,
        # Of eight queries by random weights a point means nothing.
        same_work=(lambda done: []) if setting.quick else within_a_point,
        most=3,
    )


def within_a_point(done: Mapping[str, Done]) -> list[str]:
    """Recall@1 is within 0.01 of what float32 leaves, at every ε."""
    return [
        f"{name}: {key} is {value:.4f}, in float32 {done[FLOAT].facts[key]:.4f}"
        for name, one in done.items()
        for key, value in one.facts.items()
        if abs(value - done[FLOAT].facts[key]) > 0.01
    ]
