"""What several experiments share: attacks, ε, claims, and what their pages say."""

from __future__ import annotations

from uturn.reproduce.claims import Below, Cell, Claim, Lowest
from uturn.sweep import Plan

PAPER = ("fast", "basic", "least_likely", "odfa")
"""The attacks of the paper's main tables."""
ATTACKS = (*PAPER, "uturn")
EPS = (2, 4, 8, 12, 16)
LARGEST = 16

PROTOCOL = (
    "The paper's pipeline steps in whitened space, truncates to 8 bits, saves as JPEG and scores "
    "with the trapezoid. Ours counts levels, scores the PNG decoded again, and takes the plain "
    "mean of precisions. `uturn sweep --mode paper` is the original's."
)
TRAPEZOID = (
    "Average precision is the trapezoid, as in the paper. Its pipeline steps in whitened space, "
    "truncates to 8 bits and saves as JPEG; ours counts levels and scores the PNG decoded again."
)
START = (
    "`odfa` starts at a seeded ±1 level, because its gradient is exactly zero at the clean "
    "picture; the original starts from the sign of rounding noise there."
)
STRONGER = (
    "`uturn` is this project's, with the same number of gradients; the paper has no row for it."
)


def curve_plan(victim: str, data: str, queries: int | None, convention: str = "plain") -> Plan:
    """The paper's attacks and ours at every ε; None is all queries."""
    return Plan(
        victim=victim,
        data=data,
        attacks=ATTACKS,
        eps=EPS,
        queries=queries,
        seed=1,
        convention=convention,
        batch_size=50,
    )


def sampled(queries: int, of: int) -> str:
    """What a page says of a sample of the queries."""
    return (
        f"Preset cpu asks {queries} of the {of:,} queries (seed 1); the intervals say what that "
        "leaves open."
    )


def ordering(run: str, victim: str | None = None) -> tuple[Claim, ...]:
    """The paper's ordering of attacks, and that ours is stronger than the paper's."""
    return (
        Claim(
            "odfa has the lowest R@1 and mAP of the paper's attacks at ε ≥ 8",
            Lowest(run=run, attack="odfa", among=PAPER, victim=victim),
        ),
        Claim(
            "uturn is nowhere above odfa, at any ε",
            Lowest(run=run, attack="uturn", among=("odfa",), since=2, victim=victim),
        ),
        Claim(
            "at ε = 2 odfa is not yet the strongest: basic is below it",
            Below(Cell(run, "basic", 2, victim=victim), Cell(run, "odfa", 2, victim=victim)),
        ),
    )
