"""Folding: a frozen network, made quicker, that says the same.

In evaluation mode a batch norm is one multiplication and one addition per channel. As passes of
their own over every map, there and back, norms take about as long as the convolutions; they become
part of the layer before them. The first convolution is given a quicker way back
(`uturn.victims.strided`), and so are blocks that know one (`uturn.victims.frozen`).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrize

from uturn.victims.frozen import Freezable, Frozen
from uturn.victims.strided import Strided, suits

NEAR = 1e-4
"""How far features may move by folding, relative to the largest: some hundred roundings."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@torch.no_grad()
def fold(network: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy of ``network`` whose batch norms are folded where one follows a layer directly.

    A strided convolution of a picture's few channels becomes `Strided`, and a block that knows a
    quicker form of itself is replaced by that (`Frozen`). Which norms follow is seen while it looks
    at ``inputs`` ``(B, 3, H, W)``, normalised pictures: no source is read and no graph is traced,
    so any module will do. A layer or norm that is called twice is left alone. The copy is believed
    only if it says the same of ``inputs`` (within `NEAR`); what cannot be copied or says something
    else is returned as it came.
    """
    try:
        folded = copy.deepcopy(network)
        pairs = _pairs(folded, inputs)
        for layer, norm in pairs:
            _replace(folded, layer, _fused(layer, norm))
            _replace(folded, norm, nn.Identity())
        strided = [layer for layer in folded.modules() if suits(layer) and not _computed(layer)]
        for layer in strided:
            _replace(folded, layer, Strided(layer))  # type: ignore[arg-type]
        blocks = _freeze(folded)
        changed = bool(pairs or strided or blocks)
        same = changed and _same(network(inputs), folded(inputs))
    except (RuntimeError, AttributeError, TypeError):  # not to be copied, or it looks at its norms
        return network
    return folded if same else network


def _pairs(network: nn.Module, inputs: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Layers and the norms that take just what the layers give, each called once."""
    calls: dict[nn.Module, int] = {}
    # The tensors themselves are kept, because an address is used again.
    found: dict[int, tuple[Tensor, int, nn.Module]] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def gave(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, Tensor):
            found[id(output)] = output, output._version, module

    def takes(module: nn.Module, given: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        output, version, layer = found.get(id(given[0]), (None, 0, module))
        if output is not None and output._version == version:  # no ReLU in place between them
            pairs.append((layer, module))

    hooks = []
    for module in network.modules():
        # Of these very classes: what is derived from them may do something more.
        if type(module) in (*_CONVOLUTIONS, nn.Linear) and not _computed(module):
            hooks.append(module.register_forward_hook(gave))
        elif type(module) in _NORMS and not module.training and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(takes))
    network(inputs)
    for hook in hooks:
        hook.remove()
    return [pair for pair in pairs if all(calls[module] == 1 for module in pair)]


def _computed(module: nn.Module) -> bool:
    """Whether its weight is made anew in every call (weight norm and its kin)."""
    return parametrize.is_parametrized(module) or "weight" not in module._parameters


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fusion.fuse_linear_bn_eval(layer, norm)  # type: ignore[arg-type]
    return fusion.fuse_conv_bn_eval(layer, norm)  # type: ignore[arg-type, type-var]


def _freeze(network: nn.Module) -> int:
    """Put blocks that know a quicker form of themselves into it; how many."""
    modules = list(network.modules())
    if any(isinstance(module, Frozen) for module in modules):
        return 0
    blocks = [(block, block.frozen()) for block in modules if isinstance(block, Freezable)]
    found = [(block, frozen) for block, frozen in blocks if frozen is not None]
    for block, frozen in found:
        _replace(network, block, frozen)
    return len(found)


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(network.modules()):  # as it was: what is new may hold what is old
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _same(one: Any, other: Any) -> bool:
    if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape):
        return False
    return bool((one - other).abs().max() <= NEAR * one.abs().max())
