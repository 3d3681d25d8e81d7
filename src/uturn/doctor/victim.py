"""The examination of a victim: whether its embeddings and its gradients can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uturn.data.split import Split
from uturn.doctor.finding import Finding, Number
from uturn.doctor.own_transform import own_transform
from uturn.doctor.patient import QUERIES, Patient, extremes, features
from uturn.doctor.recall import recall
from uturn.doctor.running_statistics import running_statistics
from uturn.errors import UturnError
from uturn.progress import bar
from uturn.rng import generator
from uturn.types import LEVELS
from uturn.victims.same import SAME, TIE, apart, widest
from uturn.victims.victim import Victim


def train_mode(patient: Patient) -> Finding:
    """Whether any module still trains."""
    name = "train-mode"
    training = [
        ".".join(filter(None, (part, path)))
        for part, whole in _parts(patient.victim).items()
        for path, module in whole.named_modules()
        if module.training
    ]
    if not training:
        return Finding(name=name, verdict="ok", says="every module evaluates")
    return Finding(
        name=name,
        verdict="failed",
        says=f"{len(training)} modules are in training mode, the first is {training[0]}",
        measured={"modules": len(training)},
        cause="train() was called after the victim was made, or a module does not pass eval() on; "
        "batch norm then looks at the other pictures of the batch, and dropout draws",
        remedy="call victim.network.eval(); a module that overrides train() must pass it on",
    )


def randomness(patient: Patient) -> Finding:
    """Whether the same pictures have the same features each time."""
    name, first = "randomness", features(patient.victim, patient.pixels)
    again = (features(patient.victim, patient.pixels) for _ in range(3))
    moved = max(apart(first, each) for each in again)
    measured = {"moved": moved, "calls": 4}
    if moved <= SAME:
        says = "four calls on the same pictures agree"
        return Finding(name=name, verdict="ok", says=says, measured=measured)
    return Finding(
        name=name,
        verdict="failed",
        says=f"features of the same pictures move by {moved:.1%} of the way to another picture",
        measured=measured,
        cause="dropout or noise that is on in evaluation, or a defence that draws by chance",
        remedy="switch it off, or seed it by the picture; an attack on a random defence needs the "
        "mean over draws (Athalye et al., ICML 2018), and one gradient of it proves nothing",
    )


def batch(patient: Patient) -> Finding:
    """Whether a picture's features depend on who stands beside it."""
    name, victim, pixels = "batch", patient.victim, patient.pixels
    if len(pixels) < 2:
        says = "needs two pictures of one shape"
        return Finding(name=name, verdict="not checked", says=says)
    together = features(victim, pixels)
    if apart(together, features(victim, pixels)) > SAME:
        says = "features of the same batch differ already, see randomness"
        return Finding(name=name, verdict="not checked", says=says)
    alone = torch.cat([features(victim, one) for one in torch.split(pixels, 1)])
    mixed = features(victim, pixels.flip(0)).flip(0)
    moved = max(apart(together, alone), apart(together, mixed))
    measured = {"moved": moved, "pictures": len(pixels)}
    if moved <= SAME:
        says = f"alone, or beside {len(pixels) - 1} others in any order, features are the same"
        return Finding(name=name, verdict="ok", says=says, measured=measured)
    return Finding(
        name=name,
        verdict="failed",
        says=f"beside others, features of a picture move by {moved:.1%} of the way to another",
        measured=measured,
        cause="batch norm in training mode or without running statistics, or something else that "
        "normalises over the batch",
        remedy="let it use stored statistics (track_running_stats=True, eval()), or run one "
        "picture at a time",
    )


def finite(patient: Patient) -> Finding:
    """Features of ordinary and of unusual pictures."""
    name, victim = "finite", patient.victim
    shown = {"ordinary": patient.pixels, **extremes(victim)}
    found = {key: features(victim, pixels) for key, pixels in shown.items()}
    broken = [key for key, each in found.items() if not bool(each.isfinite().all())]
    lengths = {key: float(each.norm(dim=1).min()) for key, each in found.items()}
    measured: dict[str, Number] = {"kinds of pictures": len(found), "not finite": len(broken)}
    if broken:
        return Finding(
            name=name,
            verdict="failed",
            says=f"features of pictures ({', '.join(broken)}) are not finite",
            measured=measured,
            cause="broken weights, a division by zero (a picture without variance), or an "
            "overflow in half precision",
            remedy="load the weights again; add an epsilon to the division; run in float32",
        )
    measured["least length"] = min(lengths.values())
    nothing = [key for key, length in lengths.items() if length == 0]
    if nothing:
        return Finding(
            name=name,
            verdict="warning",
            says=f"features of pictures ({', '.join(nothing)}) are zero and point nowhere",
            measured=measured,
            cause="a last ReLU that is closed everywhere",
            remedy="take the features before it, or after a batch norm",
        )
    says = f"finite on ordinary pictures and on {', '.join(list(shown)[1:])}"
    return Finding(name=name, verdict="ok", says=says, measured=measured)


def gradient(patient: Patient) -> Finding:
    """The gradient of random projections of the features against finite differences."""
    name, victim = "gradient", patient.victim
    pixels = _inside(patient).requires_grad_()
    reason = "a detach, .data, no_grad, numpy or an integer type stands between pixels and features"
    way = "write that step in differentiable torch; let an attack estimate gradients from scores"
    found = victim.features(pixels)
    if not found.requires_grad:
        return Finding(
            name=name,
            verdict="failed",
            says="features carry no gradient",
            cause=reason,
            remedy=way,
        )
    draw = generator(patient.seed, "doctor", "gradient")
    onto = torch.from_numpy(draw.normal(0, 1, found.shape)).to(found)
    try:
        slope = torch.autograd.grad((found * onto).sum(), pixels)[0]
    except UturnError as error:
        return Finding(
            name=name,
            verdict="warning",
            says=f"a black box: {error}",
            cause="the network runs outside torch",
            remedy="attack another victim and score this one (--transfer-to, eval --query-dir)",
        )
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        return Finding(
            name=name,
            verdict="failed",
            says=f"there is no way back to the pixels: {first}",
            cause=reason,
            remedy=way,
        )
    if not bool(slope.isfinite().all()):
        return Finding(
            name=name,
            verdict="failed",
            says="the gradient is not finite",
            cause="the slope of a root at zero, 0/0, or an overflow in half precision",
            remedy="keep away from zero (clamp, or an epsilon under the root); run in float32",
        )
    flat = int((slope.flatten(1).abs().amax(1) == 0).sum())
    if flat:
        return Finding(
            name=name,
            verdict="failed",
            says=f"the gradient of {flat} of {len(slope)} pictures is zero",
            measured={"pictures": len(slope), "zero": flat},
            cause="rounding or a threshold on the way, saturation, or a branch that is detached",
            remedy="replace rounding by its straight-through estimate in a surrogate; scale what "
            "saturates",
        )
    return _slopes(patient, slope, onto)


def _slopes(patient: Patient, slope: Tensor, onto: Tensor) -> Finding:
    """Directional derivatives by ``slope`` ``(B, 3, H, W)`` against central differences."""
    name, victim, pixels = "gradient", patient.victim, _inside(patient)
    draw = generator(patient.seed, "doctor", "directions")
    signs = [
        torch.from_numpy(draw.choice((-1.0, 1.0), tuple(pixels.shape))).to(pixels)
        for _ in range(_DIRECTIONS)
    ]
    along = torch.stack([(slope * sign).flatten(1).sum(1) for sign in signs]).double().cpu()
    onto = onto.double().cpu()
    noise = _EPSILON * float((features(victim, pixels).double() * onto).norm(dim=1).max())
    for step in STEPS:
        claimed, change = along * step / LEVELS, [sign * step / LEVELS for sign in signs]
        real = torch.stack([_difference(victim, pixels, each, onto) for each in change])
        size = max(float(claimed.square().mean()), float(real.square().mean())) ** 0.5
        if size > _TOLD * noise:
            break
    else:
        says = "features hardly move: finite differences drown in rounding"
        return Finding(name=name, verdict="not checked", says=says)
    wrong = float((claimed - real).square().mean()) ** 0.5 / size
    measured = {"directions": claimed.numel(), "step (levels)": step, "difference": wrong}
    if wrong <= AGREES:
        says = f"agrees with finite differences within {wrong:.1%}"
        return Finding(name=name, verdict="ok", says=says, measured=measured)
    return Finding(
        name=name,
        verdict="failed" if wrong > CONTRADICTS else "warning",
        says=f"contradicts finite differences by {wrong:.0%}",
        measured=measured,
        cause="a part of the network is detached, something is rounded and only pretends to have "
        "a slope (straight-through), or a backward of its own is wrong",
        remedy="look for detach(), round() and torch.autograd.Function in the network; an attack "
        "may climb a pretended slope, but that belongs into a surrogate, which says so",
    )


def _difference(victim: Victim, pixels: Tensor, change: Tensor, onto: Tensor) -> Tensor:
    """Half of what the projection gains from ``pixels − change`` to ``+ change``: ``(B,)``."""
    up, down = (features(victim, pixels + sign * change).double() for sign in (1, -1))
    return ((up - down) * onto).sum(1) / 2


def _inside(patient: Patient) -> Tensor:
    """Whole levels, but none at the ends of the range, where a clamp has two slopes."""
    return patient.pixels.clamp(1 / LEVELS, 1 - 1 / LEVELS).to(patient.victim.device)


STEPS = (0.03, 0.3)
"""Levels: small, since ReLUs have kinks (they alone make 8 % at 0.03 and 50 % at 1 level on a
MobileNetV2), and less than half, so that rounding to 8 bits swallows them. The second is for
networks of so little slope that the first drowns in rounding."""

AGREES, CONTRADICTS = 0.2, 0.5
"""Root mean square difference by size: what kinks make stays below the first."""

_EPSILON, _TOLD = 1e-6, 10.0
"""What float32 leaves of features after a deep network, and how far above it a slope is told."""

_DIRECTIONS = 8


def collapse(patient: Patient) -> Finding:
    """Whether different pictures have different embeddings."""
    name, victim = "collapse", patient.victim
    found = features(victim, patient.pixels).double()
    if len(found) < 2:
        says = "needs two pictures of one shape"
        return Finding(name=name, verdict="not checked", says=says)
    if not bool(found.isfinite().all()):
        says = "features are not finite"
        return Finding(name=name, verdict="not checked", says=says)
    unit = F.normalize(found, dim=1)
    gaps = torch.pdist(unit).square() / 2  # 1 − cosine, without cancellation
    mean, most = 1 - float(gaps.mean()), float(gaps.max())
    measured = {"pictures": len(found), "mean cosine": mean, "least cosine": 1 - most}
    if widest(found, victim.similarity) <= TIE:
        return Finding(
            name=name,
            verdict="failed",
            says="different pictures have the same embedding: it ignores its input",
            measured=measured,
            cause="dead or untrained weights, a last layer that is constant, or an input that is "
            "far from what the network was trained on",
            remedy="check that the weights were loaded and the preprocessing; see "
            "running-statistics",
        )
    if mean > COLLAPSED and victim.similarity == "cosine":
        return Finding(
            name=name,
            verdict="warning",
            says=f"different pictures have a mean cosine of {mean:.4f}",
            measured=measured,
            cause="an untrained network, collapsed training, or features far from zero mean",
            remedy="centre the features (whitening=FILE of uturn whiten), or check the weights",
        )
    says = f"different pictures have a mean cosine of {mean:+.3f}"
    return Finding(name=name, verdict="ok", says=says, measured=measured)


COLLAPSED = 0.99
"""Mean cosine of different pictures above which hardly anything is left to tell them apart."""


def range_(patient: Patient) -> Finding:
    """Whether features can point the opposite way."""
    name, victim = "range", patient.victim
    found = torch.cat(
        [features(victim, each) for each in (patient.pixels, *extremes(victim).values())]
    )
    least = float(found.min())
    measured = {"least feature": least}
    if least >= 0:
        says = "features are never negative: no two point in opposite directions, and a U-turn "
        says += "stops at 90°"
        return Finding(name=name, verdict="note", says=says, measured=measured)
    says = "features take both signs"
    return Finding(name=name, verdict="ok", says=says, measured=measured)


def classifier(patient: Patient) -> Finding:
    """Whether class-based attacks can be used."""
    name, victim = "classifier", patient.victim
    if victim.classifier is None:
        says = "no classifier: fast, basic, least_likely and label_smooth cannot be used"
        return Finding(name=name, verdict="note", says=says)
    with torch.no_grad():
        classes = victim.logits(patient.pixels[:1]).shape[1]
    return Finding(
        name=name,
        verdict="ok",
        says=f"tells {classes} classes apart",
        measured={"classes": classes},
    )


CHECKS: dict[str, Callable[[Patient], Finding]] = {
    "train-mode": train_mode,
    "randomness": randomness,
    "batch": batch,
    "finite": finite,
    "gradient": gradient,
    "collapse": collapse,
    "own-transform": own_transform,
    "running-statistics": running_statistics,
    "recall": recall,
    "range": range_,
    "classifier": classifier,
}
"""By name, in the order in which they are made and told."""


def examine(
    victim: Victim,
    split: Split | None = None,
    *,
    queries: int = QUERIES,
    seed: int = 0,
    progress: bool = False,
) -> list[Finding]:
    """Make every check on a victim, with pictures of a split or with built ones.

    The victim stays as it is, training mode and running statistics included. A check that
    cannot be carried out because the victim raises is a failed one.
    """
    patient = Patient.of(victim, split, queries=queries, seed=seed)
    found = []
    with bar(len(CHECKS), "examining", "check", show=progress) as shown:
        for name, check in CHECKS.items():
            with _unchanged(victim):
                found.append(_carefully(name, check, patient))
            shown.update()
    return found


def _parts(victim: Victim) -> dict[str, nn.Module]:
    parts = {
        "network": victim.network,
        "classifier": victim.classifier,
        "whitening": victim.whitening,
    }
    return {name: part for name, part in parts.items() if part is not None}


@contextmanager
def _unchanged(victim: Victim) -> Iterator[None]:
    """Put back what looking at a network in training mode changes."""
    modules = [module for part in _parts(victim).values() for module in part.modules()]
    modes = [(module, module.training) for module in modules]
    kept = [(each, each.clone()) for part in _parts(victim).values() for each in part.buffers()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for each, before in kept:
                each.copy_(before)


def _carefully(name: str, check: Callable[[Patient], Finding], patient: Patient) -> Finding:
    try:
        return check(patient)
    except Exception as error:  # foreign networks raise anything
        first = str(error).partition("\n")[0]
        return Finding(
            name=name,
            verdict="failed",
            says=f"the victim raised {type(error).__name__}: {first}",
            cause="the network does not take the pictures that its preprocessing makes",
            remedy="run victim.features on one picture in Python and read the traceback",
        )
