"""A gallery of a million behind an index, asked with clean and with attacked queries; as JSON.

The gallery is Market-1501's, with distractors up to the size asked for: each lies between
the features of two training pictures at random, plus noise as large as pictures of one person
differ by. The attacked queries are those of a run folder of `uturn sweep`.

    $ python -m benchmarks.large --data /data --run runs/odfa --index faiss:IVF4096,PQ64,nprobe=32
"""

from __future__ import annotations

import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from uturn import load_data, load_victim
from uturn.data.folder import replace_queries
from uturn.data.split import Split
from uturn.retrieval import metrics
from uturn.retrieval.extract import extract_all
from uturn.retrieval.fidelity import NEAREST, recall_of_exact
from uturn.retrieval.index import ExactIndex, read_index
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.ranking import rank
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep.plan import Job
from uturn.victims.victim import Victim

DISTRACTOR, CAMERAS, LEARNED = 0, 6, 4096
"""Market-1501's identity of what nobody asks for; its cameras; pictures behind distractors."""


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As `make bench`.")
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--attack", default="odfa", show_default=True, help="Of the run.")
@click.option("--eps", default=8, show_default=True, help="Of the run.")
@click.option("--index", "specs", required=True, multiple=True, help="Index specs.")
@click.option("--vectors", default=1_000_000, show_default=True, help="In the gallery.")
def main(
    data: Path, folder: Path, attack: str, eps: int, specs: tuple[str, ...], vectors: int
) -> None:
    """Fill each index, ask it, and say how long it took and what was found.

    Times are the processor's, of all cores together: those of the wall depend on who else is there.
    """
    weights = data / "osnet_x0_25_market1501.pth"
    victim = load_victim(f"osnet_x0_25:weights={weights}").folded()
    split = load_data(f"market1501:{data / 'market1501'}")
    clean = _of_run(split, folder / "images" / "clean")
    attacked = _of_run(split, folder / "images" / Job(attack, eps).folder)
    queries = [_looked_at(victim, one) for one in (clean, attacked)]
    asked = Labels.of(clean.query, torch.device("cpu"))
    features, gallery = gallery_of(victim, split, vectors)
    for spec in specs:
        found = _asked(spec, victim, clean, features, gallery, queries, asked)
        click.echo(json.dumps({"index": spec, "vectors": len(features)} | found))


def _of_run(split: Split, folder: Path) -> Split:
    """The queries whose pictures a run has, as its files hold them."""
    return replace(split, query=replace_queries(split.query, folder))


def _looked_at(victim: Victim, split: Split) -> Tensor:
    return extract_all(victim, split.query, "queries", progress=True)


def gallery_of(victim: Victim, split: Split, vectors: int) -> tuple[Tensor, Labels]:
    """Features ``(vectors, D)`` and labels: the data set's, and distractors behind them."""
    real = extract_all(victim, split.gallery, "gallery", progress=True)
    assert split.train is not None
    train = split.train.sample(LEARNED, 0, split.name, "train pictures")
    known = extract_all(victim, train, "training pictures", progress=True)
    people = torch.from_numpy(train.identities)
    draw, more = torch.Generator().manual_seed(0), vectors - len(real)
    order = people.argsort(stable=True)
    same = people[order][1:] == people[order][:-1]
    apart = (known[order][1:] - known[order][:-1])[same]  # (n, D), of one person each
    features = torch.empty(vectors, real.shape[1])
    features[: len(real)] = real
    for begin in range(len(real), vectors, 50_000):
        part = features[begin : begin + 50_000]
        one, two = torch.randint(len(known), (2, len(part)), generator=draw)
        share = torch.rand(len(part), 1, generator=draw) / 2
        noise = apart[torch.randint(len(apart), (len(part),), generator=draw)]
        part[:] = known[one] * (1 - share) + known[two] * share + noise / 2**0.5
    labels = Labels.of(split.gallery, torch.device("cpu"))
    cameras = torch.randint(1, CAMERAS + 1, (more,), generator=draw)
    columns = zip(
        (labels.identities, labels.cameras, labels.ids),
        (torch.full((more,), DISTRACTOR), cameras, torch.arange(more)),
        strict=True,
    )
    return features, Labels(*(torch.cat(pair) for pair in columns))


def _asked(
    spec: str,
    victim: Victim,
    split: Split,
    features: Tensor,
    gallery: Labels,
    queries: list[Tensor],
    asked: Labels,
) -> dict[str, Any]:
    judge, found = judge_for(split), dict[str, Any]()
    began = time.process_time()
    built = read_index(spec, victim.similarity).build(features, gallery, judge, progress=True)
    found["core seconds to fill"] = time.process_time() - began
    system = RetrievalSystem(built, gallery, judge)
    for name, looked in zip(("clean", "attacked"), queries, strict=True):
        began = time.process_time()
        ranking = rank(built, looked, asked, gallery, judge)
        found[f"core ms per query, {name}"] = 1000 * (time.process_time() - began) / len(looked)
        found[f"recall@1, {name}"] = float(metrics.recall_at(ranking, 1).nanmean())
        if not isinstance(built, ExactIndex):
            share = recall_of_exact(system, features, looked, asked)
            found[f"recall@{NEAREST} of exact, {name}"] = share
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
    return found | {"queries": len(asked), "peak, GB": peak}


if __name__ == "__main__":
    main()
