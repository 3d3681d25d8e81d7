"""The steps of the implementation published with the paper, in our own words.

Described after reading its files (U_turn, 2026-11), so that what it costs can be measured; no
code of it is here. Pictures are whitened; a step moves a whitened value by 1/(255 · 0.226); the
loss goes back through the weights too, whose gradients pile up unused; every step makes a new
leaf; a new picture is brought back into range picture by picture, by masks; one more pass than
there are steps is made, for a loss that nobody asks for. Then each (attack, ε) loads the network
anew, decodes the queries anew, writes JPEGs, loads the network again, reads them back, and
scores query by query with a full sort. The gallery is embedded once, before the first.

Left out, in its favour: starting a process for each of its scripts, copying the JPEGs into
folders by identity, its second look at every picture's mirror image, and its MATLAB files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd import Variable

from benchmarks.peers import as_loaded
from uturn.attacks.loop import iterations
from uturn.data.pictures import Picture, Pictures
from uturn.data.split import JUNK, Split
from uturn.victims.load import load_victim
from uturn.victims.victim import Victim

STEP = 1 / (255 * 0.226)
"""One step, in whitened values of every channel."""

_BATCH = 32

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Whitening:
    """Pixels in [0, 1] → whitened values and back, ``(3, 1, 1)`` each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, victim: Victim) -> Whitening:
        """By the victim's own mean and deviation."""
        found, on = victim.preprocessing, victim.device
        mean, std = torch.tensor(found.mean, device=on), torch.tensor(found.std, device=on)
        return cls(mean.view(3, 1, 1), std.view(3, 1, 1))

    def white(self, pixels: Tensor) -> Tensor:
        """``(pixels − mean) / std``."""
        return (pixels - self.mean) / self.std

    def levels(self, whitened: Tensor) -> Tensor:
        """uint8 pictures, truncated as the original truncates."""
        return ((whitened * self.std + self.mean) * 255).clamp(0, 255).to(torch.uint8)

    def inside(self, height: int, width: int) -> Callable[[Tensor], Tensor]:
        """What brings pictures of a size between black and white again, one after another."""
        black = self.white(self.mean.new_zeros(3, height, width))
        white = self.white(self.mean.new_ones(3, height, width))

        def bring(whitened: Tensor) -> Tensor:
            data = whitened.data
            for picture in data:
                under, over = picture < black, picture > white
                picture[under] = black[under]
                picture[over] = white[over]
            return Variable(data)

        return bring


def _unit(features: Tensor) -> Tensor:
    length = torch.norm(features, p=2, dim=1, keepdim=True)
    return features.div(length.expand_as(features))


Loss = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Attack:
    """What is looked at, and what of it shall fall: a loss made from the first look."""

    look: Callable[[Tensor], Tensor]
    aim: Callable[[Tensor], Loss]

    def climb(
        self, white: Whitening, whitened: Tensor, eps: float, steps: int
    ) -> tuple[Tensor, int]:
        """Unit steps within ``eps``: the pictures, whitened, and the gradients taken."""
        inside = white.inside(*whitened.shape[-2:])
        inputs = Variable(whitened.clone(), requires_grad=True)
        start = Variable(inputs.data, requires_grad=False)
        moved: Tensor = Variable(torch.zeros_like(whitened), requires_grad=False)
        outputs = self.look(inputs)
        loss = self.aim(outputs.data)
        for _ in range(steps):
            loss(outputs).backward()  # type: ignore[no-untyped-call]
            assert inputs.grad is not None
            moved += torch.sign(inputs.grad)
            beyond = moved.abs() > eps
            moved[beyond] = eps * torch.sign(moved[beyond])
            inputs = Variable(inside(start - moved * STEP).data, requires_grad=True)
            outputs = self.look(inputs)
        return inputs.data, steps

    def leap(self, white: Whitening, whitened: Tensor, eps: float) -> tuple[Tensor, int]:
        """One step of ``eps``."""
        inputs = Variable(whitened.clone(), requires_grad=True)
        outputs = self.look(inputs)
        self.aim(outputs.data)(outputs).backward()  # type: ignore[no-untyped-call]
        assert inputs.grad is not None
        inside = white.inside(*whitened.shape[-2:])
        return inside(inputs - torch.sign(inputs.grad) * eps * STEP).data, 1


def u_turn(network: nn.Module, target: Tensor | None = None) -> Attack:
    """Towards unit features ``target`` ``(B, D)``; None: the opposite of the first look's."""
    distance = nn.MSELoss()

    def aim(first: Tensor) -> Loss:
        towards = -first if target is None else target
        return lambda found: distance(found, towards)

    return Attack(lambda inputs: _unit(network(inputs)), aim)


def by_class(logits: nn.Module, attack: str) -> Attack:
    """``fast``, ``basic``: away from the predicted class; ``least_likely``: towards that class."""
    entropy = nn.CrossEntropyLoss()

    def aim(first: Tensor) -> Loss:
        if attack == "least_likely":
            return lambda found: entropy(found, first.argmin(1))
        return lambda found: -entropy(found, first.argmax(1))

    return Attack(logits, aim)


# -- evaluation ------------------------------------------------------------------------------------


def evaluate(
    query: Tensor,
    ids: Ints,
    cameras: Ints,
    gallery: Tensor,
    gallery_ids: Ints,
    gallery_cameras: Ints,
) -> tuple[Floats, float]:
    """CMC ``(G,)`` and mean average precision by the trapezoid, of unit features.

    Query by query: all scores, a full sort, the good and the junk by set operations on their
    positions, the curve from the first good one on, the area piece by piece.
    """
    curve, total = torch.zeros(len(gallery), dtype=torch.int32), 0.0
    stray = np.argwhere(gallery_ids == JUNK).ravel()
    for feature, identity, camera in zip(query, ids, cameras, strict=True):
        scores = torch.mm(gallery, feature.view(-1, 1)).squeeze(1).cpu().numpy()
        order = np.argsort(scores)[::-1]
        same = np.argwhere(gallery_ids == identity).ravel()
        near = np.argwhere(gallery_cameras == camera).ravel()
        good = np.setdiff1d(same, near, assume_unique=True)
        junk = np.append(np.intersect1d(same, near), stray)
        if not good.size:
            continue
        order = order[np.isin(order, junk, invert=True)]
        rows = np.argwhere(np.isin(order, good)).ravel()
        hits = torch.zeros(len(gallery), dtype=torch.int32)
        hits[rows[0] :] = 1
        area = 0.0
        for i, row in enumerate(rows):
            before = i / row if row else 1.0
            area += (before + (i + 1) / (row + 1)) / 2 / len(rows)
        curve, total = curve + hits, total + area
    return (curve / len(query)).numpy(), total / len(query)


# -- the whole sweep -------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Spent:
    """Seconds: those of the gallery, and those of the queries, which grow with their number."""

    gallery: float
    queries: float
    gradients: int
    """Per query."""


def sweep(
    spec: str, split: Split, attacks: tuple[str, ...], eps: tuple[float, ...], out: Path
) -> Spent:
    """All attacks at all ε on the queries of ``split``, one (attack, ε) after another."""
    began = time.perf_counter()
    loaded = _Loaded.of(spec)
    gallery = loaded.features(loaded.decoded(split.gallery))
    embedded = time.perf_counter() - began
    gradients = 0
    for attack in attacks:
        for level in eps:
            folder = out / attack / str(level)
            folder.mkdir(parents=True)
            gradients += _craft(spec, split.query, attack, level, folder)
            _score(spec, split, gallery, folder)
    return Spent(embedded, time.perf_counter() - began - embedded, gradients)


@final
@dataclass(frozen=True, eq=False)
class _Loaded:
    """A victim's networks as PyTorch loads them, and its way with pictures."""

    victim: Victim
    network: nn.Module
    classes: nn.Module
    """Pictures → logits."""

    @classmethod
    def of(cls, spec: str) -> _Loaded:
        victim = load_victim(spec)
        network = as_loaded(victim.network)
        classifier = nn.Identity() if victim.classifier is None else as_loaded(victim.classifier)
        return cls(victim, network, nn.Sequential(network, classifier))

    def decoded(self, pictures: Pictures) -> Iterator[Tensor]:
        """Whitened batches ``(B, 3, H, W)``."""
        for begin in range(0, len(pictures), _BATCH):
            batch = range(begin, min(begin + _BATCH, len(pictures)))
            yield self.whitened(map(pictures.read, batch))

    def whitened(self, pictures: Iterable[Picture]) -> Tensor:
        """One batch, resized and whitened."""
        grid = self.victim.grid(pictures).to(self.victim.device)
        return Whitening.of(self.victim).white(grid / 255)

    @torch.no_grad()
    def features(self, batches: Iterable[Tensor]) -> Tensor:
        """Unit features of batches, put behind one another as they come."""
        features = torch.empty(0)
        for batch in batches:
            features = torch.cat((features, _unit(self.network(batch)).cpu()), 0)
        return features


def _craft(spec: str, query: Pictures, attack: str, eps: float, folder: Path) -> int:
    loaded, steps = _Loaded.of(spec), iterations(eps)
    white = Whitening.of(loaded.victim)
    turns = attack == "odfa"
    found = u_turn(loaded.network) if turns else by_class(loaded.classes, attack)
    done, gradients = 0, 0
    for batch in loaded.decoded(query):
        if attack == "fast":
            moved, gradients = found.leap(white, batch, eps)
        else:
            moved, gradients = found.climb(white, batch, eps, steps)
        for picture in white.levels(moved).permute(0, 2, 3, 1).cpu().numpy():
            Image.fromarray(picture).save(folder / f"{query.names[done]}.jpg")
            done += 1
    return gradients


def _score(spec: str, split: Split, gallery: Tensor, folder: Path) -> None:
    loaded, query = _Loaded.of(spec), split.query

    def batches() -> Iterator[Tensor]:
        for begin in range(0, len(query), _BATCH):
            files = [folder / f"{name}.jpg" for name in query.names[begin : begin + _BATCH]]
            yield loaded.whitened(np.asarray(Image.open(file).convert("RGB")) for file in files)

    evaluate(
        loaded.features(batches()),
        query.identities,
        query.cameras,
        gallery,
        split.gallery.identities,
        split.gallery.cameras,
    )
