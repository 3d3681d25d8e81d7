"""Networks to be trained: what a spec names before there are weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from uturn import specs
from uturn.errors import SpecError
from uturn.victims import zoo
from uturn.victims.adapters import timm
from uturn.victims.preprocessing import Preprocessing


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Blank:
    """A network with random weights, and what is known of it without any."""

    network: nn.Module
    preprocessing: Preprocessing
    head: str
    """What the keys of its classifier begin with in a checkpoint."""
    layout: torch.memory_format
    """As `Victim.layout`, for the victims that are loaded from such a checkpoint."""


def blank(spec: str) -> Blank:
    """The network of an architecture's spec, such as ``resnet50:last_stride=1`` or ``timm:NAME``.

    Raises:
        SpecError: an unknown name or option, or weights.
    """
    parsed = specs.Spec.parse(spec)
    for key in ("weights", "pretrained"):
        if key in parsed.options:
            raise SpecError(
                f"an architecture is a network without weights; take {key}={parsed.options[key]} "
                f"out of {spec} and write --weights {spec}"
            )
    if parsed.name == "timm":
        network, preprocessing = specs.call("architecture", timm.untrained, parsed)
        return Blank(
            network=network,
            preprocessing=preprocessing,
            head=timm.HEAD,
            layout=torch.contiguous_format,
        )
    chosen = zoo.ZOO[specs.choose("architecture", parsed.name, [*zoo.ZOO, "timm"])]
    return Blank(
        network=zoo.empty(parsed),
        preprocessing=chosen.preprocessing,
        head=chosen.heads[-1],
        layout=torch.channels_last,
    )
