"""MobileNetV2 (Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018).

State dicts are compatible with torchvision's ``mobilenet_v2`` without its ``classifier``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from uturn.errors import ArgumentError

FEATURES = 1280

# Table 2 of the paper: expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST_STRIDED = 160
"""The width of the last stage that strides."""


class MobileNetV2(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, 1280)``, each in [0, 6].

    ``last_stride`` 1 leaves the last stages at a sixteenth of the input's size.

    Raises:
        ArgumentError: a ``last_stride`` other than 1, 2.
    """

    dim = FEATURES

    def __init__(self, *, last_stride: int = 2) -> None:
        super().__init__()
        if last_stride not in (1, 2):
            raise ArgumentError(f"last_stride must be 1 or 2, got {last_stride}")
        channels = 32
        layers: list[nn.Module] = [_conv(3, channels, 3, stride=2)]
        for expansion, width, blocks, stride in _STAGES:
            first = last_stride if width == _LAST_STRIDED else stride
            for i in range(blocks):
                layers.append(_Inverted(channels, width, expansion, first if i == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers, _conv(channels, FEATURES, 1))

    def maps(self, x: Tensor) -> Tensor:
        """The last feature maps ``(B, 1280, H/32, W/32)``; /16 at stride 1."""
        maps: Tensor = self.features(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))  # (B, 1280)


def adapt(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the flat layout, one number per layer of a block, → torchvision's nested ones.

    The flat layout (``features.2.conv.6.weight``) is that of tonylins/pytorch-mobilenet-v2, whose
    ImageNet weights travel in many packages. Torchvision's own keys stay as they are.
    """
    if "features.2.conv.6.weight" not in tensors:
        return dict(tensors)
    return {_nest(key): tensor for key, tensor in tensors.items()}


def _nest(key: str) -> str:
    """Layers 0 … 7 of a block: convolution, norm, ReLU, twice, and the linear convolution, norm."""
    match key.split("."):
        case ["features", block, "conv", layer, name]:
            group, within = divmod(int(layer), 3)
            last = 1 if block == "1" else 2  # the first block does not expand
            place = f"{group}.{within}" if group < last else str(last + within)
            return f"features.{block}.conv.{place}.{name}"
        case _:
            return key


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU6(inplace=True),
    )


class _Inverted(nn.Module):
    """Widen, filter each channel, narrow without a ReLU; a shortcut where shapes agree."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = expansion * c_in
        self.residual = stride == 1 and c_in == c_out
        self.conv = nn.Sequential(
            *([_conv(c_in, inside, 1)] if expansion > 1 else []),
            _conv(inside, inside, 3, stride, groups=inside),
            nn.Conv2d(inside, c_out, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.residual else y
