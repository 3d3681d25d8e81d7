"""The peers, each called as its own documentation shows.

All three attack a classifier. Its users get at an embedding by wrapping it as one: two logits,
the cosine to where the picture was and its opposite, the label 0. Raising the cross-entropy then
means to lower the cosine, which is to go towards −f.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import MissingError
from uturn.types import Pixels
from uturn.victims.victim import Victim


def as_loaded(network: nn.Module) -> nn.Module:
    """A copy of a network as PyTorch loads one for evaluation.

    Its memory format is the default, its parameters want gradients; that costs nothing where
    those of the pixels alone are asked for.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(True)
    plain: nn.Module = copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain


@final
class Embedding(nn.Module):
    """Pixels → unit features ``(B, D)``; counts the gradients that arrive at the pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.network = as_loaded(victim.network)
        mean, std = victim.preprocessing.mean, victim.preprocessing.std
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.to(victim.device)
        self.gradients = 0

    def forward(self, pixels: Pixels) -> Tensor:
        if pixels.requires_grad:
            pixels.register_hook(self._count)  # type: ignore[no-untyped-call]
        features: Tensor = self.network((pixels - self.mean) / self.std)
        return F.normalize(features, dim=1)

    def _count(self, grad: Tensor) -> None:
        self.gradients += 1


@final
class Turned(nn.Module):
    """Two logits per picture: the cosine to ``home`` ``(B, D)``, and less the cosine."""

    def __init__(self, embedding: Embedding, home: Tensor) -> None:
        super().__init__()
        self.embedding, self.home = embedding, home

    def forward(self, pixels: Pixels) -> Tensor:
        cosine = (self.embedding(pixels) * self.home).sum(1)
        return torch.stack([cosine, -cosine], dim=1)


Turn = Callable[[Turned, Pixels, float, int], Pixels]
"""A classifier, pixels ``(B, 3, H, W)``, ε in levels and a number of steps of one level each →
adversarial pixels."""


def torchattacks() -> Turn:
    """Kim, "Torchattacks", 2020: its BIM."""
    library = _load("torchattacks", "torchattacks")

    def turn(model: Turned, pixels: Pixels, eps: float, steps: int) -> Pixels:
        attack = library.BIM(model, eps=eps / 255, alpha=1 / 255, steps=steps)
        labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        found: Pixels = attack(pixels, labels)
        return found

    return turn


def foolbox() -> Turn:
    """Rauber et al., "Foolbox Native", 2020: its basic iterative attack in L∞."""
    library = _load("foolbox", "foolbox")

    def turn(model: Turned, pixels: Pixels, eps: float, steps: int) -> Pixels:
        known = library.PyTorchModel(model.eval(), bounds=(0, 1), device=pixels.device)
        attack = library.attacks.LinfBasicIterativeAttack(
            abs_stepsize=1 / 255, steps=steps, random_start=False
        )
        labels = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        _, found, _ = attack(known, pixels, labels, epsilons=eps / 255)
        clipped: Pixels = found
        return clipped

    return turn


def art() -> Turn:
    """Nicolae et al., "Adversarial Robustness Toolbox", 2018: its PGD without a random start."""
    evasion = _load("art.attacks.evasion", "adversarial-robustness-toolbox")
    classification = _load("art.estimators.classification", "adversarial-robustness-toolbox")

    def turn(model: Turned, pixels: Pixels, eps: float, steps: int) -> Pixels:
        known = classification.PyTorchClassifier(
            model=model.eval(),
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(pixels.shape[1:]),
            nb_classes=2,
            clip_values=(0.0, 1.0),
            device_type="gpu" if pixels.is_cuda else "cpu",
        )
        attack = evasion.ProjectedGradientDescent(
            known,
            eps=eps / 255,
            eps_step=1 / 255,
            max_iter=steps,
            batch_size=len(pixels),
            verbose=False,
        )
        labels = np.eye(2, dtype=np.float32)[np.zeros(len(pixels), dtype=np.int64)]
        found = attack.generate(x=pixels.cpu().numpy(), y=labels)
        return torch.from_numpy(found).to(pixels.device)

    return turn


PEERS: dict[str, Callable[[], Turn]] = {
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "ART": art,
}


def torchreid_rank() -> Any:
    """torchreid's module of CMC and mAP.

    Raises:
        MissingError: it is not installed.
    """
    return _load("torchreid.reid.metrics.rank", "torchreid")


def _load(module: str, package: str) -> Any:
    """A peer's module; torchvision, which some import, needs its operators declared first."""
    importlib.import_module("tests.shim").declare()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingError(
            f"{package} cannot be imported ({error}); `make bench` installs it"
        ) from error
