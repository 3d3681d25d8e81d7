"""Whitening: a linear map after which features have unit variance in every direction kept."""

from __future__ import annotations

from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn.errors import ArgumentError, CheckpointError
from uturn.victims import checkpoints


@final
class Whitening(nn.Module):
    """Features ``(B, D)`` → ``(f/‖f‖ − mean) · projectionᵀ``, ``(B, D′)``.

    Learned by `pca`, or elsewhere: with the projection of Radenović et al. (TPAMI 2019,
    section 3.3) it is their discriminative whitening.
    """

    def __init__(self, mean: Tensor, projection: Tensor) -> None:
        super().__init__()
        if mean.ndim != 1 or projection.ndim != 2 or projection.shape[1] != len(mean):
            raise ArgumentError(
                "whitening needs a mean (D,) and a projection (D′, D), got "
                f"{tuple(mean.shape)} and {tuple(projection.shape)}"
            )
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)

    mean: Tensor
    projection: Tensor

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1] != len(self.mean):
            raise ArgumentError(
                f"this whitening was learned from {len(self.mean)} dimensions, the victim has "
                f"{features.shape[1]}; learn it anew with `uturn whiten`"
            )
        return (F.normalize(features, dim=1) - self.mean) @ self.projection.T

    @classmethod
    def pca(cls, features: Tensor, dimensions: int | None = None) -> Whitening:
        """Learn from raw features ``(N, D)``; keep the ``dimensions`` of largest variance.

        Of the N features' unit vectors: mean μ, covariance U Λ Uᵀ, projection Λ^(−1/2) Uᵀ.
        Source: Jégou & Chum, "Negative Evidences and Co-occurrences in Image Retrieval: the
        Benefit of PCA and Whitening", ECCV 2012.

        Raises:
            ArgumentError: fewer independent features than dimensions.
        """
        unit = F.normalize(features, dim=1).double()
        mean = unit.mean(0)
        variance, axes = torch.linalg.eigh((unit - mean).T @ (unit - mean) / max(1, len(unit) - 1))
        variance, axes = variance.flip(0), axes.flip(1)
        rank = int((variance > 1e-10 * variance[0].clamp(min=1e-30)).sum())
        kept = rank if dimensions is None else dimensions
        if not 1 <= kept <= rank:
            raise ArgumentError(
                f"{len(features)} features span {rank} dimensions, {kept} were asked for; "
                "ask for fewer, or learn from more pictures"
            )
        projection = axes[:, :kept].T / variance[:kept, None].sqrt()
        return cls(mean.float(), projection.float().contiguous())

    def save(self, path: Path) -> None:
        """Write a safetensors file that `read` takes."""
        checkpoints.write_tensors(path, self.state_dict())

    @classmethod
    def read(cls, path: Path) -> Whitening:
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or something else.
        """
        tensors = checkpoints.read(path).tensors
        try:
            return cls(tensors["mean"], tensors["projection"])
        except (KeyError, ArgumentError) as error:
            raise CheckpointError(
                f"{path} holds no whitening ({error}); make one with `uturn whiten`"
            ) from error
