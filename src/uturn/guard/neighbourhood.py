"""A gallery as a query meets it: who is near, and how near those are to their own neighbours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError
from uturn.retrieval.index import require_finite
from uturn.rng import generator

NEIGHBOURS = 10
"""Gallery items that a query is held against, and that say how dense the gallery is around one."""

LARGEST = 20_000
"""Gallery items that are looked at, at the most; of a larger gallery as many are drawn."""

_ROWS = 1024


@final
@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """Unit features ``(R, D)`` of gallery items, and how far the neighbourhood of each reaches."""

    items: Tensor = field(repr=False)
    """Which items of the gallery these are, ``(R,)`` int64, ascending."""

    features: Tensor = field(repr=False)
    reach: Tensor = field(repr=False)
    """The cosine of each item to its own k-th nearest other item, ``(R,)``."""

    @classmethod
    def of(cls, gallery: Tensor) -> Neighbourhood:
        """Of a gallery's raw features ``(G, D)``.

        Raises:
            ArgumentError: fewer items than `NEIGHBOURS` + 1, or features that are not finite.
        """
        if gallery.ndim != 2 or len(gallery) <= NEIGHBOURS:
            raise ArgumentError(
                f"a guard needs features (G, D) of more than {NEIGHBOURS} gallery items, got "
                f"{tuple(gallery.shape)}"
            )
        require_finite(gallery, "gallery")
        drawn = generator(0, "guard", "gallery").permutation(len(gallery))[:LARGEST]
        items = torch.from_numpy(drawn).sort().values.to(gallery.device)
        features = F.normalize(gallery[items], dim=1)
        reach = [
            (part @ features.T).topk(NEIGHBOURS + 1, dim=1).values[:, -1]  # the first is itself
            for part in torch.split(features, _ROWS)
        ]
        return cls(items, features, torch.cat(reach))

    def strangeness(self, features: Tensor, left_out: Tensor | None = None) -> Tensor:
        """How far outside its nearest items' neighbourhoods each query lies: ``(B,)``.

        The mean, over the k items that are nearest to unit ``features`` ``(B, D)``, of the item's
        `reach` less the cosine to it. A hub of the gallery, a near neighbour of many, is below 0;
        who is nobody's neighbour is above. ``left_out`` ``(B, G)`` are items that are not looked
        at.

        Sources: Radovanović et al., "Hubs in Space", JMLR 2010; the density is corrected for as by
        Conneau et al., "Word Translation without Parallel Data", ICLR 2018 (CSLS).
        """
        cosines = features @ self.features.T  # (B, R)
        if left_out is not None:
            cosines = cosines.masked_fill(left_out[:, self.items], -1.0)
        near = cosines.topk(NEIGHBOURS, dim=1)
        return (self.reach[near.indices] - near.values).mean(1)
