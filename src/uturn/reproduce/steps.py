"""What an experiment is made of: few kinds of frozen steps, each resumable by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, final

from uturn.data.catalog import load_data
from uturn.errors import RunFolderError
from uturn.report import html
from uturn.reproduce.files import read_json, write_whole
from uturn.reproduce.place import VICTIMS, Place, names_in
from uturn.reproduce.turn import circle, turn
from uturn.sweep import Plan, run
from uturn.train.loop import train
from uturn.train.recipe import Recipe
from uturn.victims import checkpoints
from uturn.victims.load import load_victim


class Step(Protocol):
    """One unit of work with one product. Steps of one kind and name are the same step.

    The texts in a step may hold names in braces, which a `Place` fills.
    """

    @property
    def name(self) -> str:
        """Of its product."""

    @property
    def key(self) -> str:
        """Kind and name: what the plan, the clock and the page call it."""

    @property
    def setting(self) -> str:
        """What decides its numbers, in a few words of Markdown."""

    @property
    def needs(self) -> frozenset[str]:
        """The names in the braces of its texts."""

    def product(self, place: Place) -> Path:
        """The file or folder that it makes."""

    def done(self, place: Place) -> bool:
        """Whether its product is whole."""

    def run(self, place: Place, progress: bool) -> None:
        """Make the product, go on where it was stopped, or return at once where it is done.

        Raises:
            UturnError: something is wrong, or the product is another configuration's.
        """

    def facts(self, place: Place) -> dict[str, Any]:
        """Numbers in its finished product that claims can be asked of."""


@final
@dataclass(frozen=True)
class Train:
    """Train a victim by a recipe. Other steps name it by `spec`."""

    name: str
    recipe: Recipe

    @property
    def spec(self) -> str:
        """The victim spec of what is trained."""
        return f"{{{VICTIMS}}}/{self.name}.safetensors"

    @property
    def key(self) -> str:
        return f"train {self.name}"

    @property
    def setting(self) -> str:
        recipe = self.recipe
        size = "" if recipe.size is None else f", {'×'.join(map(str, recipe.size))}"
        start = "random" if recipe.weights is None else f"`{recipe.weights}`"
        against = f", against `{recipe.adversary}` up to ε = {recipe.adv_eps:g}"
        return (
            f"`{recipe.arch}`{size} on `{recipe.data}` from {start}, {recipe.epochs} epochs, "
            f"loss {' + '.join(f'`{name}`' for name in recipe.loss)}, {recipe.precision}"
            f"{against if recipe.adversary else ''}"
        )

    @property
    def needs(self) -> frozenset[str]:
        return names_in(self.recipe)

    def product(self, place: Place) -> Path:
        return place.victims / f"{self.name}.safetensors"

    def done(self, place: Place) -> bool:
        return self.product(place).exists()

    def run(self, place: Place, progress: bool) -> None:
        place.victims.mkdir(parents=True, exist_ok=True)
        recipe = replace(place.fill(self.recipe), device=place.device)
        train(recipe, self.product(place), progress=progress)

    def facts(self, place: Place) -> dict[str, Any]:
        """What it reached on the whole test split, and the minutes of its epochs."""
        told = json.loads(checkpoints.read_metadata(self.product(place))["training"])
        minutes = sum(epoch["seconds"] for epoch in told["history"]) / 60
        return {**told["values"], "minutes": minutes}


@final
@dataclass(frozen=True)
class Circle:
    """Weights for a network of two features to start from: a victim's classes around a circle."""

    name: str
    victim: str

    @property
    def spec(self) -> str:
        """The file, for a recipe's ``weights``."""
        return f"{{{VICTIMS}}}/{self.name}.safetensors"

    @property
    def key(self) -> str:
        return f"circle {self.name}"

    @property
    def setting(self) -> str:
        return f"the classes of `{self.victim}` around a circle"

    @property
    def needs(self) -> frozenset[str]:
        return names_in(self.victim)

    def product(self, place: Place) -> Path:
        return place.victims / f"{self.name}.safetensors"

    def done(self, place: Place) -> bool:
        return self.product(place).exists()

    def run(self, place: Place, progress: bool) -> None:
        circle(load_victim(place.fill(self.victim)), self.product(place))

    def facts(self, place: Place) -> dict[str, Any]:
        return {}


@final
@dataclass(frozen=True)
class Sweep:
    """Run a plan into a run folder with its report."""

    name: str
    plan: Plan

    @property
    def key(self) -> str:
        return f"sweep {self.name}"

    @property
    def setting(self) -> str:
        plan = self.plan
        asked = "all queries" if plan.queries is None else f"{plan.queries} queries"
        eps = ", ".join(f"{e:g}" for e in plan.eps)
        mode = "" if plan.mode == "default" else f", {plan.mode} mode"
        return f"`{plan.victim}` on `{plan.data}`, {asked} (seed {plan.seed}), ε = {eps}{mode}"

    @property
    def needs(self) -> frozenset[str]:
        return names_in(self.plan)

    def product(self, place: Place) -> Path:
        return place.runs / self.name

    def done(self, place: Place) -> bool:
        header = self.product(place) / "run.json"
        return header.exists() and bool(read_json(header).get("finished"))

    def run(self, place: Place, progress: bool) -> None:
        folder = self.product(place)
        folder.parent.mkdir(parents=True, exist_ok=True)
        run(replace(place.fill(self.plan), device=place.device), folder, progress=progress)
        if not (folder / "report.html").exists():
            html.write(folder)

    def facts(self, place: Place) -> dict[str, Any]:
        return {}

    def rows(self, place: Place) -> list[dict[str, Any]]:
        """Of its result table."""
        found: list[dict[str, Any]] = read_json(self.product(place) / "results.json")["rows"]
        return found


Checked = list[dict[str, Any]]
"""Findings as JSON: dictionaries of text and numbers."""


@final
@dataclass(frozen=True)
class Check:
    """Examine something and keep the findings in a file.

    ``ask`` is called as ``ask(**arguments, device=…, progress=…)``, with the arguments' texts
    filled. By these, and by the weights of victims among them, a finished file is compared.
    """

    name: str
    ask: Callable[..., Checked]
    arguments: tuple[tuple[str, str | float | tuple[str | float, ...]], ...]

    @property
    def key(self) -> str:
        return f"check {self.name}"

    @property
    def setting(self) -> str:
        return ", ".join(f"{name} `{given}`" for name, given in self.arguments)

    @property
    def needs(self) -> frozenset[str]:
        return names_in(self.arguments)

    def product(self, place: Place) -> Path:
        return place.out / "checks" / f"{self.name}.json"

    def done(self, place: Place) -> bool:
        return self.product(place).exists()

    def run(self, place: Place, progress: bool) -> None:
        given, file = dict(place.fill(self.arguments)), self.product(place)
        weights = {
            name: checkpoints.hashed(Path(str(given[name])))
            for name, text in self.arguments
            if isinstance(text, str) and VICTIMS in names_in(text)
        }
        configuration = json.loads(json.dumps({**given, "weights": weights}))
        if file.exists():
            there = read_json(file).get("configuration", {})
            differing = [key for key in configuration if there.get(key) != configuration[key]]
            if differing:
                raise RunFolderError(
                    f"{file} holds findings of another configuration (its {', '.join(differing)} "
                    "differ); choose another --out, or remove it"
                )
            return
        found = self.ask(**given, device=place.device, progress=progress)
        write_whole(
            file, json.dumps({"configuration": configuration, "findings": found}, indent=1) + "\n"
        )

    def facts(self, place: Place) -> dict[str, Any]:
        """How many findings came to each verdict, and every number in them by ``check: number``."""
        found = self.findings(place)
        verdicts = dict.fromkeys(("ok", "note", "warning", "failed", "not checked"), 0)
        verdicts |= Counter(finding["verdict"] for finding in found)
        numbers = {
            f"{finding['name']}: {key}": value
            for finding in found
            for key, value in finding["measured"].items()
            if isinstance(value, (int, float))
        }
        return {**verdicts, **numbers}

    def findings(self, place: Place) -> Checked:
        """What was found."""
        found: Checked = read_json(self.product(place))["findings"]
        return found


@final
@dataclass(frozen=True)
class Turn:
    """Attack a victim of two features and keep where they go (`uturn.reproduce.turn`)."""

    name: str
    victim: str
    data: str
    queries: int
    attack: str = "odfa"
    eps: tuple[float, ...] = (2, 4, 8, 12, 16)

    @property
    def key(self) -> str:
        return f"turn {self.name}"

    @property
    def setting(self) -> str:
        eps = ", ".join(f"{e:g}" for e in self.eps)
        return (
            f"`{self.victim}` on `{self.data}`, {self.queries} queries, `{self.attack}`, ε = {eps}"
        )

    @property
    def needs(self) -> frozenset[str]:
        return names_in(self)

    def product(self, place: Place) -> Path:
        return place.out / "turns" / self.name

    def done(self, place: Place) -> bool:
        return (self.product(place) / "turn.json").exists()

    def run(self, place: Place, progress: bool) -> None:
        turn(
            load_victim(place.fill(self.victim), place.device),
            load_data(place.fill(self.data)),
            eps=self.eps,
            queries=self.queries,
            seed=1,
            out=self.product(place),
            attack=self.attack,
            progress=progress,
        )

    def panels(self, place: Place) -> list[dict[str, Any]]:
        """What was measured at ε = 0 and at every ε."""
        found: list[dict[str, Any]] = read_json(self.product(place) / "turn.json")["panels"]
        return found

    def facts(self, place: Place) -> dict[str, Any]:
        return {
            f"{key} at ε={panel['eps']:g}": panel[key]
            for panel in self.panels(place)
            for key in ("angle", "top1")
        }


@final
@dataclass(frozen=True)
class Figure:
    """A picture file below the figures' folder, and what it shows."""

    file: str
    caption: str
    also: tuple[str, ...] = ()
    """Files of the same in other kinds, such as a vector picture."""


Drawing = Callable[[Mapping[str, Path], Path], Sequence[Figure]]
"""Gets products by the names of their steps, writes into a folder, says what the page shows."""


@final
@dataclass(frozen=True)
class Draw:
    """Draw figures from what earlier steps made; done anew every time, since it is quick.

    It is of the products of the steps ``of``. No picture of persons or of CIFAR-10 may be among
    what the page shows: pages are published.
    """

    name: str
    of: tuple[Train | Sweep | Check | Turn, ...]
    draw: Drawing

    @property
    def key(self) -> str:
        return f"figures {self.name}"

    @property
    def setting(self) -> str:
        return ""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    def product(self, place: Place) -> Path:
        return place.figures / self.name

    def done(self, place: Place) -> bool:
        return False

    def run(self, place: Place, progress: bool) -> None:
        folder = self.product(place)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = self.draw({step.name: step.product(place) for step in self.of}, folder)
        text = json.dumps(
            [[figure.file, figure.caption, *figure.also] for figure in drawn], indent=1
        )
        write_whole(folder / "figures.json", text + "\n")

    def facts(self, place: Place) -> dict[str, Any]:
        return {}

    def figures(self, place: Place) -> list[Figure]:
        """What was drawn."""
        found = json.loads((self.product(place) / "figures.json").read_bytes())
        return [Figure(file, caption, tuple(also)) for file, caption, *also in found]
