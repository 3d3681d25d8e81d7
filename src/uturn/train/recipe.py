"""The recipe: everything that decides what training makes. A frozen value, checked up front."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

from uturn import specs
from uturn.errors import ArgumentError
from uturn.train import losses
from uturn.train.adversarial import known as known_adversary
from uturn.train.augment import load_augmentation
from uturn.train.batches import load_sampler

Optimiser = Literal["adamw", "sgd"]
"""AdamW (Loshchilov & Hutter, ICLR 2019), or SGD with a Nesterov momentum of 0.9."""

Precision = Literal["float32", "bfloat16"]
"""``bfloat16`` is autocast: quicker on GPUs and on CPUs with AMX, slower on others."""


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. The defaults are those of the shipped glyph network."""

    data: str
    arch: str
    """The spec of an architecture without weights, such as ``ft_net:backbone=mobilenet_v2`` or
    ``timm:resnet50``."""
    weights: str | None = None
    """Start from this file, or from this victim (``glyph_net``, ``timm:resnet50,pretrained=yes``):
    the network's own weights, or its backbone's. None is random."""
    size: tuple[int, int] | None = None
    """(H, W) of the pictures; None is the architecture's."""
    loss: tuple[str, ...] = ("identity",)
    """Specs of `uturn.train.losses`, summed."""
    augment: tuple[str, ...] = ("shift",)
    """Specs of `uturn.train.augment`, in this order."""
    sampler: str = "shuffled"
    """A spec of `uturn.train.batches`."""
    epochs: int = 24
    batch_size: int = 128
    optimiser: Optimiser = "adamw"
    lr: float = 4e-3
    """The highest learning rate of a one-cycle schedule."""
    body_lr: float = 1.0
    """Times ``lr``, for tensors that ``weights`` filled."""
    weight_decay: float = 0.05
    warm_up: float = 0.3
    """The share of steps in which the learning rate rises."""
    adversary: str | None = None
    """A spec of `uturn.train.adversarial`: an attack's, made on the fly from the current weights,
    or ``act``."""
    adv_eps: float = 8.0
    """In levels; each step draws its own up to this one."""
    adv_share: float = 0.5
    """The share of each batch that is attacked, and learned beside the clean pictures."""
    adv_consistency: float = 0.0
    """The weight of 1 − cos between a picture's feature and its adversarial partner's."""
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        for name in ("loss", "augment"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.size is not None:
            object.__setattr__(self, "size", tuple(self.size))
        specs.choose("optimiser", self.optimiser, get_args(Optimiser))
        specs.choose("precision", self.precision, get_args(Precision))
        for spec in self.augment:
            load_augmentation(spec)
        for spec in self.loss:
            losses.known(spec)
        if not self.loss:
            raise ArgumentError("training needs a loss, such as identity")
        load_sampler(self.sampler)
        if self.adversary is not None:
            known_adversary(self.adversary, self.adv_eps, self.adv_consistency)
        if self.epochs < 1 or self.batch_size < 2:
            raise ArgumentError("training needs at least 1 epoch and batches of at least 2")
        if not (self.lr > 0 and self.weight_decay >= 0 and self.body_lr >= 0):
            raise ArgumentError(
                "the learning rates must be positive, the weight decay not negative"
            )
        if not (0 <= self.warm_up < 1 and 0 < self.adv_share <= 1):
            raise ArgumentError("warm_up and adv_share are shares, between 0 and 1")

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON holds it."""
        loaded: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return loaded
