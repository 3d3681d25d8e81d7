"""OSNet (Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019).

State dicts are compatible with torchreid's ``osnet_x0_25`` … ``osnet_x1_0``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn.victims.frozen import (
    Convolution,
    Freezable,
    Frozen,
    Pull,
    close_,
    closed,
    has_norms,
    rectify_,
)

FEATURES = 512


class OSNet(nn.Module):
    """Normalised pictures ``(B, 3, H, W)`` → features ``(B, 512)``.

    ``width`` scales the channels (0.25, 0.5, 0.75, 1.0). The features end in a ReLU, as
    published: they are never negative, so no two of them are further apart than 90°.
    """

    def __init__(self, width: float) -> None:
        super().__init__()
        c0, c1, c2, c3 = (int(width * channels) for channels in (64, 256, 384, 512))
        self.conv1 = _conv(3, c0, 7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(_OmniScale(c0, c1), _OmniScale(c1, c1), _halve(c1))
        self.conv3 = nn.Sequential(_OmniScale(c1, c2), _OmniScale(c2, c2), _halve(c2))
        self.conv4 = nn.Sequential(_OmniScale(c2, c3), _OmniScale(c3, c3))
        self.conv5 = _conv(c3, c3, 1)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(c3, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        features: Tensor = self.fc(self.global_avgpool(x).flatten(1))  # (B, 512)
        return features


class _ConvBN(nn.Module):
    """Convolution, batch norm, and a ReLU unless ``linear``."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.relu = nn.Identity() if linear else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv(x)))
        return y


def _conv(c_in: int, c_out: int, kernel: int, stride: int = 1, linear: bool = False) -> _ConvBN:
    return _ConvBN(c_in, c_out, kernel, stride, linear)


def _halve(channels: int) -> nn.Sequential:
    return _Transition(_conv(channels, channels, 1), nn.AvgPool2d(2, stride=2))


class _Transition(Freezable, nn.Sequential):
    """A 1×1 convolution, then means of 2×2."""

    def frozen(self) -> Frozen | None:
        return None if has_norms(self) else _FrozenTransition(self)


class _Lite3x3(nn.Module):
    """1×1 convolution, then a depthwise 3×3 (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=channels)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.bn(self.conv2(self.conv1(x))))
        return y


class _Average(torch.autograd.Function):
    """The mean over a map, ``(B, C, 1, 1)``, with a gradient in the layout of the map.

    That of `Tensor.mean` is contiguous whatever the map is. In the gates it meets gradients that
    are channels_last, and adding two layouts would take a third of the whole way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.layout = torch.channels_last if channels_last else torch.contiguous_format
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        each = grad / (ctx.shape[2] * ctx.shape[3])
        found: Tensor = each.expand(ctx.shape).contiguous(memory_format=ctx.layout)
        return found


class _Gate(nn.Module):
    """The aggregation gate, shared by the four streams (section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = _Average.apply(x)  # type: ignore[no-untyped-call]
        weight: Tensor = self.fc2(self.relu(self.fc1(pooled))).sigmoid()
        return x * weight


class _OmniScale(Freezable, nn.Module):
    """The residual block with streams of 1, 2, 3 and 4 light 3×3 convolutions."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        middle = c_out // 4
        self.conv1 = _conv(c_in, middle, 1)
        self.conv2a = _Lite3x3(middle)
        self.conv2b = nn.Sequential(*(_Lite3x3(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_Lite3x3(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_Lite3x3(middle) for _ in range(4)))
        self.gate = _Gate(middle)
        self.conv3 = _conv(middle, c_out, 1, linear=True)
        self.downsample = _conv(c_in, c_out, 1, linear=True) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        y = self.conv3(functools.reduce(torch.add, [self.gate(stream(y)) for stream in streams]))
        skip = x if self.downsample is None else self.downsample(x)
        out: Tensor = y.add_(skip).relu_()
        return out

    def frozen(self) -> Frozen | None:
        return None if has_norms(self) else _FrozenOmniScale(self)


# -- the same for when no weight learns ------------------------------------------------------------


class _FrozenTransition(Frozen):
    def __init__(self, plain: _Transition) -> None:
        super().__init__(plain)
        self.layer = Convolution(plain[0].conv)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        even = x.shape[2] % 2 == x.shape[3] % 2 == 0
        found: Tensor = super().forward(x) if even else self.plain(x)
        return found

    def there(self, x: Tensor) -> tuple[Tensor, Pull]:
        y = self.layer.there(x)
        rectify_(y)

        def pull(grad: Tensor) -> Tensor:
            # The library's gradient of means is a scatter, and takes six times as long.
            spread = F.interpolate(grad / 4, scale_factor=2.0, mode="nearest")
            close_(spread, y)
            return self.layer.pull(spread, x)

        return F.avg_pool2d(y, 2), pull


class _FrozenLite(nn.Module):
    def __init__(self, plain: _Lite3x3) -> None:
        super().__init__()
        self.point, self.depth = Convolution(plain.conv1), Convolution(plain.conv2)

    def there(self, x: Tensor) -> Tensor:
        y = self.depth.there(self.point.there(x))
        rectify_(y)
        return y

    def pull(self, grad: Tensor, y: Tensor) -> Tensor:
        """From the gradient with respect to `there` (x) = y, which is written over."""
        close_(grad, y)
        return self.point.pull(self.depth.pull(grad, y), y)


class _FrozenStream(nn.Module):
    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        lites = (lite for lite in plain.modules() if isinstance(lite, _Lite3x3))
        self.lites = nn.ModuleList(map(_FrozenLite, lites))

    def there(self, x: Tensor) -> tuple[Tensor, Pull]:
        """The way back writes over the gradient that it is given."""
        maps = []
        for lite in self.lites:
            x = lite.there(x)  # type: ignore[operator]
            maps.append(x)

        def pull(grad: Tensor) -> Tensor:
            for lite in reversed(self.lites):
                grad = lite.pull(grad, maps.pop())  # type: ignore[operator]
            return grad

        return x, pull


class _FrozenGate(nn.Module):
    """The gates of all streams at once, and the sum of what they let through.

    A scale per picture and channel meets a map row by row: of a map that is channels_last, a loop
    over the few channels of a stream hardly fills a register.
    """

    def __init__(self, gate: _Gate) -> None:
        super().__init__()
        self.gate = gate

    def there(self, streams: Sequence[Tensor]) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """Σ_s gate(x_s) of maps x_s ``(B, C, H, W)``, and the way back to each."""
        batch, channels, height, width = streams[0].shape
        pixels, kind = height * width, streams[0].dtype
        exact = torch.promote_types(kind, torch.float32)
        w1, b1, w2, b2 = (t.to(exact) for f in (self.gate.fc1, self.gate.fc2) for t in _linear(f))

        def rows(maps: Tensor) -> Tensor:
            return maps.permute(0, 2, 3, 1).reshape(batch, height, width * channels)

        def maps(rows: Tensor) -> Tensor:
            return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)

        def spread(scales: Tensor) -> Tensor:  # (S, B, C) → (S, B, 1, W · C)
            return scales.to(kind).repeat(1, 1, width)[:, :, None]

        xs = [rows(x) for x in streams]
        pooled = torch.stack([x.sum((2, 3)) for x in streams]).to(exact).div_(pixels)  # (S, B, C)
        hidden = F.linear(pooled, w1, b1).relu_()
        gates = F.linear(hidden, w2, b2).sigmoid_()
        scales = spread(gates)
        total = xs[0] * scales[0]
        for x, scale in zip(xs[1:], scales[1:], strict=True):
            total.addcmul_(x, scale)

        def pull(grad: Tensor) -> list[Tensor]:
            along = rows(grad)
            met = [(along * x).view(batch, pixels, channels).sum(1) for x in xs]
            inner = torch.stack(met).to(exact).mul_(gates).mul_(1 - gates)
            inner = (inner @ w2).masked_fill_(hidden == 0, 0)
            shifts = spread((inner @ w1).div_(pixels))
            return [
                maps(torch.addcmul(shift, along, scale))
                for shift, scale in zip(shifts, scales, strict=True)
            ]

        return maps(total), pull


def _linear(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    assert layer.bias is not None
    return layer.weight.flatten(1), layer.bias


class _FrozenOmniScale(Frozen):
    def __init__(self, plain: _OmniScale) -> None:
        super().__init__(plain)
        self.conv1, self.conv3 = Convolution(plain.conv1.conv), Convolution(plain.conv3.conv)
        streams = (plain.conv2a, plain.conv2b, plain.conv2c, plain.conv2d)
        self.streams = nn.ModuleList(map(_FrozenStream, streams))
        self.gate = _FrozenGate(plain.gate)
        self.downsample = None if plain.downsample is None else Convolution(plain.downsample.conv)

    def there(self, x: Tensor) -> tuple[Tensor, Pull]:
        y = self.conv1.there(x)
        rectify_(y)
        streams = [stream.there(y) for stream in self.streams]  # type: ignore[operator]
        summed, ungate = self.gate.there([maps for maps, _ in streams])
        out = self.conv3.there(summed).add_(
            x if self.downsample is None else self.downsample.there(x)
        )
        rectify_(out)
        seen = out.detach()

        def pull(grad: Tensor) -> Tensor:
            through = closed(grad, seen)
            gated = ungate(self.conv3.pull(through, summed))
            found = [back(one) for (_, back), one in zip(streams, gated, strict=True)]
            total = functools.reduce(Tensor.add_, found)
            close_(total, y)
            skip = through if self.downsample is None else self.downsample.pull(through, x)
            return self.conv1.pull(total, x).add_(skip)

        return out, pull
