"""The command line. It only parses, calls and prints; torch is imported when work begins."""

from __future__ import annotations

import functools
import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from uturn._version import __version__
from uturn.errors import UturnError
from uturn.specs import split_list


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """A comma-separated list of numbers."""

    name = "number,…"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(piece) for piece in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers", param, ctx)


class _Place(click.ParamType):  # type: ignore[type-arg]
    """A path, or a URL of shared storage."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        from uturn.storage import place

        try:
            return place(value) if isinstance(value, str) else value
        except UturnError as error:
            self.fail(str(error), param, ctx)


VICTIM_HELP = (
    "Victim spec: NAME or NAME:weights=PATH (see `uturn list victims`). package.module:factory "
    "imports and runs that code, torchscript:PATH its program; no other spec runs any."
)
DATA_HELP = "Data spec: NAME or NAME:PATH (see `uturn list data`)."
CLEAN = "clean"
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
INDEX = click.option(
    "--index",
    help="exact:cosine or exact:euclidean; faiss:FACTORY such as faiss:IVF256,PQ32,nprobe=16; or "
    "milvus:URI (docs/indexes.md). Default: exact, by the similarity of the victim's makers.",
)
RERANK = click.option(
    "--rerank",
    help="Stages behind the index, joined by +: aqe:n=10,alpha=3 (query expansion), "
    "k-reciprocal:k1=20,k2=6,weight=0.3 (each query alone), in `uturn eval` also "
    "k-reciprocal-together (all queries at once, as published).",
)
AT = click.option(
    "--at",
    type=click.Choice(["model", "native"]),
    default="model",
    show_default=True,
    help="Change the picture at the victim's input size, or at its own.",
)
SCALES = click.option(
    "--scales",
    type=_Numbers(),
    default="1",
    show_default=True,
    help="Average the victim's embeddings over these input scales, such as 1,0.7071,0.5.",
)
BATCH = click.option(
    "--batch-size",
    default=32,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures attacked at a time.",
)
MAX_QUERIES = click.option(
    "--max-queries",
    type=click.IntRange(2),
    help="An attack that asks the search system (square, nes, rgf, prgf) asks no more pictures per "
    "query, whatever its spec says.",
)
TRUST = click.option(
    "--trust",
    is_flag=True,
    help="The run is yours, or its author's word is enough: load what only run.json names even if "
    "that runs code (package.module:factory, torchscript:), downloads, or is a database.",
)
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")


def _plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Turn our own errors, and the disk's, into one sentence; keep freed memory."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from uturn.memory import keep_freed_memory

        keep_freed_memory()
        try:
            with _asked_to_stop():
                command(*args, **kwargs)
        except (UturnError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return run


@contextmanager
def _asked_to_stop() -> Iterator[None]:
    """Take SIGTERM, by which schedulers stop a program, for a Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is told
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="uturn")
def main() -> None:
    """How far can an image retrieval system be turned round by its query?

    ε is counted in levels of an 8-bit picture: what is 8/255 elsewhere is 8 here.
    """


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("uturn-demo"),
    show_default=True,
    help="Run folder.",
)
@QUIET
@_plainly
def demo(out: Path, quiet: bool) -> None:
    """The main job on the embedded default: glyphs, a shipped network, no download."""
    _sweep(
        out,
        quiet,
        victim="glyph_net",
        data="glyphs",
        queries=200,
        batch_size=50,
        device="cpu",
    )


@main.command()
@click.option("--victim", required=True, help=VICTIM_HELP)
@click.option("--data", required=True, help=DATA_HELP)
@click.option(
    "--attack",
    "attacks",
    default="fast,basic,least_likely,odfa",
    show_default=True,
    help="Attack specs, comma-separated (see `uturn list attacks`), such as odfa:steps=20.",
)
@click.option(
    "--eps",
    type=_Numbers(),
    default="2,4,8,12,16",
    show_default=True,
    help="Largest change of a value, in levels; comma-separated.",
)
@click.option(
    "--out",
    required=True,
    type=_Place(),
    help="Run folder: a path, or a URL such as s3://bucket/run (docs/engines.md).",
)
@click.option(
    "--queries", type=click.IntRange(1), help="Draw this many queries by the seed; default: all."
)
@click.option("--seed", default=0, show_default=True, help="Keys all randomness.")
@click.option(
    "--seeds",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Repeat attacks that draw something with so many seeds, --seed and those behind it; the "
    "queries stay the same, and rows are means over the seeds.",
)
@click.option(
    "--convention",
    help="Average precision: plain, trapezoid or map@r (see `uturn list metrics`); default: "
    "plain, in paper mode trapezoid.",
)
@click.option(
    "--mode",
    type=click.Choice(["default", "paper"]),
    default="default",
    show_default=True,
    help="paper: the original implementation's pipeline, to meet its published tables.",
)
@AT
@SCALES
@INDEX
@RERANK
@click.option(
    "--survive",
    default="",
    help="Score again after channels, comma-separated: jpeg95, jpeg75, resize (half and back).",
)
@click.option(
    "--transfer-to",
    default="",
    help="Other victims' specs, comma-separated, that score the same pictures: black-box "
    "transfer. A spec with a comma of its own but no = behind it stands in [brackets].",
)
@MAX_QUERIES
@click.option(
    "--monotone",
    is_flag=True,
    help="A query that is lost at a smaller ε keeps that picture and is not attacked again.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="What attacks are searched in after their first step; scores are always of float32. "
    "bfloat16 is quicker where the processor multiplies it.",
)
@click.option(
    "--unreadable",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="Pictures that cannot be read stop the run, or are left out and named in run.json; then "
    "every picture is read once at first (docs/durability.md).",
)
@click.option(
    "--engine",
    default="in-process",
    show_default=True,
    help="Where the work is done: in-process, ray (a cluster on this machine) or ray:ADDRESS; "
    "workers=N, and per worker threads=N, gpus=N (docs/engines.md).",
)
@BATCH
@DEVICE
@QUIET
@_plainly
def sweep(
    out: Path, quiet: bool, attacks: str, survive: str, transfer_to: str, **options: Any
) -> None:
    """Attack a victim at every ε and write a run folder with table, pictures and report.

    The same command on the same --out resumes a run that was stopped.
    """
    lists = {"attacks": attacks, "survive": survive, "transfer_to": transfer_to}
    options |= {name: tuple(split_list(text)) for name, text in lists.items()}
    _sweep(out, quiet, **options)


def _sweep(
    out: Path, quiet: bool, *, device: str, engine: str = "in-process", **options: Any
) -> None:
    from uturn.report import html
    from uturn.report.text import answered, cost, table
    from uturn.sweep import Plan, run
    from uturn.sweep.engines import load_engine
    from uturn.victims.load import pick_device

    try:
        chosen, plan = load_engine(engine), Plan(device=str(pick_device(device)), **options)
        rows = run(plan, out, engine=chosen, progress=not quiet)
    except KeyboardInterrupt:
        raise click.ClickException(
            f"stopped; finished batches are kept in {out}, the same command resumes there"
        ) from None
    click.echo(table(rows))
    header = json.loads((out / "run.json").read_bytes())
    click.echo(f"\n{cost(header)}")
    if told := answered(header):
        click.echo(told)
    click.echo(f"report: {html.write(out)}")


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--victim", help=f"{VICTIM_HELP} With --oracle it gives the size of the pictures.")
@click.option(
    "--oracle",
    metavar="URL",
    help="A search system to be asked, in place of a victim: http://… that speaks the protocol of "
    "docs/black_box.md. Nothing else is spoken to.",
)
@click.option(
    "--oracle-header",
    "headers",
    multiple=True,
    metavar="NAME:VALUE",
    help="Sent with every request, such as Authorization:…; may be given more than once.",
)
@click.option(
    "--oracle-batch",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Pictures in a request.",
)
@click.option(
    "--oracle-rate",
    type=click.FloatRange(0, min_open=True),
    help="Requests per second, at the most.",
)
@click.option(
    "--oracle-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds until an answer is no longer waited for.",
)
@click.option(
    "--oracle-attempts",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="How often a request that fails in passing is sent.",
)
@MAX_QUERIES
@click.option(
    "--attack", "spec", default="odfa", show_default=True, help="Attack spec, such as odfa."
)
@click.option("--eps", type=float, required=True, help="Largest change of a value, in levels.")
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="The picture to be retrieved as, for targeted attacks such as tma.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the PNGs.")
@click.option("--seed", default=0, show_default=True, help="Keys all randomness.")
@AT
@BATCH
@DEVICE
@_plainly
def attack(
    images: tuple[Path, ...],
    victim: str | None,
    spec: str,
    eps: float,
    target: Path | None,
    out: Path,
    seed: int,
    at: Any,
    batch_size: int,
    device: str,
    max_queries: int | None,
    oracle: str | None,
    **endpoint: Any,
) -> None:
    """Pictures in, adversarial PNGs out, at the size the victim sees or at their own.

    The clean pictures at that size are written to OUT/clean, so that ε can be checked.

    With --oracle a search system is asked instead; answers are kept in OUT/answers.jsonl, and the
    same command goes on after a fault. Without --victim pictures keep their own size then.
    """
    from uturn.attacks import load_attack
    from uturn.attacks.blackbox import BlackBox
    from uturn.attacks.problem import knowledge
    from uturn.data.pictures import decode, encode
    from uturn.types import Scene
    from uturn.victims.load import load_victim, pick_device
    from uturn.victims.preprocessing import by_shape
    from uturn.victims.victim import to_picture, to_pixels

    names = [path.stem for path in images]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise click.ClickException(f"two pictures would be written to {sorted(twice)[0]}.png")
    targets = {
        (folder / f"{name}.png").resolve() for name in names for folder in (out, out / CLEAN)
    }
    for path in images:
        if path.resolve() in targets:
            raise click.ClickException(f"{path} would be overwritten; choose another --out")
    chosen = load_attack(spec, eps=eps, max_queries=max_queries)
    if oracle:
        if not isinstance(chosen, BlackBox):
            raise click.ClickException(
                f"{spec} needs a victim; what only asks is square, nes, rgf or prgf"
            )
        _attack_outside(images, chosen, victim, out, oracle, endpoint, seed, at, batch_size, device)
        return
    if victim is None:
        raise click.UsageError(
            "an attack needs a victim: give --victim, or a system to ask, --oracle"
        )
    # Folded, as a sweep has it: the same pictures to the bit.
    attacked = load_victim(victim, pick_device(device)).folded()
    if target and "targets" not in knowledge(chosen):
        raise click.ClickException(f"{spec} pulls towards no picture; leave --target away")
    missing = set(knowledge(chosen)) - ({"targets"} if target else set())
    if missing == {"oracle"}:
        raise click.ClickException(
            f"{spec} asks a search system: give its address with --oracle, or use `uturn sweep`, "
            "which asks the victim's own"
        )
    if missing == {"targets"}:
        raise click.ClickException(f"{spec} pulls towards a picture; give it with --target")
    if missing:
        raise click.ClickException(
            f"{spec} has to know the gallery; use it in `uturn sweep`, which provides that"
        )
    goal = attacked.grid([decode(target)]) if target else None
    for begin in range(0, len(images), batch_size):
        part = images[begin : begin + batch_size]
        cosines = dict[str, float]()
        for which, clean in by_shape(attacked.canvas(decode(path), at) for path in part):
            mine = [part[i].stem for i in which]
            scene = Scene() if goal is None else Scene(targets=to_pixels(goal[[0] * len(mine)]))
            found = chosen(attacked, clean, scene, names=mine, seed=seed).images.cpu()
            for name, before, after in zip(mine, clean, found, strict=True):
                encode(out / CLEAN / f"{name}.png", to_picture(before))
                encode(out / f"{name}.png", to_picture(after))
            pair = [
                attacked.embed(to_pixels(attacked.grid(decode(f / f"{n}.png") for n in mine)))
                for f in (out / CLEAN, out)
            ]
            cosines |= dict(zip(mine, (pair[0] * pair[1]).sum(1).tolist(), strict=True))
        for path in part:
            click.echo(f"{out / path.stem}.png  cosine to clean {cosines[path.stem]:+.3f}")


def _attack_outside(
    images: tuple[Path, ...],
    attack: Any,
    victim: str | None,
    out: Path,
    oracle: str,
    endpoint: dict[str, Any],
    seed: int,
    at: Any,
    batch_size: int,
    device: str,
) -> None:
    from uturn.retrieval.endpoint import Endpoint, read_headers
    from uturn.retrieval.oracle import Journal
    from uturn.sweep.outside import attack_outside
    from uturn.victims.load import load_victim, pick_device
    from uturn.victims.unseen import unseen

    place = pick_device(device)
    system = Endpoint(
        url=oracle,
        headers=read_headers(endpoint["headers"]),
        batch=endpoint["oracle_batch"],
        rate=endpoint["oracle_rate"] or float("inf"),
        timeout=endpoint["oracle_timeout"],
        attempts=endpoint["oracle_attempts"],
        seed=seed,
    )
    told = attack_outside(
        attack,
        Journal(out / "answers.jsonl", system, oracle, system.batch),
        images,
        out,
        victim=load_victim(victim, place) if victim else unseen(place),
        at=at if victim else "native",
        seed=seed,
        batch_size=batch_size,
    )
    for each in told:
        click.echo(f"{each.path}  worth {each.worth:+.3f}, asked {each.asked}")


@main.command()
@click.option("--victim", required=True, help=VICTIM_HELP)
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--eps", type=float, required=True, help="Largest change of a value, in levels.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write (.safetensors).",
)
@click.option("--pictures", type=click.IntRange(1), help="Learn from this many; default: all.")
@click.option("--epochs", default=1, show_default=True, help="Passes over the pictures.")
@click.option("--seed", default=0, show_default=True, help="Keys all randomness.")
@BATCH
@DEVICE
@QUIET
@_plainly
def universal(
    victim: str,
    data: str,
    eps: float,
    out: Path,
    pictures: int | None,
    epochs: int,
    seed: int,
    batch_size: int,
    device: str,
    quiet: bool,
) -> None:
    """Learn one perturbation for all pictures from the training split of a data set.

    Use it as --attack universal:file=OUT, on queries it has not seen and on any victim.
    """
    from uturn.attacks.universal import learn
    from uturn.victims.load import load_victim, pick_device

    learned = learn(
        load_victim(victim, pick_device(device)),
        _training(data, pictures, seed),
        eps=eps,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        progress=not quiet,
    )
    learned.save(out)
    click.echo(f"{out}: {learned.source}")


def _training(data: str, pictures: int | None, seed: int) -> Any:
    """The training pictures of a data set, or so many of them drawn by the seed."""
    from uturn.data.catalog import load_data

    split = load_data(data)
    if split.train is None:
        raise click.ClickException(
            f"{split.name} has no training pictures to learn from; put them into train/ beside the "
            "pictures that are tested, or mark them in a CSV (docs/protocols.md)"
        )
    return split.train.sample(pictures, seed, split.name, "train pictures")


@main.command()
@click.option("--victim", required=True, help=VICTIM_HELP)
@click.option("--data", required=True, help=DATA_HELP)
@click.option(
    "--dimensions", type=click.IntRange(1), help="Keep this many; default: all there are."
)
@click.option("--pictures", type=click.IntRange(1), help="Learn from this many; default: all.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write (.safetensors).",
)
@click.option("--seed", default=0, show_default=True, help="Draws the pictures.")
@SCALES
@DEVICE
@QUIET
@_plainly
def whiten(
    victim: str,
    data: str,
    dimensions: int | None,
    pictures: int | None,
    out: Path,
    seed: int,
    scales: tuple[float, ...],
    device: str,
    quiet: bool,
) -> None:
    """Learn a PCA whitening of a victim's features from the training split of a data set.

    Use it as the victim's option whitening=OUT.
    """
    from uturn.retrieval.extract import extract_all
    from uturn.victims import checkpoints
    from uturn.victims.load import load_victim, pick_device
    from uturn.victims.whitening import Whitening

    checkpoints.require_writable(out)
    chosen = _training(data, pictures, seed)
    loaded = load_victim(victim, pick_device(device)).at_scales(scales)
    features = extract_all(loaded, chosen, "training pictures", progress=not quiet)
    learned = Whitening.pca(features.cpu(), dimensions)
    learned.save(out)
    kept, before = learned.projection.shape
    click.echo(f"{out}: {before} → {kept} dimensions, from {len(chosen)} pictures")
    if len(chosen) < 5 * kept:
        click.echo("few pictures for so many dimensions: ask for fewer, or it may harm", err=True)
    click.echo(f"use it: --victim {victim}{',' if ':' in victim else ':'}whitening={out}")


@main.command()
@click.option("--victim", required=True, help=VICTIM_HELP)
@click.option("--data", required=True, help=DATA_HELP)
@click.option(
    "--attack",
    "attacks",
    default="ca_plus",
    show_default=True,
    help="Attack specs, comma-separated: ca_plus raises; ca_minus lowers; so do attacks that push "
    "a picture away from itself, such as uturn. noise is a control of either.",
)
@click.option(
    "--eps",
    type=_Numbers(),
    default="8",
    show_default=True,
    help="Largest change of a value, in levels; comma-separated.",
)
@click.option(
    "--items",
    default=100,
    show_default=True,
    help="Gallery pictures that are changed; of whole persons, at the most so many, if they are "
    "lowered.",
)
@click.option(
    "--known",
    default=500,
    show_default=True,
    help="Queries that an attacker who raises has seen. The others measure it.",
)
@click.option(
    "--audience",
    default=100,
    show_default=True,
    help="Of what the attacker knows, so many at the most does a picture move for.",
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    help="Held-out queries that ask in the end, drawn by the seed; default: all.",
)
@click.option(
    "--aim",
    type=click.Choice(["raise", "lower"]),
    help="Whose pictures are changed, and what is measured; default: what the attacks do.",
)
@click.option("--out", required=True, type=_Place(), help="Run folder.")
@click.option("--seed", default=0, show_default=True, help="Keys all randomness.")
@AT
@INDEX
@BATCH
@DEVICE
@QUIET
@_plainly
def gallery(
    out: Path,
    quiet: bool,
    attacks: str,
    items: int,
    known: int,
    audience: int,
    queries: int | None,
    aim: Any,
    device: str,
    **options: Any,
) -> None:
    """Change gallery pictures, take them into the index, and measure what everybody finds.

    Raised or lowered for many queries at once, by an attacker who has seen none of those that
    measure it. The same command on the same --out resumes a run that was stopped.
    """
    from uturn.gallery import GalleryPlan, run
    from uturn.report.gallery import table
    from uturn.sweep import Plan
    from uturn.victims.load import pick_device

    try:
        plan = Plan(attacks=tuple(split_list(attacks)), device=str(pick_device(device)), **options)
        changed = GalleryPlan(
            plan=plan, items=items, known=known, audience=audience, queries=queries, aim=aim
        )
        rows = run(changed, out, progress=not quiet)
    except KeyboardInterrupt:
        raise click.ClickException(
            f"stopped; what is finished is kept in {out}, the same command resumes there"
        ) from None
    click.echo(table(rows))
    click.echo(f"\npictures and tables: {out}")


@main.command("eval")
@click.option("--victim", required=True, help=VICTIM_HELP)
@click.option("--data", required=True, help=DATA_HELP)
@click.option(
    "--query-dir",
    type=click.Path(path_type=Path),
    help="Score these pictures in place of the queries of the same name.",
)
@SCALES
@INDEX
@RERANK
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DEVICE
@QUIET
@_plainly
def evaluate(
    victim: str,
    data: str,
    query_dir: Path | None,
    scales: tuple[float, ...],
    index: str | None,
    rerank: str | None,
    as_json: bool,
    device: str,
    quiet: bool,
) -> None:
    """Score a victim on a data set, or any folder of changed queries."""
    from uturn.data.catalog import load_data
    from uturn.data.folder import replace_queries
    from uturn.retrieval.evaluate import evaluate as score
    from uturn.victims.load import load_victim, pick_device

    split, clean = load_data(data), None
    if query_dir is not None:
        clean, split = split.query, replace(split, query=replace_queries(split.query, query_dir))
    loaded = load_victim(victim, pick_device(device)).at_scales(scales).folded()
    values = score(loaded, split, index or "exact", rerank=rerank, clean=clean, progress=not quiet)
    values |= {"victim": victim, "data": data, "looks at": repr(loaded)}
    if as_json:
        click.echo(json.dumps(values))
    else:
        intervals, open_ = values.pop("ci95"), values.pop("caveats")
        for name, value in values.items():
            shown = f"{value:.4f}" if isinstance(value, float) else str(value)
            low, high = intervals.get(name) or (None, None)
            click.echo(
                f"{name:<24} {shown}" + ("" if low is None else f"  95 % {low:.4f}–{high:.4f}")
            )
        for caveat in open_:
            click.echo(f"caveat: {caveat}")


class _Size(click.ParamType):  # type: ignore[type-arg]
    """Height and width."""

    name = "HxW"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[int, int]:
        try:
            height, width = (int(side) for side in str(value).split("x"))
        except ValueError:
            self.fail(f"{value!r} is no size such as 256x128", param, ctx)
        return height, width


@main.command()
@click.option("--data", required=True, help=DATA_HELP)
@click.option(
    "--arch",
    required=True,
    help="Architecture with its options, such as ft_net:backbone=mobilenet_v2 (see `uturn list "
    "victims`), or timm:MODEL.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Checkpoint to write (.safetensors).",
)
@click.option(
    "--weights",
    help="Start from a file or a victim such as timm:resnet50,pretrained=yes: the network's own "
    "weights, or its backbone's.",
)
@click.option("--size", type=_Size(), help="HxW of the pictures; default: the architecture's.")
@click.option(
    "--loss",
    default="identity",
    show_default=True,
    help="Comma-separated, summed: identity:head=linear,smoothing=0.1, triplet:margin=0.3, "
    "arcface, multi_similarity.",
)
@click.option(
    "--augment",
    default="shift",
    show_default=True,
    help="Comma-separated, in order: shift, flip, recolour, crop:pad=0.08, erase:share=0.5, "
    "jitter:reach=0.2.",
)
@click.option(
    "--sampler",
    default="shuffled",
    show_default=True,
    help="shuffled, or pk:pictures=4 for losses that compare pictures.",
)
@click.option("--epochs", default=24, show_default=True, help="Passes over the pictures.")
@click.option("--batch-size", default=128, show_default=True, help="Pictures per step.")
@click.option(
    "--optimiser",
    type=click.Choice(["adamw", "sgd"]),
    default="adamw",
    show_default=True,
    help="sgd has a Nesterov momentum of 0.9.",
)
@click.option("--lr", default=4e-3, show_default=True, help="Peak learning rate, one cycle.")
@click.option(
    "--body-lr",
    default=1.0,
    show_default=True,
    help="Times --lr for what --weights filled.",
)
@click.option("--weight-decay", default=0.05, show_default=True, help="Of the optimiser.")
@click.option(
    "--warm-up", default=0.3, show_default=True, help="Share of steps in which the rate rises."
)
@click.option(
    "--adversary",
    help="Train on pictures attacked on the fly: an attack spec, such as uturn:steps=2, or act.",
)
@click.option("--adv-eps", default=8.0, show_default=True, help="Its largest ε, in levels.")
@click.option(
    "--adv-share", default=0.5, show_default=True, help="Share of each batch that is attacked."
)
@click.option(
    "--adv-consistency",
    default=0.0,
    show_default=True,
    help="Weight of 1 − cos between clean and attacked features.",
)
@click.option("--seed", default=0, show_default=True, help="Keys weights, order, augmentation.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="bfloat16 is quicker on GPUs.",
)
@click.option(
    "--look",
    default=0,
    show_default=True,
    help="Evaluate on 100 test identities after every so many epochs.",
)
@DEVICE
@QUIET
@_plainly
def train(
    out: Path, loss: str, augment: str, look: int, device: str, quiet: bool, **options: Any
) -> None:
    """Train a victim and write a checkpoint that says what it is: use it as --victim OUT.

    The same command on the same --out goes on where a training was stopped.
    """
    from uturn.train.loop import train as fit
    from uturn.train.recipe import Recipe
    from uturn.victims.load import pick_device

    recipe = Recipe(
        loss=tuple(split_list(loss)),
        augment=tuple(split_list(augment)),
        device=str(pick_device(device)),
        **options,
    )
    try:
        trained = fit(recipe, out, look=look, progress=not quiet)
    except KeyboardInterrupt:
        raise click.ClickException(
            f"stopped; the last whole epoch is kept beside {out}, the same command goes on there"
        ) from None
    click.echo(f"{out}: Recall@1 {trained.recall:.4f} on the queries of {recipe.data}")


@main.command()
@click.argument("run", required=False, type=_Place())
@click.option(
    "--victim",
    help=f"{VICTIM_HELP} With RUN: where the run's victim is here; without it only files are read.",
)
@click.option("--data", help=f"{DATA_HELP} Without it pictures are built and labels are missing.")
@click.option(
    "--queries",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Labelled queries that are asked under every preprocessing, and attacked by --masking.",
)
@click.option(
    "--masking",
    is_flag=True,
    help="Attack it, too: is it robust, or are its gradients masked? Some 500 gradients a query.",
)
@click.option("--eps", default=8.0, show_default=True, help="With --masking: levels.")
@click.option("--twin", help="With --masking: the spec of a victim without the defence.")
@click.option("--seed", default=0, show_default=True, help="Draws the pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DEVICE
@QUIET
@_plainly
def doctor(
    run: Path | None,
    victim: str | None,
    data: str | None,
    queries: int,
    masking: bool,
    eps: float,
    twin: str | None,
    seed: int,
    as_json: bool,
    device: str,
    quiet: bool,
) -> None:
    """Examine a victim, the run folder RUN, or both.

    Of a victim: wrong preprocessing, train mode, broken gradients and more. Of a run: its flags,
    what was compared for them, and whether its record still holds. Everything is told with what was
    measured, cause and remedy; exits with 1 if something failed.
    """
    from uturn.data.catalog import load_data
    from uturn.doctor.finding import text
    from uturn.doctor.masking import unmask
    from uturn.doctor.run import look_into
    from uturn.doctor.victim import examine
    from uturn.victims.load import load_victim, pick_device

    if run is None and victim is None:
        raise click.UsageError("give --victim, a run folder, or both")
    if victim is None and (data or masking):
        raise click.UsageError("--data and --masking are for a victim; give --victim")
    if twin and not masking:
        raise click.UsageError("--twin is compared with by --masking only; add that, or leave it")
    if masking and not data:
        raise click.UsageError("--masking asks labelled queries; give --data")
    place = pick_device(device)
    loaded = load_victim(victim, place) if victim else None
    undefended = load_victim(twin, place) if twin else None
    split = load_data(data) if data else None
    found = look_into(run, victim=loaded, split=split) if run else []
    if loaded is not None:
        found += examine(loaded, split, queries=queries, seed=seed, progress=not quiet)
    if masking and split is not None and loaded is not None:
        found += unmask(
            loaded,
            split,
            eps=eps,
            twin=undefended,
            queries=queries,
            seed=seed,
            progress=not quiet,
        )
    if as_json:
        told: dict[str, Any] = {"schema": 1, "victim": victim, "data": data, "seed": seed}
        told |= {"run": str(run)} if run else {}
        told |= {"eps": eps, "twin": twin} if masking else {}
        click.echo(json.dumps(told | {"findings": [finding.as_dict() for finding in found]}))
    else:
        click.echo(text(found))
    if any(finding.verdict == "failed" for finding in found):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("run", type=_Place())
@_plainly
def report(run: Path) -> None:
    """Write report.html from a run folder, and its robustness card, card.html and card.md."""
    from uturn.report import html

    click.echo(html.write(run))


@main.command()
@click.argument("run", type=_Place())
@click.option("--victim", help=f"{VICTIM_HELP} Default: the run's, where the run had it.")
@click.option("--data", help=f"{DATA_HELP} Default: the run's, where the run had it.")
@click.option(
    "--files-only",
    is_flag=True,
    help="Load neither: only what the files tell.",
)
@TRUST
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@DEVICE
@QUIET
@_plainly
def verify(
    run: Path,
    victim: str | None,
    data: str | None,
    files_only: bool,
    trust: bool,
    as_json: bool,
    device: str,
    quiet: bool,
) -> None:
    """Hold a finished run against itself: hashes, every picture's distance, every number.

    Where its victim and its data are here, every picture is scored again, too; what was not
    checked is said. Exits with 1 if anything is not as the run was made (docs/durability.md).
    """
    from uturn.verify import verify as verified

    found = verified(
        run,
        victim=victim,
        data=data,
        device=device,
        files_only=files_only,
        trust=trust,
        progress=not quiet,
    )
    click.echo(json.dumps(found.as_dict()) if as_json else found.text())
    if found.findings:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("run", type=_Place())
@click.option(
    "--fpr",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="The share of clean queries that may be flagged.",
)
@click.option(
    "--calibrate",
    default=500,
    show_default=True,
    type=click.IntRange(2),
    help="Clean queries to fit to, by whole identities, none of which is evaluated.",
)
@click.option("--seed", default=0, show_default=True, help="Draws the identities to fit to.")
@click.option(
    "--out", type=_Place(), help="Folder for guard.json and guard.md; default: the run's."
)
@click.option(
    "--save",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the fitted guard to this file (.json), for `Guard.load`.",
)
@TRUST
@DEVICE
@QUIET
@_plainly
def guard(
    run: Path,
    fpr: float,
    calibrate: int,
    seed: int,
    out: Path | None,
    save: Path | None,
    trust: bool,
    device: str,
    quiet: bool,
) -> None:
    """Try a detector on the pictures of a finished run: what does it flag, what gets past it?

    It is fitted to clean queries only. Whoever attacks it knows it: sweep adaptive attacks, too
    (docs/guard.md).
    """
    from uturn.guard.evaluate import keep, try_guard

    fitted, trial = try_guard(
        run,
        fpr=fpr,
        calibrate=calibrate,
        seed=seed,
        device=device,
        trust=trust,
        progress=not quiet,
    )
    if save is not None:
        fitted.save(save)
    click.echo(trial.text())
    click.echo(f"\ntable: {keep(trial, out or run)}")


@main.command()
@click.argument("runs", nargs=-1, required=True, type=_Place(), metavar="RUN RUN…")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("uturn-compare"),
    show_default=True,
    help="Folder for compare.html and compare.md.",
)
@_plainly
def compare(runs: tuple[Path, ...], out: Path) -> None:
    """Compare runs with the first of them, query by query, and say how sure a difference is.

    They must share data and queries; what differs is told: victims, settings, versions.
    """
    from uturn.report.compare import write
    from uturn.sweep.compare import compare as compared

    found = compared(runs)
    click.echo(found.text())
    click.echo(f"\ncomparison: {write(found, out)[0]}")


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…|all")
@click.option(
    "--preset",
    type=click.Choice(["cpu", "gpu", "paper"]),
    default="cpu",
    show_default=True,
    help="The size: two cores, one GPU, or the paper's own networks and epochs.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for victims, runs, figures and results; default: reproduced/PRESET.",
)
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="UTURN_DATA",
    default=Path("data"),
    show_default="$UTURN_DATA, else data",
    help="Folder with data sets by name, as `uturn data get` makes it, and weights/.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would be done, and stop.")
@DEVICE
@QUIET
@_plainly
def reproduce(
    names: tuple[str, ...],
    preset: str,
    out: Path | None,
    data_root: Path,
    only_plan: bool,
    device: str,
    quiet: bool,
) -> None:
    """Repeat experiments of the paper: victims, sweeps, figures, and a page beside its numbers.

    NAMES are as in `uturn list experiments`, or all. Stop it at any moment; the same command goes
    on. What lacks data is skipped and told. Exits with 1 if anything was skipped or failed.
    """
    from uturn.reproduce import run
    from uturn.reproduce.experiments import EXPERIMENTS
    from uturn.reproduce.place import Place
    from uturn.specs import choose
    from uturn.victims.load import pick_device

    wanted = list(EXPERIMENTS) if "all" in names else dict.fromkeys(names)
    chosen = [EXPERIMENTS[choose("experiment", name, EXPERIMENTS)] for name in wanted]
    folder = out or Path("reproduced") / preset
    place = Place(out=folder, data_root=data_root, device=str(pick_device(device)))
    click.echo(run.plan(chosen, preset, place))
    if only_plan:
        return
    try:
        outcomes = run.reproduce(chosen, preset, place, say=click.echo, progress=not quiet)
    except KeyboardInterrupt:
        raise click.ClickException(
            f"stopped; what was done is kept in {folder}, the same command goes on there"
        ) from None
    click.echo()
    for outcome in outcomes:
        click.echo(f"{outcome.name:<16} {outcome.state}: {outcome.told}")
    if any(outcome.state != "done" for outcome in outcomes):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("runs", nargs=-1, metavar="[RUN]…", type=click.Path(path_type=Path))
@click.option("--victim", help=f"{VICTIM_HELP} Default: the run's, or glyph_net.")
@click.option("--data", "data_spec", help=f"{DATA_HELP} Default: the run's, or glyphs.")
@click.option(
    "--beside",
    default="",
    help="Other victims' specs, comma-separated, that look at the same pictures, side by side.",
)
@INDEX
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to serve at. Nobody is asked for a password: leave it, unless whoever can reach "
    "this machine may use it.",
)
@click.option(
    "--port",
    default=7860,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to serve at; 0 is any that is free.",
)
@DEVICE
@QUIET
@_plainly
def serve(
    runs: tuple[Path, ...],
    victim: str | None,
    data_spec: str | None,
    beside: str,
    index: str | None,
    host: str,
    port: int,
    device: str,
    quiet: bool,
) -> None:
    """Open the explorer in a browser: attack a query and watch, or leaf through run folders."""
    from uturn.explorer import DATA, VICTIM
    from uturn.explorer.ahead import begun

    # A run's gallery was embedded by the run.
    ahead = (
        nullcontext(lambda: None) if runs else begun(victim or VICTIM, data_spec or DATA, device)
    )
    with ahead as take_over:
        from uturn.explorer.serve import open_at

        with open_at(
            host,
            port,
            runs=runs,
            victim=victim,
            data=data_spec,
            beside=split_list(beside),
            index=index or "exact",
            device=device,
        ) as served:
            click.echo(f"the explorer is at {served.url} (Ctrl-C ends it)")
            served.run(progress=not quiet, before=take_over)


@main.group()
def data() -> None:
    """Data sets: fetch one from where its authors publish it."""


@data.command("get")
@click.argument("name")
@click.option("--to", type=click.Path(path_type=Path), help="Folder to make; default: data/NAME.")
@click.option("--yes", is_flag=True, help="Agree with the terms without being asked.")
@click.option(
    "--sha256",
    multiple=True,
    metavar="HEX",
    help="Take no file but the one with this SHA-256; give one for each file, in their order.",
)
@QUIET
@_plainly
def get(name: str, to: Path | None, yes: bool, sha256: tuple[str, ...], quiet: bool) -> None:
    """Show the terms of data set NAME, then download, check and unpack it.

    A download that was stopped goes on where it stopped. Where the authors let no program in, it
    says what to do. An unknown NAME lists the known ones.
    """
    from uturn.data.fetch import fetch
    from uturn.data.releases import RELEASES
    from uturn.specs import choose

    release = RELEASES[choose("data set", name, RELEASES)]
    folder = to or Path("data") / name
    click.echo(release.describe(folder))
    if release.files and not yes:
        click.confirm("\nDo you agree with these terms, and shall it be fetched?", abort=True)
    try:
        received = fetch(release, folder, sha256=sha256, show=not quiet)
    except KeyboardInterrupt:
        raise click.ClickException("stopped; the same command goes on from there") from None
    for file, digest in received.items():
        click.echo(f"{file}: sha256 {digest}")
    if not all(file.checksum for file in release.files):
        pins = " ".join(f"--sha256 {digest}" for digest in received.values())
        click.echo(f"no checksum is published for all of it; to get the same again, add {pins}")
    click.echo(f"{folder}: use it as --data {release.use.format(folder)}")


@main.command("list")
@click.argument("what", type=click.Choice(["attacks", "victims", "data", "metrics", "experiments"]))
def list_(what: str) -> None:
    """What there is by name."""
    for name, summary in _catalogue(what).items():
        click.echo(f"{name:<16} {summary}")


def _catalogue(what: str) -> dict[str, str]:
    if what == "victims":
        from uturn.victims.load import ADAPTERS
        from uturn.victims.zoo import ZOO

        summaries = {name: architecture.summary for name, architecture in ZOO.items()}
        adapters = {f"{name}:": text for name, text in _summaries(ADAPTERS).items()}
        return summaries | adapters | {"PACKAGE.MODULE:": "FUNCTION of yours: docs/victims.md"}
    if what == "data":
        from uturn.data import catalog

        return _summaries(catalog.CATALOG)
    if what == "metrics":
        from uturn.retrieval import metrics

        return _summaries(metrics.METRICS)
    if what == "experiments":
        from uturn.reproduce.experiments import EXPERIMENTS

        return {name: experiment.title for name, experiment in EXPERIMENTS.items()}
    from uturn.attacks import presets

    worst = f"Sweeps only: the per-query worst of {', '.join(presets.MEMBERS)}."
    return {**_summaries(presets.PRESETS), presets.WORST: worst}


def _summaries(entries: dict[str, Callable[..., Any]]) -> dict[str, str]:
    return {name: (inspect.getdoc(e) or "").partition("\n")[0] for name, e in entries.items()}
