"""What a verification notes: what is wrong and where, what holds, and what was not looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final


@final
@dataclass(frozen=True)
class Finding:
    """Something that is not as the run says."""

    where: str
    """A file of the run, and where in it."""
    says: str

    def __str__(self) -> str:
        return f"{self.where}: {self.says}"


@final
@dataclass(frozen=True, eq=False)
class Notes:
    """Filled by one check after another."""

    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def find(self, where: str, says: str) -> None:
        self.findings.append(Finding(where, says))

    def differ(self, where: str, there: Any, follows: Any) -> None:
        """Note a value that does not follow from what it should."""
        self.find(where, f"says {_shown(there)}, and {_shown(follows)} follows")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
