"""The table of changed gallery pictures, from the rows of ``results.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uturn.report.text import aligned, interval, notes, precision, shown, value

Row = dict[str, Any]


def table(rows: Sequence[Row]) -> str:
    """What all held-out queries find, whom they find in the wrong, and who is found no more."""
    row, own = rows[0], precision(rows[0])
    lines = [
        [
            "attack",
            "ε",
            "R@1",
            "95 %",
            "change",
            "95 %",
            shown(own),
            "95 %",
            "ASR@1",
            "95 %",
            "ASR@10",
            "95 %",
            "N10",
            "most",
            "own R@1",
            "95 %",
            "own R@10",
            "rank",
            "cosine",
        ]
    ]
    for each in rows:
        change = (each.get("change") or {}).get("recall@1") or {}
        lines.append(
            [
                each["attack"],
                f"{each['eps']:g}",
                *_with_interval(each, "recall@1"),
                _number(change.get("mean"), "+.4f"),
                _ends(change.get("ci95"), "+.3f"),
                *_with_interval(each, own),
                *_with_interval(each, "asr@1"),
                *_with_interval(each, "asr@10"),
                _number(each["intrusions"]["mean"], ".2f"),
                str(each["intrusions"]["most"]),
                *_with_interval(each["own"], "recall@1"),
                _number(each["own"]["recall@10"]),
                _number(value(each, "normalised_rank")),
                _number(each["cosine"], "+.3f"),
            ]
        )
    who = "irrelevant" if row["aim"] == "raise" else "relevant"
    told = [
        f"{row['items']} changed pictures, aim: {row['aim']}; {row['queries']} held-out queries "
        f"through {row['index']}, which finds {row['index recall@10']:.4f} of the exact first ten",
        "ASR@k: share of queries with an irrelevant changed picture among the first k; N10: in how "
        "many first tens one of them stands, mean and most",
        f"own: the {row['own']['queries']} queries to which a changed picture is relevant; rank: "
        f"mean place of the changed where they are {who}, 0 first and 1 last",
    ]
    return "\n".join([*told, "", *aligned(lines), *notes(rows)])


def _with_interval(row: Row, metric: str) -> tuple[str, str]:
    return _number(value(row, metric)), _ends(interval(row, metric), ".3f")


def _number(found: float | None, form: str = ".4f") -> str:
    return "–" if found is None else format(found, form)


def _ends(ends: Sequence[float] | None, form: str) -> str:
    return f"{ends[0]:{form}}–{ends[1]:{form}}" if ends else "–"
