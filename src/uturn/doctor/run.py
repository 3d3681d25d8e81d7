"""The examination of a run: its record, its rows beside each other, and, if asked, its victim.

A finished run is read from its tables, one that was stopped from its finished batches. Nothing is
written, and no victim is loaded but one that the caller hands in: a spec in a stranger's
``run.json`` can name code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch.nn.functional as F

from uturn.data.pictures import decode
from uturn.data.split import Split
from uturn.doctor.finding import Finding, Number
from uturn.errors import DataError, RunFolderError, UturnError
from uturn.report.flags import FLAGS, named
from uturn.report.folder import fitting, read_json, require_sweep
from uturn.retrieval.extract import extract_decoded
from uturn.storage import inside
from uturn.sweep import checks
from uturn.sweep.doubts import Doubt, doubts
from uturn.sweep.looks import Looks
from uturn.sweep.plan import CLEAN, Job, Plan
from uturn.sweep.store import Row
from uturn.verify import files, numbers
from uturn.verify.notes import Notes
from uturn.victims.victim import Victim

NEAR = 1e-3
"""By how much a cosine may differ from the run's on another machine, and with other libraries."""

ASKED = 8
"""Queries that are shown to the victim once more."""

NEEDS = {
    "randomness": "a run that was finished by this version",
    "batch": "the same, of a victim that is not random",
    "stale-cache": "the same, of a victim that depends on nothing but the picture",
    "collapse": "the same, of finite features",
    "not-finite": "an attack",
    "zero-gradient": "an attack that climbs the gradient",
    "no-rise": "an attack that climbs by two steps or more",
    "under-iterated": "an attack of five steps or more, or one that stands there with more steps",
    "noise": "noise beside an attack on features: --attack noise,odfa",
    "one-step": "an attack in one step and in more: --attack fast,basic",
    "more-steps": "one attack with fewer and more steps: --attack odfa,odfa:steps=20",
    "black-box": "a black box beside an attack that climbs: --attack odfa,square",
    "larger-eps": "an attack at two ε",
    "objective": "an attack whose objective has an end: odfa, fast, basic, least_likely",
    "transfer": "`uturn compare` with a run of another victim that has this one in --transfer-to",
}
"""What a run must have for a doubt to be looked at."""


def look_into(
    folder: Path, *, victim: Victim | None = None, split: Split | None = None
) -> list[Finding]:
    """Every finding on the run in ``folder``.

    ``victim`` is the one that was attacked, as it is here: its weights and preprocessing are held
    against the record, and some pictures are shown to it again. ``split`` is the run's data, which
    is held against its fingerprint.

    Raises:
        RunFolderError: it is no run of `uturn sweep`, or its files do not fit together.
    """
    header = read_json(folder, "run.json")
    require_sweep(folder, header)
    with fitting(folder):
        try:
            plan = numbers.planned(header, Notes())
        except UturnError as error:
            raise RunFolderError(f"the plan of {folder} cannot be read here: {error}") from error
        blocks = _blocks(folder, header, plan)
        found = [_record(folder, header), *_flags(folder, header, plan, blocks)]
        if victim is not None:
            found += [_weights(header, plan, victim, split), _again(folder, blocks, victim)]
        else:
            says = f"give --victim, the run's is {plan.victim}, to hold it against the record"
            found += [
                Finding(name=name, verdict="not checked", says=says)
                for name in ("weights", "scores")
            ]
        return found


def _blocks(folder: Path, header: Mapping[str, Any], plan: Plan) -> dict[Job, list[Row]]:
    """The attacked victim's rows of all seeds, by the job of the first.

    Of a stopped run those of the batches that all have.

    Raises:
        RunFolderError: no batch is finished.
    """
    if header.get("finished"):
        rows = numbers.per_query(folder, plan, Notes())
        if not rows:
            raise RunFolderError(f"queries.parquet of {folder} is not of its plan: `uturn verify`")
        return {jobs[0]: rows[plan.victim, name, eps] for (name, eps), jobs in plan.rows().items()}
    parts = {
        job: {path.name for path in (folder / "parts" / job.folder).glob("*.json")}
        for job in plan.jobs()
    }
    whole = sorted(set.intersection(*parts.values()))
    if not whole:
        raise RunFolderError(
            f"no batch of the run in {folder} is finished; repeat its command to resume it"
        )
    return {
        jobs[0]: [
            row
            for job in jobs
            for name in whole
            for row in read_json(folder / "parts" / job.folder, name)["scores"][0]["rows"]
        ]
        for jobs in plan.rows().values()
    }


def _record(folder: Path, header: dict[str, Any]) -> Finding:
    """Whether the record is as the run has written it."""
    if not header.get("finished"):
        says = "the run has not finished; what follows is of its finished batches"
        return Finding(name="record", verdict="note", says=says)
    notes = Notes()
    files.sealed(header, notes)
    files.hashed(folder, header, notes)
    if not notes.findings:
        says = "run.json and its tables are as the run has written them"
        return Finding(name="record", verdict="ok", says=says)
    return Finding(
        name="record",
        verdict="failed",
        says=f"{notes.findings[0]}",
        measured={"findings": len(notes.findings)},
        cause="files were changed, or swapped, after the run; or the disk has changed them",
        remedy="`uturn verify` names every difference; repeat the run into a new --out",
    )


# -- flags -----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class _Row:
    """A row that has a flag, or one that was looked at for it."""

    attack: str
    eps: float
    says: str
    measured: Mapping[str, Number]


def _flags(
    folder: Path, header: Mapping[str, Any], plan: Plan, blocks: Mapping[Job, list[Row]]
) -> Iterator[Finding]:
    """A finding for every flag there is, in their order."""
    told = (header.get("looks") or {}).get(plan.victim)
    looks = Looks.read(told) if told else Looks(again=0, together=0, used=0, widest=None)
    looked = doubts(plan.seed, blocks, looks, own=True)
    if told is None:
        looked = [doubt for doubt in looked if doubt.attack != CLEAN]
    flagged = [_row(doubt) for doubt in looked if doubt.fires]
    names = [doubt.name for doubt in looked if doubt.fires]
    for job, block in blocks.items():
        for flag in checks.flags(block, job.eps, header["configuration"].get("left out", {})):
            name, says = named(flag)
            names.append(name)
            flagged.append(_Row(job.name, job.eps, says, {}))
    for name, known in FLAGS.items():
        rows = [row for row, each in zip(flagged, names, strict=True) if each == name]
        quiet = [doubt for doubt in looked if doubt.name == name and not doubt.fires]
        if rows:
            first = rows[0]
            says = f"{first.attack} at ε={first.eps:g}: {first.says}"
            yield Finding(
                name=name,
                verdict=known.verdict,
                says=says if len(rows) == 1 else f"{len(rows)} times, such as {says}",
                measured=first.measured,
                cause=known.cause,
                remedy=known.remedy,
            )
        elif quiet:
            says = f"{_nearest(quiet)} (nearest of {len(quiet)})"
            yield Finding(name=name, verdict="ok", says=says)
        elif name in NEEDS:
            yield Finding(name=name, verdict="not checked", says=f"needs {NEEDS[name]}")
        else:
            yield Finding(name=name, verdict="ok", says="no row has it")


def _row(doubt: Doubt) -> _Row:
    return _Row(doubt.attack, doubt.eps, doubt.says, doubt.measured)


def _nearest(quiet: Sequence[Doubt]) -> str:
    """What came nearest to a flag, by the first number that was measured."""
    most = max(quiet, key=lambda doubt: next(iter(doubt.measured.values()), 0.0))
    return f"{most.attack} at ε={most.eps:g}: {most.says}"


# -- the victim ------------------------------------------------------------------------------------


def _weights(header: Mapping[str, Any], plan: Plan, victim: Victim, split: Split | None) -> Finding:
    """Whether victim and data here are those of the run."""
    there = header["configuration"]
    looked = victim.at_scales(plan.scales).folded()
    here = {
        "victim weights": looked.fingerprint,
        "preprocessing": repr(looked.preprocessing),
        "test time": repr(looked.test_time),
        "similarity": looked.similarity,
    }
    if split is not None:
        asked = split.sample(plan.queries, plan.seed)
        if left := there.get("left out"):
            asked = asked.without(left["query"], left["gallery"])
        here["data fingerprint"] = asked.fingerprint()
    differ = [key for key, value in here.items() if json.loads(json.dumps(value)) != there.get(key)]
    if not differ:
        says = f"{', '.join(here)}: as the run had them"
        return Finding(name="weights", verdict="ok", says=says)
    return Finding(
        name="weights",
        verdict="failed",
        says=f"{differ[0]} is {here[differ[0]]!r} here, and was {there.get(differ[0])!r}",
        measured={"differing": ", ".join(differ)},
        cause="the file was replaced, the spec has other options, or another data set lies there",
        remedy="give the weights and options of the run; to attack what is here now, run again "
        "into a new --out",
    )


def _again(folder: Path, blocks: Mapping[Job, list[Row]], victim: Victim) -> Finding:
    """Some attacked pictures shown once more: is the cosine to the clean one what the run says?"""
    *_, (job, rows) = blocks.items()
    asked = [row for row in rows if inside(row["query"])][:ASKED]
    try:
        clean, changed = (
            extract_decoded(
                victim, [decode(folder / files.picture(of, row["query"])) for row in asked]
            )
            for of in (Job(CLEAN, 0), job)
        )
    except (DataError, OSError) as error:
        return Finding(name="scores", verdict="not checked", says=str(error))
    cosines = F.cosine_similarity(changed, clean).tolist()
    moved = [abs(now - row["cosine_to_clean"]) for now, row in zip(cosines, asked, strict=True)]
    most = max(math.inf if math.isnan(each) else each for each in moved)
    measured: dict[str, Number] = {"queries": len(asked), "largest difference": most}
    if most <= NEAR:
        says = (
            f"{len(asked)} pictures of {job.name} at ε={job.eps:g} turn the feature as the run says"
        )
        return Finding(name="scores", verdict="ok", says=says, measured=measured)
    return Finding(
        name="scores",
        verdict="failed",
        says=f"the cosine of a picture of {job.name} at ε={job.eps:g} is {most:.3f} from the run's",
        measured=measured,
        cause="other weights or preprocessing than the run's, or a victim that is random or "
        "depends on its batch",
        remedy="see weights, randomness and batch; `uturn verify` scores every picture again",
    )
