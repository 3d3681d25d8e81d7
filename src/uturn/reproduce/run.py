"""Doing experiments: what is planned and what is missing, step after step, a page at the end."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from uturn.errors import ArgumentError, UturnError
from uturn.reproduce import page
from uturn.reproduce.experiment import Experiment
from uturn.reproduce.experiments import EXPERIMENTS
from uturn.reproduce.machine import Clock, duration, expected, machine, record
from uturn.reproduce.place import Place
from uturn.reproduce.steps import Draw, Step

Say = Callable[[str], None]


@final
@dataclass(frozen=True)
class Outcome:
    """How an experiment ended; ``told`` is its page, or why there is none."""

    name: str
    state: Literal["done", "skipped", "failed"]
    told: str


def reproduce(
    experiments: Sequence[Experiment],
    preset: str,
    place: Place,
    *,
    say: Say = print,
    progress: bool = True,
) -> list[Outcome]:
    """Do ``experiments`` at a preset's size; the same call goes on where one was stopped.

    What needs data that are not there is skipped, what fails is told, and the rest goes on.
    Steps that experiments share are done once.
    """
    clock = Clock(place.times, machine(place.device))
    sitting = _Sitting(experiments, preset, place, clock, say, progress)
    return [sitting.do(experiment) for experiment in experiments]


def plan(experiments: Sequence[Experiment], preset: str, place: Place) -> str:
    """What would be done, how long each step takes, and what is missing, as text."""
    where, minutes = expected(preset)
    lines, seen, left, unknown = list[str](), set[str](), 0.0, 0
    for experiment in experiments:
        reasons = missing(experiment, preset, place)
        lines.append(f"{experiment.name}: {experiment.title}")
        lines += [f"  skipped: {reason}" for reason in reasons]
        for step in () if reasons else experiment.presets[preset]:
            known = minutes.get(step.key)
            state = f"{known:.1f} min" if known is not None else "time not measured"
            if isinstance(step, Draw):
                state = "seconds"
            elif step.key in seen:
                state = "as above"
            elif _done(step, place):
                state = "done"
            elif known is None:
                unknown += 1
            else:
                left += known
            seen.add(step.key)
            lines.append(f"  {step.key:<44} {state}")
    lines.append(f"to do at preset {preset}: {_about(left, unknown) or 'figures and pages'}")
    lines += [f"times were measured on {where}"] if left else []
    return "\n".join(lines)


def _about(minutes: float, unknown: int) -> str:
    """How long it takes: ``minutes`` of steps whose time is known, and others; or nothing."""
    parts = [f"about {duration(60 * minutes)}"] if minutes else []
    parts += [f"{unknown} step{'s' * (unknown > 1)} of unknown time"] if unknown else []
    return ", and ".join(parts)


def missing(experiment: Experiment, preset: str, place: Place) -> list[str]:
    """What an experiment needs and is not there, a sentence each that says where to get it."""
    return [place.missing(name) for name in experiment.needs(preset) if place.find(name) is None]


def keep_times(experiments: Sequence[Experiment], preset: str, place: Place) -> None:
    """Keep how long finished steps took, for the plans of those who come after (`record`)."""
    clock = Clock(place.times, machine(place.device))
    steps = {s.key: s for experiment in experiments for s in experiment.presets[preset]}
    times = {k: page.spent(s, place, clock) for k, s in steps.items() if _done(s, place)}
    minutes = {key: round(time.seconds / 60, 1) for key, time in times.items() if time}
    if not minutes:
        raise ArgumentError(f"{place.out} holds no finished step; run uturn reproduce first")
    record(preset, "; ".join(clock.machines(minutes)), minutes)


def keep_all_times(preset: str, out: Path | None = None) -> None:
    """`keep_times` of every experiment, from the folder that `uturn reproduce` writes to."""
    place = Place(out=out or Path("reproduced") / preset, data_root=Path("data"))
    keep_times(list(EXPERIMENTS.values()), preset, place)


def _done(step: Step, place: Place) -> bool:
    """Whether a step's product is whole; one that cannot be read fails when its turn comes."""
    try:
        return step.done(place)
    except UturnError:
        return False


@final
class _Sitting:
    """One sitting over several experiments."""

    def __init__(
        self,
        experiments: Sequence[Experiment],
        preset: str,
        place: Place,
        clock: Clock,
        say: Say,
        progress: bool,
    ) -> None:
        self.preset, self.place, self.clock = preset, place, clock
        self.say, self.progress = say, progress
        self.failed: dict[str, str] = {}
        self.over: set[str] = set()
        steps = {
            step.key: step
            for experiment in experiments
            if not missing(experiment, preset, place)
            for step in experiment.presets[preset]
        }
        self.left = {
            key: step
            for key, step in steps.items()
            if not isinstance(step, Draw) and not _done(step, place)
        }
        self.count = len(self.left)

    def do(self, experiment: Experiment) -> Outcome:
        """One experiment with its page."""
        reasons = missing(experiment, self.preset, self.place)
        if reasons:
            return Outcome(experiment.name, "skipped", "; ".join(reasons))
        try:
            for step in experiment.presets[self.preset]:
                self._step(step)
            written = page.write(experiment, self.preset, self.place, self.clock)
        except Exception as error:
            reason = str(error)
            if not isinstance(error, (UturnError, OSError)):  # ours to mend: say where
                self.say(traceback.format_exc())
                reason = f"{type(error).__name__}: {error}"
            self.say(f"{experiment.name} failed: {reason}")
            return Outcome(experiment.name, "failed", reason)
        self.say(f"{experiment.name}: {written}")
        return Outcome(experiment.name, "done", str(written))

    def _step(self, step: Step) -> None:
        if step.key in self.failed:
            raise UturnError(self.failed[step.key])
        if step.key in self.over:  # another experiment's, too
            return
        try:
            if step.key not in self.left:  # done before, or quick: no time to be told
                step.run(self.place, self.progress)
            else:
                number = self.count - len(self.left) + 1
                self.say(f"[{number}/{self.count}] {step.key}; {self._remaining()}")
                with self.clock.sitting(step.key):
                    step.run(self.place, self.progress)
                del self.left[step.key]
            self.over.add(step.key)
        except Exception as error:
            self.failed[step.key] = f"{step.key}: {error}"
            raise

    def _remaining(self) -> str:
        """About how long what is left takes, this step included."""
        _, minutes = expected(self.preset)
        known = [minutes[key] for key in self.left if key in minutes]
        return f"left: {_about(sum(known), len(self.left) - len(known))}"
