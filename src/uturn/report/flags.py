"""Every flag of a result row: what it comes from and what to do. ``docs/doctor.md`` has them, too.

Reads nothing, imports nothing heavy. A flag in ``results.json`` is ``name: what was found``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

PAGE = "docs/doctor.md"
"""Where flags are explained, each under the anchor ``flag-NAME``."""


@final
@dataclass(frozen=True)
class Flag:
    """What stands behind a flag."""

    verdict: Literal["note", "warning", "failed"]
    """``failed``: the row, or the run, says something else than it seems to."""
    cause: str
    remedy: str


_ADAPT = (
    "do not report the white box's number: attack around what masks (a differentiable stand-in on "
    "the way back, the mean over draws), or through a twin without it; ask `uturn doctor --masking`"
)

FLAGS: dict[str, Flag] = {
    "randomness": Flag(
        "failed",
        "dropout or noise that is on in evaluation, or a defence that draws by chance",
        "switch it off or seed it by the picture, and run again; attack a random defence in the "
        "mean over draws (views=identity+identity+…)",
    ),
    "batch": Flag(
        "failed",
        "batch norm in training mode or without running statistics, or something else that "
        "normalises over the batch",
        "let it use stored statistics (eval()), and ask `uturn doctor --victim`",
    ),
    "stale-cache": Flag(
        "failed",
        "kept features are of another network: its own code has changed, or the cache was edited",
        "remove the folder that UTURN_CACHE names (~/.cache/uturn), and run into a new --out",
    ),
    "collapse": Flag(
        "failed",
        "weights that were not loaded, dead or constant layers, an input far from that of training",
        "check weights and preprocessing with `uturn doctor --victim`; every number of such a "
        "victim is decided by ties",
    ),
    "not-finite": Flag(
        "failed",
        "broken weights, a division by zero, a root at zero, an overflow in half precision",
        "`uturn doctor --victim` says of which pictures; an epsilon in the division; float32",
    ),
    "no-rise": Flag(
        "failed",
        "the gradient leads nowhere: zero, rounded away, saturated, shattered, or of something "
        "else; more steps of it do not help",
        _ADAPT,
    ),
    "noise": Flag(
        "failed",
        "the gradient leads nowhere: chance of the same size does more harm",
        _ADAPT,
    ),
    "one-step": Flag(
        "failed",
        "the slope close by says less than the slope at once: trained on one step (catastrophic "
        "overfitting), or gradients shattered on a small scale",
        _ADAPT + "; train with more steps or random starts",
    ),
    "more-steps": Flag(
        "failed",
        "the search is broken, or the objective is not what the ranking suffers from",
        _ADAPT + "; or keep the best of its steps (apgd)",
    ),
    "black-box": Flag(
        "failed",
        "gradients are masked, or the white box had too few of them: the picture is found by "
        "somebody who knows less",
        "report the lower number; give the white box more steps, and ask `uturn doctor --masking`",
    ),
    "transfer": Flag(
        "failed",
        "gradients are masked: the picture is found without them, not with them",
        _ADAPT,
    ),
    "larger-eps": Flag(
        "failed",
        "the search is broken, or gradients are masked: what it may do at the smaller ε it may do "
        "at the larger, too",
        "give it more steps, or sweep with --monotone; ask `uturn doctor --masking`",
    ),
    "zero-gradient": Flag(
        "warning",
        "the clean picture is an extremum of the objective (odfa:start=clean, sma:start=clean), "
        "rounding or a threshold on the way, saturation, a detached branch",
        "start beside the picture (start=sign, the default); else ask `uturn doctor --victim`",
    ),
    "objective": Flag(
        "warning",
        "the objective is not what the ranking rests on: a classifier that was not trained with "
        "the feature, lengths where angles are compared, another scale or part",
        "report an attack on the feature that is ranked (odfa, uturn), not this one",
    ),
    "under-iterated": Flag(
        "warning",
        "the attack was stopped while it still won: its number is too good for the victim",
        "report more steps (steps=N) or --attack worst",
    ),
    "unchanged": Flag(
        "warning",
        "a gradient of zero, or an objective that is at its end already",
        "ask `uturn doctor --victim`; look at these pictures",
    ),
    "tied": Flag(
        "warning",
        "similar pictures twice in the gallery, features of few values, a collapsed embedding",
        "a tie counts against the victim (the policy is in run.json); remove duplicates",
    ),
    "beyond": Flag(
        "warning",
        "paper mode: its pictures were saved as JPEG, which keeps no budget",
        "compare such rows with the paper's only",
    ),
    "no-match": Flag(
        "note",
        "the gallery has nothing relevant to these queries",
        "they are left out of every mean; take them out of the query list",
    ),
    "monotone": Flag(
        "note",
        "--monotone: what was lost at a smaller ε is lost, and not attacked again",
        "none is needed",
    ),
    "unreadable": Flag(
        "note",
        "--unreadable skip left out pictures that cannot be decoded",
        "mend them, or say in a publication how many were left out",
    ),
}
"""By name, the gravest first."""


def named(flag: str) -> tuple[str, str]:
    """A flag's name and what it says."""
    name, _, says = flag.partition(": ")
    return name, says


def remedies(rows: Iterable[dict[str, Any]]) -> list[tuple[str, Flag]]:
    """The flags that rows have, with what stands behind them; strangers are left out."""
    there = {named(flag)[0] for row in rows for flag in row["flags"]}
    return [(name, flag) for name, flag in FLAGS.items() if name in there]


def graver(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """What compared runs must not hide: failed flags, and the first row that has each."""
    found = dict[str, str]()
    for row in rows:
        for name, says in map(named, row["flags"]):
            if name in FLAGS and FLAGS[name].verdict == "failed":
                found.setdefault(name, f"{row['attack']} at ε={row['eps']:g}: {says}")
    return list(found.items())
