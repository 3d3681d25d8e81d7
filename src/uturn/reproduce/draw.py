"""What `Draw` steps draw. Pages are published: no picture of persons or of CIFAR-10 is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uturn.report import paper, turn
from uturn.report.matrix import Matrix
from uturn.reproduce.experiment import CLASSIFICATION, RETRIEVAL
from uturn.reproduce.files import read_json
from uturn.reproduce.steps import Figure
from uturn.specs import Spec

SHOWN = 8
"""The ε at which rank lists are shown, in levels."""


def curves(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """Retrieval over ε: a line of panels for each run folder."""
    return _curves(made, folder, RETRIEVAL)


def accuracies(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """Classification over ε: a line of panels for each run folder."""
    return _curves(made, folder, CLASSIFICATION)


def _curves(made: Mapping[str, Path], folder: Path, metrics: tuple[str, ...]) -> list[Figure]:
    paper.curves(
        [paper.Curves(name, run, metrics) for name, run in made.items()], folder / "curves"
    )
    measured = ", ".join(paper.METRICS[metric] for metric in metrics)
    return [Figure("curves.svg", f"{measured} over ε, with 95 % bands: {', '.join(made)}")]


def open_curves(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """`curves`, and for a data set whose pictures may be shown a rank list and a perturbation."""
    (run,) = made.values()
    paper.rank_list(run, folder / "ranks", attack="odfa", eps=SHOWN)
    paper.perturbation(run, folder / "perturbation", attack="odfa")
    return [
        *curves(made, folder),
        Figure("ranks.png", f"The first answers to a query, clean and under odfa at ε = {SHOWN}"),
        Figure("perturbation.png", "The same query under odfa at every ε, and the change"),
    ]


def transfer(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """For every attack a matrix at the largest ε: crafted on whom, scored by whom."""
    rows = [row for run in made.values() for row in read_json(run / "results.json")["rows"]]
    eps = max(row["eps"] for row in rows)
    titles = {row["victim"]: _name(row["victim"]) for row in rows}
    figures = []
    for number, attack in enumerate(dict.fromkeys(row["attack"] for row in rows if row["eps"])):
        matrix = Matrix.of(list(made.values()), attack, eps, titles=titles)
        matrix.draw(folder / f"matrix{number}")
        figures.append(Figure(f"matrix{number}.svg", f"`{attack}` at ε = {eps:g}: R@1 left"))
    return figures


def _name(spec: str) -> str:
    """A victim's spec without its path: what was trained by its file, others by their network."""
    trained = spec.endswith(".safetensors") and ":" not in spec
    return Path(spec).stem if trained else Spec.parse(spec).name


def turned(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """The U-turn picture: panels over ε, an animation, and one picture's ways."""
    (source,) = made.values()
    found = turn.read(source / "turn.json")
    turn.panels(found, folder / "panels")
    turn.concept(found, folder / "concept")
    turn.animation(found, folder / "turn.gif")
    turn.page(found, folder / "turn.html")
    what = f"{found.data}, {found.victim}"
    return [
        Figure("panels.png", f"The features at every ε, and the class directions W ({what})"),
        Figure("turn.gif", f"The same as an animation; turn.html has a slider ({what})"),
        Figure(
            "concept.png",
            f"Where each attack carries the feature of one picture, step by step ({what})",
        ),
    ]
