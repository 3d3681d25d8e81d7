"""Training a victim by identity classification, with a look at its retrieval at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn import specs
from uturn.data.catalog import load_data
from uturn.data.pictures import Pictures
from uturn.errors import ArgumentError
from uturn.progress import bar
from uturn.retrieval.evaluate import evaluate
from uturn.train.augment import AUGMENTATIONS
from uturn.victims import checkpoints
from uturn.victims.classifiers import CosineClassifier
from uturn.victims.victim import Victim, to_pixels
from uturn.victims.zoo import Architecture, architecture


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train: cosine softmax, AdamW, one-cycle learning rate."""

    data: str
    arch: str
    epochs: int = 24
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.05
    scale: float = 20.0
    augment: tuple[str, ...] = ("shift",)
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.augment:
            specs.choose("augmentation", name, AUGMENTATIONS)
        if self.epochs < 1 or self.batch_size < 2:
            raise ArgumentError("training needs at least 1 epoch and batches of at least 2")
        if not (self.lr > 0 and self.weight_decay >= 0 and self.scale > 0):
            raise ArgumentError("learning rate and scale must be positive")


def train(recipe: Recipe, out: Path, *, progress: bool = True) -> float:
    """Train by ``recipe``, write ``out`` (safetensors), and return Recall@1 on the split.

    Raises:
        ArgumentError: the data set has no training pictures. CheckpointError: ``out`` cannot
        be written.
    """
    checkpoints.require_writable(out)
    chosen, split = architecture(recipe.arch), load_data(recipe.data)
    if split.train is None:
        raise ArgumentError(f"{recipe.data} has no training pictures")
    torch.manual_seed(recipe.seed)  # the initial weights
    rng = torch.Generator().manual_seed(recipe.seed)  # order and augmentation
    device = torch.device(recipe.device)
    network = chosen.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, classes = _load(chosen, split.train)
    head = CosineClassifier(chosen.features, int(classes.max()) + 1, recipe.scale).to(device)
    optimiser = torch.optim.AdamW(
        [*network.parameters(), *head.parameters()], recipe.lr, weight_decay=recipe.weight_decay
    )
    per_epoch = len(images) // recipe.batch_size
    if per_epoch == 0:
        raise ArgumentError(
            f"{len(images)} training pictures do not fill a batch of {recipe.batch_size}; "
            "choose a smaller batch size"
        )
    steps = recipe.epochs * per_epoch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=steps)
    normalise = chosen.preprocessing.normalise
    with bar(steps, "training", "step", show=progress) as shown:
        for _ in range(recipe.epochs):
            network.train()
            order = torch.randperm(len(images), generator=rng)
            for batch in torch.split(order[: per_epoch * recipe.batch_size], recipe.batch_size):
                picked = images[batch]
                for name in recipe.augment:
                    picked = AUGMENTATIONS[name](picked, rng)
                features = network(normalise(to_pixels(picked.to(device))))
                loss = F.cross_entropy(head(features), classes[batch].to(device))
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
                shown.update()
            shown.set_postfix_str(f"loss {loss.item():.3f}")
    tensors = {**network.state_dict()}
    tensors |= {f"classifier.{key}": value for key, value in head.state_dict().items()}
    checkpoints.write(out, tensors, checkpoints.Card(chosen.preprocessing, "cosine"))
    victim = Victim(
        name=recipe.arch,
        network=network,
        preprocessing=chosen.preprocessing,
        device=device,
        layout=torch.channels_last,
    )
    recall = evaluate(victim, split, progress=progress)["recall@1"]
    return float(recall) if recall is not None else math.nan


def _load(chosen: Architecture, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """All training pictures on the network's grid, uint8, and their classes 0 … C−1."""
    images = chosen.preprocessing.grid(map(pictures.read, range(len(pictures))))
    _, classes = np.unique(pictures.identities, return_inverse=True)
    return images, torch.from_numpy(classes)
