"""The notebooks run from the first cell to the last, and what they tell is so."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from uturn.cli import main

FOLDER = Path(__file__).parent.parent / "notebooks"

TOLD = {
    "first_attack": """
        assert attack.gradients == 10 and 0 < float(found.delta.abs().max()) <= 8
        assert answer(clean)[0].relevant and not answer(found.images)[0].relevant
        assert len(cosines) == 11 and cosines[0] > 0.9 and cosines[-1] < 0
        assert slope(to_pixels(clean)) < 1e-4 * slope(to_pixels(clean.int() + signs))
        assert bool((again == found.images).all())
        left = {(row["attack"], row["eps"]): row["recall@1"] for row in rows}
        assert left["clean", 0] > 0.9 and left["noise", 8] > 0.9 and left["odfa", 8] < 0.2
        assert left["uturn", 8] <= left["odfa", 8]
        assert (here / "run" / "report.html").is_file()
    """,
    "your_own_model": """
        def worst(looked_at):
            return {finding.name: finding.verdict for finding in examine(looked_at, data)}

        assert "failed" not in worst(victim).values()
        assert worst(wrong)["running-statistics"] == "failed"
        assert not set(data.train.identities) & set(data.query.identities)
        assert values["recall@1"] > 0.8 and float(before @ after) < 0.9
        rows = run(plan, here / "run", progress=False)
        left = {(row["attack"], row["eps"]): row["recall@1"] for row in rows}
        assert left["uturn", 8] < 0.5 * left["noise", 8]
        assert (here / "run" / "report.html").is_file()
    """,
    "defence": """
        def left(name, attack, eps):
            return next(
                row for row in found[name] if (row["attack"], row["eps"]) == (attack, eps)
            )["ci95"]["recall@1"]

        assert all(rows[0]["recall@1"] > 0.9 for rows in found.values())
        for attack in plan.attacks:  # 95 % intervals apart
            assert left("twin", attack, 8)[1] < left("defended", attack, 8)[0]
        verdicts = [finding.verdict for finding in findings]
        assert "failed" not in verdicts and "warning" in verdicts
    """,
}
"""By notebook, a last cell that asks its variables whether the words above them hold."""

LARGEST = 256_000
"""Bytes of a notebook with its outputs."""


def read(name: str) -> dict[str, Any]:
    book: dict[str, Any] = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return book


def cells(name: str, kind: str) -> list[str]:
    return ["".join(c["source"]) for c in read(name)["cells"] if c["cell_type"] == kind]


def shown(cell: Any) -> set[str]:
    """What kinds of output a cell has: streams by name, displays by media type."""
    return {
        kind
        for output in cell["outputs"]
        for kind in ([output["name"]] if "name" in output else output["data"])
    }


def test_every_notebook_is_asked() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(TOLD)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "first_attack")) for name in TOLD],
)
def test_runs_and_tells_the_truth(name: str, tmp_path: Path) -> None:
    for module in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(module, reason=f"{module} is not installed, so no notebook can run")
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    stored = [shown(cell) for cell in book.cells if cell.cell_type == "code"]
    question = "if True:" + TOLD[name]  # which is indented
    book.cells.append(nbformat.v4.new_code_cell(question))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=resources).execute()
    *new, last = [shown(cell) for cell in book.cells if cell.cell_type == "code"]
    assert new == stored, "the stored outputs are not those of these cells: run it and save it"
    assert not any("stderr" in kinds for kinds in new), "a warning, or a progress bar"
    assert not last


@pytest.mark.parametrize("name", TOLD)
def test_stored_outputs_are_those_of_one_run_and_small(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").stat().st_size < LARGEST
    code = [cell for cell in read(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in shown(cell) for cell in code)


@pytest.mark.parametrize("name", TOLD)
def test_command_lines_parse(name: str) -> None:
    assert isinstance(main, click.Group)
    lines = [
        line
        for cell in cells(name, "markdown")
        for block in re.findall(r"```console\n(.*?)```", cell, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in lines:
        words = shlex.split(line.split("uturn ", 1)[1])
        main.commands[words[0]].make_context(words[0], words[1:], resilient_parsing=False)
    assert lines


@pytest.mark.parametrize("name", TOLD)
def test_links_lead_somewhere(name: str) -> None:
    links = [
        link
        for cell in cells(name, "markdown")
        for link in re.findall(r"\]\((?!http)([^)#]+)", cell)
    ]
    for link in links:
        assert (FOLDER / link).exists(), link
    assert links
