"""What `Draw` steps draw. Pages are published: no picture of persons or of CIFAR-10 is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from uturn.report import paper, turn
from uturn.report.matrix import Matrix
from uturn.report.text import shown
from uturn.reproduce.experiment import CLASSIFICATION, RETRIEVAL
from uturn.reproduce.files import read_json
from uturn.reproduce.steps import Figure
from uturn.specs import Spec

RANKED = 8
"""The ε at which rank lists are shown, in levels."""


def curves(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """Retrieval over ε: a line of panels for each run folder."""
    return _curves(made, folder, RETRIEVAL)


def accuracies(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """Classification over ε: a line of panels for each run folder."""
    return _curves(made, folder, CLASSIFICATION)


def _curves(made: Mapping[str, Path], folder: Path, metrics: tuple[str, ...]) -> list[Figure]:
    files = paper.curves(
        [paper.Curves(name, run, metrics) for name, run in made.items()], folder / "curves"
    )
    measured = ", ".join(map(shown, metrics))
    return [_figure(files, f"{measured} over ε, with 95 % bands: {', '.join(made)}")]


def open_curves(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """`curves`, and for a data set whose pictures may be shown a rank list and a perturbation."""
    (run,) = made.values()
    ranks = paper.rank_list(run, folder / "ranks", attack="odfa", eps=RANKED)
    change = paper.perturbation(run, folder / "perturbation", attack="odfa")
    return [
        *curves(made, folder),
        _figure(ranks, f"The first answers to a query, clean and under odfa at ε = {RANKED}"),
        _figure(change, "The same query under odfa at every ε, and the change"),
    ]


def transfer(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """For every attack a matrix at the largest ε: crafted on whom, scored by whom."""
    rows = [row for run in made.values() for row in read_json(run / "results.json")["rows"]]
    eps = max(row["eps"] for row in rows)
    titles = {row["victim"]: _name(row["victim"]) for row in rows}
    figures = []
    for number, attack in enumerate(dict.fromkeys(row["attack"] for row in rows if row["eps"])):
        matrix = Matrix.of(list(made.values()), attack, eps, titles=titles)
        files = matrix.draw(folder / f"matrix{number}")
        figures.append(_figure(files, f"`{attack}` at ε = {eps:g}: {shown(matrix.metric)} left"))
    return figures


def _name(spec: str) -> str:
    """A victim's spec without its path: what was trained by its file, others by their network."""
    trained = spec.endswith(".safetensors") and ":" not in spec
    return Path(spec).stem if trained else Spec.parse(spec).name


def turned(made: Mapping[str, Path], folder: Path) -> list[Figure]:
    """The U-turn picture: panels over ε, an animation, and one picture's ways."""
    (source,) = made.values()
    found = turn.read(source / "turn.json")
    panels = turn.panels(found, folder / "panels")
    film, page = turn.animation(found, folder / "turn.gif"), turn.page(found, folder / "turn.html")
    what = f"{found.data}, {found.victim}, `{found.attack}`"
    figures = [
        _figure(panels, f"The features at every ε ({what}). {found.key}"),
        _figure([film, page], f"The same as an animation; the page has a slider ({what})", ".gif"),
    ]
    if not found.walks:  # no class has a picture that is classified rightly
        return figures
    concept, (_, apart) = turn.concept(found, folder / "concept"), turn.widest(found)
    return [
        *figures,
        _figure(
            concept,
            "Where each attack carries the feature of one picture, step by step: of "
            f"{len(found.walks)} measured the one whose W_min and −f are farthest apart, by "
            f"{apart:.0f}° ({what})",
        ),
    ]


def _figure(files: Sequence[Path], caption: str, kind: str = ".png") -> Figure:
    """Of files that show the same, the one of ``kind`` is seen on the page."""
    (seen,) = (file.name for file in files if file.suffix == kind)
    return Figure(seen, caption, tuple(file.name for file in files if file.name != seen))
