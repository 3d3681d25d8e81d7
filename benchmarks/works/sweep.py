"""A whole sweep at once, against every (attack, ε) run on its own by the same code."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from benchmarks.harness import Case, Contender, Do, Done, MissingError, Target
from benchmarks.setting import QUICKEST, Setting
from uturn.sweep import Plan, run

ATTACKS = ("fast", "basic", "least_likely", "odfa")
EPS = (2.0, 4.0, 8.0, 12.0, 16.0)
APART = "each (attack, ε) on its own"
GRADIENTS = "gradients per query"


def cases(setting: Setting) -> Iterator[Case]:
    """On glyphs; on a part of Market-1501 where it is. Quick: on noise alone."""
    if not setting.quick:
        yield sweeping(setting, "glyph_net", "glyphs", 512)
    try:
        data = setting.small_market()
    except MissingError:
        return
    spec = setting.spec("osnet_x0_25")
    yield sweeping(setting, spec, data, setting.size(64, 4))


def sweeping(setting: Setting, victim: str, data: str, queries: int) -> Case:
    """Four attacks at five ε."""
    attacks, eps = (ATTACKS[1:3], EPS[:2]) if setting.quick else (ATTACKS, EPS)
    name = data.partition(":")[0]

    def plan(some: tuple[str, ...], levels: tuple[float, ...]) -> Plan:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return Plan(
            victim=victim,
            data=data,
            attacks=some,
            eps=levels,
            queries=queries,
            precision=QUICKEST,
            device=device,
        )

    together = {"all": plan(attacks, eps)}
    apart = {f"{attack}-{e:g}": plan((attack,), (e,)) for attack in attacks for e in eps}

    def make(plans: Mapping[str, Plan], out: Path) -> Callable[[], Do]:
        return lambda: lambda: swept(plans, out)

    root = setting.scratch / f"sweep_{name}"
    return Case(
        work="sweep",
        name=f"sweep, {name}",
        title=f"{', '.join(attacks)} × ε = {', '.join(f'{e:g}' for e in eps)} on {queries} "
        f"queries of {name}, victim {victim.partition(':')[0]}",
        contenders=(
            Contender("uturn", "ours", make(together, root / "together")),
            Contender(APART, "peer", make(apart, root / "apart"), "the same code"),
        ),
        reference=APART,
        targets=(Target("uturn", 0.55), Target("uturn", 82, GRADIENTS)),
        same_work=same_pictures,
        most=3,
    )


def swept(plans: Mapping[str, Plan], out: Path) -> Done:
    """Run ``plans`` anew; the product is the pictures by attack, ε and name."""
    shutil.rmtree(out, ignore_errors=True)
    gradients, inside = 0.0, 0.0
    for name, plan in plans.items():
        rows = run(plan, out / name, progress=False)
        inside += sum(row["seconds"] for row in rows)
        gradients += spent(out / name) / rows[0]["queries"]
    pictures = {
        str(file.relative_to(images)): file
        for images in out.glob("*/images")
        for file in sorted(images.rglob("*.png"))
    }
    return Done(pictures, facts={GRADIENTS: gradients, "seconds in attacks": inside})


def spent(run_folder: Path) -> int:
    """Gradients that a sweep took, over all queries."""
    header = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
    counted: int = header["gradients"]["spent"]
    return counted


def same_pictures(done: Mapping[str, Done]) -> list[str]:
    """The same PNGs, byte by byte."""
    ours, apart = done["uturn"].product, done[APART].product
    if ours.keys() != apart.keys():
        return [f"{len(ours)} pictures at once, {len(apart)} apart"]
    unequal = [key for key in ours if not filecmp.cmp(ours[key], apart[key], shallow=False)]
    return [f"{len(unequal)} of {len(ours)} PNGs differ, first {unequal[0]}"] if unequal else []
