"""The victim: pixels in, embeddings (and logits) out.

The only place that resizes and normalises, so that an attacker always works in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, final, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from uturn.data.pictures import Picture
from uturn.errors import ArgumentError
from uturn.types import LEVELS, Similarity

_LARGEST = 4096

Interpolation = Literal["bilinear", "bicubic"]

At = Literal["model", "native"]
"""Which picture is changed: the one on the victim's grid, or the one in the file."""


@final
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a network expects of its input; it lives with the weights.

    ``size`` is (H, W); ``mean`` and ``std`` are per RGB channel, in pixels of [0, 1].
    """

    size: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not (
            len(self.size) == 2
            and all(isinstance(side, int) and 1 <= side <= _LARGEST for side in self.size)
        ):
            raise ArgumentError(f"size must be (H, W) within 1 … {_LARGEST}, got {self.size!r}")
        channels = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(math.isfinite, channels)):
            raise ArgumentError(f"mean and std must be three numbers, got {self.mean}, {self.std}")
        if min(self.std) <= 0:
            raise ArgumentError(f"std must be positive, got {self.std}")
        if self.interpolation not in get_args(Interpolation):
            raise ArgumentError(
                f"interpolation must be one of {', '.join(get_args(Interpolation))}, "
                f"got {self.interpolation!r}"
            )

    def resize(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, *)`` at ``size``, differentiably, as Pillow resizes."""
        if pixels.shape[-2:] == self.size:
            return pixels
        resized = F.interpolate(
            pixels, self.size, mode=self.interpolation, align_corners=False, antialias=True
        )
        return resized.clamp(0, 1)  # bicubic overshoots

    def normalise(self, pixels: Tensor) -> Tensor:
        """``(pixels − mean) / std`` per channel, laid out as the networks like it."""
        mean = pixels.new_tensor(self.mean)[:, None, None]
        std = pixels.new_tensor(self.std)[:, None, None]
        return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

    def fit(self, picture: Picture) -> Picture:
        """One decoded picture of any size at ``size``: ``(H, W, 3)`` uint8.

        Resized by Pillow itself, as the published pipelines do: `resize` differs from it by
        rounding, which on Market-1501 moves Recall@1 by 0.001.
        """
        height, width = self.size
        method = Image.Resampling[self.interpolation.upper()]
        return np.asarray(Image.fromarray(picture).resize((width, height), method))

    def grid(self, pictures: Iterable[Picture]) -> Tensor:
        """Decoded pictures of any sizes at ``size``: uint8 ``(B, 3, H, W)``."""
        fitted = np.stack([self.fit(picture) for picture in pictures])
        return torch.from_numpy(fitted).permute(0, 3, 1, 2).contiguous()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A frozen network behind pixels.

    ``network`` maps normalised pictures ``(B, 3, H, W)`` to raw features ``(B, D)``, or to
    ``(B, P, D)`` if it describes P parts of the picture; ``classifier`` maps these to logits
    over the *training* classes, ``(B, C)`` or ``(B, P, C)``.
    Construction puts both into evaluation mode and freezes their parameters.
    """

    name: str
    network: nn.Module
    preprocessing: Preprocessing
    classifier: nn.Module | None = None
    similarity: Similarity = "cosine"
    """How the system that these weights were published with compares features."""
    scales: tuple[float, ...] = (1.0,)
    """The input sizes, relative to the preprocessing's, whose embeddings are averaged."""
    fingerprint: str = ""
    """A hash of the weights: it tells two victims of the same name apart."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not self.scales or not all(1 / 16 <= scale <= 4 for scale in self.scales):
            raise ArgumentError(
                f"scales must lie between 1/16 and 4 and be at least one, got {self.scales}"
            )
        for module in (self.network, self.classifier):
            if module is not None:
                module.eval().requires_grad_(False)
                # NHWC more than doubles the speed of depthwise networks on a CPU.
                module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        scales = "" if self.scales == (1.0,) else f" at scales {self.scales}"
        weights = self.fingerprint[:12] or "?"
        return f"Victim({self.name}, {height}×{width}{scales}, weights {weights})"

    def at_scales(self, scales: tuple[float, ...]) -> Victim:
        """The same victim looking at its pictures at ``scales``."""
        return self if scales == self.scales else replace(self, scales=scales)

    def parts(self, pixels: Tensor) -> Tensor:
        """Features by parts ``(B, P, D)`` of pixels ``(B, 3, H, W)`` in [0, 1], any H and W.

        Raw at one scale; over several, the mean of each part's unit features.
        """
        seen = [self._look(pixels, scale) for scale in self.scales]
        if len(seen) == 1:
            return seen[0]
        return torch.stack([F.normalize(parts, dim=2) for parts in seen]).mean(0)

    def features(self, pixels: Tensor) -> Tensor:
        """Raw features ``(B, D)`` of pixels ``(B, 3, H, W)`` in [0, 1], any H and W.

        Parts are put side by side, each of unit length, as PCB does; an average over several
        scales has unit length too.
        """
        parts = self.parts(pixels)
        if parts.shape[1] > 1:
            parts = F.normalize(parts, dim=2)
        features = parts.flatten(1)
        return features if len(self.scales) == 1 else F.normalize(features, dim=1)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, unit norm, float32."""
        return F.normalize(self.features(pixels), dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits ``(B, C)`` over the training classes; means over parts and scales.

        Raises:
            ArgumentError: the victim has no classifier.
        """
        if self.classifier is None:
            raise ArgumentError(
                f"victim {self.name} has no classifier, so class-based attacks cannot be used; "
                "load weights that include it, or use odfa, which needs features only"
            )
        logits = []
        for scale in self.scales:
            parts = self._look(pixels, scale)
            found: Tensor = self.classifier(parts[:, 0] if parts.shape[1] == 1 else parts)
            logits.append(found.mean(1) if found.ndim == 3 else found)
        return torch.stack(logits).mean(0)

    def _look(self, pixels: Tensor, scale: float) -> Tensor:
        """What the network says at one scale: raw ``(B, P, D)``, float32."""
        _check(pixels)
        resized = self.preprocessing.resize(pixels.to(self.device))
        if scale != 1:
            size = [max(1, round(side * scale)) for side in self.preprocessing.size]
            resized = F.interpolate(
                resized, size, mode="bilinear", align_corners=False, antialias=True
            )
        found: Tensor = self.network(self.preprocessing.normalise(resized)).float()
        return found[:, None] if found.ndim == 2 else found

    def grid(self, pictures: Iterable[Picture]) -> Tensor:
        """Decoded pictures on this victim's pixel grid: uint8 ``(B, 3, H, W)``.

        This is what an attack at the model's size changes and what its PNGs hold.
        """
        return self.preprocessing.grid(pictures)

    def canvases(self, pictures: Sequence[Picture], at: At) -> list[tuple[list[int], Tensor]]:
        """Decoded pictures as an attack changes them: which of them, and uint8 ``(n, 3, H, W)``.

        At ``model`` size they are one batch on this victim's grid; at ``native`` size one per
        size that occurs, and the victim's own resize stands between the change and the network.
        """
        if at == "model":
            return [(list(range(len(pictures))), self.grid(pictures))]
        sizes: dict[tuple[int, ...], list[int]] = {}
        for position, picture in enumerate(pictures):
            sizes.setdefault(picture.shape, []).append(position)
        return [
            (which, torch.from_numpy(np.stack([pictures[i] for i in which])).permute(0, 3, 1, 2))
            for which in sizes.values()
        ]


def to_pixels(images: Tensor) -> Tensor:
    """uint8 images → float pixels in [0, 1]."""
    return images.float() / LEVELS


def to_picture(image: Tensor) -> Picture:
    """One uint8 image ``(3, H, W)`` → picture ``(H, W, 3)``."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def _check(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ArgumentError(
            f"expected pixels of shape (B, 3, H, W), got {tuple(pixels.shape)}; "
            "a single picture needs a batch dimension: pixels[None]"
        )
    if not pixels.is_floating_point():
        raise ArgumentError(
            f"expected float pixels in [0, 1], got {pixels.dtype}; divide uint8 images by 255"
        )
