"""The architectures that uturn knows by name: plain torch, with weights by the usual keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from uturn import specs
from uturn.errors import CheckpointError, SpecError
from uturn.types import Similarity
from uturn.victims import checkpoints
from uturn.victims.backbones import densenet, gem, mobilenet, reid, resnet, wide_resnet
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.backbones.osnet import OSNet
from uturn.victims.classifiers import restored
from uturn.victims.preprocessing import Preprocessing
from uturn.victims.victim import Victim

SHIPPED = Path(__file__).parent / "weights"


@final
@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A network by name: how it is built and what it expects where the weights do not say."""

    summary: str
    build: Callable[..., nn.Module]
    """Its keyword arguments are the options of a spec."""
    features: int
    """The dimensions of its features (of each part's), without options."""
    preprocessing: Preprocessing
    similarity: Similarity = "cosine"
    heads: tuple[str, ...] = ("classifier.",)
    """What the keys of its classifier begin with; the first that occurs in a checkpoint counts."""
    adapt: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """Other layouts of its checkpoints, brought to ours."""
    weights: Path | None = None
    """Weights that ship with the package, used where a spec names none."""

    @property
    def card(self) -> checkpoints.Card:
        """What holds for weights that do not carry a card of their own."""
        return checkpoints.Card(self.preprocessing, self.similarity)


_IMAGENET = Preprocessing(size=(224, 224), fit="crop", crop_from=256)
_PERSON = Preprocessing(size=(256, 128))
_LAYUMI = Preprocessing(size=(256, 128), interpolation="bicubic")
_CIFAR = Preprocessing(size=(32, 32))
_LANDMARK = Preprocessing(size=(1024, 1024), fit="within", interpolation="bicubic")


def _osnet(width: float) -> Architecture:
    def build() -> OSNet:
        return OSNet(width)

    return Architecture(
        summary=f"OSNet ×{width:g} for person re-identification, torchreid's keys; weights=PATH",
        build=build,
        features=512,
        preprocessing=_PERSON,
        # torchreid publishes its results by distance; by cosine the same weights score higher.
        similarity="euclidean",
    )


def _resnet(depth: int) -> Architecture:
    def build(last_stride: int = 2, reduced: int | None = None) -> resnet.ResNet:
        return resnet.ResNet(depth, last_stride=last_stride, reduced=reduced)

    return Architecture(
        summary=f"ResNet-{depth}, torchvision's and torchreid's keys; last_stride=1, reduced=512",
        build=build,
        features=2048 if depth >= 50 else 512,
        preprocessing=_IMAGENET,
        heads=("fc.", "classifier."),
    )


def _cifar(depth: int) -> Architecture:
    def build(features: int | None = None) -> CifarResNet:
        return CifarResNet((16, 32, 64), blocks=(depth - 2) // 6, features=features)

    return Architecture(
        summary=f"CIFAR ResNet-{depth}, parameter-free shortcuts, akamaster's keys; features=2",
        build=build,
        features=64,
        preprocessing=_CIFAR,
        heads=("linear.", "classifier."),
    )


def _glyph_net(features: int | None = None) -> CifarResNet:
    return CifarResNet((32, 64, 128), blocks=1, stem_stride=2, neck=True, features=features)


def _ft_net(
    backbone: reid.Backbone = "resnet50",
    last_stride: int = 2,
    features: int = 512,
    slope: float = 1.0,
) -> reid.Baseline:
    return reid.Baseline(reid.BODIES[backbone](last_stride), features=features, slope=slope)


def _pcb(backbone: reid.Backbone = "resnet50", parts: int = 6) -> reid.PCB:
    return reid.PCB(reid.BODIES[backbone](1), parts)


def _ft_net_dense(slope: float = 1.0) -> reid.Baseline:
    return reid.Baseline(densenet.DenseNet(), slope=slope)


def _wrn_28_10() -> wide_resnet.WideResNet:
    return wide_resnet.WideResNet(28, 10)


def _gem(depth: int) -> Architecture:
    def build(pooling: gem.Pooling = "gem", whitened: bool = False) -> gem.Landmarks:
        return gem.Landmarks(depth, pooling=pooling, whitened=whitened)

    return Architecture(
        summary=f"ResNet-{depth} for landmarks, cirtorch's keys; pooling=mac, whitened=yes",
        build=build,
        features=2048,
        preprocessing=_LANDMARK,
    )


ZOO: dict[str, Architecture] = {
    "glyph_net": Architecture(
        summary="small residual network for glyphs; trained weights ship with uturn; features=2",
        build=_glyph_net,
        features=128,
        preprocessing=Preprocessing(size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        weights=SHIPPED / "glyph_net.safetensors",
    ),
    "osnet_x0_25": _osnet(0.25),
    "osnet_x0_5": _osnet(0.5),
    "osnet_x0_75": _osnet(0.75),
    "osnet_x1_0": _osnet(1.0),
    "ft_net": Architecture(
        summary="the re-ID baseline: a backbone= (resnet50) and a bottleneck block, layumi's keys; "
        "last_stride=1, features=512",
        build=_ft_net,
        features=512,
        preprocessing=_LAYUMI,
        heads=("classifier.classifier.0.", "classifier."),
        adapt=reid.adapt,
    ),
    "ft_net_dense": Architecture(
        summary="the re-ID baseline on DenseNet-121, layumi's keys",
        build=_ft_net_dense,
        features=512,
        preprocessing=_LAYUMI,
        heads=("classifier.classifier.0.", "classifier."),
        adapt=reid.adapt,
    ),
    "pcb": Architecture(
        summary="PCB: a backbone= (resnet50) in horizontal parts, layumi's keys; parts=6",
        build=_pcb,
        features=2048,
        preprocessing=Preprocessing(size=(384, 192), interpolation="bicubic"),
        heads=("classifier.", "classifier"),
        adapt=reid.adapt,
    ),
    **{f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50, 101)},
    "densenet121": Architecture(
        summary="DenseNet-121, torchvision's keys; last_stride=1",
        build=densenet.DenseNet,
        features=1024,
        preprocessing=_IMAGENET,
        adapt=densenet.adapt,
    ),
    "mobilenet_v2": Architecture(
        summary="MobileNetV2, torchvision's keys or tonylins'; last_stride=1",
        build=mobilenet.MobileNetV2,
        features=1280,
        preprocessing=_IMAGENET,
        heads=("classifier.1.", "classifier."),
        adapt=mobilenet.adapt,
    ),
    "gem_resnet50": _gem(50),
    "gem_resnet101": _gem(101),
    **{f"cifar_resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56)},
    "wrn_28_10": Architecture(
        summary="WideResNet-28-10 for CIFAR, RobustBench's keys; pixels are not normalised",
        build=_wrn_28_10,
        features=640,
        preprocessing=Preprocessing(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        heads=("fc.", "classifier."),
        adapt=wide_resnet.adapt,
    ),
}


def architecture(name: str) -> Architecture:
    """Look an architecture up; an unknown name is an error that lists the known ones."""
    return ZOO[specs.choose("victim", name, ZOO)]


def build(spec: specs.Spec, elsewhere: Iterable[str] = ()) -> Victim:
    """The victim that ``NAME:weights=PATH`` names; other options go to the architecture.

    Raises:
        SpecError: an unknown name or option, or no weights. CheckpointError: they do not fit.
    """
    chosen = architecture(spec.name)
    options = dict(spec.options)
    given = options.pop("weights", spec.argument)
    path = chosen.weights if given is None else Path(given).expanduser()
    network = empty(specs.Spec(spec.name, None, options), ("weights", *elsewhere))
    if path is None:
        raise SpecError(f"{spec.name} needs trained weights; write {spec.name}:weights=PATH")
    checkpoint = checkpoints.read(path)
    card = checkpoint.card or chosen.card
    return Victim(
        name=spec.name,
        network=network,
        preprocessing=card.preprocessing,
        similarity=card.similarity,
        classifier=_fill(network, chosen, checkpoint),
        fingerprint=checkpoint.fingerprint,
        layout=torch.channels_last,
    )


def empty(spec: specs.Spec, elsewhere: Iterable[str] = ()) -> nn.Module:
    """The network that ``NAME:option=value`` names, with random weights.

    Raises:
        SpecError: an unknown name or option.
    """
    chosen = architecture(spec.name)
    network: nn.Module = specs.call("victim", chosen.build, spec, elsewhere=elsewhere)
    return network


def start(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> frozenset[str]:
    """Fill ``network``, or the backbone that it stands on, with what fits; return the keys filled.

    All layouts of checkpoints that the zoo knows are tried. Heads, and what the network has
    beyond its backbone, stay as they are. ``name`` says in errors where the tensors are from.

    Raises:
        CheckpointError: no layout fills half of the network's tensors, or of its backbone's.
    """
    backbone = getattr(network, "model", None)
    places = {"": network} | ({"model.": backbone} if isinstance(backbone, nn.Module) else {})
    best: tuple[float, str, dict[str, Tensor]] = (0.0, "", {})
    for adapt in dict.fromkeys(each.adapt for each in ZOO.values()):
        for prefix, module in places.items():
            own, given = module.state_dict(), checkpoints.unwrap(adapt(tensors), module)
            fitting = {k: t for k, t in given.items() if k in own and t.shape == own[k].shape}
            best = max(best, (len(fitting) / len(own), prefix, fitting), key=lambda one: one[0])
    share, prefix, fitting = best
    if share < 0.5:
        raise CheckpointError(
            f"{name} fits {share:.0%} of {type(network).__name__}'s tensors; start from weights of "
            "the same network, or of its backbone"
        )
    places[prefix].load_state_dict(fitting, strict=False)
    return frozenset(f"{prefix}{key}" for key in fitting)


def _fill(
    network: nn.Module, chosen: Architecture, checkpoint: checkpoints.Checkpoint
) -> nn.Module | None:
    """Fill the network, and return the classifier that is stored beside it, if there is one."""
    body, head = _divide(network, chosen, checkpoint)
    problems = checkpoint.compare(network, body).problems
    fitting = [name for name in ZOO if _fits(name, checkpoint)] if problems else []
    if fitting:
        raise CheckpointError(
            f"{checkpoint.path} does not fit {type(network).__name__} ({problems}), but it fits "
            f"{' and '.join(fitting)}: write {fitting[0]}:weights=PATH"
        )
    checkpoint.load_into(network, body)
    return restored(checkpoint, head)


def _divide(
    network: nn.Module, chosen: Architecture, checkpoint: checkpoints.Checkpoint
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors for the network, and those of its classifier by the head's own keys.

    What the network has itself is the network's: layumi's bottleneck, too, is a ``classifier.``.
    """
    tensors = chosen.adapt(checkpoints.unwrap(checkpoint.tensors, network))
    own = network.state_dict().keys()
    rest = [key for key in tensors if key not in own]
    prefix = next((p for p in chosen.heads if any(key.startswith(p) for key in rest)), None)
    stored = [] if prefix is None else [key for key in rest if key.startswith(prefix)]
    body = {key: tensor for key, tensor in tensors.items() if key not in stored}
    return body, {key.removeprefix(str(prefix)): tensors[key] for key in stored}


def _fits(name: str, checkpoint: checkpoints.Checkpoint) -> bool:
    """Whether an architecture, as it is without options, takes a checkpoint."""
    with torch.device("meta"):  # shapes only
        network = ZOO[name].build()
        body, _ = _divide(network, ZOO[name], checkpoint)
        return not checkpoint.compare(network, body).lists
