"""The U-turn picture: features of two dimensions, which the attack turns round."""

from __future__ import annotations

from dataclasses import replace

from uturn.reproduce import draw
from uturn.reproduce.claims import AtLeast, AtMost, Claim, Fact
from uturn.reproduce.experiment import PRESETS, Experiment, Preset
from uturn.reproduce.experiments.victims import RESNET20
from uturn.reproduce.steps import Circle, Draw, Step, Train, Turn
from uturn.train.recipe import Recipe

_FLAT = ("identity:head=linear,bias=no",)
"""A logit is the feature's component along the class's direction W, which can be drawn."""


PUBLISHED, RAW = "odfa", "odfa:target=raw"


def _picture(victim: Train, queries: int, drawn: str) -> tuple[Step, ...]:
    turns = {
        attack: Turn(f"{victim.name}_{name}", victim.spec, victim.recipe.data, queries, attack)
        for name, attack in (("unit", PUBLISHED), ("raw", RAW))
    }
    return victim, *turns.values(), Draw(f"{victim.name}_turned", (turns[drawn],), draw.turned)


def _claims(victim: str) -> tuple[Claim, ...]:
    return tuple(
        claim
        for name, attack in (("unit", PUBLISHED), ("raw", RAW))
        for claim in (
            Claim(
                f"`{attack}` turns features by 150° or more on average at ε = 16",
                AtLeast(Fact(f"{victim}_{name}", "angle at ε=16"), 150),
            ),
            Claim(
                f"`{attack}` leaves a top-1 of 0.05 or less at ε = 16",
                AtMost(Fact(f"{victim}_{name}", "top1 at ε=16"), 0.05),
            ),
        )
    )


_TARGETS = (
    "`odfa` goes towards the unit feature's opposite −f/‖f‖, `odfa:target=raw` towards −f itself, "
    "straight through the origin."
)

_DIGITS = Recipe(
    data="digits",
    arch="glyph_net:features=2",
    loss=_FLAT,
    epochs=4,
    batch_size=128,
    lr=4e-3,
    weight_decay=1e-4,
)

TURN = Experiment(
    name="turn",
    title="The U-turn picture on digits",
    repeats="The paper's picture in which features of two dimensions turn round as ε grows, with "
    "the class directions W, and its concept figure from real features: fast-gradient goes away "
    "from W_max, least-likely towards W_min, the U-turn towards −f.",
    presets={
        "cpu": _picture(Train("digits_2d", _DIGITS), 500, RAW),
        "gpu": _picture(Train("digits_2d", _DIGITS), 1200, RAW),
        "paper": _picture(Train("digits_2d", _DIGITS), 1200, RAW),
    },
    claims=_claims("digits_2d"),
    differs=(
        "Ten digits in twelve typefaces, drawn when asked: nothing to download. The paper's "
        "picture is of CIFAR-10 (experiment `turn_cifar10`).",
        _TARGETS,
    ),
)


def _cifar(preset: Preset) -> tuple[Step, ...]:
    classifier = RESNET20[preset]
    start = Circle("cifar10_circle", classifier.spec)
    recipe = replace(
        classifier.recipe,
        arch="cifar_resnet20:features=2",
        weights=start.spec,
        loss=_FLAT,
        epochs={"cpu": 4, "gpu": 20, "paper": 20}[preset],
        optimiser="adamw",
        lr=0.02,
        body_lr=0.1,
        weight_decay=1e-4,
    )
    queries = 500 if preset == "cpu" else 2000
    return classifier, start, *_picture(Train("cifar10_2d", recipe), queries, PUBLISHED)


TURN_CIFAR10 = Experiment(
    name="turn_cifar10",
    title="The U-turn picture on CIFAR-10",
    repeats=TURN.repeats,
    presets={preset: _cifar(preset) for preset in PRESETS},
    claims=_claims("cifar10_2d"),
    differs=(
        "The network is the ResNet-20 of experiment `cifar10`, which goes on with a feature of two "
        "dimensions in front of a linear classifier without bias. It starts from that classifier's "
        "logits laid out on a circle, so that every class has a ray of its own; with so few "
        "dimensions it classifies fewer pictures rightly than before.",
        _TARGETS,
    ),
)
