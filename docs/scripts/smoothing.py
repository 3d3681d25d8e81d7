"""How far randomised smoothing certifies the first item of a query (docs/guard.md).

.venv/bin/python docs/scripts/smoothing.py VICTIM DATA
"""

from __future__ import annotations

import sys
from statistics import NormalDist, median

import torch
import torch.nn.functional as F

from uturn import load_data, load_victim
from uturn.retrieval.extract import extract_all
from uturn.retrieval.judge import Labels, judge_for
from uturn.types import LEVELS
from uturn.victims.victim import to_pixels

QUERIES, DRAWS, SIGMAS = 30, 30, (0.02, 0.05, 0.1)


def main(victim_spec: str, data_spec: str) -> None:
    """Print a line for each σ, which is in pixels of [0, 1]."""
    victim, split = load_victim(victim_spec).folded(), load_data(data_spec).sample(QUERIES, 1)
    found = extract_all(victim, split.gallery, "gallery", progress=True)
    gallery, cpu = F.normalize(found, dim=1), torch.device("cpu")
    labels = (Labels.of(pictures, cpu) for pictures in (split.query, split.gallery))
    relevant, ignored = judge_for(split)(*labels).masks()
    pixels = to_pixels(victim.grid(split.query.read(i) for i in range(QUERIES)))
    torch.manual_seed(0)
    for sigma in SIGMAS:
        with torch.no_grad():
            draws = [victim.embed(pixels + sigma * torch.randn_like(pixels)) for _ in range(DRAWS)]
        scores = torch.stack(draws).mean(0) @ gallery.T
        best = scores.masked_fill(~relevant | ignored, -9).argmax(1)
        right = (scores.masked_fill(ignored, -9).argmax(1) == best).float().mean()
        radii = []
        for query, item in enumerate(best):
            margin = scores[query, item] - scores[query]
            share = margin / (gallery[item] - gallery).norm(dim=1)
            least = share[~(relevant[query] | ignored[query])].min().clamp(1e-6 - 1, 1 - 1e-6)
            radii.append(sigma * NormalDist().inv_cdf(float(1 + least) / 2))
        level = pixels[0].numel() ** 0.5 / LEVELS  # the L2 length of one level everywhere
        told = ", ".join(f"{r:.4f} ({r / level:.4f} levels)" for r in (median(radii), max(radii)))
        print(f"σ {sigma}: R@1 {right:.3f}, L2 radius median and largest {told}")


if __name__ == "__main__":
    main(*sys.argv[1:])
