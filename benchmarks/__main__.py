"""``python -m benchmarks``: do the works asked for, print the table, write the results."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks import results
from benchmarks.harness import MissingError, measure
from benchmarks.setting import HERE, Setting
from benchmarks.works import WORKS


@click.command()
@click.option("--only", help="Works, with commas between them: " + ", ".join(WORKS) + ".")
@click.option("--repeats", default=5, show_default=True, help="Rounds behind a median.")
@click.option("--quick", is_flag=True, help="Tiny sizes that show that all runs; no results.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=os.environ.get("UTURN_BENCH_DATA"),
    help="Folder with market1501/ and osnet_x0_25_market1501.pth (default: UTURN_BENCH_DATA).",
)
@click.option("--queries", default=500, show_default=True, help="Of the sweep end to end.")
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Of those queries, what the original's steps are done on; their time is scaled up.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where results.json and results.md go (default: benchmarks; with --quick nowhere).",
)
def main(
    only: str | None,
    repeats: int,
    quick: bool,
    data: Path | None,
    queries: int,
    share: float,
    out: Path | None,
) -> None:
    """Ours, each peer and the limit, as ratios in one run."""
    chosen = list(WORKS) if only is None else only.split(",")
    unknown = [name for name in chosen if name not in WORKS]
    if unknown:
        raise click.UsageError(f"no work is named {unknown[0]}; known: {', '.join(WORKS)}")
    around, rows = results.surroundings(), dict[str, list[dict[str, Any]]]()
    folder = out or (None if quick else HERE)
    with tempfile.TemporaryDirectory(prefix="uturn-bench-") as scratch:
        setting = Setting(
            scratch=Path(scratch), data=data, quick=quick, queries=queries, share=share
        )
        for work in chosen:
            rows[work] = []
            for row in _measured(work, setting, repeats):
                rows[work].append(row)
                if folder is not None:  # after every case: a kill loses one
                    _write(folder, around, {work: rows[work]})
    content = {**around, "rows": [row for work in chosen for row in rows[work]]}
    click.echo("\n" + results.markdown(content))
    if any(row.get("complaints") for work in chosen for row in rows[work]):
        raise click.ClickException("contenders did not do the same work; see above")


def _measured(work: str, setting: Setting, repeats: int) -> Iterator[dict[str, Any]]:
    try:
        for case in WORKS[work](setting):
            click.echo(f"{case.name}: {case.title}", err=True)
            once = 1 if setting.quick else repeats
            measured = measure(case, once, say=lambda line: click.echo(line, err=True))
            yield results.record(measured)
    except MissingError as missing:
        click.echo(f"{work}: {missing}", err=True)
        yield results.skipped(work, str(missing))


def _write(folder: Path, around: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> None:
    content = results.update(folder / "results.json", around, rows)
    (folder / "results.md").write_text(results.markdown(content), encoding="utf-8")


if __name__ == "__main__":
    main()
