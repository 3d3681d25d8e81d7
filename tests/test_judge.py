"""Judgements, as lists, against the masks that their rules describe."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uturn.data.split import JUNK, Listing
from uturn.retrieval.judge import (
    CrossCamera,
    Judge,
    Judgement,
    Labels,
    Listed,
    SameIdentity,
)
from uturn.retrieval.ranking import Chunk

Masks = tuple[Tensor, Tensor]


def cross_camera(query: Labels, gallery: Labels) -> Masks:
    same = query.identities[:, None] == gallery.identities
    near = query.cameras[:, None] == gallery.cameras
    junk = gallery.identities == JUNK
    return same & ~near & ~junk, (same & near) | junk


def same_identity(query: Labels, gallery: Labels) -> Masks:
    same = query.identities[:, None] == gallery.identities
    ignored = (query.ids[:, None] == gallery.ids) | (gallery.identities == JUNK)
    return same & ~ignored, ignored


def labels(most: int) -> st.SearchStrategy[Labels]:
    """Few numbers: identities, cameras and names are shared, junk is among both sides."""
    rows = st.tuples(st.integers(-1, 3), st.integers(0, 2), st.integers(0, 9))
    return st.lists(rows, max_size=most).map(
        lambda drawn: Labels(*torch.tensor(drawn, dtype=torch.int64).view(-1, 3).T.contiguous())
    )


@pytest.mark.parametrize(
    ("judge", "rule"), [(CrossCamera(), cross_camera), (SameIdentity(), same_identity)]
)
@given(query=labels(6), gallery=labels(20), scores=st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_a_judgement_is_its_rule(
    judge: Judge, rule: object, query: Labels, gallery: Labels, scores: int
) -> None:
    relevant, ignored = rule(query, gallery)  # type: ignore[operator]
    found = judge(query, gallery)
    agrees(found, relevant, ignored)
    agrees(Judgement.of(relevant, ignored), relevant, ignored)
    parted(found, relevant, ignored, scores)


def agrees(found: Judgement, relevant: Tensor, ignored: Tensor) -> None:
    assert all(map(torch.equal, found.masks(), (relevant, ignored)))
    assert torch.equal(found.matches, relevant.sum(1))
    assert torch.equal(found.items, (~ignored).sum(1))
    assert len(found.relevant.rows) == int(relevant.sum())  # nothing is listed twice
    each = len(found.ignored.rows) + len(found.junk) * found.queries
    assert each == int(ignored.sum())
    for pairs in (found.relevant, found.ignored):
        assert bool((pairs.rows.diff() >= 0).all())


def parted(found: Judgement, relevant: Tensor, ignored: Tensor, seed: int) -> None:
    scores = torch.randint(-2, 3, relevant.shape, generator=torch.Generator().manual_seed(seed)) / 2
    chunk = Chunk.of(scores.clone(), found)
    assert torch.equal(chunk.impostors, scores.masked_fill(relevant | ignored, -torch.inf))
    for row, mask, genuine in zip(scores, relevant, chunk.genuine, strict=True):
        expected = row[mask].sort(descending=True).values
        assert torch.equal(genuine[: len(expected)], expected)
        assert bool((genuine[len(expected) :] == -torch.inf).all())


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 7)), st.lists(st.integers(0, 7))), min_size=1, max_size=5
    )
)
@settings(max_examples=200, deadline=None)
def test_a_listing_is_taken_as_sets_and_what_is_ignored_is_not_relevant(
    lists: list[tuple[list[int], list[int]]],
) -> None:
    names = [f"query {n}" for n in range(len(lists))]
    listings = [Listing(*(np.array(part, dtype=np.int64) for part in parts)) for parts in lists]
    judge = Listed(dict(zip(names, listings, strict=True)))
    one = torch.zeros(8, dtype=torch.int64)
    ids = torch.tensor(list(judge._by_id))
    order = torch.arange(len(lists)).flip(0)
    relevant, ignored = torch.zeros(2, len(lists), 8, dtype=torch.bool)
    for row, (right, out) in enumerate(lists):
        relevant[row, right] = True
        relevant[row, out] = False
        ignored[row, out] = True
    query = Labels(torch.zeros_like(ids), torch.zeros_like(ids), ids)
    found = judge(query[order], Labels(one, one, one))
    agrees(found, relevant[order], ignored[order])


def test_re_identification_ignores_junk_and_the_same_camera() -> None:
    query = Labels(torch.tensor([7, 9]), torch.tensor([1, 2]), torch.arange(2))
    gallery = Labels(torch.tensor([7, 7, -1, 0, 9]), torch.tensor([1, 2, 2, 1, 2]), torch.arange(5))
    relevant, ignored = CrossCamera()(query, gallery).masks()
    assert relevant.tolist() == [[False, True, False, False, False], [False] * 5]
    assert ignored.tolist() == [
        [True, False, True, False, False],
        [False, False, True, False, True],
    ]
