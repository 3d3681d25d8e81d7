"""Folding: fewer layers, the same features and gradients; and searching in half precision."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from uturn.attacks.presets import load_attack
from uturn.attacks.surrogates import LeakyReLU
from uturn.errors import ArgumentError
from uturn.victims import zoo
from uturn.victims.folding import NEAR, fold
from uturn.victims.frozen import Convolution, Freezable, Frozen, close_, closed, rectify_
from uturn.victims.load import load_victim
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.strided import Strided, suits
from uturn.victims.victim import Victim, to_pixels

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def lived(network: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with norms that do something."""
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2, generator=draw)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=draw)
                module.bias.data.normal_(0, 0.3, generator=draw)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


def pictures(height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def slope(network: nn.Module, inputs: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(network(inputs).square().sum(), inputs)[0]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("osnet_x0_25", 0),
        ("resnet18", 0),
        ("ft_net", 0),
        ("mobilenet_v2", 0),
        ("cifar_resnet20", 0),
        ("glyph_net", 1),
        ("pcb", 0),
        ("densenet121", 62),  # norms before their convolutions: 58 layers, 3 transitions, the last
        ("wrn_28_10", 12),
    ],
)
def test_the_zoo_is_folded_to_the_same_features_and_gradients(name: str, left: int) -> None:
    torch.manual_seed(0)
    network = lived(zoo.ZOO[name].build())
    inputs = pictures(64, 32)
    folded = fold(network, inputs)
    assert folded is not network
    assert norms(folded) == left < norms(network)
    other = pictures(32, 64).flip(0)
    with torch.no_grad():
        before, after = network(other), folded(other)
    assert (before - after).abs().max() <= NEAR * before.abs().max()
    own, its = slope(network, inputs), slope(folded, inputs)
    assert F.cosine_similarity(own.flatten(1), its.flatten(1)).min() > 0.9999


@given(
    kernel=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    stride=st.integers(2, 5),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    spare=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    bias=st.booleans(),
)
def test_a_strided_convolution_has_the_same_way_back(
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    channels: tuple[int, int],
    spare: tuple[int, int],
    bias: bool,
) -> None:
    """Also where the stride does not come out even, or is larger than the kernel."""
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, kernel, stride, padding, bias=bias).double()
    assert suits(layer)
    height, width = (
        max(1, k + more - 2 * p) for k, more, p in zip(kernel, spare, padding, strict=True)
    )
    inputs = torch.randn(2, channels[0], height, width, dtype=torch.float64)
    quick = Strided(layer.requires_grad_(False))
    assert torch.equal(quick(inputs), layer(inputs))
    assert torch.allclose(slope(quick, inputs), slope(layer, inputs), atol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(16, 4, 3, 2),
        nn.Conv2d(3, 4, 3, (2, 1)),
        nn.Conv2d(3, 4, 3, 2, dilation=2),
        nn.Conv2d(3, 3, 3, 2, groups=3),
        nn.Conv2d(3, 4, 3, 2, padding_mode="reflect", padding=1),
        nn.Linear(3, 4),
    ],
)
def test_other_layers_keep_their_own_way_back(layer: nn.Module) -> None:
    assert not suits(layer)


def test_the_first_convolution_is_replaced_in_the_copy_only() -> None:
    network = lived(zoo.ZOO["resnet18"].build())
    folded = fold(network, pictures(32, 32))
    assert any(isinstance(module, Strided) for module in folded.modules())
    assert not any(isinstance(module, Strided) for module in network.modules())
    own, its = (
        slope(network, pictures(32, 32)),
        slope(folded.bfloat16(), pictures(32, 32).bfloat16()),
    )
    assert F.cosine_similarity(own.flatten(1), its.float().flatten(1)).min() > 0.95


# -- frozen blocks ---------------------------------------------------------------------------------


def last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def frozen(network: nn.Module) -> int:
    return sum(isinstance(module, Frozen) for module in network.modules())


def exact(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = lived(zoo.ZOO[name].build()).double()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("osnet_x0_25", 8), ("osnet_x0_5", 8), ("osnet_x1_0", 8)],
)
def test_frozen_blocks_say_the_same_there_and_back(name: str, blocks: int) -> None:
    """In float64, where only the order of sums is another; also where a surrogate is on its way."""
    network = exact(name)
    inputs = last(torch.randn(2, 3, 96, 64, dtype=torch.float64))
    folded = fold(network, inputs)
    assert frozen(folded) == blocks
    assert frozen(network) == 0
    with torch.no_grad():
        assert torch.allclose(folded(inputs), network(inputs), rtol=1e-9, atol=1e-9)
    own, its = slope(network, inputs), slope(folded, inputs)
    assert (own - its).abs().max() < 1e-10 * own.abs().max()
    with LeakyReLU(0.5)():
        leaking = slope(network, inputs)
        assert (leaking - slope(folded, inputs)).abs().max() < 1e-10 * leaking.abs().max()
    assert (leaking - own).abs().max() > 1e-3 * own.abs().max()


def test_frozen_blocks_turn_half_precision_no_other_way() -> None:
    """Their gradient is as near to the exact one as that of the same network layer by layer."""
    network = exact("osnet_x0_25").float()
    inputs = last(pictures(96, 64))
    folded = fold(network, inputs)
    assert frozen(folded) == 8
    own = slope(network, inputs)

    def near(of: nn.Module) -> Tensor:
        its = slope(of.bfloat16(), inputs.bfloat16()).float()
        return F.cosine_similarity(own.flatten(1), its.flatten(1)).min()

    assert near(folded) > min(0.99, near(network) - 0.01)


@pytest.mark.parametrize("size", [(48, 40), (36, 20)])
def test_frozen_blocks_take_odd_maps_and_those_that_are_contiguous(size: tuple[int, int]) -> None:
    """Maps of 36×20 are 9×5 before a mean of 2×2, which leaves a row and a column out."""
    network = exact("osnet_x0_25")
    folded = fold(network, last(torch.randn(1, 3, 64, 32, dtype=torch.float64)))
    inputs = torch.randn(2, 3, *size, dtype=torch.float64)
    for given_so in (inputs, last(inputs)):
        own, its = slope(network, given_so), slope(folded, given_so)
        assert (own - its).abs().max() < 1e-10 * own.abs().max()


def test_a_network_is_frozen_once() -> None:
    inputs = last(torch.randn(1, 3, 64, 32, dtype=torch.float64))
    once = fold(exact("osnet_x0_25"), inputs)
    assert frozen(fold(once, inputs)) == frozen(once) == 8


def test_blocks_with_norms_left_are_not_frozen() -> None:
    block = zoo.ZOO["osnet_x0_25"].build().conv2[0]
    assert isinstance(block, Freezable)
    assert block.frozen() is None


def block(place: str, kind: torch.dtype = torch.float64) -> tuple[Frozen, Tensor]:
    """One of OSNet's frozen blocks, and maps that it takes."""
    folded = fold(exact("osnet_x0_25"), last(torch.randn(1, 3, 64, 32, dtype=torch.float64)))
    found = folded.get_submodule(place).to(kind)
    assert isinstance(found, Frozen)
    channels = next(m for m in found.modules() if isinstance(m, nn.Conv2d)).in_channels
    return found, last(torch.randn(2, channels, 8, 6).to(kind))


BLOCKS = {"a shortcut": "conv2.0", "none": "conv2.1", "a transition": "conv2.2"}


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("place", BLOCKS.values(), ids=BLOCKS)
def test_a_frozen_block_leaves_alone_what_it_is_given(place: str, kind: torch.dtype) -> None:
    quick, maps = block(place, kind)
    before = maps.clone()
    found, pull = quick.there(maps)
    grad = last(torch.randn(found.shape).to(kind))
    given_grad = grad.clone()
    pull(grad)
    assert torch.equal(maps, before)
    assert torch.equal(grad, given_grad)


@pytest.mark.parametrize("place", BLOCKS.values(), ids=BLOCKS)
def test_a_frozen_block_that_nobody_goes_back_through_is_let_go(place: str) -> None:
    quick, maps = block(place)
    gc.disable()  # by counting alone: a circle would keep all its maps until a collection
    try:
        found = quick(maps.requires_grad_())
        there = weakref.ref(found)
        del found
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("place", BLOCKS.values(), ids=BLOCKS)
def test_plain_blocks_answer_for_maps_that_are_contiguous(place: str) -> None:
    quick, maps = block(place)
    by_hand = quick(maps.requires_grad_())
    layer_by_layer = quick(maps.detach().contiguous().requires_grad_())
    assert "_There" in type(by_hand.grad_fn).__name__
    assert "_There" not in type(layer_by_layer.grad_fn).__name__
    assert torch.allclose(by_hand, layer_by_layer)


def test_a_frozen_block_goes_back_once_and_notices_what_was_changed() -> None:
    quick, maps = block("conv2.0")
    maps.requires_grad_()
    found = quick(maps)
    torch.autograd.grad(found.sum(), maps, retain_graph=True)
    with pytest.raises(RuntimeError, match="goes back once"):
        torch.autograd.grad(found.sum(), maps)
    changed = quick(maps)
    with torch.no_grad():
        changed.add_(1)
    with pytest.raises(RuntimeError, match="inplace operation"):
        torch.autograd.grad(changed.sum(), maps)


def test_other_modules_may_be_frozen_in_their_own_way() -> None:
    class Own(nn.Sequential):
        frozen = True

    network = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Own(nn.Flatten())))
    assert norms(fold(network, pictures())) == 0


@pytest.mark.parametrize(
    "padding", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_other_paddings_have_no_way_back(padding: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="no way back"):
        Convolution(nn.Conv2d(3, 4, 3, **padding))


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([(1, 3, 5), (4, 4, 4), (2, 4, 2), (1, 1, 1)]),
    bias=st.booleans(),
)
def test_a_convolution_goes_back_as_the_library_has_it(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    groups: tuple[int, int, int],
    bias: bool,
) -> None:
    torch.manual_seed(0)
    count, inner, outer = groups
    layer = nn.Conv2d(inner, outer, kernel, stride, padding, dilation, count, bias).double()
    inputs = torch.randn(2, inner, 9, 8, dtype=torch.float64).requires_grad_()
    found = layer(inputs)
    grad = torch.randn_like(found)
    (own,) = torch.autograd.grad(found, inputs, grad)
    its = Convolution(layer.requires_grad_(False))
    assert torch.equal(its.there(inputs), found)
    assert torch.allclose(its.pull(grad, inputs.detach()), own, atol=1e-9)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_a_relu_is_the_librarys_to_the_bit(kind: torch.dtype) -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, 1e-7, -1e-7, 3e4, -3e4])
    x = torch.cat([values, torch.randn(1000, generator=torch.Generator().manual_seed(0))]).to(kind)
    rectified, grad = x.clone(), x.flip(0).contiguous()
    rectify_(rectified)
    assert torch.equal(rectified, x.relu())
    passed = torch.where(x > 0, grad, 0)
    assert torch.equal(closed(grad, rectified), passed)
    close_(grad, rectified)
    assert torch.equal(grad, passed)


# -- what is not folded ----------------------------------------------------------------------------


class Net(nn.Module):
    """One convolution and one norm, and whatever a test puts between and around them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=kind != "batch statistics")
        self.last = nn.Conv2d(4, 5, 3)
        if kind == "weight norm":
            self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        if kind == "looks at its norm":
            self.scale = 2.0

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        if self.kind == "relu between":
            maps = torch.relu_(maps)
        if self.kind == "twice":
            maps = self.conv(maps[:, :3])
        normed = self.norm(maps)
        if self.kind == "norm twice":
            normed = self.norm(normed)
        if self.kind == "skip":
            normed = normed + maps
        if self.kind == "looks at its norm":
            normed = normed * self.norm.weight[:, None, None]
        if self.kind == "noise":
            normed = normed + torch.randn_like(normed)
        return self.last(torch.relu(normed)).mean((2, 3))


@pytest.mark.parametrize(
    "kind",
    [
        "relu between",
        "twice",
        "norm twice",
        "skip",
        "looks at its norm",
        "noise",
        "weight norm",
        "batch statistics",
    ],
)
def test_what_cannot_be_folded_stays_as_it_is(kind: str) -> None:
    torch.manual_seed(0)
    network = lived(Net(kind))
    assert fold(network, pictures()) is network


def test_what_is_plain_is_folded_without_touching_the_original() -> None:
    torch.manual_seed(0)
    network = lived(Net("plain"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold(network, pictures())
    assert norms(folded) == 0
    assert norms(network) == 1
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
    assert not any(module._forward_hooks for module in (*network.modules(), *folded.modules()))


def test_a_linear_layer_takes_its_norm_and_a_derived_norm_is_left() -> None:
    class Louder(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    torch.manual_seed(0)
    flat = nn.Flatten()
    plain = lived(nn.Sequential(flat, nn.Linear(12, 5), nn.BatchNorm1d(5)))
    assert norms(fold(plain, pictures(2, 2))) == 0
    derived = lived(nn.Sequential(flat, nn.Linear(12, 5), Louder(5)))
    assert fold(derived, pictures(2, 2)) is derived


def test_what_cannot_be_copied_stays_as_it_is() -> None:
    class Unique(Net):
        def __deepcopy__(self, memo: Any) -> Unique:
            raise TypeError("there is only one")

    network = lived(Unique("plain"))
    assert fold(network, pictures()) is network


def test_a_victim_is_folded_and_keeps_its_own_network() -> None:
    victim = load_victim("glyph_net")
    folded = victim.folded()
    assert norms(victim.network) > norms(folded.network) == 1  # behind the average over the map
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(victim.embed(pixels), folded.embed(pixels), atol=1e-5)
    assert repr(folded) == repr(victim)


def test_half_precision_is_for_the_search_only() -> None:
    victim = load_victim("glyph_net").folded()
    searched = victim.searched_in("bfloat16")
    quick = searched.searcher
    assert quick is not None
    assert {p.dtype for p in victim.network.parameters()} == {torch.float32}
    assert {p.dtype for p in quick.network.parameters()} == {torch.bfloat16}
    assert searched.searched_in("float32").searcher is None
    images = torch.randint(
        0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    features = quick.features(to_pixels(images))
    assert features.dtype == torch.float32
    exact = victim.features(to_pixels(images))
    assert F.cosine_similarity(features, exact).min() > 0.999
    assert torch.equal(searched.features(to_pixels(images)), exact)
    found = load_attack("uturn", eps=8)(searched, images, names=list("abcd"))
    assert int(found.delta.abs().max()) == 8
    turned = F.cosine_similarity(victim.features(to_pixels(found.images)), exact)
    own = load_attack("uturn", eps=8)(victim, images, names=list("abcd"))
    usual = F.cosine_similarity(victim.features(to_pixels(own.images)), exact)
    assert (turned - usual).abs().max() < 0.1


def test_a_network_that_bears_no_half_precision_says_so() -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x.float()).mean((2, 3))

    victim = Victim(name="n", network=Stubborn(), preprocessing=Preprocessing(size=(8, 8)))
    with pytest.raises(ArgumentError, match="leave the precision at float32"):
        victim.searched_in("bfloat16")
