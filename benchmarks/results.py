"""What was measured, as JSON (with machine and versions) and as Markdown tables."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Measured, Timed
from uturn.reproduce.files import read_json, write_whole
from uturn.reproduce.machine import machine

SCHEMA = 1
_PACKAGES = (
    "uturn",
    "torch",
    "numpy",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
    "torchreid",
)


def surroundings() -> dict[str, Any]:
    """What the times were taken on: machine, threads, versions."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def record(measured: Measured) -> dict[str, Any]:
    """A case as ``results.json`` holds it; times in seconds of the whole work."""
    case = measured.case
    verdicts = [measured.verdict(target) for target in case.targets]
    return {
        "work": case.work,
        "case": case.name,
        "title": case.title,
        "reference": case.reference,
        "unit": case.unit,
        "per": case.per,
        "contenders": [_contender(measured, timed) for timed in measured.timed],
        "targets": [
            {
                "contender": verdict.target.contender,
                "of": verdict.target.of,
                "at_most": verdict.target.at_most,
                "value": verdict.value,
                "reached": verdict.reached,
            }
            for verdict in verdicts
        ],
        "skipped": dict(measured.skipped),
        "complaints": list(measured.complaints),
        "measured": _now(),
    }


def _contender(measured: Measured, timed: Timed) -> dict[str, Any]:
    spread = measured.spread(timed)
    return {
        "name": timed.name,
        "role": timed.role,
        "ratio": measured.ratio(timed),
        "spread": None if spread is None else list(spread),
        "median": timed.median,
        "runs": list(timed.runs),
        "warm_up": timed.warm_up,
        "facts": dict(timed.facts),
        "note": timed.note,
    }


def skipped(work: str, reason: str) -> dict[str, Any]:
    """A work that could not be done here, with the reason."""
    return {"work": work, "case": work, "reason": reason, "measured": _now()}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def update(file: Path, around: Mapping[str, Any], works: Mapping[str, list[dict[str, Any]]]) -> Any:
    """Put the rows of ``works`` into ``file``, and return all that it then holds.

    Rows of other works stay if they were measured in the same surroundings, and else go: a
    table is of one machine and one set of versions.
    """
    old = read_json(file) if file.exists() else {}
    same = old.get("schema") == SCHEMA and all(old.get(key) == around[key] for key in around)
    kept = [row for row in old["rows"] if row["work"] not in works] if same else []
    fresh = [row for rows in works.values() for row in rows]
    content = {"schema": SCHEMA, **around, "rows": sorted([*kept, *fresh], key=_place)}
    write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return content


def _place(row: Mapping[str, Any]) -> int:
    from benchmarks.works import WORKS

    return list(WORKS).index(row["work"])


# -- Markdown --------------------------------------------------------------------------------------


def markdown(content: Mapping[str, Any]) -> str:
    """One table of ratios for all works, then a table per case."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines = [
        "# Ours, each peer and the limit",
        "",
        f"{content['machine']}; {content['threads']} threads; {versions}.",
        "Ratios of medians within one run, contenders in turns; the reference is 1.00.",
        "",
        "| work | ours | each peer | the limit | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    measured = [row for row in content["rows"] if "reason" not in row]
    lines += [_line(row) for row in content["rows"]]
    for row in measured:
        lines += ["", f"## {row['case']}", "", row["title"] + ".", "", *_table(row)]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    if "reason" in row:
        return f"| {row['case']} | – | – | – | – | not measured: {row['reason']} |"
    cells = [_ratios(row, role) for role in ("ours", "peer", "limit")]
    targets = [f"{_what(t)} ≤ {t['at_most']:g}" for t in row["targets"]]
    reached = [_reached(target) for target in row["targets"]]
    ends = ["<br>".join(each) or "–" for each in (targets, reached)]
    return f"| {row['case']} | {' | '.join([*cells, *ends])} |"


def _ratios(row: Mapping[str, Any], role: str) -> str:
    found = [f"{one['name']} {_ratio(one)}" for one in row["contenders"] if one["role"] == role] + [
        f"{name}: {reason}" for name, reason in row["skipped"].items() if role == "peer"
    ]
    return "<br>".join(found) or "–"


def _ratio(one: Mapping[str, Any]) -> str:
    return "–" if one["ratio"] is None else f"**{one['ratio']:.3g}**"


def _what(target: Mapping[str, Any]) -> str:
    of = {"ratio": "", "over": ", s over the reference"}.get(target["of"], f", {target['of']}")
    return f"{target['contender']}{of}"


def _reached(target: Mapping[str, Any]) -> str:
    if target["reached"] is None:
        return "not measured"
    return f"{'yes' if target['reached'] else 'no'} ({target['value']:.3g})"


def _table(row: Mapping[str, Any]) -> list[str]:
    lines = [
        f"| contender | ratio | lowest – highest | {row['unit']} | warm-up, s | beside |",
        "|---|---|---|---|---|---|",
    ]
    for one in row["contenders"]:
        low, high = one["spread"] or (float("nan"), float("nan"))
        warm_up = "–" if one["warm_up"] is None else f"{one['warm_up']:.3g}"
        beside = [f"{name} {value:.4g}" for name, value in one["facts"].items()]
        lines.append(
            f"| {one['name']} | {_ratio(one)} | {low:.3g} – {high:.3g} | "
            f"{one['median'] * row['per']:.4g} | {warm_up} | "
            f"{'; '.join([*beside, *filter(None, [one['note']])]) or '–'} |"
        )
    lines += [f"\n{name} did not take part: {reason}." for name, reason in row["skipped"].items()]
    return lines + [f"\nNot the same work: {each}" for each in row["complaints"]]
