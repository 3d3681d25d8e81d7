"""A finished run, verified: hashes, distances, numbers, and what the victim says of it today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from uturn.attacks.presets import priors
from uturn.errors import RunFolderError, SpecError, UturnError
from uturn.report.folder import read_json
from uturn.retrieval.index import require_here
from uturn.sweep.plan import Plan
from uturn.sweep.store import Row
from uturn.verify import files, numbers
from uturn.verify.again import again
from uturn.verify.notes import Finding, Notes
from uturn.verify.numbers import Block
from uturn.victims.load import pick_device, require_data


@final
@dataclass(frozen=True)
class Verification:
    """What came of it."""

    folder: str
    seal: str
    """The hash of the run as it lies there: who has kept it knows the run again."""
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = [{"where": finding.where, "says": finding.says} for finding in self.findings]
        told = {"checked": list(self.checked), "unchecked": list(self.unchecked)}
        return {"schema": 1, "run": self.folder, "seal": self.seal, "findings": found, **told}

    def text(self) -> str:
        """For the terminal: a line each."""
        lines = [f"checked      {text}" for text in self.checked]
        lines += [f"not checked  {text}" for text in self.unchecked]
        lines += [f"FOUND        {finding}" for finding in self.findings]
        wrong = f"{len(self.findings)} findings: the run is not as it was made"
        lines += [f"seal         {self.seal}", wrong if self.findings else "nothing is wrong"]
        return "\n".join(lines)


def verify(
    folder: Path,
    *,
    victim: str | None = None,
    data: str | None = None,
    device: str = "auto",
    files_only: bool = False,
    trust: bool = False,
    progress: bool = True,
) -> Verification:
    """Hold the finished run in ``folder`` against its own files, its victims and its data.

    ``victim`` and ``data`` are specs for where they are here, if that is not where the run had
    them. With ``files_only`` they are not asked for. Without ``trust`` nothing is loaded that only
    the run names and that runs code, or asks a server; what stays unchecked is said.

    Raises:
        RunFolderError: it is no run, or has not finished.
    """
    header, notes = read_json(folder, "run.json"), Notes()
    if not (header.get("finished") or "seal" in header):
        raise RunFolderError(
            f"the run in {folder} has not finished; repeat its command to resume it"
        )
    files.sealed(header, notes)
    with _fitting("run.json", notes):
        files.hashed(folder, header, notes)
    if (plan := _plan(header, trust, notes)) is not None:
        blocks = dict[Block, list[Row]]()
        with _fitting("queries.parquet", notes):
            blocks = numbers.per_query(folder, plan, notes)
        if blocks:
            _hold(folder, header, plan, blocks, notes)
            if files_only:
                notes.unchecked.append("scores: only files were asked for")
            else:
                here = replace(
                    plan,
                    victim=victim or plan.victim,
                    data=data or plan.data,
                    device=str(pick_device(device)),
                )
                barred = None if trust else _barred(plan, victim)
                if barred is not None:
                    notes.unchecked.append(f"scores: {barred}, {_TRUST}")
                    return _told(folder, header, notes)
                with _fitting("queries.parquet", notes):
                    again(folder, header, here, plan.victims, blocks, notes, progress=progress)
    return _told(folder, header, notes)


def _told(folder: Path, header: Mapping[str, Any], notes: Notes) -> Verification:
    seal = str(header.get("seal"))
    told = (tuple(notes.findings), tuple(notes.checked), tuple(notes.unchecked))
    return Verification(str(folder), seal, *told)


_TRUST = "or --trust the run"
"""What else there is to do about a run that names what is not loaded unasked."""


def _barred(plan: Plan, victim: str | None) -> str | None:
    """What keeps a run's own victims and index from being loaded; those that were given may be."""
    try:
        for spec in plan.victims if victim is None else plan.transfer_to:
            require_data(spec, "run.json")
        require_here(str(plan.index), "run.json")
    except SpecError as error:
        return str(error)
    return None


def _plan(header: dict[str, Any], trust: bool, notes: Notes) -> Plan | None:
    try:
        for spec in () if trust else header["configuration"]["attacks"]:
            for prior in priors(spec):  # which a plan loads
                require_data(prior, "run.json")
    except SpecError as error:
        notes.unchecked.append(f"all but the hashes: {error}, {_TRUST}")
        return None
    except (LookupError, TypeError, ValueError, AttributeError):
        pass  # it is no plan, which is said below
    try:
        return numbers.planned(header, notes)
    except (UturnError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error.__cause__, ImportError):
            notes.unchecked.append(f"all but the hashes: {error}")
        else:
            notes.find("run.json", f"its configuration is no plan: {error!r}")
        return None


def _hold(
    folder: Path, header: dict[str, Any], plan: Plan, blocks: dict[Block, list[Row]], notes: Notes
) -> None:
    """The files and the table against the rows per query."""
    own = {job: numbers.of(blocks, plan.victim, job) for job in plan.jobs()}
    with _fitting("images", notes):
        pictures = [files.picture(job, row["query"]) for job, rows in own.items() for row in rows]
        files.complete(folder, header["files"], pictures, notes)
        files.within(folder, plan, own, notes)
    with _fitting("results.json", notes):
        numbers.table(folder, plan, header, blocks, notes)


@contextmanager
def _fitting(where: str, notes: Notes) -> Iterator[None]:
    """What cannot even be made sense of is a finding, too."""
    try:
        yield
    except RunFolderError as error:
        notes.find(where, str(error))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
        notes.find(where, f"does not fit together: {error!r}")
