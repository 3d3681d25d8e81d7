"""What `Check` steps ask."""

from __future__ import annotations

from uturn.data.catalog import load_data
from uturn.doctor.masking import unmask
from uturn.reproduce.steps import Checked
from uturn.victims.load import load_victim


def masking(
    *, victim: str, twin: str, data: str, eps: float, queries: float, device: str, progress: bool
) -> Checked:
    """Whether a defended victim's gradients are masked (`uturn.doctor.masking`)."""
    found = unmask(
        load_victim(victim, device),
        load_data(data),
        eps=eps,
        twin=load_victim(twin, device),
        queries=int(queries),
        seed=1,
        progress=progress,
    )
    return [finding.as_dict() for finding in found]
