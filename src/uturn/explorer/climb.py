"""One query under attack, frame by frame, and what is left of the attack behind a JPEG.

Every frame's picture has been rounded into the threat; the last one is decoded from the PNG that
was written, in the folders that `uturn attack` writes to.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.attacks.loop import Attack
from uturn.attacks.presets import PRESETS, load_attack
from uturn.attacks.problem import Attacker, Batch, Found, certified, knowledge, perturbation
from uturn.attacks.together import ways
from uturn.data.channels import CHANNELS
from uturn.data.pictures import Picture, decode, encode
from uturn.errors import ArgumentError
from uturn.explorer.studio import Answer, Query, Studio
from uturn.retrieval.judge import Labels
from uturn.sweep import checks
from uturn.sweep.plan import Job
from uturn.types import Levels, Scene
from uturn.victims.preprocessing import to_images
from uturn.victims.victim import to_picture

OFFERED = tuple(
    name for name in PRESETS if name not in ("universal", "square", "nes", "rgf", "prgf")
)
"""Attacks to choose from: all but the one that reads a file."""

MOST_STEPS, MOST_SCALES = 500, 5
"""What a visitor may ask for."""


@final
@dataclass(frozen=True, kw_only=True)
class Order:
    """An attack as a visitor asks for it.

    Raises:
        ArgumentError: more than a visitor may ask for. SpecError: no such attack or option.
    """

    name: str = "odfa"
    eps: float = 8
    steps: int | None = None
    """None is the attack's own number."""
    scales: tuple[float, ...] = ()
    """At which the attack looks at the victim one by one; none is as it is."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in OFFERED:
            raise ArgumentError(f"{self.name!r} is not offered here; known: {', '.join(OFFERED)}")
        if self.steps is not None and not 1 <= self.steps <= MOST_STEPS:
            raise ArgumentError(f"take 1 to {MOST_STEPS} steps, not {self.steps}")
        if len(self.scales) > MOST_SCALES or any(not 0.25 <= s <= 2 for s in self.scales):
            raise ArgumentError(f"take up to {MOST_SCALES} scales between 0.25 and 2")

    @property
    def spec(self) -> str:
        """The attack's spec."""
        options = [] if self.steps is None else [f"steps={self.steps}"]
        if self.scales:
            options.append(f"scales={'+'.join(f'{scale:g}' for scale in self.scales)}")
        return f"{self.name}:{','.join(options)}" if options else self.name

    def attack(self) -> Attacker:
        """The attack itself."""
        return load_attack(self.spec, eps=self.eps)


@final
@dataclass(frozen=True)
class Look:
    """What one victim says of a frame's picture."""

    cosine: float
    """To its feature of the clean query."""
    answer: Answer


@final
@dataclass(frozen=True, eq=False)
class Frame:
    """A station of an attack."""

    step: int
    """0 is the clean query."""
    steps: int
    """So many there will be; 1 where the attack keeps its own to itself."""
    picture: Picture
    looks: tuple[Look, ...]
    """By the attacked victim, then by those that only look on."""
    losses: tuple[float, ...] = ()
    """The objective before each step so far."""
    gradients: int = 0
    """Spent so far; in the last frame of an attack that keeps its steps to itself, at the most."""
    seconds: float = 0.0
    """Since the attack began, what was looked at on the way included."""
    levels: int = 0
    """The largest change of a value, measured on the picture."""
    l2: float = 0.0
    """The length of the change, in pixels."""
    file: Path | None = None
    """The PNG that the picture was decoded from; only the last frame has one."""


def frames(
    studio: Studio, query: Query, order: Order, out: Path, *, beside: Sequence[Studio] = ()
) -> Iterator[Frame]:
    """Attack ``query`` on ``studio``'s victim: the clean picture, every step, the certified end.

    The end is written to ``out`` and the clean picture to ``out/clean``, as `uturn attack` does.
    Attacks that keep their steps to themselves have a single frame after the first. Victims
    ``beside`` look at the same pictures. Whoever stops listening stops the attack.

    Raises:
        ArgumentError: the attack must be given what an upload does not have. UturnError: as the
            attack, or the disk refuses the pictures.
    """
    attack = order.attack()
    began = time.perf_counter()
    seen_by = (studio, *beside)
    clean_file, file = (folder / f"{query.key}.png" for folder in (out / "clean", out))
    encode(clean_file, query.picture)
    clean = decode(clean_file)
    before = [each.look(clean) for each in seen_by]

    def frame(step: int, steps: int, picture: Picture, losses: Sequence[Tensor] = ()) -> Frame:
        features = before if step == 0 else [each.look(picture) for each in seen_by]
        levels, l2 = checks.measure(job, query.key, clean, picture)
        return Frame(
            step=step,
            steps=steps,
            picture=picture,
            looks=tuple(
                Look(float(F.cosine_similarity(now, then)), each.answer(now, query))
                for each, now, then in zip(seen_by, features, before, strict=True)
            ),
            losses=tuple(float(loss) for loss in losses),
            gradients=attack.gradients * step // steps,
            seconds=time.perf_counter() - began,
            levels=levels,
            l2=l2,
            file=file if step == steps else None,
        )

    job = Job(order.spec, order.eps, attack)
    steps = attack.steps if isinstance(attack, Attack) else 1
    yield frame(0, steps, clean)
    images = to_images([clean])
    batch = Batch(
        studio.victim, images, _scene(studio, query, job, before[0]), [query.key], order.seed
    )
    if isinstance(attack, Attack):
        stations = islice(ways(attack.pose(batch), attack), 1, None)  # where it starts is no step
        for step, climber in enumerate(stations, 1):
            if step < steps:
                yield frame(step, steps, _seen(attack, batch, climber.delta), climber.losses)
        found = Found(climber.delta, climber.losses, rise=climber.rise)
    else:
        found = attack.find(batch)
    end = perturbation(attack, batch, found, began)
    encode(file, to_picture(end.images[0]))
    yield frame(steps, steps, decode(file), found.losses)


def _seen(attack: Attack, batch: Batch, delta: Levels) -> Picture:
    """What the system would be shown if the attack ended here."""
    changed = batch.clean + certified(attack.threat, batch.clean, delta)
    return to_picture(changed[0].to(torch.uint8))


def _scene(studio: Studio, query: Query, job: Job, features: Tensor) -> Scene:
    """What the attack is given beyond the query, drawn as a sweep draws it."""
    wanted = knowledge(job.attack) if job.attack else ()
    if not wanted:
        return Scene()
    if query.labelled is None:
        raise ArgumentError(
            f"{job.name} must be given {', '.join(wanted)}, which needs to know whom the query "
            "shows, and of an upload nobody does; choose odfa or uturn, or a query of the data set"
        )
    labels = Labels.of(query.labelled, studio.victim.device)
    insider, names = studio.insider, [query.name]
    goal = insider.goal(job, names, labels, features)
    return insider.scene(job, names, labels, features, goal)


@final
@dataclass(frozen=True)
class Survival:
    """What a channel leaves of an attack."""

    channel: str
    clean: Look
    """Of the clean query behind the same channel: what the channel alone does."""
    attacked: Look


def survivals(studio: Studio, query: Query, picture: Picture) -> list[Survival]:
    """Send the adversarial ``picture`` and the clean query through every channel and ask again."""
    before = studio.look(query.picture)

    def look(shown: Picture) -> Look:
        now = studio.look(shown)
        return Look(float(F.cosine_similarity(now, before)), studio.answer(now, query))

    return [
        Survival(name, look(channel(query.picture)), look(channel(picture)))
        for name, channel in CHANNELS.items()
    ]


def command(studio: Studio, query: Query, order: Order) -> str:
    """The command line that makes the same picture of the clean PNG.

    Attacks that must know the gallery have no such command; theirs sweeps the whole data set.
    """
    device = [] if studio.device == "auto" else ["--device", studio.device]
    chosen = ["--victim", studio.spec, "--attack", order.spec, "--eps", f"{order.eps:g}"]
    seed = ["--seed", str(order.seed)] if order.seed else []
    rest = [*seed, *device]
    if knowledge(order.attack()):
        words = ["sweep", "--data", studio.data, *chosen, "--out", "run", *rest]
    else:
        words = ["attack", f"{query.key}.png", *chosen, "--out", "adversarial", *rest]
    return shlex.join(["uturn", *words])
