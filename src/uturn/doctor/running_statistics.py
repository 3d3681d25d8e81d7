"""A victim's preprocessing against what its batch norm remembers of training."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from uturn.doctor.alternatives import REMEDY, alternatives, options
from uturn.doctor.finding import Finding
from uturn.doctor.patient import Patient
from uturn.rng import generator
from uturn.victims.preprocessing import Preprocessing, by_shape
from uturn.victims.victim import Victim, to_pixels

Array = npt.NDArray[np.float64]


def running_statistics(patient: Patient) -> Finding:
    """What batch norm remembers of training against what it is shown now."""
    name, stated = "running-statistics", patient.victim.preprocessing
    layers, fresh = (of(patient.victim.network) for of in (_learned, _fresh))
    if fresh and not layers:
        return Finding(
            name=name,
            verdict="warning",
            says=f"all {len(fresh)} batch norms remember nothing (mean 0, variance 1)",
            measured={"batch norms": len(fresh)},
            cause="the weights were never loaded, or nothing was trained",
            remedy="load trained weights before the network becomes a victim",
        )
    if not layers:
        says = "the network has no batch norm"
        return Finding(name=name, verdict="not checked", says=says)
    batches = [images for _, images in by_shape(map(stated.on_grid, patient.pictures))]
    weights = _resampled(len(patient.pictures), patient.seed)
    now = _divergence(patient.victim, layers, stated, batches, weights)
    if now is None:
        says = "the network's batch norms do not show what goes into them"
        return Finding(name=name, verdict="not checked", says=says)
    seen = dict[str, _Divergence]()
    for key, each in alternatives(stated).items():
        divergence = _divergence(patient.victim, layers, each, batches, weights)
        assert divergence is not None  # the same layers are reached
        seen[key] = divergence
    least = min(each.value for each in seen.values())
    # Of several that explain about as well, the most usual mistake.
    best = next(key for key, each in seen.items() if each.value <= _TIE * least)
    then = seen[best]
    ratio = now.value / then.value
    low = float(np.percentile(now.resampled / then.resampled, 1))
    measured = {
        "pictures": len(patient.pictures),
        "divergence": now.value,
        f"divergence with {best}": then.value,
        "ratio": ratio,
        "at least": low,
    }
    clear = ratio >= CLEARER and low > 1 and now.value > SAME
    if clear and (then.value <= ALIKE or ratio >= OBVIOUS):
        return Finding(
            name=name,
            verdict="failed" if ratio >= CLEARLY else "warning",
            says="these weights look trained with another preprocessing: "
            f"{best} explains the running statistics {ratio:.1f} times better",
            measured=measured,
            cause="the stated preprocessing is not that of training, or the network normalises "
            "by itself and is shown normalised pictures",
            remedy=f"{REMEDY}; here: {options(alternatives(stated)[best])}",
        )
    if now.value > ALIKE:
        says = (
            "nothing explains the running statistics on these pictures, which are not like those "
            "of training; give --data with pictures that are"
        )
        return Finding(name=name, verdict="not checked", says=says, measured=measured)
    if low > 1 and now.value > SAME:
        says = f"{best} explains them {ratio:.2f} times better: too little to tell; show it more"
        return Finding(name=name, verdict="note", says=f"{says} pictures", measured=measured)
    says = f"the stated preprocessing explains them; next best: {best}"
    return Finding(name=name, verdict="ok", says=says, measured=measured)


CLEARER, CLEARLY, OBVIOUS = 1.25, 1.5, 10.0
"""How many times better another preprocessing must explain the running statistics: to be named,
to fail, and to be believed on pictures that are unlike those of training."""

SAME, ALIKE = 0.01, 0.15
"""Divergences, per channel: not worth a word (a mean off by 0.14 standard deviations), and the
most that pictures of the kind of training can have."""

_TIE = 1.1
"""Divergences whose ratio is less are alike."""

_LAYERS = 3
"""Batch norms that are looked at, the first ones: what follows has washed the input out."""

_RESAMPLES = 400


@final
@dataclass(frozen=True)
class _Divergence:
    """From pictures to memory, mean over channels; ``resampled`` over bootstrapped pictures."""

    value: float
    resampled: Array


@final
@dataclass(frozen=True, eq=False)
class _Memory:
    """What a batch norm keeps: mean and variance ``(C,)``, and the epsilon that it adds."""

    mean: Array
    var: Array
    eps: float

    @property
    def fresh(self) -> bool:
        """As it is made: nothing was learned, or nothing loaded."""
        return not self.mean.any() and bool((self.var == 1).all())


class _EnoughError(Exception):
    """The layers of interest have been reached; what follows need not be computed."""


def _learned(network: nn.Module) -> dict[nn.Module, _Memory]:
    """Modules with running statistics that training has changed."""
    return {module: kept for module, kept in _memories(network).items() if not kept.fresh}


def _fresh(network: nn.Module) -> dict[nn.Module, _Memory]:
    """Modules whose running statistics are as they were made."""
    return {module: kept for module, kept in _memories(network).items() if kept.fresh}


def _memories(network: nn.Module) -> dict[nn.Module, _Memory]:
    """Modules with finite running statistics."""
    found = {}
    for module in network.modules():
        mean, var = (getattr(module, key, None) for key in ("running_mean", "running_var"))
        if not (isinstance(mean, Tensor) and isinstance(var, Tensor)):
            continue
        if bool(mean.isfinite().all() and var.isfinite().all()):
            kept, spread = (each.double().cpu().numpy().copy() for each in (mean, var))
            found[module] = _Memory(kept, spread, float(getattr(module, "eps", 1e-5)))
    return found


def _resampled(count: int, seed: int) -> Array:
    """Weights of ``count`` pictures ``(1 + R, N)``: all alike, then drawn with replacement."""
    even = np.full((1, count), 1 / count)
    draw = generator(seed, "doctor", "running statistics")
    return np.concatenate([even, draw.multinomial(count, even[0], _RESAMPLES) / count])


@torch.no_grad()
def _divergence(
    victim: Victim,
    layers: dict[nn.Module, _Memory],
    preprocessing: Preprocessing,
    batches: list[Tensor],
    weights: Array,
) -> _Divergence | None:
    """Mean over channels of log(1 + KL) of Gaussians, from the memory to what goes in.

    The logarithm keeps a channel that was dead in training from deciding alone. None if the
    layers see nothing, as those of a compiled network.
    """
    moments = dict[nn.Module, list[Tensor]]()  # by layer: mean and mean square, (2, n, C)
    reached = list[nn.Module]()

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        if isinstance(x, Tensor) and x.ndim == 4 and module not in reached:
            var, mean = (each.double().cpu() for each in _var_mean(x))
            moments.setdefault(module, []).append(torch.stack([mean, var + mean**2]))
            reached.append(module)
        if len(reached) == _LAYERS:
            raise _EnoughError

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    try:
        for part in (part for images in batches for part in torch.split(images, 16)):
            reached.clear()
            with contextlib.suppress(_EnoughError):
                victim.network(preprocessing.normalise(to_pixels(part).to(victim.device)))
    finally:
        for handle in handles:
            handle.remove()
    found = list[Array]()
    for layer, parts in moments.items():
        memory, (means, squares) = layers[layer], torch.cat(parts, 1).numpy()
        mean = weights @ means  # (1 + R, C)
        var, kept = (weights @ squares - mean**2).clip(0) + memory.eps, memory.var + memory.eps
        ratio, shift = var / kept, (mean - memory.mean) ** 2 / kept
        found.append(np.log1p((ratio + shift - 1 - np.log(ratio)).clip(0) / 2))
    if not found:
        return None
    value = np.nan_to_num(np.concatenate(found, 1).mean(1), nan=_LOST, posinf=_LOST)
    return _Divergence(float(value[0]), value[1:])


def _var_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean ``(n, C)`` over the places of each picture's map ``(n, C, h, w)``."""
    return torch.var_mean(x.float(), (2, 3), correction=0)


_LOST = 1e9
"""The divergence of what overflows."""
