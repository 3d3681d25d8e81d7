"""``ensemble:SPEC+SPEC``: several victims as one, for attacks that are to transfer.

Source: Liu et al., "Delving into Transferable Adversarial Examples and Black-box Attacks",
ICLR 2017, whose ensembles are of classifiers; here the features stand side by side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from uturn.errors import SpecError
from uturn.victims.victim import Victim


def build(members: Sequence[Victim]) -> Victim:
    """One victim on the first member's pixel grid whose features are all members' unit features.

    Every member resizes and normalises by itself. The squared distance between two features is
    the sum over the members; the cosine is their mean. There is no classifier.

    Raises:
        SpecError: fewer than two members.
    """
    if len(members) < 2:
        raise SpecError(
            "an ensemble has at least two members; write ensemble:SPEC+SPEC, and a SPEC that has "
            "a comma or + of its own in brackets: ensemble:[SPEC,key=value]+[SPEC]"
        )
    first = members[0]
    marks = "\0".join(f"{m!r} {m.preprocessing} {m.fingerprint}" for m in members)
    return Victim(
        name="ensemble:" + "+".join(member.name for member in members),
        network=SideBySide(members),
        preprocessing=replace(first.preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3, order="RGB"),
        fingerprint=hashlib.sha256(marks.encode()).hexdigest(),
        layout=first.layout,
    )


@final
class SideBySide(nn.Module):
    """Pixels ``(B, 3, H, W)`` in [0, 1] → the members' embeddings ``(B, ΣD)``, side by side."""

    def __init__(self, members: Sequence[Victim]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            module
            for member in members
            for module in (member.network, member.whitening)
            if module is not None
        )
        self.members = tuple(members)

    def forward(self, x: Tensor) -> Tensor:
        if any(member.device != x.device for member in self.members):
            # The networks have been moved as modules; the members are yet to be told.
            self.members = tuple(replace(member, device=x.device) for member in self.members)
        return torch.cat([member.embed(x) for member in self.members], 1)
