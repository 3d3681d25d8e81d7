"""Which training pictures come together in a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from uturn import specs
from uturn.data.pictures import IntArray
from uturn.errors import ArgumentError

Sampler = Callable[[IntArray, int, np.random.Generator], "list[IntArray]"]
"""Classes ``(N,)``, batch size and randomness → an epoch's batches of positions ``(B,)``."""


def shuffled() -> Sampler:
    """Every picture once, in any order; what does not fill the last batch is left out."""

    def epoch(classes: IntArray, size: int, rng: np.random.Generator) -> list[IntArray]:
        order = rng.permutation(len(classes))
        return [order[begin : begin + size] for begin in range(0, len(order) - size + 1, size)]

    return epoch


def pk(pictures: int = 4) -> Sampler:
    """P classes with K ``pictures`` each, P = batch size / K, as triplets need them.

    As many batches as `shuffled` has. A picture comes again when all of its class have come, or
    when fewer than P classes have pictures left (Hermans et al., "In Defense of the Triplet
    Loss", 2017).
    """
    if pictures < 2:
        raise ArgumentError(f"pk needs at least 2 pictures of a class, got {pictures}")

    def epoch(classes: IntArray, size: int, rng: np.random.Generator) -> list[IntArray]:
        wanted, known = size // pictures, len(np.unique(classes))
        if size % pictures or wanted > known:
            raise ArgumentError(
                f"a batch of {size} is no multiple of {pictures} pictures of each of up to "
                f"{known} classes; choose another batch size"
            )
        left: dict[int, deque[IntArray]] = {}
        batches = []
        for _ in range(len(classes) // size):
            if len(left) < wanted:
                left = _groups(classes, pictures, rng)
            many = np.array([len(groups) for groups in left.values()])
            # In proportion to what is left, so that all classes end together.
            chosen = rng.choice(list(left), wanted, replace=False, p=many / many.sum())
            batches.append(np.concatenate([left[c].popleft() for c in chosen]))
            left = {c: groups for c, groups in left.items() if groups}
        return batches

    return epoch


def _groups(classes: IntArray, size: int, rng: np.random.Generator) -> dict[int, deque[IntArray]]:
    """Every class's positions in any order, ``size`` at a time."""
    order = np.argsort(classes, kind="stable")
    starts = np.flatnonzero(np.diff(classes[order])) + 1
    groups = {}
    for own in np.split(order, starts):
        mixed = rng.permutation(own)
        if len(mixed) < size:
            mixed = np.concatenate([mixed, rng.choice(own, size - len(mixed))])
        whole = len(mixed) // size * size
        groups[int(classes[own[0]])] = deque(mixed[:whole].reshape(-1, size))
    return groups


SAMPLERS: dict[str, Callable[..., Sampler]] = {f.__name__: f for f in (shuffled, pk)}


def load_sampler(spec: str) -> Sampler:
    """A sampler from a spec such as ``pk:pictures=4``.

    Raises:
        SpecError: unknown name or option. ArgumentError: a value out of range.
    """
    parsed = specs.Spec.parse(spec)
    factory = SAMPLERS[specs.choose("sampler", parsed.name, SAMPLERS)]
    sampler: Sampler = specs.call("sampler", factory, parsed)
    return sampler
