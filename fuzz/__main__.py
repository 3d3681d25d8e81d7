"""``python -m fuzz``: fuzz targets for so long, or run one input again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from fuzz.engine import FINDINGS, Told, fuzz
from fuzz.guards import room
from fuzz.target import CORPUS
from fuzz.targets import TARGETS


@click.command()
@click.argument("words", nargs=-1, metavar="[TARGET]… | TARGET FILE")
@click.option("--executions", default=20_000, show_default=True, help="Of each target.")
@click.option("--seconds", default=300.0, show_default=True, help="Of each target, at the most.")
@click.option("--seed", default=0, show_default=True, help="Draws the inputs.")
@click.option(
    "--corpus",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for what is found to reach something new; default: one that is removed.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Append counts as JSON lines."
)
def main(
    words: tuple[str, ...],
    executions: int,
    seconds: float,
    seed: int,
    corpus: Path | None,
    out: Path | None,
) -> None:
    """Fuzz every target, or those named. With a file, run that input alone and say what came of it.

    Exits with 1 if anything was found; findings lie in fuzz/findings, each with its traceback.
    """
    if len(words) == 2 and words[1] not in TARGETS:
        _again(words[0], Path(words[1]))
        return
    unknown = [word for word in words if word not in TARGETS]
    if unknown:
        raise click.UsageError(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    found = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in words or TARGETS:
            told = fuzz(
                name,
                executions=executions,
                seconds=seconds,
                corpus=(corpus or Path(scratch)) / name,
                seed=seed,
            )
            click.echo(line(told))
            found += len(told.findings)
            if out is not None:
                with out.open("a") as file:
                    entry = vars(told) | {"findings": [path.name for path in told.findings]}
                    file.write(json.dumps(entry) + "\n")
    if found:
        click.echo(f"{found} findings in {FINDINGS}; python -m fuzz TARGET FILE runs one again")
        raise SystemExit(1)


def line(told: Told) -> str:
    """What came of one target."""
    edges = "" if told.edges is None else f", {told.edges:,} edges"
    rate = told.executions / max(told.seconds, 1e-9)
    text = f"{told.target:<20}{told.executions:>9,} executions, {rate:,.0f}/s{edges}"
    return text + "".join(f"\n  FOUND {path}" for path in told.findings)


def _again(name: str, file: Path) -> None:
    if name not in TARGETS:
        raise click.UsageError(f"no target {name!r}; there are {', '.join(TARGETS)}")
    if not file.exists():
        file = next(
            (path for path in (CORPUS / name / file, FINDINGS / file) if path.exists()), file
        )
    with room(TARGETS[name]) as run:
        click.echo(f"{file}: {run(file.read_bytes())}")


if __name__ == "__main__":
    main()
