"""A victim and its gallery, kept ready: one picture in, the rank list as a person sees it out."""

from __future__ import annotations

import math
import re
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from uturn.data.pictures import Picture, Pictures
from uturn.data.split import Split
from uturn.errors import ArgumentError, UturnError
from uturn.retrieval import metrics
from uturn.retrieval.extract import extract_all, extract_decoded
from uturn.retrieval.index import whole
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem, require_matches
from uturn.sweep.insider import Insider
from uturn.victims.load import load_victim, pick_device
from uturn.victims.victim import Victim

RANKS = 10
"""Places of a rank list; as many of the ignored are shown between them at the most."""

Verdict = Literal["right", "wrong", "ignored", "unknown"]
"""What the judge says of a gallery item; of an upload's answer it cannot say anything."""


@final
@dataclass(frozen=True)
class Place:
    """One gallery item of a rank list."""

    item: int
    name: str
    score: float
    verdict: Verdict
    rank: int | None
    """1 is first; None for what is ignored, which takes no place."""


@final
@dataclass(frozen=True)
class Answer:
    """What the retrieval system answers: the closest items, the ignored among them."""

    places: tuple[Place, ...]
    first_match: int | None
    """The place of the first relevant item; None if there is none, or nobody can say."""

    def kept_from(self, other: Answer) -> int:
        """How many of the ranked items stand in the list of ``other``, too."""
        ours, theirs = ({p.item for p in a.places if p.rank} for a in (self, other))
        return len(ours & theirs)


@final
@dataclass(frozen=True, eq=False)
class Query:
    """A picture to ask with, on the grid of the victim that is attacked."""

    name: str
    picture: Picture
    labelled: Pictures | None = None
    """Itself among the queries of the data set; None for an upload, of which no label is known."""

    @property
    def key(self) -> str:
        """What keys its randomness and names its files: its name, as far as a file can bear it."""
        stem = re.sub(r"[^\w.+=@,-]", "_", self.name.rpartition("/")[2])[:100]
        return stem.lstrip(".-") or "query"


@final
@dataclass(frozen=True, eq=False)
class Gallery:
    """An embedded gallery: raw features ``(G, D)``, and the system that is asked."""

    features: Tensor
    system: RetrievalSystem


@final
@dataclass(frozen=True, eq=False)
class Studio:
    """A victim, a data set, and the gallery's features by that victim."""

    spec: str
    """Of the victim."""
    data: str
    """The data set's spec."""
    index: str
    """The index spec."""
    device: str
    """As it was asked for, such as ``auto``."""
    victim: Victim
    split: Split
    gallery: Future[Gallery] = field(default_factory=Future, repr=False)
    """What `embed` will have made; who asks before it is there waits."""

    @classmethod
    def open(
        cls, spec: str, data: str, split: Split, *, index: str = "exact", device: str = "auto"
    ) -> Studio:
        """Load the victim; its gallery is not embedded yet.

        Raises:
            UturnError: a spec or the data set is wrong.
        """
        require_matches(split)
        # As `uturn attack` and `sweep` have it: their pictures to the bit, their kept features.
        victim = load_victim(spec, pick_device(device)).folded()
        whole(index, victim.similarity, "the explorer")
        return cls(spec, data, index, device, victim, split)

    def embed(self, *, progress: bool = True) -> Studio:
        """Embed the gallery, or find its features kept; return the studio.

        Raises:
            UturnError: a picture or the index is wrong; whoever waits for the gallery gets it too.
        """
        try:
            what = "gallery"
            features = extract_all(self.victim, self.split.gallery, what, progress=progress)
            system = RetrievalSystem.build(self.victim, self.split, features, self.index)
        except BaseException as error:  # Ctrl-C too: nobody shall wait for ever
            stopped = UturnError("the explorer was stopped before its gallery was embedded")
            self.gallery.set_exception(error if isinstance(error, Exception) else stopped)
            raise
        self.gallery.set_result(Gallery(features, system))
        return self

    @property
    def system(self) -> RetrievalSystem:
        """What is asked."""
        return self.gallery.result().system

    @property
    def features(self) -> Tensor:
        """Of the gallery, raw, ``(G, D)``."""
        return self.gallery.result().features

    @property
    def insider(self) -> Insider:
        """What attackers of this victim may be given of the gallery."""
        return Insider(self.victim, self.split, self.system, self.features, self.index, seed=0)

    # -- queries ----------------------------------------------------------------------------

    def query(self, position: int) -> Query:
        """The query of the data set at ``position``."""
        one = self.split.query.subset(np.array([position]))
        return Query(one.names[0], self.victim.canvas(one.read(0), "model"), one)

    def find(self, text: str) -> Query:
        """The query of this name, or the only one whose name begins so.

        Raises:
            ArgumentError: there is none, or more than one.
        """
        names, wanted = self.split.query.names, text.strip()
        found = [i for i, name in enumerate(names) if name == wanted]
        found = found or [i for i, name in enumerate(names) if wanted and name.startswith(wanted)]
        if len(found) != 1:
            how = f"{len(found)} queries begin" if found else "no query is called so or begins"
            raise ArgumentError(
                f"{how} with {wanted!r} in {self.split.name}; write a whole name, such as "
                f"{names[found[0] if found else 0]}"
            )
        return self.query(found[0])

    def upload(self, name: str, picture: Picture) -> Query:
        """A query of one's own: it has no identity here, so nothing is right or wrong for it."""
        return Query(name, self.victim.canvas(picture, "model"))

    # -- answers ----------------------------------------------------------------------------

    def look(self, picture: Picture) -> Tensor:
        """Raw features ``(1, D)`` of a decoded picture of any size."""
        return extract_decoded(self.victim, [picture])

    @torch.no_grad()
    def answer(self, features: Tensor, query: Query) -> Answer:
        """What the system says to raw ``features`` ``(1, D)`` that stand for ``query``."""
        scores = self.system.whole.scores(features)[0]  # (G,)
        right = out = torch.zeros_like(scores, dtype=torch.bool)
        first = math.nan
        if query.labelled is not None:
            labels = Labels.of(query.labelled, self.victim.device)
            relevant, ignored = self.system.judge(labels, self.system.gallery).masks()
            right, out = relevant[0], ignored[0]
            first = float(metrics.first_match(self.system.rank(features, labels)))
        wanted = min(len(scores), RANKS + int(out.sum()))
        best = scores.topk(wanted)
        columns = (best.indices, best.values, right[best.indices], out[best.indices])
        places, rank, ignored_so_far = list[Place](), 0, 0
        for item, score, is_right, is_out in zip(*(c.tolist() for c in columns), strict=True):
            rank, ignored_so_far = rank + (not is_out), ignored_so_far + is_out
            if rank > RANKS or ignored_so_far > RANKS:
                break
            verdict: Verdict = "ignored" if is_out else "right" if is_right else "wrong"
            places.append(
                Place(
                    item,
                    self.split.gallery.names[item],
                    score,
                    verdict if query.labelled is not None else "unknown",
                    None if is_out else rank,
                )
            )
            if rank == RANKS:
                break
        return Answer(tuple(places), None if math.isnan(first) else int(first))
