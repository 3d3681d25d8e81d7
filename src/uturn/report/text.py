"""Result rows as text: tables for the terminal and for Markdown, what metrics are called and where
they stand. Reads nothing, imports nothing heavy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

NAMES = {
    "recall@1": "R@1",
    "recall@5": "R@5",
    "recall@10": "R@10",
    "map": "mAP",
    "top1": "top-1",
    "top5": "top-5",
}
"""What tables and figures call the metrics of ``results.json``."""

_COLUMNS = (
    ("attack", "attack"),
    ("ε", "eps"),
    (NAMES["recall@1"], "recall@1"),
    ("95 %", "ci95"),
    (NAMES["recall@5"], "recall@5"),
    (NAMES["recall@10"], "recall@10"),
    (NAMES["map"], "map"),
    ("cosine", "cosine"),
    ("gradients", "gradients"),
)


def shown(metric: str) -> str:
    """A metric's name for people; one without is called as in ``results.json``."""
    name, at, depth = metric.partition("@")
    return f"{NAMES[name]}{at}{depth}" if name == "map" else NAMES.get(metric, metric)


def precision(row: dict[str, Any]) -> str:
    """The key of a row's average precision: ``map``; ``map@k`` of an index that answers so."""
    return next((key for key in row if key.startswith("map@")), "map")


def answered(header: dict[str, Any]) -> str:
    """How deep and how well a run's index answered; empty where it ranked the whole gallery."""
    index = dict(header.get("index") or {})
    if not index:
        return ""
    depth = index.pop("depth")
    told = ", ".join(f"{key} {share:.4f} of the exact answer" for key, share in index.items())
    return (
        f"the index answers with its first {depth} items ({told}, clean queries): mAP, mINP, "
        "normalised rank and TPR@FPR need the whole ranking and are –"
    )


def value(row: dict[str, Any], metric: str) -> float | None:
    """A metric of a row: retrieval's stand in it, others below ``metrics``; None where none is."""
    found = row[metric] if metric in row else row.get("metrics", {}).get(metric)
    return None if found is None else float(found)


def interval(row: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """The ends of a metric's 95 % interval, where a row has one."""
    ends = row.get("ci95", {}).get(metric)
    return None if ends is None else (float(ends[0]), float(ends[1]))


def percent(share: float | None) -> str:
    """A share as the pages have it.

    >>> percent(0.05), percent(None)
    ('5.0 %', '–')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def percent_within(share: float | None, ends: Sequence[float] | None) -> str:
    """A share with its 95 % interval, where it has one.

    >>> percent_within(0.05, (0.0, 0.125))
    '5.0 % (0.0–12.5)'
    """
    told = "" if ends is None else f" ({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"
    return percent(share) + told


def left(row: dict[str, Any], metric: str) -> float:
    """What a row leaves of a metric, to be the least of: all of it where nothing was measured."""
    found: float | None = row[metric]
    return 1.0 if found is None else found


def caveats(row: dict[str, Any]) -> Sequence[str]:
    """What a row's queries do not bear out; runs before that was told have none."""
    found: Sequence[str] = row.get("caveats", ())
    return found


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A Markdown table without an end of line; ``numbers`` aligns all but the first column right.

    >>> print(markdown(["a|b"], [["1"]]))
    | a\\|b |
    | --- |
    | 1 |
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
        for line in (head, rule, *lines)
    )


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as their cells, with a rule below the head.

    The head's cells stand left, those below it right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(
            cell.rjust(width) if row else cell.ljust(width)
            for cell, width in zip(line, widths, strict=True)
        )
        for row, line in enumerate(lines)
    ]
    return [table[0], "  ".join("─" * width for width in widths), *table[1:]]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of ``results.json`` under one heading for each victim, numbers aligned."""
    groups = by_victim(rows)
    if len(groups) == 1:
        return _block(rows)
    return "\n\n".join(f"{heading(own)}\n{_block(own)}" for own in groups)


def cost(header: dict[str, Any]) -> str:
    """What a run's gradients came to, from its ``run.json``; the table has each attack's own."""
    spent, saved = (header["gradients"][key] for key in ("spent", "saved"))
    return f"gradients: {spent:,} spent, {saved:,} saved where attacks went the same way"


def by_victim(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each victim that scored, in their order: the one that was attacked first."""
    groups = dict[Any, list[dict[str, Any]]]()
    for row in rows:
        groups.setdefault(row.get("victim"), []).append(row)
    return list(groups.values())


def heading(rows: Sequence[dict[str, Any]]) -> str:
    """Who scored these rows, and on whom the pictures were crafted."""
    victim, crafted_on = rows[0]["victim"], rows[0]["crafted_on"]
    how = "attacked itself" if victim == crafted_on else f"pictures crafted on {crafted_on}"
    return f"scored by {victim}, {how}"


def _block(rows: Sequence[dict[str, Any]]) -> str:
    more, own = extras(rows), precision(rows[0])
    columns = [(shown(own), own) if key == "map" else (title, key) for title, key in _COLUMNS]
    cells = [[title for title, _ in columns] + [title for title, _ in more]]
    cells += [
        [_cell(row, key) for _, key in columns] + [column[i] for _, column in more]
        for i, row in enumerate(rows)
    ]
    return "\n".join(aligned(cells) + notes(rows))


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines below a table: what its rows' flags and caveats say, each kind under its name."""
    told = list[str]()
    for kind, of in (("flags:", lambda row: row["flags"]), ("caveats:", caveats)):
        said = [f"  {row['attack']} ε={row['eps']:g}: {each}" for row in rows for each in of(row)]
        told += [kind, *said] if said else []
    return told


def extras(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Columns that only some runs have: classes, channels survived, goals, pictures asked, change.

    top-k is the share of queries whose true class is among the k largest logits. Goals are mean
    places of what was to rise or fall in the ranking, 0 first and 1 last. ``asked`` is the mean
    number of pictures asked per query, ``prior gradients`` the most that were borrowed for one.
    ``seeds`` says over how many a row is the mean, ``R@1 sd`` how far they stand apart.
    """
    columns = [
        (title, [_top(row, key, bounds) for row in rows])
        for key in ("top1", "top5")
        if key in rows[0].get("metrics", {})
        for title, bounds in ((shown(key), False), (f"{shown(key)} 95 %", True))
    ]
    columns += [
        (
            f"{shown('recall@1')} {channel}",
            [_cell(row["survive"][channel], "recall@1") for row in rows],
        )
        for channel in rows[0].get("survive") or ()
    ]
    if any(row.get("goal") for row in rows):
        columns += [
            (title, [_cell(row.get("goal") or {}, key) for row in rows])
            for title, key in (("goal clean", "clean"), ("goal", "attacked"), ("goal 1st", "first"))
        ]
    if any(row.get("asked") for row in rows):
        columns.append(("asked", [f"{row['asked']:.0f}" for row in rows]))
    if any(row.get("prior_gradients") for row in rows):
        columns.append(("prior gradients", [f"{row['prior_gradients']:g}" for row in rows]))
    if any(len(_drawn(row)) > 1 for row in rows):
        columns.append(("seeds", [f"{len(_drawn(row))}" if row["eps"] else "" for row in rows]))
        columns.append(
            (f"{shown('recall@1')} sd", [_cell(_spread(row), "recall@1") for row in rows])
        )
    # An attack that looks for the smallest change uses less than it may.
    if any(row["eps"] and row.get("linf_levels", row["eps"]) < row["eps"] for row in rows):
        columns.append(("median levels", [f"{row['linf_levels']:g}" for row in rows]))
    return columns


def _drawn(row: dict[str, Any]) -> Sequence[int]:
    """The seeds that a row's values are means over; runs before there were several had one."""
    seeds: Sequence[int] = row.get("seeds", {}).get("drawn", ())
    return seeds


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    spread: dict[str, Any] = row.get("seeds", {}).get("sd", {})
    return spread


def _top(row: dict[str, Any], key: str, bounds: bool) -> str:
    return _bounds(row["ci95"][key]) if bounds else _cell(row["metrics"], key)


def _bounds(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.3f}–{interval[1]:.3f}" if interval else "–"


def _cell(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if key == "ci95":
        return _bounds((value or {}).get("recall@1"))
    if value is None:
        return "–"
    if key in ("eps", "gradients"):
        return f"{value:g}"
    return value if isinstance(value, str) else f"{value:.4f}"


def flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of (key, value).

    >>> flat({"a": {"b": 1}, "c": "x"})
    [('a: b', '1'), ('c', 'x')]
    """
    lines = []
    for key, each in content.items():
        if isinstance(each, dict):
            lines += flat(each, f"{prefix}{key}: ")
        else:
            lines.append((prefix + key, each if isinstance(each, str) else json.dumps(each)))
    return lines


def plain(words: str) -> str:
    r"""Words as Markdown that shows them and nothing else, in and out of tables.

    Every character that could be markup is escaped but for ``|``, which `markdown` escapes.

    >>> print(plain("a_b <b>"))
    a\_b \<b\>
    """
    return re.sub(r"([\\`*_{}\[\]<>#~&$])", r"\\\1", " ".join(words.split()))


def verbatim(name: str) -> str:
    r"""The same for a name: as a code span where that is safe.

    >>> print(verbatim("folder:a_b"), verbatim("<b>*`"))
    `folder:a_b` \<b\>\*\`
    """
    line = " ".join(name.split())
    if line and not set(line) & set("`\\<>|&"):
        return f"`{line}`"
    return plain(line)
