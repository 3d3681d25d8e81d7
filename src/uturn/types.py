"""The shared nouns: what an attack is told and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, final

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 255
"""An 8-bit picture has levels 0 … 255; one level is 1/255 in pixels."""

Pixels: TypeAlias = "Tensor"
"""What a person sees: ``(B, 3, H, W)``, float in [0, 1]."""

Levels: TypeAlias = "Tensor"
"""Pixels or changes of them counted in levels of 1/255: ``(B, 3, H, W)``, float.

Whole levels are exact in float32 (1/255 is not), so an attack that steps by whole levels
stays on the 8-bit lattice without rounding.
"""

Similarity: TypeAlias = Literal["cosine", "euclidean"]
"""How a retrieval system compares features: by angle, or by distance with their length."""


@final
@dataclass(frozen=True)
class Answer:
    """What a search system says of one picture."""

    items: tuple[str | int, ...]
    """Which gallery items, each once, best first."""

    scores: tuple[float, ...] | None = None
    """The score of each, larger = closer; None if the system keeps them to itself."""


class Oracle(Protocol):
    """A search system that only answers; any function of this form is one."""

    def __call__(self, pictures: Tensor, k: int) -> Sequence[Answer]:
        """The first ``k`` gallery items for each of uint8 ``pictures`` ``(n, 3, H, W)``.

        The answer for one picture does not depend on the others. A gallery of fewer than ``k``
        items gives fewer.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Scene:
    """What an attacker knows beyond the query itself; an objective takes what it needs."""

    targets: Pixels | None = None
    """Pictures ``(B, 3, H, W)`` whose place in the embedding is to be taken."""

    candidates: Tensor | None = None
    """Raw features ``(B, M, D)`` of gallery items that shall rise or fall."""

    queries: Tensor | None = None
    """Raw features ``(B, M, D)`` of queries in whose rankings the picture shall move."""

    others: Tensor | None = None
    """Raw features ``(B, N, D)`` of gallery items to overtake or to fall behind."""

    same: Tensor | None = None
    """Raw features ``(B, M, D)`` of known pictures of the same identity."""

    lost: Callable[[Tensor, Tensor], Tensor] | None = None
    """Asks the ranking: uint8 pictures ``(n, 3, H, W)`` in the place of queries number ``which``
    ``(n,)`` of the batch → ``(n,)`` booleans, whether each lost its first match."""

    watch: Callable[[Pixels], Tensor] | None = None
    """What a guard before the index sees in pixels, differentiably: ``(B, S)`` signs in spreads of
    clean queries, 0 is what is usual for them (`uturn.guard`)."""

    oracle: Oracle | None = None
    """The search system itself, to be asked as anybody may ask it (`attacks.blackbox`)."""


@final
@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What an attack found, and what it cost."""

    images: Tensor
    """The adversarial pictures: uint8 ``(B, 3, H, W)``, ready for a lossless file."""

    delta: Levels
    """``images`` less the clean pictures, in levels: whole numbers, float."""

    losses: Tensor
    """The objective before each step: ``(steps, B)``; without steps if nothing was climbed."""

    gradients: int
    """Gradients of the victim spent per picture; where pictures differ, the most one can cost."""

    seconds: float
    """Wall time of the whole batch."""

    asked: Tensor
    """How many pictures a search system was asked per query: ``(B,)`` int64, 0 if none."""

    prior_gradients: int = 0
    """Gradients of another network that were borrowed per picture, the most that one took."""

    rise: Tensor | None = None
    """What one level along the sign of the first gradient adds to the objective, to first order:
    ``(B,)``. Zero, or below the objective's own rounding: the climb began blind. None: nothing was
    climbed."""
