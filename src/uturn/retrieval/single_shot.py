"""Single-gallery-shot recall: each identity has one picture in the gallery, drawn at random.

The CUHK03 convention (Li et al., "DeepReID", CVPR 2014). Others average some random draws;
here is the expectation over all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uturn.retrieval.ranking import Chunk

_CELLS = 1_000_000
"""Probabilities held at a time; some ten times their 8 MB are made from them."""


def recall_single_shot(chunk: Chunk, identities: Tensor, ks: tuple[int, ...]) -> Tensor:
    """Expected recall among the first k, for each of ``ks``, one picture per identity: ``(Q, K)``.

    ``identities`` ``(G,)`` are the gallery's. One of the query's relevant items p is drawn, and
    one item of every other identity i, all at random and independently; what is ignored is never
    drawn. i is ahead of p with the probability q_i(p) that its item scores at least as much (a
    tie goes to the irrelevant item, `ranking.TIES`). How many are ahead then follows the
    Poisson-binomial distribution of all q_i(p), so

        recall@k = mean over p of P(fewer than k ahead),

    found by multiplying the polynomials 1 − q_i(p) + q_i(p)·z up to z^(k−1).

    This is the expectation of what torchreid (``eval_cuhk03``) averages over 10 draws: like
    there, an identity other than the query's is drawn from all its cameras, that of the query
    among them (where the two-camera protocol of DeepReID has no such picture), and distractors
    that share an identity number count as one identity. Junk, which torchreid leaves out of the
    gallery when it reads the data, is ignored here.
    """
    known, identity = torch.unique(identities, return_inverse=True)
    rows = max(1, _CELLS // max(1, len(known) * (chunk.genuine.shape[1] + 1)))
    totals = list[Tensor]()
    for part in zip(*(torch.split(values, rows) for values in chunk), strict=True):
        genuine, impostors, matches, _ = part
        width = int(matches.max()) if len(matches) else 0
        totals.append(_total(genuine[:, :width], impostors, identity, len(known), ks))
    total = torch.cat(totals)
    return total / chunk.matches[:, None]  # 0/0 = NaN without a relevant item


def _total(
    p: Tensor, impostors: Tensor, identity: Tensor, people: int, ks: tuple[int, ...]
) -> Tensor:
    """Sum over relevant items, of scores ``p`` ``(Q, P)``, of P(fewer than k ahead): ``(Q, K)``.

    ``identity`` ``(G,)`` counts from 0 to ``people`` − 1.
    """
    others, queries = impostors > -torch.inf, len(p)
    cells = identity * queries + torch.arange(queries, device=p.device)[:, None]  # (Q, G)
    drawn_from = cells[others].bincount(minlength=people * queries).view(people, queries, 1)

    total = torch.zeros(queries, len(ks), dtype=torch.float64, device=p.device)
    for block in torch.split(p, max(1, _CELLS // max(1, people * queries)), dim=1):
        steps = block.shape[1] + 1  # (Q, b), descending, -inf = padding
        reached = torch.searchsorted(block.flip(1), impostors, right=True)
        counts = (cells * steps + reached)[others].bincount(minlength=people * queries * steps)
        ahead = counts.view(people, queries, steps).flip(2).cumsum(2)[:, :, :-1]  # items ≥ score
        q = ahead.double() / drawn_from.clamp(min=1)  # (I, Q, b)
        fewer = _successes(q, max(ks)).cumsum(0)  # (k, Q, b): fewer than 1, 2, … k ahead
        within = fewer[[min(k, len(fewer)) - 1 for k in ks]].where(block > -torch.inf, 0.0)
        total += within.sum(2).T
    return total


def _successes(q: Tensor, most: int) -> Tensor:
    """Of independent trials that succeed with probability ``q`` ``(I, …)``: P(exactly j do).

    ``(J, …)`` for j = 0 … J − 1, where J is ``most`` or more than there are trials. The
    generating functions are multiplied pair by pair, so that rounding stays at float64's.
    """
    trials = 1 << (max(1, len(q)) - 1).bit_length()
    # To a power of two, with trials that never succeed.
    q = torch.cat([q, q.new_zeros(trials - len(q), *q.shape[1:])])
    product = torch.stack([1 - q, q])[:most]  # (2, I, …)
    while product.shape[1] > 1:
        left, right = product.chunk(2, dim=1)
        degree = len(product)
        product = left.new_zeros(min(2 * degree - 1, most), *left.shape[1:])
        for j in range(degree):
            upto = min(degree, len(product) - j)
            product[j : j + upto].addcmul_(left[j], right[:upto])
    return product[:, 0]
