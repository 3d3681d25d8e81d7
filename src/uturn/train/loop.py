"""Training a victim by a recipe: one loop, resumable epoch by epoch, the same from the same seed.

All that happens in an epoch follows from (seed, epoch) and from what the epoch before left.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from uturn.data.catalog import load_data
from uturn.data.pictures import IntArray, Pictures
from uturn.data.split import Split
from uturn.errors import ArgumentError, CheckpointError, DataError
from uturn.parallel import threaded
from uturn.progress import bar, say
from uturn.retrieval.evaluate import evaluate
from uturn.retrieval.system import require_matches
from uturn.rng import generator
from uturn.train.adversarial import RISING, Budget, Mixed, load_adversary
from uturn.train.augment import load_augmentation
from uturn.train.batches import load_sampler
from uturn.train.losses import Loss, Shape, load_loss
from uturn.train.recipe import Recipe
from uturn.victims import checkpoints, zoo
from uturn.victims.blank import blank
from uturn.victims.load import ADAPTERS, load_victim
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim, to_pixels

EARLY = 100
"""Identities of the test whose queries are asked in an early look."""

_IN_MEMORY = 4 << 30
"""Bytes of training pictures that are kept decoded; more are read again for each batch."""


@final
@dataclass(frozen=True)
class Trained:
    """What a training has come to; also stored in the checkpoint's metadata."""

    values: dict[str, Any]
    """What `evaluate` says of the victim on the split's queries."""
    history: list[dict[str, Any]]
    """Per epoch: mean loss, seconds, and the values of the early looks."""

    @property
    def recall(self) -> float:
        """Recall@1; NaN if no query has a relevant item."""
        found = self.values["recall@1"]
        return math.nan if found is None else float(found)

    @property
    def seconds(self) -> float:
        """Of all epochs, without the last evaluation."""
        return float(sum(epoch["seconds"] for epoch in self.history))


def train(recipe: Recipe, out: Path, *, look: int = 0, progress: bool = True) -> Trained:
    """Train by ``recipe``, write ``out`` (safetensors), and evaluate it on the split's queries.

    The same call on the same ``out`` goes on after the last whole epoch; a finished training is
    not done again. ``look`` evaluates on `EARLY` identities after every so many epochs, which
    changes nothing in what is trained. Under ``torchrun`` each process takes its share of every
    batch.

    Raises:
        ArgumentError: the data set has no training pictures, or too few. DataError: none of its
        queries has a relevant picture. CheckpointError: ``out`` cannot be written, was trained
        otherwise, or the start's weights do not fit.
    """
    team = _Team.join(recipe.device)
    if team.leads:  # who alone writes
        checkpoints.require_writable(out)
    finished = _finished(recipe, out)
    if finished:
        team.part()
        return finished
    split = load_data(recipe.data)
    if split.train is None:
        raise ArgumentError(f"{recipe.data} has no training pictures")
    require_matches(split)  # what would stop the last evaluation
    run = _Run.begin(recipe, out, split, split.train, team)
    for epoch in range(len(run.history), recipe.epochs):
        team.wait()  # for one that still reads pictures, or looks
        run.epoch(epoch, show=progress and team.leads)
        if team.leads:
            if look and (epoch + 1) % look == 0 and epoch + 1 < recipe.epochs:
                run.history[-1] |= run.look(progress=progress)
            run.save()
    values = evaluate(run.victim(), split, progress=progress) if team.leads else {}
    trained = Trained(json.loads(json.dumps(team.hear(values))), run.history)
    if team.leads:
        run.finish(trained)
    team.part()  # not where an error ends it: the others are in the middle of a step
    return trained


def _finished(recipe: Recipe, out: Path) -> Trained | None:
    """What ``out`` has come to, if it is there.

    Raises:
        CheckpointError: it was trained otherwise, or by somebody else.
    """
    if not out.exists():
        return None
    stored = checkpoints.read_metadata(out).get("training")
    if stored is None:
        raise CheckpointError(
            f"{out} is there and was not written by uturn train; choose another place, or remove it"
        )
    told = json.loads(stored)
    _require_same(recipe, told, out)
    return Trained(told["values"], told["history"])


def _origin(recipe: Recipe) -> str | None:
    """The hash of the file that training starts from; None: there is none, or not here."""
    start = Path(recipe.weights or "")
    return checkpoints.hashed(start) if start.is_file() else None


def _require_same(recipe: Recipe, told: dict[str, Any], path: Path) -> None:
    """What was ``told`` of a training is of ``recipe``, and of the weights that lie there now."""
    own = recipe.as_dict()
    # A recipe from before an option was made had what is now its default.
    stored = Recipe(data=recipe.data, arch=recipe.arch).as_dict() | told["recipe"]
    before, now = told.get("origin"), _origin(recipe)
    if before and now and before != now:
        raise CheckpointError(
            f"{path} was trained from other weights than those in {recipe.weights} now; choose "
            "another --out, or remove it"
        )
    differing = [
        f"{key}: {stored[key]} there, {own.get(key)} now"
        for key in sorted(stored)
        if own.get(key) != stored[key] and key != "device"
    ]
    if differing:
        raise CheckpointError(
            f"{path} belongs to another training ({'; '.join(differing)}); choose another --out, "
            "or remove it"
        )


@final
@dataclass(frozen=True)
class _Team:
    """The processes that train together; one alone is a team."""

    rank: int
    size: int
    local: int = 0
    """The rank among the processes of this machine."""
    talk: dist.ProcessGroup | None = None
    """For words, and for waiting hours for the leader's: gradients' group gives up sooner."""

    @classmethod
    def join(cls, device: str) -> _Team:
        """Meet the processes that torchrun started; without it, be alone.

        Raises:
            ArgumentError: there are fewer GPUs here than processes.
        """
        if not dist.is_torchelastic_launched():
            return cls(0, 1)
        local = int(os.environ["LOCAL_RANK"])
        mine = own_device(device, local)
        if mine.type == "cuda":
            if local >= torch.cuda.device_count():
                raise ArgumentError(
                    f"process {local} finds {torch.cuda.device_count()} GPUs here; start one "
                    "process per GPU (torchrun --nproc-per-node)"
                )
            torch.cuda.set_device(mine)
        store, rank, size = next(iter(rendezvous("env://")))
        # What a group before this one left in torchrun's store would be taken for this one's.
        own = PrefixStore(f"uturn train {next(_MEETINGS)}", store)
        dist.init_process_group(backend(device), store=own, rank=rank, world_size=size)
        talk = dist.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(rank, size, local, talk)

    def part(self) -> None:
        """Leave the group, which no process trains with any more."""
        if self.talk is not None:
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: IntArray) -> IntArray:
        """This process's part of a batch; neighbours, so that pictures of a class stay together."""
        return np.array_split(batch, self.size)[self.rank]

    def device(self, name: str) -> torch.device:
        return torch.device(name) if self.talk is None else own_device(name, self.local)

    def wait(self) -> None:
        """Until all of the team are here."""
        if self.talk is not None:
            dist.barrier(self.talk)

    def hear(self, value: dict[str, Any]) -> dict[str, Any]:
        """What the leader says."""
        if self.talk is None:
            return value
        said = [value]
        dist.broadcast_object_list(said, group=self.talk)
        return said[0]

    def wrap(self, pupil: nn.Module) -> nn.Module:
        if self.size == 1:
            return pupil
        return nn.parallel.DistributedDataParallel(pupil)


def own_device(name: str, local: int) -> torch.device:
    """The device of process ``local`` on its machine, where all train on such devices.

    >>> own_device("cuda", 1), own_device("cuda:0", 1), own_device("cpu", 1)
    (device(type='cuda', index=1), device(type='cuda', index=1), device(type='cpu'))
    """
    named = torch.device(name)
    return torch.device("cuda", local) if named.type == "cuda" else named


_MEETINGS = itertools.count()
"""Numbers the trainings of this process that had a team."""

_PATIENCE = timedelta(days=7)
"""How long the others wait for the leader, who evaluates alone."""


def backend(device: str) -> Literal["nccl", "gloo"]:
    """What carries gradients between processes that train on such devices.

    >>> backend("cuda"), backend("cuda:1"), backend("cpu")
    ('nccl', 'nccl', 'gloo')
    """
    return "nccl" if torch.device(device).type == "cuda" else "gloo"


Term = Callable[[Tensor], Tensor]
"""Features ``(B, P, D)`` → what is added to the loss."""


@final
class Pupil(nn.Module):
    """The network with all that is trained beside it: uint8 images and classes → the loss."""

    def __init__(
        self,
        network: nn.Module,
        losses: Sequence[Loss],
        preprocessing: Preprocessing,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        super().__init__()
        self.network, self.losses = network, nn.ModuleList(losses)
        self.preprocessing, self.layout = preprocessing, layout

    def features(self, images: Tensor) -> Tensor:
        """Raw features ``(B, P, D)``."""
        inputs = self.preprocessing.normalise(to_pixels(images))
        features: Tensor = self.network(inputs.contiguous(memory_format=self.layout))
        return features[:, None] if features.ndim == 2 else features

    def forward(self, images: Tensor, classes: Tensor, term: Term | None = None) -> Tensor:
        features = self.features(images).float()
        terms = [loss(features, classes) for loss in self.losses]
        return torch.stack(terms if term is None else [*terms, term(features)]).sum()

    def head(self) -> nn.Module | None:
        """The first loss's head over the training classes, if one has any."""
        heads = (loss.head() for loss in self.losses if isinstance(loss, Loss))
        return next((head for head in heads if head is not None), None)


Lesson = Callable[[nn.Module, Tensor, Tensor, int], Tensor]
"""The pupil, uint8 images ``(B, 3, H, W)``, classes ``(B,)`` and the step → the loss."""


def plainly(pupil: nn.Module, images: Tensor, classes: Tensor, step: int) -> Tensor:
    """The lesson without an adversary."""
    loss: Tensor = pupil(images, classes)
    return loss


@final
@dataclass(eq=False, kw_only=True)
class _Run:
    """A training under way."""

    recipe: Recipe
    out: Path
    split: Split
    team: _Team
    pupil: Pupil
    shared: nn.Module
    """The pupil as the team trains it."""
    card: checkpoints.Card
    head: str
    """What the keys of the head begin with in the checkpoint."""
    images: _Images
    classes: Tensor
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    lesson: Lesson
    history: list[dict[str, Any]]

    @classmethod
    def begin(
        cls, recipe: Recipe, out: Path, split: Split, pictures: Pictures, team: _Team
    ) -> _Run:
        torch.manual_seed(recipe.seed)
        chosen = blank(recipe.arch)
        network, preprocessing = chosen.network, chosen.preprocessing
        started = _start(network, recipe.weights) if recipe.weights else frozenset()
        if recipe.size is not None:
            preprocessing = replace(preprocessing, size=recipe.size, fit="stretch", crop_from=None)
        names, classes = np.unique(pictures.identities, return_inverse=True)
        parts, features = _shape(network, preprocessing, recipe.arch)
        shape = Shape(parts, features, len(names))
        losses = [load_loss(one, shape) for one in recipe.loss]
        device = team.device(recipe.device)
        pupil = Pupil(network, losses, preprocessing, chosen.layout)
        pupil.to(device=device, memory_format=chosen.layout)  # type: ignore[call-overload]
        optimiser = _optimiser(recipe, pupil, started)
        steps = recipe.epochs * _batches_per_epoch(recipe, classes)
        card = checkpoints.Card(preprocessing, "cosine", recipe.arch)
        run = cls(
            recipe=recipe,
            out=out,
            split=split,
            team=team,
            pupil=pupil,
            shared=team.wrap(pupil),
            card=card,
            head=chosen.head,
            images=_Images(preprocessing, pictures),
            classes=torch.from_numpy(classes),
            optimiser=optimiser,
            schedule=torch.optim.lr_scheduler.OneCycleLR(
                optimiser,
                [group["lr"] for group in optimiser.param_groups],
                total_steps=steps,
                pct_start=recipe.warm_up,
            ),
            lesson=_lesson(recipe, pupil, card, steps),
            history=[],
        )
        if run._state.exists():
            run._resume()
        return run

    def epoch(self, number: int, *, show: bool) -> None:
        recipe, began = self.recipe, time.perf_counter()
        torch.manual_seed(int(generator(recipe.seed, "epoch", number).integers(2**62)))
        rng = torch.Generator().manual_seed(torch.initial_seed())
        batches = load_sampler(recipe.sampler)(
            self.classes.numpy(), recipe.batch_size, generator(recipe.seed, "batches", number)
        )
        augment = [load_augmentation(spec) for spec in recipe.augment]
        device = next(self.pupil.parameters()).device
        total, done = 0.0, number * len(batches)
        steps = recipe.epochs * len(batches)
        with bar(steps, f"epoch {number + 1}", "step", done=done, show=show) as shown:
            for step, batch in enumerate(batches, done):
                mine = self.team.share(batch)
                images = self.images[mine]
                for change in augment:
                    images = change(images, rng)
                self.pupil.train()
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
                ):
                    loss = self.lesson(
                        self.shared, images.to(device), self.classes[mine].to(device), step
                    )
                if not bool(loss.isfinite()):
                    raise ArgumentError(
                        f"the loss is {loss.item()} at step {step}: training has diverged; "
                        f"choose a smaller learning rate than {recipe.lr:g}"
                    )
                self.optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimiser.step()
                self.schedule.step()
                total += loss.item()
                shown.set_postfix_str(f"loss {total / (step - done + 1):.3f}", refresh=False)
                shown.update()
        seconds = time.perf_counter() - began
        self.history.append({"loss": total / len(batches), "seconds": round(seconds, 3)})

    def victim(self) -> Victim:
        """The pupil as it is now, which training goes on to change."""
        return frozen(self.pupil, self.card, self.recipe.arch)

    def look(self, *, progress: bool) -> dict[str, Any]:
        """Recall@1 and mAP on the pictures of `EARLY` test identities, without distractors."""
        split, seed = self.split, self.recipe.seed
        known = np.unique(split.query.identities)
        some = generator(seed, "early").permutation(known)[:EARLY]
        query, gallery = (
            part.subset(np.flatnonzero(np.isin(part.identities, some)))
            for part in (split.query, split.gallery)
        )
        early = replace(split, query=query, gallery=gallery)
        try:
            require_matches(early)
        except DataError as error:
            say(f"epoch {len(self.history)}: no early look, {error}", show=progress)
            return {}
        values = evaluate(self.victim(), early, progress=False)
        found = {f"early {key}": values[key] for key in ("recall@1", "map (plain)")}
        said = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        say(f"epoch {len(self.history)}: {said}", show=progress)
        return found

    @property
    def _state(self) -> Path:
        return self.out.with_name(f".{self.out.name}.training")

    def save(self) -> None:
        """Write all that the next epoch starts from; the file appears whole or not at all."""
        temporary = self._state.with_suffix(".tmp")
        state = {
            "recipe": self.recipe.as_dict(),
            "origin": _origin(self.recipe),
            "pupil": self.pupil.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }
        torch.save(state, temporary)
        temporary.replace(self._state)

    def _resume(self) -> None:
        try:
            state = torch.load(self._state, map_location="cpu", weights_only=True)
            told = {"recipe": state["recipe"], "origin": state.get("origin")}
        except Exception as error:  # a damaged file can make the unpickler raise anything
            raise CheckpointError(
                f"{self._state} cannot be read ({error}); remove it to train from the start"
            ) from error
        _require_same(self.recipe, told, self._state)
        self.pupil.load_state_dict(state["pupil"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = state["history"]

    def finish(self, trained: Trained) -> None:
        """Write the checkpoint, with its card and what it came from."""
        tensors = dict(self.pupil.network.state_dict())
        head = self.pupil.head()
        if head is not None:
            tensors |= {f"{self.head}{k}": t for k, t in head.state_dict().items()}
        told = {
            "recipe": self.recipe.as_dict(),
            "origin": _origin(self.recipe),
            "values": trained.values,
            "history": trained.history,
            "torch": torch.__version__,
        }
        checkpoints.write(self.out, tensors, self.card, {"training": json.dumps(told)})
        self._state.unlink(missing_ok=True)


def frozen(pupil: Pupil, card: checkpoints.Card, name: str) -> Victim:
    """A copy of the pupil as a victim; what is learned afterwards does not reach it."""
    head = pupil.head()
    return Victim(
        name=name,
        network=deepcopy(pupil.network),
        preprocessing=card.preprocessing,
        similarity=card.similarity,
        classifier=None if head is None else deepcopy(head),
        device=next(pupil.parameters()).device,
        layout=pupil.layout,
    )


def _shape(network: nn.Module, preprocessing: Preprocessing, name: str) -> tuple[int, int]:
    """Parts and dimensions of a network's features.

    Raises:
        ArgumentError: it does not take pictures of this size.
    """
    height, width = preprocessing.size
    network.eval()
    try:
        with torch.no_grad():
            found = network(torch.zeros(2, 3, height, width))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ArgumentError(
            f"{name} does not take pictures of {height}×{width} ({error}); choose another --size"
        ) from error
    return (1, found.shape[1]) if found.ndim == 2 else (found.shape[1], found.shape[2])


def _start(network: nn.Module, weights: str) -> frozenset[str]:
    """Fill the network from a file, or from another victim, which may download its own."""
    path = Path(weights).expanduser()
    named = ":" in weights or weights in zoo.ZOO or weights in ADAPTERS
    if named and not path.is_file():
        tensors = load_victim(weights).network.state_dict()
    else:
        checkpoint = checkpoints.read(path)
        checkpoint.require_finite(checkpoint.tensors)
        tensors = dict(checkpoint.tensors)
    return zoo.start(network, tensors, weights)


def _optimiser(recipe: Recipe, pupil: Pupil, started: frozenset[str]) -> torch.optim.Optimizer:
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in pupil.named_parameters():
        groups[name.removeprefix("network.") in started].append(parameter)
    settings = [
        {"params": parameters, "lr": recipe.lr * (recipe.body_lr if begun else 1.0)}
        for begun, parameters in groups.items()
        if parameters
    ]
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(settings, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        settings, recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay, nesterov=True
    )


def _batches_per_epoch(recipe: Recipe, classes: IntArray) -> int:
    sampler = load_sampler(recipe.sampler)
    count = len(sampler(classes, recipe.batch_size, generator(recipe.seed, "batches", 0)))
    if count == 0:
        raise ArgumentError(
            f"{len(classes)} training pictures do not fill a batch of {recipe.batch_size}; "
            "choose a smaller batch size"
        )
    return count


def _lesson(recipe: Recipe, pupil: Pupil, card: checkpoints.Card, steps: int) -> Lesson:
    if recipe.adversary is None:
        return plainly
    adversary = load_adversary(
        recipe.adversary,
        lambda: frozen(pupil, card, recipe.arch),
        Budget(eps=recipe.adv_eps, warmup=round(RISING * steps)),
        consistency=recipe.adv_consistency,
        seed=recipe.seed,
    )
    return Mixed(adversary, recipe.adv_share)


@final
class _Images:
    """All training pictures on the network's grid, uint8, in memory if they are not too many."""

    def __init__(self, preprocessing: Preprocessing, pictures: Pictures) -> None:
        self.preprocessing, self.pictures = preprocessing, pictures
        height, width = preprocessing.size
        fits = len(pictures) * 3 * height * width <= _IN_MEMORY
        self.kept = self._read(range(len(pictures))) if fits else None

    def __getitem__(self, positions: IntArray) -> Tensor:
        if self.kept is None:
            return self._read(positions.tolist())
        return self.kept[torch.from_numpy(positions)]

    def _read(self, positions: Sequence[int]) -> Tensor:
        def one(position: int) -> Tensor:
            return self.preprocessing.grid([self.pictures.read(position)])

        return torch.cat(threaded(one, positions))
