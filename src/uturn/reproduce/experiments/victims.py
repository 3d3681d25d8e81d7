"""The victims that experiments train, at every size; several experiments share one."""

from __future__ import annotations

from dataclasses import replace

from uturn.reproduce.experiment import Preset
from uturn.reproduce.steps import Train
from uturn.train.recipe import Recipe

MARKET = "market1501:{market1501}"
CIFAR = "cifar10:{cifar10}"
GROCERY = "grocery:{grocery},classes=unseen"

_MOBILE = Recipe(
    data=MARKET,
    arch="ft_net:backbone=mobilenet_v2,last_stride=1",
    weights="{mobilenet_weights}",
    size=(128, 64),
    loss=("identity:head=linear,smoothing=0.1", "triplet:margin=0.3"),
    sampler="pk:pictures=4",
    augment=("flip", "crop:pad=0.08", "erase:share=0.5"),
    epochs=20,
    batch_size=64,
    lr=7e-4,
    warm_up=0.2,
)
_RESNET = replace(
    _MOBILE,
    arch="ft_net:last_stride=1",
    weights="{resnet50_weights}",
    size=(256, 128),
    epochs=40,
    lr=3.5e-4,
    precision="bfloat16",
)
_PUBLISHED = Recipe(
    data=MARKET,
    arch="ft_net",
    weights="{resnet50_weights}",
    size=(256, 128),
    loss=("identity:head=linear",),
    augment=("flip", "crop:pad=0.08"),
    epochs=60,
    batch_size=32,
    optimiser="sgd",
    lr=0.05,
    body_lr=0.1,
    weight_decay=5e-4,
    warm_up=0.1,
)
"""Zheng's baseline, which the paper attacks, but for its learning rate's steps: one cycle here."""

BASELINE: dict[Preset, Train] = {
    "cpu": Train("market1501", _MOBILE),
    "gpu": Train("market1501", _RESNET),
    "paper": Train("market1501", _PUBLISHED),
}

DENSENET: dict[Preset, Train] = {
    "gpu": Train(
        "market1501_densenet",
        replace(_RESNET, arch="ft_net_dense", weights="{densenet121_weights}"),
    ),
    "paper": Train(
        "market1501_densenet",
        replace(_PUBLISHED, arch="ft_net_dense", weights="{densenet121_weights}"),
    ),
}

_PARTS = ("identity:smoothing=0.1",)
PCB: dict[Preset, Train] = {
    "cpu": Train(
        "market1501_pcb",
        replace(
            _MOBILE,
            arch="pcb:backbone=mobilenet_v2,parts=4",
            loss=(*_PARTS, "triplet:margin=0.3"),
        ),
    ),
    "gpu": Train(
        "market1501_pcb",
        replace(_RESNET, arch="pcb", size=(384, 192), loss=_PARTS, sampler="shuffled"),
    ),
    "paper": Train(
        "market1501_pcb",
        replace(_PUBLISHED, arch="pcb", size=(384, 192), loss=("identity",), lr=0.02),
    ),
}


def classifier(
    name: str, data: str, head: str, *, epochs: int, size: tuple[int, int]
) -> dict[Preset, Train]:
    """An open set's victims: an ImageNet network that learns the training classes."""
    small = Recipe(
        data=data,
        arch="mobilenet_v2",
        weights="{mobilenet_weights}",
        size=size,
        loss=(head,),
        augment=("flip", "crop:pad=0.08", "jitter"),
        epochs=epochs,
        batch_size=64,
        lr=5e-4,
        warm_up=0.2,
    )
    large = replace(
        small,
        arch="ft_net:last_stride=1",
        weights="{resnet50_weights}",
        size=(224, 224),
        epochs=20,
        lr=2e-4,
        precision="bfloat16",
    )
    paper = replace(
        _PUBLISHED, data=data, size=(224, 224), augment=("flip", "crop:pad=0.08"), epochs=60
    )
    return {"cpu": Train(name, small), "gpu": Train(name, large), "paper": Train(name, paper)}


_SMOOTH = "identity:head=linear,smoothing=0.1"
GROCERIES = classifier("grocery", GROCERY, _SMOOTH, epochs=8, size=(128, 128))
BIRDS = classifier("cub200", "cub200:{cub200}", _SMOOTH, epochs=8, size=(128, 128))
DISHES = classifier("food256", "food256:{food256}", _SMOOTH, epochs=4, size=(128, 128))

_CIFAR = Recipe(
    data=CIFAR,
    arch="cifar_resnet20",
    loss=("identity:head=linear",),
    augment=("flip", "crop:pad=0.125"),
    epochs=20,
    batch_size=128,
    optimiser="sgd",
    lr=0.1,
    weight_decay=5e-4,
    warm_up=0.3,
)
RESNET20: dict[Preset, Train] = {
    "cpu": Train("cifar10_resnet20", _CIFAR),
    "gpu": Train("cifar10_resnet20", replace(_CIFAR, epochs=100)),
    "paper": Train("cifar10_resnet20", replace(_CIFAR, epochs=200, weight_decay=1e-4)),
}
_WIDE = replace(_CIFAR, arch="wrn_28_10", precision="bfloat16")
WIDE: dict[Preset, Train] = {
    "gpu": Train("cifar10_wrn_28_10", replace(_WIDE, epochs=20)),
    "paper": Train("cifar10_wrn_28_10", replace(_WIDE, epochs=200)),
}

_LETTERS = Recipe(
    data="glyphs",
    arch="resnet18",
    size=(32, 32),
    augment=("shift", "recolour"),
    epochs=8,
    lr=2e-3,
)


def _letters(name: str, arch: str) -> dict[Preset, Train]:
    few, many = replace(_LETTERS, arch=arch), replace(_LETTERS, arch=arch, epochs=24)
    return {"cpu": Train(name, few), "gpu": Train(name, many), "paper": Train(name, many)}


GLYPHS_RES = _letters("glyphs_resnet", "resnet18")
GLYPHS_DENSE = _letters("glyphs_densenet", "densenet121")
