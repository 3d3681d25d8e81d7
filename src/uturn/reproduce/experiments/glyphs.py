"""Curves on the embedded default: nothing to download, minutes on two cores."""

from __future__ import annotations

from uturn.reproduce import draw
from uturn.reproduce.experiment import PRESETS, Experiment, Preset, Table
from uturn.reproduce.experiments.common import ATTACKS, EPS, PROTOCOL, START, STRONGER, ordering
from uturn.reproduce.steps import Draw, Sweep
from uturn.sweep import Plan


def glyphs(preset: Preset) -> Sweep:
    """The sweep on the shipped network."""
    plan = Plan(
        victim="glyph_net",
        data="glyphs",
        attacks=ATTACKS,
        eps=EPS,
        queries=500 if preset == "cpu" else None,
        seed=1,
        batch_size=50 if preset == "cpu" else 256,
    )
    return Sweep("glyphs", plan)


GLYPHS = Experiment(
    name="glyphs",
    title="Curves on glyphs, without any download",
    repeats="The shape of the paper's curves (Recall@1, Recall@10 and mAP over ε) on the open set "
    "of letters that ships with uturn. The paper has no such data set, so its ordering is asked.",
    presets={
        preset: (glyphs(preset), Draw("glyphs", (glyphs(preset),), draw.open_curves))
        for preset in PRESETS
    },
    tables=(Table(title="Glyphs, the shipped network", run="glyphs"),),
    claims=ordering("glyphs"),
    differs=(
        "Letters in twelve typefaces at 32×32 pixels, not photographs.",
        PROTOCOL,
        START,
        STRONGER,
    ),
)
