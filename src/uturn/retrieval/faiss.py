"""FAISS: flat, inverted-file, graph and quantised indexes, by its index-factory strings.

``faiss:IVF256,PQ32,nprobe=16``. The gallery is held without what is ignored for everybody; what is
ignored for one query is left out of its answer, for which so many more items are asked for.

Source: Douze et al., "The Faiss library", 2024 (arXiv 2401.08281).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.errors import ArgumentError, SpecError
from uturn.optional import require
from uturn.progress import bar
from uturn.retrieval.index import (
    DEPTH,
    Reingest,
    Top,
    require_depth,
    require_finite,
    require_replaceable,
)
from uturn.retrieval.judge import Judge, Labels
from uturn.rng import generator
from uturn.types import Similarity

_ROWS = 16_384
"""Vectors that are added at a time."""

_GRAPHS = ("HNSW", "NSG")
"""What several threads build otherwise each time; one thread always builds the same."""

_NAMES = {"nprobe": "nprobe", "efSearch": "efSearch", "k_factor": "k_factor_rf"}
"""Options of a search, and what FAISS calls them."""

_GONE = -1

Vectors = npt.NDArray[np.float32]


def reader(published: Similarity) -> Callable[..., FaissSpec]:
    """What reads the options of a spec, for a victim that was published with a similarity."""

    def faiss(
        factory: str = "Flat",
        similarity: Similarity = published,
        depth: int = DEPTH,
        nprobe: int | None = None,
        efSearch: int | None = None,
        k_factor: int | None = None,
        train: int = 200_000,
        seed: int = 0,
    ) -> FaissSpec:
        options = {"nprobe": nprobe, "efSearch": efSearch, "k_factor": k_factor}
        given = tuple((key, value) for key, value in options.items() if value is not None)
        return FaissSpec(factory, similarity, depth, given, train, seed)

    return faiss


@final
@dataclass(frozen=True)
class FaissSpec:
    """``faiss:FACTORY`` with options.

    Raises:
        ArgumentError: a number is less than 1.
    """

    factory: str
    """As ``faiss.index_factory`` reads it, such as ``IVF256,PQ32``."""
    similarity: Similarity
    depth: int = DEPTH
    options: tuple[tuple[str, int], ...] = ()
    """Of a search: ``nprobe`` (lists looked through), ``efSearch`` (a graph's candidates),
    ``k_factor`` (candidates that are looked at again, per item of the answer, by ``…,RFlat``)."""
    train: int = 200_000
    """So many vectors at the most are learned from."""
    seed: int = 0
    """Draws them, and where the k-means of inverted lists begins."""

    def __post_init__(self) -> None:
        require_depth(self.depth)
        for name, value in (("train", self.train), *self.options):
            if value < 1:
                raise ArgumentError(f"{name} of a faiss index is {value}; it has to be at least 1")

    def __str__(self) -> str:
        told = [self.factory, f"similarity={self.similarity}", f"depth={self.depth}"]
        return f"faiss:{','.join(told + [f'{name}={value}' for name, value in self.options])}"

    @property
    def alone(self) -> bool:
        return False

    def rehearse(self, features: Tensor) -> None:
        self._empty(features.shape[1])

    def require_growing(self) -> None:
        if "NSG" in self.factory:
            raise SpecError(
                f"{self} takes in all vectors at once and none later, so none can be replaced; "
                "HNSW is a graph that can grow"
            )

    def build(
        self, features: Tensor, gallery: Labels, judge: Judge, *, progress: bool = False
    ) -> FaissIndex:
        """Train and fill the index.

        Raises:
            ArgumentError: a feature is not finite, or there are too few for this index.
        """
        require_finite(features, "gallery")
        held = np.ones(len(features), dtype=np.bool_)
        held[judge(gallery[:0], gallery).junk.cpu().numpy()] = False
        places = np.flatnonzero(held)
        index = self._empty(features.shape[1])
        if not index.is_trained:
            self._train(index, features, places)
        with (
            self.filling(),
            bar(len(places), f"filling {self}", "vector", show=progress) as shown,
        ):
            for begin in range(0, len(places), _ROWS):
                part = places[begin : begin + _ROWS]
                index.add(self.points(features[torch.from_numpy(part)]))
                shown.update(len(part))
        return FaissIndex(self, index, torch.from_numpy(places), gallery, judge)

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
        self.require_growing()
        built = self.build(features, gallery, judge, progress=progress)

        def reingest(changed: Tensor) -> FaissIndex:
            nonlocal built
            built = built.replace(items, changed)
            return built

        yield reingest

    @contextmanager
    def filling(self) -> Iterator[None]:
        """While vectors are added: where several threads would build chance, there is one."""
        faiss = require("faiss", "faiss")
        threads = faiss.omp_get_max_threads()
        if any(graph in self.factory for graph in _GRAPHS):
            faiss.omp_set_num_threads(1)
        try:
            yield
        finally:
            faiss.omp_set_num_threads(threads)

    def points(self, features: Tensor) -> Vectors:
        """Raw features ``(N, D)`` as FAISS compares them."""
        points = F.normalize(features, dim=1) if self.similarity == "cosine" else features
        return np.ascontiguousarray(points.detach().cpu().numpy(), dtype=np.float32)

    def _empty(self, dimensions: int) -> Any:
        """The index without vectors.

        Raises:
            SpecError: FAISS is not installed, does not know the factory string, or an option
                says nothing to such an index.
        """
        faiss = require("faiss", "faiss")
        metric = faiss.METRIC_INNER_PRODUCT if self.similarity == "cosine" else faiss.METRIC_L2
        try:
            index = faiss.index_factory(dimensions, self.factory, metric)
        except RuntimeError as error:
            raise SpecError(
                f"FAISS cannot make {self.factory!r} of {dimensions} dimensions ({_short(error)}); "
                "see https://github.com/facebookresearch/faiss/wiki/The-index-factory"
            ) from error
        for name, value in self.options:
            try:
                faiss.ParameterSpace().set_index_parameter(index, _NAMES[name], value)
            except RuntimeError as error:
                raise SpecError(f"{name} says nothing to {self.factory!r}; leave it out") from error
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is not None:
            inverted.cp.seed = self.seed
        return index

    def _train(self, index: Any, features: Tensor, places: npt.NDArray[np.int64]) -> None:
        if len(places) > self.train:
            rng = generator(self.seed, "faiss")
            places = np.sort(rng.choice(places, self.train, replace=False))
        try:
            index.train(self.points(features[torch.from_numpy(places)]))
        except RuntimeError as error:
            raise ArgumentError(
                f"{self} cannot learn from {len(places)} vectors ({_short(error)}); ask for fewer "
                "lists or bits, or let train= be more"
            ) from error


@final
@dataclass(frozen=True, eq=False)
class FaissIndex:
    """A gallery in FAISS."""

    spec: FaissSpec
    index: Any = field(repr=False)
    places: Tensor
    """Where in the gallery stands what FAISS counts ``(N,)``; `_GONE` where it counts a vector
    that was replaced and could not be taken out."""
    gallery: Labels
    judge: Judge

    @property
    def similarity(self) -> Similarity:
        return self.spec.similarity

    @property
    def depth(self) -> int:
        return self.spec.depth

    def __len__(self) -> int:
        return len(self.gallery)

    def __str__(self) -> str:
        return str(self.spec)

    def search(self, queries: Tensor, asked: Labels | None, k: int) -> Top:
        known = self.gallery[:0] if asked is None else asked
        ignored = self.judge(known, self.gallery).ignored
        spare = int(ignored.per_row(len(queries)).max()) if len(queries) else 0
        spare += int((self.places == _GONE).sum())
        distances, found = self.index.search(self.spec.points(queries), k + spare)
        places = torch.from_numpy(found)  # (Q, k + spare), -1 where there are fewer
        scores = torch.from_numpy(distances if self.similarity == "cosine" else -distances)
        items = self.places[places.clamp(min=0)]
        rows = torch.arange(len(items))[:, None] * len(self)
        left_out = ignored.rows.cpu() * len(self) + ignored.columns.cpu()
        out = (places < 0) | (items == _GONE) | torch.isin(rows + items, left_out)
        first = out.long().argsort(dim=1, stable=True)[:, :k]
        out = out.gather(1, first)
        return Top(
            items.gather(1, first).masked_fill(out, -1).to(queries.device),
            scores.gather(1, first).masked_fill(out, -torch.inf).to(queries.device),
        )

    def replace(self, items: Tensor, features: Tensor) -> FaissIndex:
        """The index with other raw ``features`` ``(N, D)`` for gallery ``items`` ``(N,)``.

        FAISS is changed in place, so this one is spent. Nothing is learned anew: neither lists nor
        codebooks. Old vectors are taken out and new ones added; what cannot take out (graphs, and
        what looks again, ``…,RFlat``) keeps the old as deployed graphs do: it finds them, asks for
        so many more, and drops them.

        Raises:
            ArgumentError: they do not fit, a feature is not finite, or an item is not held as it
                is junk.
        """
        require_replaceable(items, features, len(self))
        rows, points = self._rows(items.cpu()), self.spec.points(features)
        places = self.places.clone()
        with self.spec.filling():
            try:
                self.index.remove_ids(rows.numpy())
            except RuntimeError:
                places[rows] = _GONE
            else:
                if require("faiss", "faiss").try_extract_index_ivf(self.index) is not None:
                    self.index.add_with_ids(points, rows.numpy())  # lists keep their numbers
                    return self
                kept = torch.ones(len(places), dtype=torch.bool)
                kept[rows] = False  # those behind have moved up
                places = places[kept]
            self.index.add(points)
        return replace(self, places=torch.cat([places, items.cpu()]))

    def _rows(self, items: Tensor) -> Tensor:
        """What FAISS counts where ``items`` ``(N,)`` are: ``(N,)``."""
        places, order = self.places.sort()
        found = torch.searchsorted(places, items).clamp(max=len(places) - 1)
        if bool((places[found] != items).any()):
            raise ArgumentError("an item to be replaced is junk, which is not in the index")
        return order[found]


def _short(error: Exception) -> str:
    """What FAISS says, without where in its source it says so."""
    return str(error).rpartition("failed:")[2].rpartition("Error: ")[2].strip() or str(error)
