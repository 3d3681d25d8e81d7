"""How a spec becomes a victim, whoever made the network."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from uturn import specs
from uturn.errors import ArgumentError, SpecError
from uturn.types import Similarity
from uturn.victims import checkpoints, zoo
from uturn.victims.adapters import (
    Adapter,
    Bare,
    ensemble,
    fingerprint,
    hf,
    module,
    oml,
    onnx,
    timm,
    torchreid,
    torchscript,
)
from uturn.victims.preprocessing import Centre, Fit, Interpolation, Order, Preprocessing
from uturn.victims.test_time import Average
from uturn.victims.victim import Victim
from uturn.victims.whitening import Whitening


def _ensemble(members: str) -> Victim:
    """ensemble:SPEC+SPEC: the members' unit features side by side, for attacks that transfer.

    A member that has a comma or + of its own stands in brackets: ensemble:[SPEC,key=value]+SPEC.
    """
    named = [specs.bare(member.strip()) for member in specs.separated(members, "+")]
    return ensemble.build([load_victim(member) for member in named])


ADAPTERS: dict[str, Adapter] = {
    "ensemble": _ensemble,
    "hf": hf.build,
    "oml": oml.build,
    "onnx": onnx.build,
    "timm": timm.build,
    "torchreid": torchreid.build,
    "torchscript": torchscript.build,
}
"""By the name that stands before the colon."""


def load_victim(spec: str, device: str | torch.device = "cpu") -> Victim:
    """Load a victim from a spec, onto ``device``.

    ``osnet_x0_25:weights=PATH`` names an architecture of the zoo, ``PATH.safetensors`` weights that
    `uturn train` wrote, ``timm:resnet50,weights=PATH`` an adapter, ``package.module:factory`` a
    function of yours, which is imported and called.
    Options that every victim has, beside its own: those of `adjusted`.

    Raises:
        SpecError: unknown name or option. CheckpointError: the weights do not fit.

    >>> load_victim("glyph_net")
    Victim(glyph_net, 32×32, weights ...)
    >>> load_victim("glyph_net:flip=yes").test_time.count
    2
    """
    parsed = specs.Spec.parse(spec)
    if parsed.name.endswith(".safetensors"):
        parsed = _trained(parsed)
    general = {key: text for key, text in parsed.options.items() if key in GENERAL}
    own = {key: text for key, text in parsed.options.items() if key not in GENERAL}
    found = _made(specs.Spec(parsed.name, parsed.argument, own))
    if isinstance(found, Bare):
        size = general.get("size")
        if size is None:
            raise SpecError(
                f"nothing says what pictures {found.name} takes; add size=HxW, such as "
                f"{found.name},size=256x128, and mean= and std= if they are not ImageNet's"
            )
        stated = specs.convert("victim", parsed, "size", size, tuple[int, int])
        found = Victim(
            name=found.name,
            network=found.network,
            preprocessing=Preprocessing(size=stated),
            fingerprint=found.fingerprint,
        )
    options = specs.Spec(parsed.name, None, general)
    victim: Victim = specs.call("victim", adjusted, options, victim=found)
    return replace(victim, device=torch.device(device))


def _trained(spec: specs.Spec) -> specs.Spec:
    """``PATH.safetensors`` → the architecture that its card names, with these weights."""
    named = named_by_card(Path(spec.name).expanduser())
    options = {**named.options, "weights": spec.name, **spec.options}
    return specs.Spec(named.name, named.argument, options)


def named_by_card(path: Path) -> specs.Spec:
    """The spec of the network that a safetensors file says it fills.

    Raises:
        CheckpointError: as `checkpoints.read_card`. SpecError: it does not say, or names what is
            no network that can be filled: code, or another file.
    """
    card = checkpoints.read_card(path)
    if card is None or card.architecture is None:
        raise SpecError(
            f"{path} does not say what network it fills; write NAME:weights={path} "
            "(uturn list victims)"
        )
    named = specs.Spec.parse(card.architecture)
    # What `uturn.victims.blank` trains. Anything else would be a file that chooses what is run.
    if named.name not in zoo.ZOO and named.name != "timm":
        raise SpecError(
            f"{path} says that it fills {card.architecture!r}, which is no network of uturn's or "
            f"timm's; if you trust its author, write what it fills: NAME:weights={path}"
        )
    return named


_FILLED = ("hf", "oml", "onnx", "timm", "torchreid")
"""Adapters that read numbers and configuration, and run nothing but their own package."""


def require_data(spec: str, where: str) -> None:
    """Raise `SpecError` if loading the victim ``spec`` runs foreign code, or asks the network.

    For specs that nobody typed: ``where`` is the file that names this one. Whoever types
    ``package.module:factory``, ``torchscript:PATH`` or ``download=yes`` has asked for it.

    >>> require_data("glyph_net:flip=yes", "run.json")
    >>> require_data("os:system,command=ls", "run.json")
    Traceback (most recent call last):
    uturn.errors.SpecError: run.json names the victim 'os:system,command=ls', which runs code ...
    """
    parsed = specs.Spec.parse(spec)
    if parsed.name == "ensemble":
        for member in specs.separated(parsed.argument or "", "+"):
            require_data(specs.bare(member.strip()), where)
        return
    online = [key for key in ("download", "pretrained") if parsed.options.get(key) == "yes"]
    known = parsed.name in zoo.ZOO or parsed.name in _FILLED
    if known and not online:
        return
    if parsed.name.endswith(".safetensors"):  # whose card is looked at when it is loaded
        return
    what = f"asks the network ({online[0]}=yes)" if known else "runs code that is not uturn's"
    raise SpecError(
        f"{where} names the victim {spec!r}, which {what}; a file may not ask for that: if you "
        "trust it, name the victim yourself"
    )


def _made(spec: specs.Spec) -> Victim | Bare:
    made: Victim | Bare
    if spec.name in zoo.ZOO:
        made = zoo.build(spec, GENERAL)
    elif spec.name in ADAPTERS:
        made = specs.call("victim", ADAPTERS[spec.name], spec, elsewhere=GENERAL)
    elif spec.argument and spec.argument.isidentifier():
        name = f"{spec.name}:{spec.argument}"
        factory = module.factory(spec.name, spec.argument)
        own = specs.Spec(spec.name, None, spec.options)
        made = module.as_victim(specs.call("victim", factory, own, elsewhere=GENERAL), name)
    else:
        known = [*zoo.ZOO, *ADAPTERS]
        raise SpecError(
            f"unknown victim {spec.name!r}; known: {', '.join(sorted(known))}; your own is "
            "package.module:function"
        )
    return made


def adjusted(
    victim: Victim,
    *,
    size: tuple[int, int] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    interpolation: Interpolation | None = None,
    fit: Fit | None = None,
    crop_from: int | None = None,
    order: Order | None = None,
    centre: Centre | None = None,
    flip: bool | None = None,
    crops: tuple[int, int] | None = None,
    average: Average | None = None,
    power: float | None = None,
    similarity: Similarity | None = None,
    whitening: str | None = None,
) -> Victim:
    """The victim with another preprocessing, test-time pipeline, similarity or whitening.

    Each option is a field of `Preprocessing`, `TestTime` or `Victim`; None leaves it.
    """
    given = {key: value for key, value in locals().items() if value is not None}

    def of(value: Any) -> dict[str, Any]:
        return {each.name: given[each.name] for each in fields(value) if each.name in given}

    preprocessing = replace(victim.preprocessing, **of(victim.preprocessing))
    test_time = replace(victim.test_time, **of(victim.test_time))
    changed = replace(victim, preprocessing=preprocessing, test_time=test_time)
    if similarity is not None:
        changed = replace(changed, similarity=similarity)
    if whitening is not None:
        learned = Whitening.read(Path(whitening).expanduser())
        mark = fingerprint(learned)[:12]
        changed = replace(
            changed, whitening=learned, fingerprint=f"{changed.fingerprint}, whitening {mark}"
        )
    return changed


GENERAL = tuple(name for name in inspect.signature(adjusted).parameters if name != "victim")
"""Options of every victim."""


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; anything else is PyTorch's name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"device {name!r} cannot be used here: {error}") from error
    return device
