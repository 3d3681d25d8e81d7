"""The victim: pixels in, embeddings (and logits) out.

This room is the only place that resizes and normalises, so that an attacker works in pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from uturn.data.pictures import Picture
from uturn.errors import ArgumentError, UturnError
from uturn.portions import lacks_memory
from uturn.types import LEVELS, Similarity
from uturn.victims.folding import fold
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.test_time import TestTime

Transform: TypeAlias = Callable[[Image.Image], Tensor]
"""A picture from Pillow → the network's input ``(3, H, W)``, normalised."""

Precision = Literal["float32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

At = Literal["model", "native"]
"""Which picture is changed: the one on the victim's grid, or the one in the file."""


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
    test_time: TestTime = field(default_factory=TestTime)
    """The looks at a picture whose features are averaged."""
    whitening: nn.Module | None = None
    """Features ``(B, D)`` → ``(B, D′)``, after the average over looks."""
    own_transform: Transform | None = None
    """How the model's makers prepare a picture, where they say it in code; only checks use it."""
    fingerprint: str = ""
    """A hash of the weights: it tells two victims of the same name apart."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    layout: torch.memory_format = torch.contiguous_format
    """``torch.channels_last`` more than doubles the speed of depthwise networks on a CPU; networks
    that call ``view`` on their maps, or have 3-D convolutions, do not bear it."""
    precision: Precision = "float32"
    """What the network computes in; features leave it as float32."""
    searcher: Victim | None = None
    """The same victim in half precision, on which attacks climb after their first steps
    (`uturn.attacks.problem`); None: they climb on this one."""

    def __post_init__(self) -> None:
        for module in (self.network, self.classifier, self.whitening):
            if module is not None:
                module.eval().requires_grad_(False)
                if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
                    module.float()  # a level of 1/255 is lost in half precision
                module.to(device=self.device, memory_format=self.layout)  # type: ignore[call-overload]
        if self.precision != "float32":
            self.network.to(PRECISIONS[self.precision])

    def __repr__(self) -> str:
        height, width = self.preprocessing.size
        extras = "" if self.test_time == TestTime() else f", {self.test_time}"
        extras += "" if self.whitening is None else ", whitened"
        weights = self.fingerprint[:12] or "?"
        return f"Victim({self.name}, {height}×{width}{extras}, weights {weights})"

    def at_scales(self, scales: tuple[float, ...]) -> Victim:
        """The same victim looking at its pictures at ``scales``."""
        if scales == self.test_time.scales:
            return self
        return replace(self, test_time=replace(self.test_time, scales=scales))

    def folded(self) -> Victim:
        """The same victim, quicker: its batch norms are folded into the layers before them.

        Its features are the same within `folding.NEAR`. A network in which nothing can be folded
        stays as it is.
        """
        shape = (2, 3, *self.preprocessing.size)
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        inputs = self.preprocessing.normalise(drawn).to(self.device)
        inputs = inputs.contiguous(memory_format=self.layout)
        return replace(self, network=fold(self.network, inputs))

    def searched_in(self, precision: Precision) -> Victim:
        """The same victim, whose attackers compute in ``precision`` (`searcher`).

        Only the search is less exact: the victim itself, which scores what was found, is not.

        Raises:
            ArgumentError: the network cannot be computed in it.
        """
        if precision == "float32":
            return replace(self, searcher=None)
        try:
            network = copy.deepcopy(self.network)
            searcher = replace(self, network=network, precision=precision, searcher=None)
            with torch.no_grad():
                searcher.features(torch.zeros(1, 3, *self.preprocessing.size))
        except (RuntimeError, TypeError, ArgumentError) as error:
            raise ArgumentError(
                f"victim {self.name} cannot be computed in {precision} ({error}); leave the "
                "precision at float32"
            ) from error
        return replace(self, searcher=searcher)

    def parts(self, pixels: Tensor) -> Tensor:
        """Features by parts ``(B, P, D)`` of pixels ``(B, 3, H, W)`` in [0, 1], any H and W.

        Raw from a single look; averaged over several (`TestTime`); after whitening one part.
        """
        parts = self.test_time.combine(list(self._looks(pixels)))
        return parts if self.whitening is None else self.whitening(self._joined(parts))[:, None]

    def features(self, pixels: Tensor) -> Tensor:
        """Raw features ``(B, D)`` of pixels ``(B, 3, H, W)`` in [0, 1], any H and W.

        Parts are put side by side, each of unit length, as PCB does; an average over several
        looks has unit length too.
        """
        return self._joined(self.parts(pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings ``(B, D)``, unit norm, float32."""
        return F.normalize(self.features(pixels), dim=1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits ``(B, C)`` over the training classes; means over parts and looks.

        Raises:
            ArgumentError: the victim has no classifier.
        """
        if self.classifier is None:
            raise ArgumentError(
                f"victim {self.name} has no classifier, so class-based attacks cannot be used; "
                "load weights that include it, or use --attack odfa,uturn, which need features only"
            )
        logits = []
        for parts in self._looks(pixels):
            found: Tensor = self.classifier(parts[:, 0] if parts.shape[1] == 1 else parts)
            logits.append(found.mean(1) if found.ndim == 3 else found)
        return torch.stack(logits).mean(0)

    def _looks(self, pixels: Tensor) -> Iterator[Tensor]:
        """What the network says look by look: raw ``(B, P, D)``, float32."""
        _check(pixels)
        for look in self.test_time.looks(self.preprocessing.resize(pixels.to(self.device))):
            yield self.respond(self.preprocessing.normalise(look))

    def respond(self, prepared: Tensor) -> Tensor:
        """What the network says of normalised pictures ``(B, 3, H, W)``: raw ``(B, P, D)``.

        Raises:
            ArgumentError: it fails, or what it returns are no features.
        """
        inputs = prepared.to(self.device)
        if self.precision != "float32":
            inputs = inputs.to(PRECISIONS[self.precision])
        inputs = inputs.contiguous(memory_format=self.layout)
        try:
            found = self.network(inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            if isinstance(error, UturnError) or lacks_memory(error):
                raise
            height, width = inputs.shape[-2:]
            raise ArgumentError(
                f"victim {self.name} refuses pictures of {height}×{width}: its network fails on "
                f"pictures of shape {tuple(inputs.shape)} ({error}); leave size=, crops= and "
                "--scales out, or choose a model for that size"
            ) from error
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if not isinstance(what, tuple) or not (
            len(what) in (2, 3) and what[0] == len(inputs) and what[-1] > len(what) - 2
        ):
            raise ArgumentError(
                f"the network of victim {self.name} returns {what} for {len(inputs)} pictures; "
                "wrap it in an nn.Module that returns features (B, D), or (B, P, D) of P parts"
            )
        features: Tensor = found.float()
        return features[:, None] if features.ndim == 2 else features

    def _joined(self, parts: Tensor) -> Tensor:
        """Features by parts ``(B, P, D)`` → one vector ``(B, P·D)``."""
        if parts.shape[1] > 1:
            parts = F.normalize(parts, dim=2)
        features = parts.flatten(1)
        return features if self.test_time.count == 1 else F.normalize(features, dim=1)

    def grid(self, pictures: Iterable[Picture]) -> Tensor:
        """Decoded pictures on this victim's pixel grid: uint8 ``(B, 3, H, W)``.

        This is what an attack at the model's size changes and what its PNGs hold.
        """
        return self.preprocessing.grid(pictures)

    def canvas(self, picture: Picture, at: At) -> Picture:
        """One decoded picture as an attack changes it: on this victim's grid, or as it is.

        At its own size, the victim's resize stands between the change and the network.
        """
        return self.preprocessing.on_grid(picture) if at == "model" else picture


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
