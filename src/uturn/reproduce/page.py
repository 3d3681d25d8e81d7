"""The results page of an experiment: Markdown, from what its steps left on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from uturn.report.text import NAMES, interval, markdown, shown, value
from uturn.report.turn import angles, read
from uturn.reproduce.claims import CLEAN, Row, Tables
from uturn.reproduce.experiment import Experiment, Table
from uturn.reproduce.files import write_whole
from uturn.reproduce.machine import Clock, Time
from uturn.reproduce.place import Place
from uturn.reproduce.published import number, published, rows
from uturn.reproduce.steps import Check, Draw, Figure, Step, Sweep, Train, Turn

_CLEAN = (
    (NAMES["recall@1"], "recall@1"),
    (NAMES["recall@10"], "recall@10"),
    (NAMES["map"], "map (plain)"),
    (NAMES["top1"], "top1"),
)
"""Columns of trained victims, and what `uturn eval` calls them."""


def write(experiment: Experiment, preset: str, place: Place, clock: Clock) -> Path:
    """Write ``results/NAME.md`` from finished steps and return its path."""
    steps, tables = experiment.presets[preset], collect(experiment, preset, place)
    parts = [
        f"# {experiment.title}",
        experiment.repeats,
        _command(experiment, preset),
        _steps(experiment, preset, place, clock),
        _victims(experiment, preset, tables),
        *(_table(table, tables, place) for table in experiment.tables if table.run in tables.rows),
        _beside(experiment, tables),
        *(_turned(step, place) for step in steps if isinstance(step, Turn)),
        *(_findings(step, place) for step in steps if isinstance(step, Check)),
        _claims(experiment, preset, tables, place),
        _notes(experiment),
        *_figures(experiment, preset, place),
    ]
    file = place.results / f"{experiment.name}.md"
    write_whole(file, "\n\n".join(part for part in parts if part) + "\n")
    return file


def collect(experiment: Experiment, preset: str, place: Place) -> Tables:
    """What an experiment's finished steps have measured."""
    steps = experiment.presets[preset]
    return Tables(
        {step.name: step.rows(place) for step in steps if isinstance(step, Sweep)},
        {step.name: step.facts(place) for step in steps if not isinstance(step, (Sweep, Draw))},
    )


def _command(experiment: Experiment, preset: str) -> str:
    """As anybody would write it: a page is read elsewhere, where other paths hold."""
    data = " --data-root DATA" if experiment.needs(preset) else ""
    return f"```console\n$ uturn reproduce {experiment.name} --preset {preset}{data}\n```"


def _steps(experiment: Experiment, preset: str, place: Place, clock: Clock) -> str:
    steps = [step for step in experiment.presets[preset] if not isinstance(step, Draw)]
    times = {step.key: spent(step, place, clock) for step in steps}
    lines = [[step.key, str(times[step.key] or "–"), step.setting] for step in steps]
    total = sum((time for time in times.values() if time), Time())
    machines = clock.machines(step.key for step in steps) or ["a machine that was not noted"]
    return f"On {'; '.join(machines)}: {total}.\n\n" + markdown(["step", "time", "what"], lines)


def spent(step: Step, place: Place, clock: Clock) -> Time | None:
    """How long a step took; of a victim never less than its epochs, whoever timed them."""
    timed = clock.time(step.key)
    if not isinstance(step, Train) or not step.done(place):
        return timed
    epochs = 60 * step.facts(place)["minutes"]
    return Time(epochs) if timed is None or timed.seconds < epochs else timed


def _victims(experiment: Experiment, preset: str, tables: Tables) -> str:
    trained = {
        step.name: tables.facts[step.name]
        for step in experiment.presets[preset]
        if isinstance(step, Train)
    }
    if not trained:
        return ""
    columns = {
        title: [_number(values.get(key)) for values in trained.values()] for title, key in _CLEAN
    }
    kept = {title: cells for title, cells in columns.items() if set(cells) != {"–"}}
    kept["minutes of epochs"] = [f"{values['minutes']:.1f}" for values in trained.values()]
    lines = [[name, *(cells[i] for cells in kept.values())] for i, name in enumerate(trained)]
    return "Clean, on all queries:\n\n" + markdown(["trained here", *kept], lines)


# -- tables ---------------------------------------------------------------------------------------


def _table(table: Table, tables: Tables, place: Place) -> str:
    victim = None if table.victim is None else place.fill(table.victim)
    ours = tables.scored(table.run, victim)
    if not ours:
        return ""
    known = rows(table.published) if table.published else []
    theirs = {(row["attack"], row["eps"]): row for row in known}
    head = ["attack", "ε"]
    for metric in table.metrics:
        head += [shown(metric), "paper", "difference"] if theirs else [shown(metric)]
    head += [f"95 % of {shown(table.metrics[0])}", "gradients"]
    lines = [_line(row, theirs, table) for row in ours]
    first = ours[0]
    under = f"{first['queries']} queries"
    if "map" in table.metrics:
        under += f", average precision `{first['convention']}`"
    if theirs:
        under += f"; paper: `{table.published}`"
    return f"## {table.title}\n\n{under}.\n\n{markdown(head, lines)}{flags_of(ours)}"


def flags_of(rows: Sequence[Row]) -> str:
    """Each flag once, with the rows that have it."""
    having = dict[str, dict[str, list[str]]]()
    for row in rows:
        for flag in row["flags"]:
            levels = having.setdefault(flag, {}).setdefault(row["attack"], [])
            levels.append(f"{row['eps']:g}")
    if not having:
        return ""
    lines = [
        f"- {flag}: " + "; ".join(f"{attack} ε={', '.join(at)}" for attack, at in found.items())
        for flag, found in having.items()
    ]
    return f"\n\nFlags of these rows:\n\n{chr(10).join(lines)}"


def _line(row: Row, theirs: dict[tuple[str, float], Row], table: Table) -> list[str]:
    attack = CLEAN if row["attack"] == CLEAN else f"`{row['attack']}`"
    cells = [attack, f"{row['eps']:g}"]
    name = str(row["attack"])
    paper = theirs.get((dict(table.called).get(name, name), row["eps"]), {})
    for metric in table.metrics:
        own = value(row, metric)
        cells += beside(own, paper.get(metric)) if theirs else [_number(own)]
    ends = interval(row, table.metrics[0])
    return [*cells, f"{ends[0]:.3f}–{ends[1]:.3f}" if ends else "–", f"{row['gradients']:g}"]


def _beside(experiment: Experiment, tables: Tables) -> str:
    if experiment.beside is None:
        return ""
    lines = [
        [line.what, *beside(line.ours.of(tables), number(*line.published))]
        for line in experiment.beside.lines
    ]
    table = markdown(["", "ours", "paper", "difference"], lines)
    return f"## {experiment.beside.title}\n\n{experiment.beside.note}\n\n{table}"


def beside(own: float | None, paper: float | None) -> list[str]:
    """Ours, the paper's, and the difference, as cells."""
    apart = "–" if own is None or paper is None else f"{own - paper:+.4f}"
    return [_number(own), _number(paper), apart]


def _number(found: float | None) -> str:
    return "–" if found is None else f"{found:.4f}"


def _turned(step: Turn, place: Place) -> str:
    lines = [
        [f"{panel['eps']:g}", f"{panel['angle']:.1f}°", _number(panel["top1"])]
        for panel in step.panels(place)
    ]
    told = markdown(["ε", "mean angle turned", shown("top1")], lines)
    by_class = angles(read(step.product(place) / "turn.json"))
    return "\n\n".join(
        [
            f"## How far the features turn: {step.name}",
            f"{step.queries} queries, `{step.attack}`.",
            told,
            "By class:",
            by_class,
        ]
    )


def _findings(step: Check, place: Place) -> str:
    lines = [[each["verdict"], each["name"], each["says"]] for each in step.findings(place)]
    told = [
        f"- {each['name']}: {each['cause']}. Remedy: {each['remedy']}."
        for each in step.findings(place)
        if each["cause"]
    ]
    return "\n\n".join(
        [f"## Checked: {step.name}", markdown(["verdict", "check", "measured"], lines), *told]
    )


# -- what follows ---------------------------------------------------------------------------------


def _claims(experiment: Experiment, preset: str, tables: Tables, place: Place) -> str:
    """Of what this preset measures; other sizes have claims of their own."""
    names = {step.name for step in experiment.presets[preset]}
    lines = []
    for claim in experiment.claims:
        if claim.sources <= names:
            verdict = place.fill(claim).test(tables)
            lines.append([claim.text, verdict.word, verdict.evidence])
    return "## Does it hold?\n\n" + markdown(["claim", "holds", "measured"], lines) if lines else ""


def _notes(experiment: Experiment) -> str:
    notes = "".join(f"- {text}\n" for text in (*experiment.differs, *experiment.traps))
    if not notes:
        return ""
    source = published()["source"]
    return f"## What differs from the paper, and why\n\n{notes}\nThe paper's numbers: {source}."


def _figures(experiment: Experiment, preset: str, place: Place) -> list[str]:
    shown_ = []
    for step in experiment.presets[preset]:
        if isinstance(step, Draw):
            folder = Path(os.path.relpath(step.product(place), place.results))
            shown_ += [_figure(figure, folder) for figure in step.figures(place)]
    return ["## Figures", *shown_] if shown_ else []


def _figure(figure: Figure, folder: Path) -> str:
    links = [
        f"[{Path(file).suffix[1:].upper()}]({(folder / file).as_posix()})" for file in figure.also
    ]
    also = f" (also as {', '.join(links)})" if links else ""
    picture = f"![{figure.caption}]({(folder / figure.file).as_posix()})"
    return f"{picture}\n\n{figure.caption}{also}"
