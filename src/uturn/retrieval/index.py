"""Indexes: raw features in, scores or the closest items out. Larger scores are closer.

There are two kinds. An `Index` scores the whole gallery; a `TopIndex` answers with the closest
items only, as deployed systems do, one file each (`uturn.retrieval.faiss`, `…milvus`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeAlias, final, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn import specs
from uturn.errors import ArgumentError, SpecError
from uturn.retrieval.judge import Judge, Labels
from uturn.types import Similarity

_ROWS = 4096
"""Features that are worked on at a time, so that a pass over a gallery needs no second one."""

DEPTH, LEAST = 100, 10
"""How many items a `TopIndex` is asked for where nothing else is said; the fewest that will do, as
Recall@10 is in every result row."""


class Index(Protocol):
    """A gallery that can be asked. Its ``str`` names it in result rows."""

    def __len__(self) -> int: ...

    def scores(self, queries: Tensor) -> Tensor:
        """Scores ``(Q, G)`` of raw query features ``(Q, D)`` against the whole gallery.

        Whoever asks may write to them.
        """
        ...


class Top(NamedTuple):
    """The closest items of some queries, best first."""

    items: Tensor
    """``(Q, k)`` int64: places in the gallery; -1 behind the last where there were fewer."""

    scores: Tensor
    """``(Q, k)``, descending; -inf behind the last."""


@runtime_checkable
class TopIndex(Protocol):
    """A gallery that says which of its items are closest, and nothing of the others.

    Its ``str`` names it in result rows.
    """

    @property
    def similarity(self) -> Similarity:
        """What it compares by: cosines, or minus squared distances."""
        ...

    @property
    def depth(self) -> int:
        """How many items it is asked for at the most."""
        ...

    def __len__(self) -> int: ...

    def search(self, queries: Tensor, asked: Labels | None, k: int) -> Top:
        """The ``k`` closest items to raw query features ``(Q, D)``.

        ``asked`` are the queries' labels: what the judge ignores for them is not among the items,
        and takes nobody's place. Of None nothing is known: only junk is ignored.
        """
        ...


AnyIndex: TypeAlias = Index | TopIndex

Reingest: TypeAlias = Callable[[Tensor], AnyIndex]
"""Other raw features ``(N, D)`` for N items that were fixed before → the index with these, which
holds until the next call."""


class IndexSpec(Protocol):
    """What an index spec says, before there is a gallery."""

    @property
    def depth(self) -> int | None:
        """How many items it answers with; None if it ranks the whole gallery."""
        ...

    @property
    def alone(self) -> bool:
        """Whether one process at a time can have it open."""
        ...

    def rehearse(self, features: Tensor) -> None:
        """Fail now at what would fail after long work, on some features ``(N, D)``."""
        ...

    def require_growing(self) -> None:
        """Raise `SpecError` if nothing can be taken in any more once it is built."""
        ...

    def build(
        self, features: Tensor, gallery: Labels, judge: Judge, *, progress: bool = False
    ) -> AnyIndex:
        """Take in the gallery's raw ``features`` ``(G, D)``."""
        ...

    def aside(
        self,
        items: Tensor,
        features: Tensor,
        gallery: Labels,
        judge: Judge,
        *,
        progress: bool = False,
    ) -> AbstractContextManager[Reingest]:
        """`build` an index in which gallery ``items`` ``(N,)`` can be replaced, again and again.

        Nobody else finds it: what others ask stays as it is.

        Raises:
            SpecError: as `require_growing`.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class ExactIndex:
    """Every query against every gallery feature ``(G, D)``.

    ``cosine`` scores are cosines, ``euclidean`` ones minus the squared distance.

    Raises:
        ArgumentError: a feature is not finite; a score of NaN would rank anywhere.
    """

    features: Tensor
    similarity: Similarity = "cosine"

    def __post_init__(self) -> None:
        if self.similarity not in get_args(Similarity):
            raise ArgumentError(f"unknown similarity {self.similarity!r}")
        require_finite(self.features, "gallery")
        if self.similarity == "cosine":
            object.__setattr__(self, "features", F.normalize(self.features, dim=1))

    def __len__(self) -> int:
        return len(self.features)

    def __str__(self) -> str:
        return f"exact:{self.similarity}"

    def scores(self, queries: Tensor) -> Tensor:
        if self.similarity == "cosine":
            return F.normalize(queries, dim=1) @ self.features.T
        scores = 2 * queries @ self.features.T
        return scores.sub_(_squares(queries)[:, None] + self._squares)

    def replace(self, items: Tensor, features: Tensor) -> ExactIndex:
        """The same with other raw ``features`` ``(N, D)`` for gallery ``items`` ``(N,)``.

        Raises:
            ArgumentError: they do not fit, or a feature is not finite.
        """
        require_replaceable(items, features, len(self))
        rows = ExactIndex(features.to(self.features.device), self.similarity).features
        # Built anew, the others would be brought to unit length again, and differ in a last bit.
        changed = copy.copy(self)
        changed.__dict__.pop("_squares", None)
        places = items.to(self.features.device)
        object.__setattr__(changed, "features", self.features.index_copy(0, places, rows))
        return changed

    @cached_property
    def _squares(self) -> Tensor:
        return _squares(self.features)


@final
@dataclass(frozen=True)
class ExactSpec:
    """``exact``, ``exact:cosine`` or ``exact:euclidean``."""

    similarity: Similarity

    @property
    def depth(self) -> None:
        return None

    @property
    def alone(self) -> bool:
        return False

    def rehearse(self, features: Tensor) -> None:
        ExactIndex(features, self.similarity)

    def require_growing(self) -> None:
        """Rows can always be replaced."""

    def build(
        self, features: Tensor, gallery: Labels, judge: Judge, *, progress: bool = False
    ) -> ExactIndex:
        return ExactIndex(features, self.similarity)

    @contextmanager
    def aside(
        self,
        items: Tensor,
        features: Tensor,
        gallery: Labels,
        judge: Judge,
        *,
        progress: bool = False,
    ) -> Iterator[Reingest]:
        built = self.build(features, gallery, judge)
        yield lambda changed: built.replace(items, changed)


def read_index(spec: str, published: Similarity) -> IndexSpec:
    """Read an index spec: ``exact``, ``faiss:FACTORY`` or ``milvus:URI``, with options.

    Without a similarity it is ``published``, the one that the victim's weights come with.

    Raises:
        SpecError: unknown index, option or similarity. ArgumentError: an option is out of range.
    """
    from uturn.retrieval import faiss, milvus  # which need the protocols above

    def exact(similarity: Similarity = published) -> IndexSpec:
        return ExactSpec(similarity)

    readers = {"exact": exact, "faiss": faiss.reader(published), "milvus": milvus.reader(published)}
    parsed = specs.Spec.parse(spec)
    specs.choose("index", parsed.name, readers)
    found: IndexSpec = specs.call("index", readers[parsed.name], parsed)
    return found


def require_here(spec: str, where: str) -> None:
    """Raise `SpecError` if the index ``spec``, which the file ``where`` names, is a database.

    For specs that nobody typed: a database is asked over the network, or written in a file.
    """
    name = specs.Spec.parse(spec).name
    if name not in ("exact", "faiss"):
        raise SpecError(
            f"{where} names the index {spec!r}, a database that would be asked and written to; a "
            "file may not ask for that"
        )


def whole(spec: str, published: Similarity, who: str) -> ExactSpec:
    """What a spec says of an index that ranks the whole gallery, which ``who`` needs.

    Raises:
        SpecError: the index answers with its closest items only.
    """
    found = read_index(spec, published)
    if not isinstance(found, ExactSpec):
        raise SpecError(
            f"{who} needs the whole ranking, and {spec} answers with its first {found.depth} only; "
            "use --index exact"
        )
    return found


def build_index(spec: str, features: Tensor, published: Similarity) -> Index:
    """Build the index of a spec that ranks the whole gallery: ``exact``, or with its similarity.

    Raises:
        SpecError: unknown index or similarity, or one that answers with its closest items only.
    """
    return ExactIndex(features, whole(spec, published, "what is asked for").similarity)


def require_depth(depth: int) -> None:
    """Raise `ArgumentError` if an index would be asked for too few items."""
    if depth < LEAST:
        raise ArgumentError(
            f"depth is {depth}; an index has to answer with {LEAST} items at least, as "
            f"Recall@{LEAST} is in every result row"
        )


def require_finite(features: Tensor, what: str) -> None:
    """Raise `ArgumentError` if any feature ``(N, D)`` holds NaN or infinity."""
    # A sum that is finite is of finite numbers; only of the others are the numbers looked at.
    suspects = (~features.sum(1).isfinite()).nonzero()[:, 0]
    broken = suspects[~features[suspects].isfinite().all(1)]
    if len(broken):
        raise ArgumentError(
            f"{len(broken)} of {len(features)} {what} features are not finite (first: "
            f"number {int(broken[0])}); the victim's weights or preprocessing are broken"
        )


def require_replaceable(items: Tensor, features: Tensor, gallery: int) -> None:
    """Raise `ArgumentError` unless ``features`` ``(N, D)`` can be those of ``items`` ``(N,)``."""
    if len(items) != len(features):
        raise ArgumentError(f"{len(features)} features to replace those of {len(items)} items")
    if len(torch.unique(items)) != len(items):
        raise ArgumentError("an item is to be replaced twice; name every item once")
    if len(items) and not 0 <= int(items.min()) <= int(items.max()) < gallery:
        raise ArgumentError(f"an item to be replaced is not among the gallery's {gallery}")
    require_finite(features, "changed")


def _squares(features: Tensor) -> Tensor:
    """Squared lengths ``(N,)``, without another table as large as the features."""
    return torch.cat([part.square().sum(1) for part in torch.split(features, _ROWS)])


def top(scores: Tensor, ignored: Tensor, k: int) -> Top:
    """The ``k`` best items that are not ignored, of scores ``(Q, G)``; all there are if fewer.

    Where less than ``k`` are not ignored, the last are among these, with scores of -inf.
    """
    kept = scores.masked_fill(ignored, -torch.inf)
    best = kept.topk(min(k, kept.shape[1]), dim=1)
    return Top(best.indices, best.values)
