"""Changes that look at no gradient of the query: one perturbation for all, and plain noise."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from uturn.attacks.objectives import Objective, OppositeDirection
from uturn.attacks.problem import Attacker, Batch, Found, Problem
from uturn.attacks.steps import Info, Linear, Momentum, Sign, When, chain, now
from uturn.attacks.threats import LInf
from uturn.attacks.views import Identity
from uturn.data.pictures import Pictures
from uturn.errors import ArgumentError, CheckpointError
from uturn.progress import bar
from uturn.rng import generator
from uturn.storage import json_of
from uturn.types import LEVELS, Levels, Scene
from uturn.victims import checkpoints
from uturn.victims.victim import Victim

_KEY = "uturn-universal"


@final
@dataclass(frozen=True, kw_only=True)
class Universal:
    """A perturbation that is there already: the same for every picture, no gradient spent.

    Pictures of another size get it resized. Learned by `learn`, read by `read`.

    Source: Moosavi-Dezfooli et al., "Universal Adversarial Perturbations", CVPR 2017.
    """

    threat: LInf
    source: str
    """The file it is from, and what it says of its making."""

    fingerprint: str
    delta: Levels = field(repr=False, compare=False)
    """``(1, 3, H, W)``, whole levels."""

    objective: None = None
    gradients: int = 0
    draws: ClassVar = False

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        clean, delta = batch.clean, self.delta.to(batch.clean)
        if delta.shape[2:] != clean.shape[2:]:
            delta = F.interpolate(delta, clean.shape[2:], mode="bilinear", align_corners=False)
        return Found(self.threat.project(delta.expand_as(clean), clean))

    def save(self, path: Path) -> None:
        """Write the perturbation and where it is from (``.safetensors``)."""
        card = json.dumps({"eps": self.threat.eps, "source": self.source})
        checkpoints.write_tensors(path, {"delta": self.delta.to(torch.int16)}, {_KEY: card})


@final
@dataclass(frozen=True)
class RandomSigns:
    """Every value up or down by ε, drawn from (seed, name): noise of the largest size."""

    threat: LInf
    objective: None = None
    gradients: int = 0

    __call__ = Attacker.__call__

    def find(self, batch: Batch) -> Found:
        clean, shape = batch.clean, tuple(batch.clean.shape[1:])
        rngs = [generator(batch.seed, key, "noise") for key in batch.keys]
        signs = np.stack([2 * rng.integers(0, 2, shape) - 1 for rng in rngs])
        delta = torch.from_numpy(signs).to(clean) * math.floor(self.threat.eps)
        return Found(self.threat.project(delta, clean))


def read(path: Path, eps: float) -> Universal:
    """Read a perturbation that `Universal.save` wrote, to be used at ``eps``.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
        ArgumentError: it was learned for another ε: a smaller one would waste budget, a larger
            one would be cut off.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            card = json_of((file.metadata() or {})[_KEY])
            delta = file.get_tensor("delta").float()
        learned, source = float(card["eps"]), str(card["source"])
    except FileNotFoundError:
        raise CheckpointError(f"there is no perturbation at {path}") from None
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} holds no perturbation of uturn ({error}); make one with `uturn universal`"
        ) from error
    if delta.ndim != 4 or delta.shape[:2] != (1, 3) or bool((delta.abs() > learned).any()):
        raise CheckpointError(f"{path} holds no perturbation (1, 3, H, W) within ε = {learned:g}")
    if learned != eps:
        raise ArgumentError(
            f"{path} was learned for ε = {learned:g}; use it at that ε, or learn one for {eps:g}"
        )
    return _universal(delta, eps, source)


def learn(
    victim: Victim,
    pictures: Pictures,
    *,
    eps: float,
    objective: Objective | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> Universal:
    """Learn one perturbation from ``pictures`` (a training split: never from queries).

    Climbs the mean objective (default: the centred U-turn) over batches, one gradient per
    picture and epoch, from a random start of ±1 level.
    """
    objective = objective or OppositeDirection(centre=1.0)
    threat, order = LInf(eps), generator(seed, "universal", "order")
    batches = [
        part
        for _ in range(epochs)
        for part in _batches(order.permutation(len(pictures)).tolist(), batch_size)
    ]
    if not batches:
        raise ArgumentError("there is nothing to learn a perturbation from")
    first = victim.grid([pictures.read(0)]).float()
    step = chain(Momentum(0.9), Sign(Linear(max(1.0, eps / 4), 0.25)))
    signs = generator(seed, "universal", "start").integers(0, 2, tuple(first.shape)) * 2 - 1
    delta = torch.from_numpy(signs).to(victim.device, torch.float32)
    state = step.init(delta)
    with bar(len(batches), "learning one perturbation", "batch", show=progress) as shown:
        for index, batch in enumerate(batches):
            clean = victim.grid(map(pictures.read, batch)).to(victim.device).float()
            problem = Problem(
                clean=clean,
                loss=objective.bind(victim, clean / LEVELS, Scene()),
                threat=threat,
                views=(Identity(),),
                names=[pictures.names[i] for i in batch],
                seed=seed,
            )
            slope = problem.slope(problem.project(delta.expand_as(clean)))
            grad = slope.grad.mean(0, keepdim=True)
            present = now(step, When(index, len(batches)))
            update, state = present.update(grad, state, Info(index))
            delta = (delta + update).clamp(-eps, eps)
            shown.update(1)
    spent = f"{objective}, {len(pictures)} pictures, {epochs} epochs, seed {seed}, of {victim}"
    return _universal(delta.round().clamp(-int(eps), int(eps)).cpu(), eps, spent)


def _batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def _universal(delta: Levels, eps: float, source: str) -> Universal:
    digest = hashlib.blake2b(delta.to(torch.int16).numpy().tobytes(), digest_size=16).hexdigest()
    return Universal(threat=LInf(eps), source=source, fingerprint=digest, delta=delta)
