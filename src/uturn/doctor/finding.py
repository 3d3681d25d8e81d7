"""What a check found, whatever it looked at: a verdict with numbers, cause and remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

Verdict = Literal["ok", "note", "warning", "failed", "not checked"]
"""``note``: sound, but it limits what an attack can do. ``failed``: numbers cannot be trusted."""

Number = float | int | str


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's answer. ``measured`` is what the verdict rests on."""

    name: str
    verdict: Verdict
    says: str
    """One sentence: what was found, or why nothing was looked at."""
    measured: Mapping[str, Number] = field(default_factory=dict)
    cause: str = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.verdict in ("warning", "failed") and not (self.cause and self.remedy):
            raise ValueError(f"{self.name} {self.verdict} without a cause and a remedy")

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON holds it; a number that is not finite becomes text."""
        measured = {
            key: value if isinstance(value, str) or math.isfinite(value) else str(value)
            for key, value in self.measured.items()
        }
        return {**asdict(self), "measured": measured}


def text(findings: Sequence[Finding]) -> str:
    """Findings for the terminal: a line each, and what to do where something is wrong."""
    wide = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<11}  {finding.name:<{wide}}  {finding.says}")
        numbers = ", ".join(f"{key} {_shown(value)}" for key, value in finding.measured.items())
        told = (("", numbers), ("cause: ", finding.cause), ("remedy: ", finding.remedy))
        lines += [f"{'':{wide + 15}}{title}{words}" for title, words in told if words]
    return "\n".join(lines)


def _shown(value: Number) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
