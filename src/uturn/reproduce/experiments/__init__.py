"""The experiments by name, in the order in which ``uturn reproduce all`` does them."""

from __future__ import annotations

from uturn.reproduce.experiment import Experiment
from uturn.reproduce.experiments.cifar import CIFAR10
from uturn.reproduce.experiments.defence import DEFENCE, DEFENCE_GLYPHS
from uturn.reproduce.experiments.figures import FIGURES
from uturn.reproduce.experiments.glyphs import GLYPHS
from uturn.reproduce.experiments.objects import CUB200, FOOD256, GROCERIES_CURVES, MULTISCALE
from uturn.reproduce.experiments.people import MARKET1501, PARTS
from uturn.reproduce.experiments.transfer import TRANSFER, TRANSFER_GLYPHS
from uturn.reproduce.experiments.turn import TURN, TURN_CIFAR10

EXPERIMENTS: dict[str, Experiment] = {
    each.name: each
    for each in (
        *(GLYPHS, TURN, TRANSFER_GLYPHS, DEFENCE_GLYPHS),
        *(GROCERIES_CURVES, MULTISCALE, CIFAR10, TURN_CIFAR10),
        *(MARKET1501, FIGURES, PARTS, TRANSFER, DEFENCE),
        *(CUB200, FOOD256),
    )
}
"""What needs no download comes first, then what is quick."""
