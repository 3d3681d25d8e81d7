"""The U-turn picture: where an attack carries the features of a network that has only two.

What is measured here is drawn by `uturn.report.turn`. The features are those of the pictures that
were saved, decoded again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn.attacks.loop import Attack
from uturn.attacks.presets import load_attack
from uturn.attacks.problem import Batch, certified
from uturn.attacks.together import ways
from uturn.data.pictures import decode, encode
from uturn.data.split import Split
from uturn.errors import ArgumentError, CheckpointError, RunFolderError
from uturn.progress import bar
from uturn.reproduce.files import read_json, write_whole
from uturn.retrieval.extract import chunks, extract, extract_decoded
from uturn.types import Scene
from uturn.victims import checkpoints
from uturn.victims.backbones.cifar import CifarResNet
from uturn.victims.victim import Victim, to_picture

SCHEMA = 1
_BATCH = 50
RIVALS = ("fast", "basic", "least_likely")
"""The attacks whose paths are kept beside that of the one measured; of fast they are over ε, of
the others over the steps."""

_Points = list[list[float]]


def turn(
    victim: Victim,
    split: Split,
    *,
    eps: Sequence[float] = (2, 4, 8, 12, 16),
    queries: int = 500,
    seed: int = 0,
    out: Path,
    attack: str = "odfa",
    progress: bool = True,
) -> Path:
    """Attack ``queries`` of a closed set at every ε; write ``out/turn.json``, return its path.

    It holds the class directions W ``(C, 2)``, the queries' classes and, clean and at every ε,
    their 2-D features, the angle by which each class has turned on average (degrees, 0 … 180) and
    the top-1 accuracy; and for a query of each class the paths that ``attack`` and its `RIVALS`
    take it at the largest ε. The pictures lie below ``out/images``. What is there is not done
    again.

    Raises:
        ArgumentError: the features are not two, the classifier is not linear without bias, or
        the split has no classes. RunFolderError: ``turn.json`` is there of something else.
    """
    directions = _directions(victim, split)
    levels = sorted(eps)
    facts = {
        "schema": SCHEMA,
        "victim": victim.name,
        "weights": victim.fingerprint,
        "data": split.name,
        "attack": attack,
        "eps": [float(one) for one in levels],
        "queries": queries,
        "seed": seed,
    }
    file = out / "turn.json"
    if file.exists():
        there = read_json(file)
        differing = [key for key, value in facts.items() if there.get(key) != value]
        if differing:
            raise RunFolderError(
                f"{file} was measured otherwise (its {', '.join(differing)}); choose another "
                "folder, or remove it"
            )
        return file
    asked = split.sample(queries, seed).query
    labels = torch.from_numpy(asked.identities)
    panels, clean = [], torch.empty(0)
    gradients = [0, *(load_attack(attack, eps=one).gradients for one in levels)]
    total = sum(1 + each for each in gradients) * len(asked)
    with bar(total, "turning features", "step", show=progress) as shown:
        for one, cost in zip([0, *levels], gradients, strict=True):
            found = []
            for part in chunks(len(asked), _BATCH):
                names = asked.names[part.start : part.stop]
                images = victim.grid(map(asked.read, part))
                if one:
                    crafted = load_attack(attack, eps=one)
                    images = crafted(victim, images, names=names, seed=seed).images
                found.append(_saved(victim, images, names, out / "images" / f"eps{one:g}"))
                shown.update((1 + cost) * len(names))
            features = torch.cat(found)  # (N, 2)
            clean = clean if one else features
            panels.append(_panel(one, features, clean, labels, directions))
    names = split.classes or ()
    content = {
        **facts,
        "classes": list(names),
        "directions": _rounded(directions),
        "labels": labels.tolist(),
        "panels": panels,
        "paths": _paths(victim, split, directions, (*RIVALS, attack), levels[-1], seed),
    }
    write_whole(file, json.dumps(content) + "\n")
    return file


def circle(victim: Victim, out: Path) -> Path:
    """Write weights to start a ``features=2`` network from: a classifier laid out on a circle.

    f = Σ_c z_c (cos φ_c, sin φ_c) with the logits z of a trained ``victim`` and angles φ evenly
    around, alike classes side by side. Every class has a ray of its own from the beginning;
    from random weights classes must pass through each other to get theirs.

    What is there of the same victim is not done again.

    Raises:
        ArgumentError: the victim's network or classifier is of another kind. CheckpointError:
        ``out`` is there and of another victim.
    """
    if out.exists():
        if checkpoints.read_metadata(out).get("circle") != victim.fingerprint:
            raise CheckpointError(
                f"{out} is not of {victim.name} as it is now; choose another --out, or remove it"
            )
        return out
    head, network = victim.classifier, victim.network
    if not isinstance(head, nn.Linear) or not isinstance(network, CifarResNet):
        raise ArgumentError(
            f"{victim.name} cannot be laid out on a circle; it takes a cifar_resnet or glyph_net "
            "with a linear classifier"
        )
    weight = head.weight.detach().cpu()  # (C, D)
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach().cpu()
    unit = F.normalize(weight - weight.mean(0), dim=1)
    alike = (unit @ unit.T).fill_diagonal_(-torch.inf)
    order = [0]
    while len(order) < len(weight):  # the next is the most alike of those left
        alike[:, order[-1]] = -torch.inf
        order.append(int(alike[order[-1]].argmax()))
    angles = torch.empty(len(weight))
    angles[order] = torch.arange(len(weight)) * 2 * torch.pi / len(weight)
    around = torch.stack([angles.cos(), angles.sin()])  # (2, C)
    tensors = {**network.state_dict(), "feature.weight": around @ weight}
    tensors["feature.bias"] = around @ bias
    card = checkpoints.Card(victim.preprocessing, "cosine")
    checkpoints.write(out, tensors, card, {"circle": victim.fingerprint})
    return out


def _directions(victim: Victim, split: Split) -> Tensor:
    """The class directions W ``(C, 2)``: a logit is the feature's component along its own."""
    head = victim.classifier
    if not isinstance(head, nn.Linear) or head.bias is not None or head.in_features != 2:
        raise ArgumentError(
            f"the U-turn picture needs a victim of 2 features under a linear classifier without "
            f"bias, and {victim.name} is none; train one: uturn train --arch glyph_net:features=2 "
            "--loss identity:head=linear,bias=no"
        )
    if split.classes is None or len(split.classes) != head.out_features:
        raise ArgumentError(
            f"the U-turn picture needs a closed set of {head.out_features} classes, and "
            f"{split.name} is none; use the data set that {victim.name} was trained on"
        )
    return head.weight.detach().cpu()


def _saved(victim: Victim, images: Tensor, names: Sequence[str], folder: Path) -> Tensor:
    """Save uint8 ``images``; the features ``(B, 2)`` of what was saved."""
    files = [folder / f"{name}.png" for name in names]
    for file, image in zip(files, images, strict=True):
        encode(file, to_picture(image))
    return extract_decoded(victim, map(decode, files)).cpu()


def _panel(
    eps: float, features: Tensor, clean: Tensor, labels: Tensor, directions: Tensor
) -> dict[str, Any]:
    across = clean[:, 0] * features[:, 1] - clean[:, 1] * features[:, 0]
    # The arc cosine loses half of its digits at 0° and 180°.
    turned = torch.rad2deg(torch.atan2(across.abs(), (clean * features).sum(1)))  # (N,)
    right = (features @ directions.T).argmax(1) == labels
    return {
        "eps": eps,
        "features": _rounded(features),
        "angle": float(turned.mean()),
        "by_class": [
            float(turned[labels == each].mean()) if bool((labels == each).any()) else None
            for each in range(len(directions))
        ],
        "top1": float(right.double().mean()),
    }


# -- one picture ---------------------------------------------------------------------------------


def _paths(
    victim: Victim,
    split: Split,
    directions: Tensor,
    attacks: Sequence[str],
    eps: float,
    seed: int,
) -> list[dict[str, Any]]:
    """For each class the first query, as the seed orders them, that is classified rightly."""
    asked, chosen = split.sample(None, seed).query, list[int]()
    for label in range(len(directions)):
        for position in np.flatnonzero(asked.identities == label):
            feature = extract(victim, victim.grid([asked.read(int(position))])).cpu()
            if int((feature @ directions.T).argmax()) == label:
                chosen.append(int(position))
                break
    if not chosen:
        return []
    pictures = asked.subset(np.array(chosen))
    images = victim.grid(pictures.read(i) for i in range(len(pictures)))
    walks = {
        name: _walk(victim, name, eps, images, pictures.names, seed) for name in attacks
    }  # (T, B, 2) each
    logits = walks[attacks[0]][0] @ directions.T
    return [
        {
            "name": name,
            "label": int(pictures.identities[n]),
            "highest": int(logits[n].argmax()),
            "lowest": int(logits[n].argmin()),
            "walks": {attack: _rounded(walk[:, n]) for attack, walk in walks.items()},
        }
        for n, name in enumerate(pictures.names)
    ]


def _walk(
    victim: Victim, name: str, eps: float, images: Tensor, names: Sequence[str], seed: int
) -> Tensor:
    """The features on the way, ``(T, B, 2)``, of the clean pictures first.

    An attack of one step has no way; its stations are the whole ε up to ``eps``.
    """
    attack = load_attack(name, eps=eps)
    if not isinstance(attack, Attack):
        raise ArgumentError(f"{name} does not climb step by step; choose odfa, uturn or the like")
    if attack.steps == 1:
        budgets = range(1, int(eps) + 1)
        stations = [load_attack(name, eps=one)(victim, images).images for one in budgets]
    else:
        batch = Batch(victim, images, Scene(), names, seed)
        way = [climber.delta for climber in ways(attack.pose(batch), attack)]
        seen = [batch.clean + certified(attack.threat, batch.clean, delta) for delta in way]
        stations = [station.byte() for station in (seen[1:] if attack.start == "clean" else seen)]
    return torch.stack([extract(victim, station).cpu() for station in (images, *stations)])


def _rounded(points: Tensor) -> _Points:
    """``(N, 2)`` as JSON, to four decimals: ten times what a drawing can show."""
    return [[round(x, 4), round(y, 4)] for x, y in points.tolist()]
