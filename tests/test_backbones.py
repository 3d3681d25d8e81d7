"""Networks against torchvision, torchreid and their papers: same keys, same numbers.

`python -m pytest tests/test_backbones.py -s -k parity` prints the table of differences.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import shim
from tests.conftest import normal
from uturn.errors import ArgumentError, CheckpointError
from uturn.victims.backbones import densenet, mobilenet, reid, wide_resnet
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.backbones.densenet import DenseNet
from uturn.victims.backbones.gem import MAC, GeM, Landmarks, SPoC
from uturn.victims.backbones.mobilenet import MobileNetV2
from uturn.victims.backbones.osnet import OSNet
from uturn.victims.backbones.reid import PCB, Baseline
from uturn.victims.backbones.resnet import ResNet
from uturn.victims.backbones.wide_resnet import WideResNet
from uturn.victims.classifiers import CosineClassifier, PartClassifiers, shaped_like
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

State = dict[str, Tensor]


def peer(name: str) -> Any:
    shim.declare()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchreid's Cython
        pytest.importorskip(name.split(".")[0], reason=f"{name} is not installed (the zoo extra)")
        return importlib.import_module(name)


def blank(build: Callable[[], nn.Module]) -> nn.Module:
    """A network without the seconds that initialising its weights takes."""
    with torch.device("meta"):
        return build().eval()


def trained(build: Callable[[], nn.Module], pictures: Tensor) -> nn.Module:
    """A network with random weights, whose batch norms have seen ``pictures``.

    So every statistic and every affine number differs from its default, and no activation
    vanishes or explodes however deep the network is.
    """
    network = blank(build).to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan = module.weight[0].numel()
            module.weight.data.uniform_(-((3 / fan) ** 0.5), (3 / fan) ** 0.5, generator=draw)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1, generator=draw)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_running_stats()
            module.weight.data.uniform_(0.5, 1.5, generator=draw)
            module.bias.data.normal_(0, 0.2, generator=draw)
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(pictures)
    return network.eval()


def filled(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> nn.Module:
    """Our network with these very tensors; no key is missing and none is left over."""
    network = blank(build)
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False)


def split(state: Mapping[str, Tensor], prefix: str) -> tuple[State, State]:
    """What is the network's, and what stands under ``prefix``, without it."""
    rest = {k: v for k, v in state.items() if not k.startswith(prefix)}
    return rest, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def classifier(tensors: State) -> nn.Module:
    head = shaped_like(tensors)
    head.load_state_dict(tensors)
    return head.eval().requires_grad_(False)


def pictures(height: int = 64, width: int = 64, batch: int = 4) -> Tensor:
    return normal(batch, 3, height, width)


@pytest.fixture(scope="module")
def agree() -> Any:
    """Assert that two results are close and tell pictures apart; print the table at the end."""
    rows = []

    def check(name: str, ours: Tensor, theirs: Tensor) -> None:
        assert ours.shape == theirs.shape
        largest, difference = float(theirs.abs().max()), float((ours - theirs).abs().max())
        assert float(theirs.std(0).max()) > 0.1 * largest, "these hardly depend on the picture"
        rows.append((name, tuple(theirs.shape), largest, difference))
        assert difference <= 1e-5 * min(1, largest)

    yield check
    print("\n| network | output | largest value | max abs difference |\n|---|---|---|---|")
    for name, shape, largest, difference in rows:
        print(f"| {name} | {shape} | {largest:.2f} | {difference:.1e} |")


def unstride(network: Any) -> Any:
    """Torchvision's ResNet with the stride taken out of its last stage."""
    first = network.layer4[0]
    last = first.conv2 if hasattr(first, "conv3") else first.conv1
    last.stride = first.downsample[0].stride = (1, 1)
    return network


@pytest.mark.parametrize(
    ("depth", "last_stride"), [(18, 1), (18, 2), (34, 2), (50, 1), (50, 2), (101, 2)]
)
def test_parity_of_resnets(depth: int, last_stride: int, agree: Any) -> None:
    models = peer("torchvision.models")
    build = getattr(models, f"resnet{depth}")
    x = pictures()
    theirs = trained(lambda: unstride(build()) if last_stride == 1 else build(), x)
    state, fc = split(theirs.state_dict(), "fc.")
    ours = filled(lambda: ResNet(depth, last_stride=last_stride), state)
    with torch.no_grad():
        expected = theirs(x)
        theirs.fc = nn.Identity()
        agree(f"ResNet-{depth}, last stride {last_stride}, vs torchvision", ours(x), theirs(x))
        agree(f"… with its classifier of {len(fc['bias'])}", classifier(fc)(ours(x)), expected)
    assert ours.maps(x).shape[2:] == ((2, 2) if last_stride == 2 else (4, 4))
    assert ours.dim == ours(x).shape[1]


def test_parity_of_densenet(agree: Any) -> None:
    x = pictures()
    theirs = trained(peer("torchvision.models").densenet121, x)
    state, head = split(theirs.state_dict(), "classifier.")
    ours = filled(DenseNet, state)
    with torch.no_grad():
        agree(
            "DenseNet-121, with its classifier, vs torchvision",
            classifier(head)(ours(x)),
            theirs(x),
        )
        theirs.classifier = nn.Identity()
        agree("DenseNet-121 vs torchvision", ours(x), theirs(x))


def test_densenets_published_file_has_older_keys() -> None:
    state = DenseNet().state_dict()
    older = {
        k.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.")
        .replace("conv1.", "conv.1.").replace("conv2.", "conv.2."): v
        for k, v in state.items()
    }  # fmt: skip
    assert "features.denseblock4.denselayer16.conv.2.weight" in older
    assert densenet.adapt(older).keys() == densenet.adapt(state).keys() == state.keys()


def test_parity_of_mobilenet(agree: Any) -> None:
    x = pictures()
    theirs = trained(peer("torchvision.models").mobilenet_v2, x)
    state, head = split(theirs.state_dict(), "classifier.1.")
    ours = filled(MobileNetV2, state)
    with torch.no_grad():
        agree(
            "MobileNetV2, with its classifier, vs torchvision", classifier(head)(ours(x)), theirs(x)
        )
        theirs.classifier = nn.Identity()
        agree("MobileNetV2 vs torchvision", ours(x), theirs(x))


def test_mobilenets_flat_keys_are_understood() -> None:
    """Blocks of a single Sequential: 0 conv, 1 norm, 2 ReLU6, 3 conv, …, as tonylins has them."""
    state = MobileNetV2().state_dict()
    modules = {
        name: [m for m in block.conv.modules() if not isinstance(m, nn.Sequential)]
        for name, block in MobileNetV2().features.named_children()
        if hasattr(block, "conv")
    }
    flat = {k: v for k, v in state.items() if ".conv." not in k}
    for block, layers in modules.items():
        for i, layer in enumerate(layers):
            flat |= {f"features.{block}.conv.{i}.{k}": v for k, v in layer.state_dict().items()}
    adapted = mobilenet.adapt(flat)
    assert {k: v.shape for k, v in adapted.items()} == {k: v.shape for k, v in state.items()}
    assert len(flat.keys() - state.keys()) > 200
    assert mobilenet.adapt(state) == state


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", lambda: ResNet(18)),
        ("resnet50_fc512", lambda: ResNet(50, last_stride=1, reduced=512)),
        ("densenet121", DenseNet),
        ("osnet_x0_25", lambda: OSNet(0.25)),
    ],
)
def test_parity_with_torchreid(name: str, build: Callable[[], nn.Module], agree: Any) -> None:
    models = peer("torchreid.reid.models")
    x = pictures(96, 32)
    theirs = trained(lambda: models.build_model(name, 7, pretrained=False), x)
    state, head = split(theirs.state_dict(), "classifier.")
    ours = filled(build, state)
    with torch.no_grad():
        agree(f"{name} vs torchreid", ours(x), theirs(x))
        agree(
            f"{name} vs torchreid, logits", classifier(head)(ours(x)), theirs.classifier(theirs(x))
        )


def test_parity_of_pcb(agree: Any) -> None:
    models = peer("torchreid.reid.models")
    x = pictures(96, 32)
    theirs = trained(lambda: models.build_model("pcb_p6", 7, pretrained=False), x)
    body = {
        k: v for k, v in theirs.state_dict().items() if not k.startswith(("conv5", "classifier"))
    }
    network = filled(
        lambda: PCB(ResNet(50, last_stride=1)), {f"model.{k}": v for k, v in body.items()}
    )
    with torch.no_grad():
        # Torchreid lays part beside part within each channel, and the unit lengths agree with ours.
        expected = theirs(x).view(4, 2048, 6).transpose(1, 2)
        agree("PCB, 6 parts, vs torchreid", F.normalize(network(x), dim=2), expected)
    plain = Preprocessing(size=(96, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    victim = Victim(name="pcb", network=network, preprocessing=plain)
    # Kernels for the victim's memory layout round otherwise.
    torch.testing.assert_close(victim.features(x), expected.flatten(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(victim.features(x).norm(dim=1), torch.full((4,), 6**0.5))


def test_a_classifier_for_each_part(agree: Any) -> None:
    """Keys of layumi's PCB: ``classifier3.add_block.0.weight`` …; formula by hand in float64."""
    state = {}
    for i in range(6):
        state[f"classifier{i}.add_block.0.weight"] = normal(256, 2048, seed=10 * i) / 2048**0.5
        state[f"classifier{i}.add_block.0.bias"] = normal(256, seed=10 * i + 1)
        state[f"classifier{i}.add_block.1.weight"] = 1 + normal(256, seed=10 * i + 2).abs()
        state[f"classifier{i}.add_block.1.bias"] = normal(256, seed=10 * i + 3)
        state[f"classifier{i}.add_block.1.running_mean"] = normal(256, seed=10 * i + 4)
        state[f"classifier{i}.add_block.1.running_var"] = 1 + normal(256, seed=10 * i + 5).abs()
        state[f"classifier{i}.add_block.1.num_batches_tracked"] = torch.tensor(7)
        state[f"classifier{i}.classifier.0.weight"] = normal(9, 256, seed=10 * i + 6) / 16
        state[f"classifier{i}.classifier.0.bias"] = normal(9, seed=10 * i + 7)
    _, tensors = split(state, "classifier")
    head = classifier(tensors)
    assert isinstance(head, PartClassifiers)
    parts = normal(3, 6, 2048)
    expected = torch.empty(3, 6, 9, dtype=torch.float64)
    for i in range(6):
        get = {k: v.double() for k, v in split(state, f"classifier{i}.")[1].items()}
        y = parts[:, i].double() @ get["add_block.0.weight"].T + get["add_block.0.bias"]
        y = (y - get["add_block.1.running_mean"]) / (get["add_block.1.running_var"] + 1e-5).sqrt()
        y = y * get["add_block.1.weight"] + get["add_block.1.bias"]
        expected[:, i] = y @ get["classifier.0.weight"].T + get["classifier.0.bias"]
    agree("PCB's classifiers vs formula", head(parts), expected.float())


def block_of(features: int, dim: int, classes: int) -> nn.Module:
    """Layumi's block as plain torch: linear layer, batch norm, classifier."""
    return nn.ModuleDict(
        {
            "add_block": nn.Sequential(
                nn.Linear(dim, features), nn.BatchNorm1d(features), nn.Dropout(0.5)
            ),
            "classifier": nn.Sequential(nn.Linear(features, classes)),
        }
    )


class Layumi(nn.Module):
    """``ft_net`` and ``ft_net_dense`` on torchvision's networks, which keep their ImageNet head."""

    def __init__(self, model: nn.Module, dim: int) -> None:
        super().__init__()
        self.model, self.classifier = model, block_of(512, dim, 11)

    def body(self, x: Tensor) -> Tensor:
        if hasattr(self.model, "features"):
            return self.model.features(x)  # without a ReLU
        stem = self.model.maxpool(self.model.relu(self.model.bn1(self.model.conv1(x))))
        return self.model.layer4(self.model.layer3(self.model.layer2(self.model.layer1(stem))))

    def features(self, x: Tensor) -> Tensor:
        return self.classifier["add_block"](F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier["classifier"](self.features(x))


def average_without_stride(network: Any) -> Any:
    network.features.transition3.pool.stride = 1
    return network


@pytest.mark.parametrize(
    ("name", "theirs", "dim", "ours"),
    [
        (
            "ft_net, stride 1",
            lambda tv: unstride(tv.resnet50()),
            2048,
            lambda: ResNet(50, last_stride=1),
        ),
        ("ft_net_dense", lambda tv: tv.densenet121(), 1024, DenseNet),
        (
            "ft_net_dense, stride 1",
            lambda tv: average_without_stride(tv.densenet121()),
            1024,
            lambda: DenseNet(last_stride=1),
        ),
    ],
)
def test_parity_of_layumis_baselines(
    name: str, theirs: Any, dim: int, ours: Callable[[], Any], agree: Any
) -> None:
    models, x = peer("torchvision.models"), pictures(96, 64)
    reference = trained(lambda: Layumi(theirs(models), dim), x)
    stored = reference.state_dict()
    assert {"model.fc.weight", "model.classifier.weight"} & stored.keys()  # 1,000 unused classes
    state, head = split(reid.adapt(stored), "classifier.classifier.0.")
    network = filled(lambda: Baseline(ours()), state)
    with torch.no_grad():
        agree(f"{name} vs torchvision and formula", network(x), reference.features(x))
        agree(f"{name}, logits", classifier(head)(network(x)), reference(x))
        sloped = filled(lambda: Baseline(ours(), slope=0.1), state)
        expected = F.leaky_relu(reference.features(x), 0.1)
        agree(f"{name}, with the older ReLU", sloped(x), expected)


def cirtorch(body: nn.Module, whitened: bool) -> nn.Module:
    """Keys of cirtorch: the children of torchvision's network by number, ``pool.p``, ``whiten``."""
    reference = nn.Module()
    reference.features = nn.Sequential(*list(body.children())[:-2])
    reference.pool = nn.Module()
    reference.pool.p = nn.Parameter(torch.tensor([2.7]))
    if whitened:
        reference.whiten = nn.Linear(2048, 2048)
    return reference


@pytest.mark.parametrize("whitened", [False, True])
def test_parity_of_landmark_networks(whitened: bool, agree: Any) -> None:
    x = pictures(64, 96)
    body = trained(peer("torchvision.models").resnet50, x)
    reference = cirtorch(body, whitened)
    state = reference.state_dict()
    assert {"features.0.weight", "features.4.0.conv1.weight", "pool.p"} <= state.keys()
    assert state["pool.p"].shape == (1,)
    ours = filled(lambda: Landmarks(50, whitened=whitened), state)
    with torch.no_grad():
        maps = reference.features(x).clamp(min=1e-6)
        expected = F.normalize(F.avg_pool2d(maps**2.7, maps.shape[2:])[..., 0, 0] ** (1 / 2.7))
        if whitened:
            expected = F.normalize(reference.whiten(expected))
        agree(f"GeM on ResNet-50{', whitened' * whitened}, vs formula", ours(x), expected)
    torch.testing.assert_close(ours(x).norm(dim=1), torch.ones(4))


def test_other_poolings_have_no_weights_of_their_own() -> None:
    keys = {
        pooling: blank(lambda pooling=pooling: Landmarks(18, pooling=pooling)).state_dict().keys()
        for pooling in ("gem", "mac", "spoc")
    }
    assert keys["gem"] - keys["mac"] == {"pool.p"}
    assert keys["mac"] == keys["spoc"]


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 2**16),
    p=st.floats(0.5, 40),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_poolings_equal_their_formulas(seed: int, p: float, height: int, width: int) -> None:
    maps = normal(2, 3, height, width, seed=seed)
    means = np.empty((2, 3))
    for b in range(2):
        for c in range(3):
            values = [max(v, 1e-6) for v in maps[b, c].flatten().tolist()]
            means[b, c] = (sum(v**p for v in values) / len(values)) ** (1 / p)
    pooled = GeM(p)(maps.requires_grad_())
    (slope,) = torch.autograd.grad(pooled.sum(), maps)
    assert bool(slope.isfinite().all())
    with torch.no_grad():
        torch.testing.assert_close(pooled, torch.from_numpy(means).float(), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(GeM(1.0)(maps.abs() + 1), SPoC()(maps.abs() + 1))
        assert bool((pooled <= MAC()(maps.clamp(min=1e-6)) * 1.0001).all())
        assert torch.equal(MAC()(maps), maps.flatten(2).max(2).values)


def test_gems_gradient_reaches_p_and_the_maps() -> None:
    pool, maps = GeM().double(), normal(1, 2, 3, 3).double().abs().add(0.1).requires_grad_()
    assert torch.autograd.gradcheck(pool, (maps,))
    pool(maps).sum().backward()
    assert pool.p.grad is not None
    h = 1e-5
    with torch.no_grad():
        up, down = (GeM().double().requires_grad_(False) for _ in range(2))
        up.p += h
        down.p -= h
        slope = (up(maps) - down(maps)).sum() / (2 * h)
    torch.testing.assert_close(pool.p.grad, slope[None], rtol=1e-6, atol=1e-8)


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_cifar_resnets_have_the_published_numbers_of_parameters() -> None:
    """Table 6 of He et al.: 0.27, 0.46, 0.66, 0.85 million with the 10 classes."""
    counts = {
        depth: parameters(CifarResNet((16, 32, 64), blocks=(depth - 2) // 6), nn.Linear(64, 10))
        for depth in (20, 32, 44, 56)
    }
    assert counts == {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}


def residual(x: Tensor, get: Callable[[str], Tensor], stride: int) -> Tensor:
    """A block of He et al., section 4.2, shortcut A: subsample, pad with channels of zeros."""
    y = F.relu(norm(F.conv2d(x, get("conv1.weight"), stride=stride, padding=1), get, "bn1"))
    y = norm(F.conv2d(y, get("conv2.weight"), padding=1), get, "bn2")
    if y.shape[1] != x.shape[1]:
        zeros = torch.zeros_like(y[:, : (y.shape[1] - x.shape[1]) // 2])
        x = torch.cat([zeros, x[:, :, ::stride, ::stride], zeros], 1)
    return F.relu(x + y)


def norm(x: Tensor, get: Callable[[str], Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (
        get(f"{name}.{k}")[:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def test_parity_of_cifar_resnet(agree: Any) -> None:
    """Keys of akamaster's checkpoints; `layer1.0.conv1.weight` …."""
    x = pictures(32, 32)
    network = trained(lambda: CifarResNet((16, 32, 64), blocks=3), x)
    state = network.state_dict()
    with torch.no_grad():
        y = F.relu(norm(F.conv2d(x, state["conv1.weight"], padding=1), state.__getitem__, "bn1"))
        for stage in (1, 2, 3):
            for block in range(3):
                stride = 2 if stage > 1 and block == 0 else 1
                start = f"layer{stage}.{block}."
                y = residual(y, lambda key, start=start: state[start + key], stride)
        agree("CIFAR ResNet-20 vs formula", network(x), y.mean((2, 3)))


def test_parity_of_wide_resnet(agree: Any) -> None:
    """The forward pass of WRN-28-10 written as a function of the checkpoint's tensors."""
    x = pictures(8, 8)
    network = trained(lambda: WideResNet(28, 10), x)
    state = network.state_dict()
    # The published 36.5 M; 36,479,194 with the 10 classes.
    assert parameters(network) + 640 * 10 + 10 == 36_479_194
    with torch.no_grad():
        y = F.conv2d(x, state["conv1.weight"], padding=1)
        for group in (1, 2, 3):
            for block in range(4):
                start = f"block{group}.layer.{block}."
                get = lambda key, start=start: state[start + key]  # noqa: E731
                stride = 2 if group > 1 and block == 0 else 1
                active = F.relu(norm(y, get, "bn1"))
                z = F.conv2d(active, get("conv1.weight"), stride=stride, padding=1)
                z = F.conv2d(F.relu(norm(z, get, "bn2")), get("conv2.weight"), padding=1)
                if block == 0:
                    y = F.conv2d(active, get("convShortcut.weight"), stride=stride)
                y = y + z
        y = F.relu(norm(y, state.__getitem__, "bn1")).mean((2, 3))
        agree("WRN-28-10 vs formula", network(x), y)


def test_trades_checkpoints_lose_the_group_that_nothing_uses() -> None:
    state = WideResNet(10, 1).state_dict()
    extra = {f"sub_{k}": v for k, v in state.items() if k.startswith("block1.")}
    assert len(extra) > 5
    assert wide_resnet.adapt(state | extra) == state


def test_a_cosine_head_sees_parts_as_it_sees_features() -> None:
    head = CosineClassifier(5, 3)
    parts = normal(2, 4, 5)
    torch.testing.assert_close(head(parts)[:, 2], head(parts[:, 2]))


def test_heads_are_known_by_their_tensors() -> None:
    for head in (
        nn.Linear(4, 3),
        nn.Linear(4, 3, bias=False),
        CosineClassifier(4, 3, scale=7.0),
        PartClassifiers(2, 6, 4, 3),
    ):
        again = shaped_like(head.state_dict())
        again.load_state_dict(head.state_dict())
        assert repr(again) == repr(head)
    for wrong in (
        {"bias": torch.zeros(3)},
        {"weight": torch.zeros(3)},
        {"0.add_block.0.weight": torch.zeros(3), "0.classifier.0.weight": torch.zeros(3)},
    ):
        with pytest.raises(CheckpointError, match=r"without a \(C, D\) weight"):
            shaped_like(wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ResNet(20), "18, 34, 50, 101 layers, not 20"),
        (lambda: ResNet(18, last_stride=3), "last_stride must be 1 or 2, got 3"),
        (lambda: WideResNet(27, 10), "10, 16, 22, 28, … layers, not 27"),
        (lambda: Landmarks(18, pooling="max"), "pooling must be one of gem, mac, spoc"),
    ],
)
def test_unknown_shapes_are_named(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: ResNet(18), (64, 64)),
        (DenseNet, (64, 64)),
        (MobileNetV2, (64, 64)),
        (lambda: Baseline(ResNet(18)), (64, 32)),
        (lambda: Landmarks(18, pooling="mac", whitened=True), (64, 96)),
        (lambda: WideResNet(10, 1), (32, 32)),
    ],
)
def test_each_picture_is_seen_by_itself_and_gradients_reach_it(
    build: Callable[[], nn.Module], size: tuple[int, int]
) -> None:
    # In float64, since float32 kernels round otherwise for another size of batch.
    network = trained(build, pictures(*size)).double().requires_grad_(False)
    x = pictures(*size).double().requires_grad_()
    features = network(x)
    torch.testing.assert_close(network(x[1:2]), features[1:2])
    (slope,) = torch.autograd.grad(features[1].square().sum(), x)
    assert bool(slope[1].isfinite().all())
    assert float((slope[1] != 0).float().mean()) > 0.5
    assert not slope[[0, 2, 3]].any()
