"""A sweep of Market-1501's size on a GPU, as a share of what that GPU was measured to do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Case, Contender, Done, MissingError, Target
from benchmarks.setting import QUICKEST, Setting
from benchmarks.works.sweep import ATTACKS, EPS, GRADIENTS, spent
from uturn.sweep import Plan, run
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim

SHARE = "share of the bf16 ceiling"


def cases(setting: Setting) -> Iterator[Case]:
    """ResNet-50, 3,368 queries, four attacks at five ε.

    Raises:
        MissingError: no GPU.
    """
    if not torch.cuda.is_available():
        raise MissingError("no CUDA device here; the GPU row is measured where one is lent")
    queries, gallery = setting.size(3368, 8), setting.size(19732, 64)
    try:
        data = setting.market()
    except MissingError:  # data that may not travel: noise is as much work
        data = setting.made_market(queries, gallery)
    plan = Plan(
        victim=setting.spec("resnet50"),
        data=data,
        attacks=ATTACKS,
        eps=EPS,
        queries=queries,
        precision=QUICKEST,
        device="cuda",
    )
    ceiling, copied = bf16_ceiling(), copy_ceiling()
    victim = load_victim(setting.spec("resnet50"), "cuda")
    work = gradient_flops(victim)

    def do() -> Done:
        out = setting.scratch / "gpu"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        rows = run(plan, out, progress=False)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        gradients = spent(out)
        inside = sum(row["seconds"] for row in rows)
        return Done(
            seconds=seconds,
            facts={
                "seconds": seconds,
                "seconds in attacks": inside,
                GRADIENTS: gradients / queries,
                SHARE: gradients * work / inside / ceiling,
                "bf16 ceiling, TFLOP/s": ceiling / 1e12,
                "copy ceiling, GB/s": copied / 1e9,
            },
        )

    yield Case(
        work="gpu",
        name="sweep on a GPU",
        title=f"{len(ATTACKS)} attacks × {len(EPS)} ε, {queries} queries, ResNet-50 with random "
        f"weights, gallery of {gallery} embedded too, on {torch.cuda.get_device_name()}",
        contenders=(Contender("uturn", "ours", lambda: do),),
        reference="uturn",
        targets=(Target("uturn", 60, "seconds"),),
        most=3,
    )


def gradient_flops(victim: Victim) -> float:
    """Floating point operations of one gradient of one picture: forward, and back to pixels."""
    pixels = torch.rand(2, 3, *victim.preprocessing.size, device=victim.device).requires_grad_()
    counter: Any = FlopCounterMode(display=False)
    with counter:
        torch.autograd.grad(victim.features(pixels).sum(), pixels)
    return float(counter.get_total_flops()) / len(pixels)


def bf16_ceiling(side: int = 8192) -> float:
    """Operations per second of a large bf16 matrix product, as measured."""
    left, right = (torch.randn(side, side, device="cuda").bfloat16() for _ in range(2))
    return 2 * side**3 / _fastest(lambda: left @ right)


def copy_ceiling(size: int = 1 << 30) -> float:
    """Bytes per second that a copy within the device reads and writes, as measured."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source))


def _fastest(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
