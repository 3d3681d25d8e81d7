"""Figures across experiments: three data sets by three metrics, as the paper has them."""

from __future__ import annotations

from uturn.reproduce import draw
from uturn.reproduce.experiment import PRESETS, Experiment
from uturn.reproduce.experiments.glyphs import GLYPHS
from uturn.reproduce.experiments.objects import GROCERIES_CURVES
from uturn.reproduce.experiments.people import MARKET1501
from uturn.reproduce.steps import Draw, Step, Sweep, Train

_OF = (MARKET1501, GROCERIES_CURVES, GLYPHS)


def _steps(preset: str) -> tuple[Step, ...]:
    names = [each.name for each in _OF]
    steps = [step for each in _OF for step in each.presets[preset] if step.name in names]
    curves = tuple(step for step in steps if isinstance(step, Sweep))
    trained = (step for step in steps if isinstance(step, Train))
    return (*trained, *curves, Draw("three_data_sets", curves, draw.curves))


FIGURES = Experiment(
    name="figures",
    title="Three data sets by three metrics",
    repeats="The paper's figure of Recall@1, Recall@10 and mAP over ε on three data sets, from the "
    "runs of `market1501`, `grocery` and `glyphs`.",
    presets={preset: _steps(preset) for preset in PRESETS},
    differs=(
        "The paper's three are Market-1501, CUB-200-2011 and Food-256; tables and claims are on "
        "the pages of the three experiments.",
    ),
)
