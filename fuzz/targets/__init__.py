"""Every parser of foreign input, a module for each kind."""

from __future__ import annotations

from fuzz.target import Target
from fuzz.targets import (
    answers,
    archives,
    checkpoints,
    downloads,
    fitted,
    ground_truth,
    lists,
    pictures,
    runs,
    spelled,
    tables,
)

TARGETS: dict[str, Target] = {
    target.name: target
    for module in (
        pictures,
        checkpoints,
        fitted,
        archives,
        ground_truth,
        tables,
        lists,
        spelled,
        runs,
        answers,
        downloads,
    )
    for target in module.TARGETS
}
