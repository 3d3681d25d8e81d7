"""Milvus: a gallery in a vector database, in a local file or behind a URI.

``milvus`` is Milvus Lite in ``uturn-milvus.db``; ``milvus:http://host:19530`` a server or cluster.
Every item is a row with its place in the gallery, identity, camera, and the number of its name;
what the judge ignores for a query is a filter over these. A collection belongs to one gallery by
one victim: its name ends with their fingerprint, so that no other is ever asked by mistake.

Source: Wang et al., "Milvus: A Purpose-Built Vector Data Management System", SIGMOD 2021.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from uturn.data.split import JUNK
from uturn.errors import ArgumentError, BackendError, SpecError
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
from uturn.retrieval.judge import Exclusion, Judge, Labels
from uturn.types import Similarity

DEFAULT = "uturn-milvus.db"
"""The local file where no URI is given."""

_BYTES = 8_000_000
"""Of vectors, sent at a time; Milvus takes 64 MB."""

_MOST = 16_384
"""Items that Milvus answers with at the most."""

_QUERIES = 256
"""Queries asked at a time, of those with the same filter."""

Consistency = Literal["Strong", "Bounded", "Session", "Eventually"]


def reader(published: Similarity) -> Callable[..., MilvusSpec]:
    """What reads the options of a spec, for a victim that was published with a similarity."""

    def milvus(
        uri: str = DEFAULT,
        similarity: Similarity = published,
        depth: int = DEPTH,
        collection: str = "uturn",
        consistency: Consistency = "Strong",
        type: str = "FLAT",  # noqa: A002, as Milvus calls it
        nlist: int | None = None,
        m: int | None = None,
        M: int | None = None,
        efConstruction: int | None = None,
        nprobe: int | None = None,
        ef: int | None = None,
    ) -> MilvusSpec:
        build = {"nlist": nlist, "m": m, "M": M, "efConstruction": efConstruction}
        search = {"nprobe": nprobe, "ef": ef}
        return MilvusSpec(
            uri, similarity, depth, collection, consistency, type, _given(build), _given(search)
        )

    return milvus


Options = tuple[tuple[str, int], ...]


def _given(options: dict[str, int | None]) -> Options:
    return tuple((name, value) for name, value in options.items() if value is not None)


@final
@dataclass(frozen=True)
class MilvusSpec:
    """``milvus:URI`` with options. A password stands in ``MILVUS_TOKEN``, never in the spec.

    Raises:
        ArgumentError: a number is out of range. SpecError: no such file can be a database, or a
        password is written into run folders.
    """

    uri: str = DEFAULT
    similarity: Similarity = "cosine"
    depth: int = DEPTH
    collection: str = "uturn"
    """What its name begins with; it ends with the fingerprint of gallery, victim and index."""
    consistency: Consistency = "Strong"
    """What a search sees of what was written just before."""
    type: str = "FLAT"
    """Of the index, as Milvus calls it: ``FLAT``, ``IVF_FLAT``, ``HNSW`` …"""
    build_options: Options = ()
    """``nlist``, ``m``, ``M``, ``efConstruction``."""
    search_options: Options = ()
    """``nprobe``, ``ef``."""
    changing: tuple[int, ...] = ()
    """Gallery items that may be replaced. Then the collection is one aside, whose name says so:
    the fingerprint speaks of all others."""

    def __post_init__(self) -> None:
        require_depth(self.depth)
        if self.depth > _MOST:
            raise ArgumentError(f"Milvus answers with {_MOST} items at the most, not {self.depth}")
        for name, value in (*self.build_options, *self.search_options):
            if value < 1:
                raise ArgumentError(f"{name} of a milvus index is {value}; it has to be at least 1")
        if "@" in self.uri:
            raise SpecError(
                "a spec is written into run folders, so no password belongs into it; set the "
                "environment variable MILVUS_TOKEN to user:password and leave it out of the URI"
            )
        if self._local and not self.uri.endswith(".db"):
            raise SpecError(
                f"{self.uri!r} is neither a URI such as http://localhost:19530 nor a local file of "
                "Milvus Lite, whose name ends with .db"
            )

    def __str__(self) -> str:
        options = (*self.build_options, *self.search_options)
        told = [self.uri, f"similarity={self.similarity}", f"depth={self.depth}"]
        told += [f"type={self.type}", *(f"{name}={value}" for name, value in options)]
        return f"milvus:{','.join(told)}"

    @property
    def alone(self) -> bool:
        return self._local

    def rehearse(self, features: Tensor) -> None:
        with self._speaking():
            self._connect().close()

    def require_growing(self) -> None:
        """Rows can always be written over."""

    def build(
        self, features: Tensor, gallery: Labels, judge: Judge, *, progress: bool = False
    ) -> MilvusIndex:
        """Ingest what is not there yet, in batches; a stop loses the batch it was at.

        Raises:
            ArgumentError: a feature is not finite.
            BackendError: Milvus cannot be reached, or does not do what it was asked.
        """
        require_finite(features, "gallery")
        name = f"{self.collection}_{self._fingerprint(features, gallery)}"
        if self.changing:
            named = hashlib.blake2b(repr(self.changing).encode(), digest_size=8).hexdigest()
            name += f"_changed_{named}"
        with self._speaking():
            client = self._connect()
            self._open(client, name, features.shape[1])
            self._ingest(client, name, features, gallery, progress)
        built = MilvusIndex(self, client, name, gallery, judge)
        if self.changing:  # a program that was killed may have left them changed
            items = torch.tensor(self.changing)
            built.replace(items, features[items.to(features.device)])
        return built

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
        # Whatever others put up with: what was just taken in has to be seen.
        own = replace(self, changing=tuple(items.tolist()), consistency="Strong")
        built = own.build(features, gallery, judge, progress=progress)
        yield lambda changed: built.replace(items, changed)
        # After an error it stays: the same command goes on there.
        with self._speaking():
            built.client.drop_collection(built.collection)

    def points(self, features: Tensor) -> Tensor:
        """Raw features ``(N, D)`` as Milvus compares them."""
        points = F.normalize(features, dim=1) if self.similarity == "cosine" else features
        return points.detach().cpu().float()

    @property
    def _local(self) -> bool:
        return "://" not in self.uri

    @property
    def _metric(self) -> str:
        return "IP" if self.similarity == "cosine" else "L2"

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """While Milvus is asked: what goes wrong there is one sentence."""
        pymilvus = _pymilvus()
        log = logging.getLogger("pymilvus")
        before, log.disabled = log.disabled, True  # it would tell the same, with a traceback
        try:
            yield
        except (pymilvus.exceptions.MilvusException, OSError) as error:
            where = "is another program using the file?" if self._local else "is it running there?"
            raise BackendError(
                f"Milvus at {self.uri} fails ({error}); {where} What was ingested stays, and the "
                "same command goes on from there"
            ) from error
        finally:
            log.disabled = before

    def _connect(self) -> Any:
        pymilvus = _pymilvus()
        if self._local:
            require("milvus_lite", "milvus")
            # Its server is threads of this process, which a busy machine lets wait.
            return pymilvus.MilvusClient(str(Path(self.uri).expanduser()), timeout=60)
        return pymilvus.MilvusClient(self.uri, token=os.environ.get("MILVUS_TOKEN", ""))

    def _fingerprint(self, features: Tensor, gallery: Labels) -> str:
        """A hash of everything that the collection is made of."""
        digest = hashlib.blake2b(digest_size=16)
        built = (self.similarity, self.type, self.build_options, tuple(features.shape))
        digest.update(repr(built).encode())
        for column in (gallery.identities, gallery.cameras, gallery.ids):
            digest.update(column.cpu().numpy().tobytes())
        for part in torch.split(features, _BYTES // (4 * features.shape[1]) + 1):
            digest.update(part.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _open(self, client: Any, name: str, dimensions: int) -> None:
        """Make the collection, or find it; what a killed program left undone is done."""
        kinds = _pymilvus().DataType
        if not client.has_collection(name):
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("place", kinds.INT64, is_primary=True)
            for label in ("identity", "camera", "name"):
                schema.add_field(label, kinds.INT64)
            schema.add_field("feature", kinds.FLOAT_VECTOR, dim=dimensions)
            client.create_collection(name, schema=schema, consistency_level=self.consistency)
        if not client.list_indexes(name):
            index = client.prepare_index_params()
            index.add_index(
                "feature",
                index_type=self.type,
                metric_type=self._metric,
                params=dict(self.build_options),
            )
            client.create_index(name, index)
        client.load_collection(name)

    def _ingest(
        self, client: Any, name: str, features: Tensor, gallery: Labels, progress: bool
    ) -> None:
        rows = max(1, _BYTES // (4 * features.shape[1]))
        written = False
        with bar(len(features), f"ingesting into {self.uri}", "vector", show=progress) as shown:
            for begin in range(0, len(features), rows):
                part = slice(begin, min(begin + rows, len(features)))
                within = f"place >= {begin} and place < {part.stop}"
                if _count(client, name, within) < part.stop - begin:
                    # What is there already is written over, so nothing can be there twice.
                    client.upsert(name, self._rows(part, features, gallery))
                    written = True
                shown.update(part.stop - begin)
        if written:
            client.flush(name)
        held = _count(client, name, "place >= 0")
        if held != len(features):
            raise BackendError(
                f"{name} at {self.uri} holds {held} of {len(features)} vectors after ingesting "
                "them; repeat the command, or drop the collection"
            )

    def _rows(self, part: slice, features: Tensor, gallery: Labels) -> list[dict[str, Any]]:
        return self.rows(range(part.start, part.stop), features[part], gallery[part])

    def rows(self, places: Sequence[int], features: Tensor, labels: Labels) -> list[dict[str, Any]]:
        """What Milvus holds of the items at ``places`` of the gallery."""
        columns = zip(
            places,
            labels.identities.tolist(),
            labels.cameras.tolist(),
            labels.ids.tolist(),
            self.points(features).numpy(),
            strict=True,
        )
        keys = ("place", "identity", "camera", "name", "feature")
        return [dict(zip(keys, values, strict=True)) for values in columns]


@final
@dataclass(frozen=True, eq=False)
class MilvusIndex:
    """A gallery in a collection of Milvus."""

    spec: MilvusSpec
    client: Any = field(repr=False)
    collection: str
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
        points = self.spec.points(queries)
        items = torch.full((len(queries), k), -1)
        scores = torch.full((len(queries), k), -torch.inf)
        alike = dict[Exclusion, list[int]]()
        for row, exclusion in enumerate(self._exclusions(queries, asked)):
            alike.setdefault(exclusion, []).append(row)
        sign = 1.0 if self.similarity == "cosine" else -1.0
        for exclusion, rows in alike.items():
            for begin in range(0, len(rows), _QUERIES):
                part = rows[begin : begin + _QUERIES]
                answers = self._ask(points[part], filter_of(exclusion), k)
                for row, answer in zip(part, answers, strict=True):
                    found = [hit["place"] for hit in answer]
                    items[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
                    distances = torch.tensor([hit["distance"] for hit in answer])
                    scores[row, : len(found)] = sign * distances
        return Top(items.to(queries.device), scores.to(queries.device))

    def replace(self, items: Tensor, features: Tensor) -> MilvusIndex:
        """The index with other raw ``features`` ``(N, D)`` for gallery ``items`` ``(N,)``.

        The collection is changed, which therefore has to be one aside (`MilvusSpec.aside`).

        Raises:
            ArgumentError: they do not fit, a feature is not finite, or this collection is the one
                that everybody asks.
            BackendError: Milvus does not do what it was asked.
        """
        require_replaceable(items, features, len(self))
        if not set(items.tolist()) <= set(self.spec.changing):
            raise ArgumentError(
                f"{self.collection} at {self.spec.uri} is what everybody asks for this gallery, so "
                "nothing in it is replaced; build the index aside"
            )
        size = max(1, _BYTES // (4 * features.shape[1]))
        with self.spec._speaking():
            for which in torch.split(torch.arange(len(items)), size):
                part = items[which].cpu()
                labels = self.gallery[part.to(self.gallery.ids.device)]
                rows = self.spec.rows(part.tolist(), features[which.to(features.device)], labels)
                self.client.upsert(self.collection, rows)
        return self

    def _exclusions(self, queries: Tensor, asked: Labels | None) -> list[Exclusion]:
        if asked is not None:
            return self.judge.exclusions(asked)
        junk = self.judge(self.gallery[:0], self.gallery).junk
        return [Exclusion(junk=len(junk) > 0)] * len(queries)

    def _ask(self, points: Tensor, expression: str, k: int) -> Any:
        with self.spec._speaking():
            return self.client.search(
                self.collection,
                data=list(points.numpy()),
                anns_field="feature",
                filter=expression,
                limit=k,
                output_fields=["place"],  # Milvus Lite would send all, features among them
                search_params={
                    "metric_type": self.spec._metric,
                    "params": dict(self.spec.search_options),
                },
                consistency_level=self.spec.consistency,
            )


def filter_of(exclusion: Exclusion) -> str:
    """Milvus' expression for what may be ranked; empty if everything may.

    >>> filter_of(Exclusion(seen=(7, 2)))
    'identity != -1 and (identity != 7 or camera != 2)'
    """
    kept = [f"identity != {JUNK}"] if exclusion.junk else []
    if exclusion.seen is not None:
        identity, camera = exclusion.seen
        kept.append(f"(identity != {identity} or camera != {camera})")
    if exclusion.id is not None:
        kept.append(f"name != {exclusion.id}")
    if exclusion.items:
        kept.append(f"place not in {list(exclusion.items)}")
    return " and ".join(kept)


def _pymilvus() -> Any:
    """Milvus' client, or what to install."""
    # Before gRPC is first imported: it would start threads in every fork of this process, and abort
    # those that close its files before they exec, as Ray's start of its servers does.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    return require("pymilvus", "milvus")


def _count(client: Any, name: str, expression: str) -> int:
    found = client.query(
        name, filter=expression, output_fields=["count(*)"], consistency_level="Strong"
    )
    return int(found[0]["count(*)"])
