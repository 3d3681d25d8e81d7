"""Curves on the embedded default: nothing to download, minutes on two cores."""

from __future__ import annotations

from dataclasses import replace

from uturn.reproduce import draw
from uturn.reproduce.experiment import PRESETS, Experiment, Preset, Table
from uturn.reproduce.experiments.common import PROTOCOL, START, STRONGER, curve_plan, ordering
from uturn.reproduce.steps import Draw, Sweep


def glyphs(preset: Preset) -> Sweep:
    """The sweep on the shipped network."""
    plan = curve_plan("glyph_net", "glyphs", 500 if preset == "cpu" else None)
    return Sweep("glyphs", plan if preset == "cpu" else replace(plan, batch_size=256))


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
