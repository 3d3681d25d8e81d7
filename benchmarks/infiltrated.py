"""Changed gallery pictures among a million vectors; as JSON.

The gallery is that of `benchmarks.large`, in which the pictures of a folder of `uturn gallery` are
taken in again: the clean ones, then those of each attack. Every query asks that the attacker of
that folder has not seen.

    $ python -m benchmarks.infiltrated --data /data --run runs/raised --index faiss:IVF1024,PQ32
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet
import torch

from benchmarks.large import gallery_of
from uturn import load_data, load_victim
from uturn.data.pictures import decode
from uturn.retrieval import metrics
from uturn.retrieval.exposure import FIRST, exposure
from uturn.retrieval.extract import extract_all, extract_decoded
from uturn.retrieval.index import read_index
from uturn.retrieval.judge import Labels, judge_for
from uturn.retrieval.system import RetrievalSystem
from uturn.sweep.plan import Job

Row = dict[str, Any]


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="As `make bench`.")
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="Its folder.")
@click.option("--index", required=True, help="Index spec.")
@click.option("--vectors", default=1_000_000, show_default=True, help="In the gallery.")
def main(data: Path, folder: Path, index: str, vectors: int) -> None:
    """Fill the index once, take changed pictures in, and say what is found.

    Times are the processor's, of all cores together.
    """
    weights = data / "osnet_x0_25_market1501.pth"
    victim = load_victim(f"osnet_x0_25:weights={weights}").folded()
    split = load_data(f"market1501:{data / 'market1501'}")
    items, asked = (_names(folder / f"{table}.parquet", table) for table in ("items", "queries"))
    position = {name: place for place, name in enumerate(split.gallery.names)}
    places = torch.tensor([position[name] for name in items])
    order = {name: place for place, name in enumerate(split.query.names)}
    query = split.query.subset(np.array([order[name] for name in asked]))
    features, gallery = gallery_of(victim, split, vectors)
    labels, judge = Labels.of(query, torch.device("cpu")), judge_for(split)
    looked = extract_all(victim, query, "queries", progress=True)
    spec, began = read_index(index, victim.similarity), time.process_time()
    with spec.aside(places, features, gallery, judge, progress=True) as reingest:
        told: Row = {"index": index, "vectors": len(features), "items": len(items)}
        told |= {"queries": len(asked), "core seconds to fill": time.process_time() - began}
        for row in json.loads((folder / "results.json").read_bytes())["rows"]:
            images = folder / "images" / Job(row["attack"], row["eps"]).folder
            changed = extract_decoded(victim, (decode(images / f"{name}.png") for name in items))
            began = time.process_time()
            system = RetrievalSystem(reingest(changed), gallery, judge)
            again = time.process_time() - began
            found = exposure(system, looked, labels, places)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
            click.echo(
                json.dumps(
                    told
                    | {key: row[key] for key in ("attack", "eps")}
                    | {
                        "core seconds to take in": again,
                        "recall@1": float(metrics.recall_at(found.ranking, 1).nanmean()),
                        **{
                            f"asr@{k}": float((found.intruder <= k).double().mean())
                            for k in (1, 10)
                        },
                        f"found among the first {FIRST}, in the wrong": _mean(found.intrusions),
                        f"found among the first {FIRST}, rightly": _mean(found.finds),
                        "own recall@1": float(
                            metrics.recall_at(found.ranking, 1)[found.own > 0].nanmean()
                        ),
                        "peak, GB": peak,
                    }
                )
            )


def _names(table: Path, kind: str) -> list[str]:
    """The changed pictures, or the held-out queries, of a run."""
    column = {"items": "item", "queries": "query"}[kind]
    rows = pyarrow.parquet.read_table(table, columns=["attack", column]).to_pylist()
    return [row[column] for row in rows if row["attack"] == "clean"]


def _mean(counts: torch.Tensor) -> float:
    return float(counts.double().mean())


if __name__ == "__main__":
    main()
