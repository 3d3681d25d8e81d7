"""A victim that nobody has: what a search system is to those who can only ask it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from uturn.errors import ArgumentError
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim


def unseen(device: str | torch.device = "cpu") -> Victim:
    """A victim of which nothing is known but that attacks on it compute on ``device``.

    Whoever looks through its network is told that there is none.
    """
    return Victim(
        name="unseen",
        network=_Unseen(),
        preprocessing=Preprocessing(size=(1, 1)),
        device=torch.device(device),
    )


@final
class _Unseen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ArgumentError(
            "this attack looks through the victim's network, and of a system behind an address "
            "there is none; take one that asks only: square, nes, rgf or prgf"
        )
