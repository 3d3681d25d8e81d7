"""Classification: where a split's identities are the victim's classes, how its classifier does."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uturn.data.pictures import Picture
from uturn.data.split import Split
from uturn.retrieval.extract import BATCH, chunks
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_pixels

TOPS = (1, 5)
"""top-k is the share of pictures whose true class is among the k largest logits."""


@torch.no_grad()
def classifies(victim: Victim, split: Split) -> bool:
    """Whether the split is a closed set of classes and the victim's classifier has as many logits.

    Identity i is then logit i.
    """
    if split.classes is None or victim.classifier is None:
        return False
    pixels = to_pixels(victim.grid([split.query.read(0)]))
    return victim.logits(pixels).shape[1] == len(split.classes)


@torch.no_grad()
def label_ranks(victim: Victim, pictures: Sequence[Picture], classes: Sequence[int]) -> list[int]:
    """The true class's place among the logits of each decoded picture; 1 is predicted.

    1 plus the number of *other* classes whose logit is at least the true one's: ties count
    against the victim. A logit that is NaN is the last.
    """
    ranks = [0] * len(pictures)
    for which, images in by_shape(victim.preprocessing.on_grid(picture) for picture in pictures):
        for part in chunks(len(which), BATCH):
            logits = victim.logits(to_pixels(images[part.start : part.stop]))  # (b, C)
            mine = [which[i] for i in part]
            true = torch.tensor([classes[i] for i in mine], device=logits.device)
            reached = ~(logits < logits.gather(1, true[:, None]))  # by the true one itself, too
            for place, rank in zip(mine, reached.sum(1).tolist(), strict=True):
                ranks[place] = rank
    return ranks
