"""Is a victim's robustness real, or are its gradients masked? Attacks that should not win, tried.

A defence that only breaks the gradients looks robust to whoever climbs them, and falls to whoever
goes another way. What is compared is Recall@1 of the same queries, picture by picture as an 8-bit
file would hold it, against that of one plain attack with full access: the white box.

Source: Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018; Carlini
et al., "On Evaluating Adversarial Robustness", 2019; Tramèr et al., "On Adaptive Attacks to
Adversarial Example Defenses", NeurIPS 2020; Croce and Hein, ICML 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, final

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm import tqdm

from uturn.attacks.loop import Attack
from uturn.attacks.presets import MEMBERS, load_attack
from uturn.attacks.problem import Attacker
from uturn.attacks.steps import Sign
from uturn.attacks.views import Identity
from uturn.data.split import Split
from uturn.doctor.finding import Finding, Number
from uturn.doctor.patient import features
from uturn.errors import ArgumentError, BudgetError
from uturn.progress import bar
from uturn.retrieval import metrics
from uturn.retrieval.extract import chunks, extract_all, extract_decoded
from uturn.retrieval.intervals import identity_bootstrap, paired_bootstrap
from uturn.retrieval.judge import Labels
from uturn.retrieval.system import RetrievalSystem, require_matches
from uturn.types import LEVELS
from uturn.victims.preprocessing import by_shape
from uturn.victims.same import SAME, apart
from uturn.victims.victim import Victim, to_picture, to_pixels

Column = npt.NDArray[np.float64]

WHITE_BOX = "odfa"
"""The attack that the others are held against: T(ε) steps of one level, no tricks."""

STEPS, RESTARTS, DRAWS = 100, 4, 8
"""Of the attack with more iterations, further random starts, and looks at a random victim."""

ACROSS = ("odfa", "momentum")
"""What is crafted on the twin; the one that does more harm counts."""

UNBOUNDED = 64
"""Levels at which nothing is left of a picture that a victim could be right about."""

MUCH = 0.05
"""Recall@1 by which a better attack must lower it to be worth a warning, and that may be left
where no bound holds."""


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """What an attack left of the queries: ``hits`` ``(Q,)`` are 1 where the first item is right."""

    name: str
    hits: Column
    refused: str = ""
    """Why the attack could not be run; its pictures are the clean ones then."""

    @property
    def recall(self) -> float:
        """Recall@1."""
        return float(np.nanmean(self.hits))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """A victim, queries on its grid, a gallery, and a bar that counts passes through victims."""

    victim: Victim
    split: Split
    system: RetrievalSystem
    labels: Labels
    batches: list[tuple[list[int], Tensor]]
    """Which queries, and their uint8 images ``(n, 3, H, W)``."""
    seed: int
    shown: tqdm[NoReturn] = field(repr=False)

    def clean(self) -> Trial:
        """The queries as they are."""
        found = dict[int, Tensor]()
        for which, images in self.batches:
            found |= dict(zip(which, images, strict=True))
        return Trial("clean", self._hits(found))

    def attacked(self, name: str, attack: Attacker, on: Victim | None = None) -> Trial:
        """The queries under ``attack``, crafted on the victim itself or ``on`` another."""
        changed, refused = dict[int, Tensor](), ""
        for which, images in self.batches:
            names = [self.split.query.names[i] for i in which]
            self.shown.set_postfix_str(name, refresh=False)
            try:
                found = attack(on or self.victim, images, names=names, seed=self.seed).images.cpu()
            except BudgetError:
                raise
            except ArgumentError as error:
                found, refused = images, str(error)
            changed |= dict(zip(which, found, strict=True))
            self.shown.update(cost(attack) * len(which))
        return Trial(name, self._hits(changed), refused)

    def gain(self, base: Trial, other: Trial) -> tuple[float, float]:
        """By how much ``other`` lowers Recall@1 below ``base``, and the low end of its interval.

        Paired, query by query; 95 %, by bootstrap over identities.
        """
        difference = base.hits - other.hits
        identities = self.split.query.identities
        interval = paired_bootstrap(other.hits, base.hits, identities, self.seed)
        return float(np.nanmean(difference)), interval[0] if interval else 0.0

    def _hits(self, changed: Mapping[int, Tensor]) -> Column:
        pictures = [to_picture(changed[i]) for i in range(len(changed))]
        ranking = self.system.rank(extract_decoded(self.victim, pictures), self.labels)
        hits: Column = metrics.recall_at(ranking, 1).cpu().numpy()
        return hits


def cost(attack: Attacker) -> int:
    """Passes through a victim per query: gradients, and the look that is scored."""
    return attack.gradients + 1


def unmask(
    victim: Victim,
    split: Split,
    *,
    eps: float = 8,
    twin: Victim | None = None,
    queries: int = 50,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Finding]:
    """Every check on ``queries`` random queries of ``split``, at ``eps`` levels.

    ``twin`` is a victim without the defence, trained alike: pictures crafted on it are shown to
    the victim. Some 500 gradients per query are spent.

    Raises:
        DataError: no query has a relevant item. ArgumentError: ε out of range.
    """
    plain = load_attack(WHITE_BOX, eps=eps)
    assert isinstance(plain, Attack)
    chosen = split.sample(min(queries, len(split.query)), seed)
    require_matches(chosen)
    gallery = extract_all(victim, split.gallery, "gallery", progress=progress)
    grid = (victim.canvas(chosen.query.read(i), "model") for i in range(len(chosen.query)))
    batches = [
        (which[part.start : part.stop], images[part.start : part.stop])
        for which, images in by_shape(grid)
        for part in chunks(len(which), batch_size)
    ]
    attacks = _attacks(plain, eps, random=_random(victim, batches[0][1]))
    across = {name: load_attack(name, eps=eps) for name in ACROSS} if twin else {}
    total = sum(map(cost, (plain, *attacks.values(), *across.values()))) * len(chosen.query)
    with bar(total, "looking behind the gradients", "step", show=progress) as shown:
        bench = Bench(
            victim=victim,
            split=chosen,
            system=RetrievalSystem.build(victim, chosen, gallery),
            labels=Labels.of(chosen.query, victim.device),
            batches=batches,
            seed=seed,
            shown=shown,
        )
        clean, base = bench.clean(), bench.attacked(WHITE_BOX, plain)
        moved = [bench.attacked(f"{name} of the twin", a, twin) for name, a in across.items()]
        if base.refused:
            attacks = {}
        trials = {name: bench.attacked(name, attack) for name, attack in attacks.items()}
    return _judged(bench, eps, clean, base, trials, moved)


def _attacks(plain: Attack, eps: float, *, random: bool) -> dict[str, Attacker]:
    """What is crafted on the victim itself beside the plain attack, by what findings call it."""
    double, beyond = min(2 * eps, LEVELS), max(UNBOUNDED, min(4 * eps, LEVELS))
    found: dict[str, Attacker] = {
        "noise": load_attack("noise", eps=eps),
        "one step": replace(plain, step=Sign(eps), steps=1),
        f"{STEPS} steps": replace(plain, steps=STEPS),
    }
    found |= {f"restart {k}": replace(plain, restart=k) for k in range(1, RESTARTS + 1)}
    found |= {member: load_attack(member, eps=eps) for member in MEMBERS}
    found[_DOUBLE] = load_attack(WHITE_BOX, eps=double)
    found[_BEYOND] = load_attack(WHITE_BOX, eps=beyond)
    if random:
        found["draws"] = replace(plain, views=(Identity(),) * DRAWS)
    return found


def _random(victim: Victim, images: Tensor) -> bool:
    """Whether the victim answers the same pictures differently."""
    pixels = to_pixels(images[:8])
    return apart(features(victim, pixels), features(victim, pixels)) > SAME


def _worst(name: str, trials: Sequence[Trial]) -> Trial:
    """Per query the worst of several."""
    return Trial(name, np.min([trial.hits for trial in trials], axis=0))


def _judged(
    bench: Bench,
    eps: float,
    clean: Trial,
    base: Trial,
    trials: dict[str, Trial],
    moved: list[Trial],
) -> list[Finding]:
    tell = _Teller(bench, base)
    within = [t for name, t in trials.items() if name not in (_DOUBLE, _BEYOND)]
    lowest = _lowest(bench, clean, _worst("all", [base, *within, *moved]))
    found = [_white_box(clean, base, eps), _transfer(tell, moved)]
    if base.refused:
        return [*found, lowest]
    starts = [trials[f"restart {k}"] for k in range(1, RESTARTS + 1)]
    strongest = min((trials[member] for member in MEMBERS), key=lambda trial: trial.recall)
    return [
        *found,
        tell.beaten("noise", trials["noise"], "noise of the same size", BROKEN),
        tell.beaten("one-step", trials["one step"], "one step of ε", SHATTERED),
        _larger(tell, trials[_DOUBLE], min(2 * eps, LEVELS)),
        _unbounded(tell, trials[_BEYOND]),
        _draws(tell, trials.get("draws")),
        tell.better("steps", trials[f"{STEPS} steps"], f"{STEPS} steps"),
        tell.better("restarts", _worst("restarts", [base, *starts]), f"{RESTARTS} more starts"),
        tell.better("objectives", strongest, strongest.name),
        lowest,
    ]


_DOUBLE, _BEYOND = "double", "beyond"
"""Trials with more than ε."""


@final
@dataclass(frozen=True)
class _Reason:
    cause: str
    remedy: str


ADAPT = (
    "do not report the white box's number: attack around what masks (a differentiable stand-in "
    "on the way back, the mean over draws), or through a twin without it (Athalye et al., 2018)"
)
BROKEN = _Reason(
    "the gradient leads nowhere: zero, rounded away, saturated, or of something else", ADAPT
)
SHATTERED = _Reason(
    "the slope close by says less than the slope at once: a defence that was trained on one step "
    "(catastrophic overfitting), or gradients shattered on the small scale",
    ADAPT + "; train with more steps or random starts",
)
LEAKS = _Reason("gradients are masked: the picture is found without them, not with them", ADAPT)
WEAK = _Reason(
    "the plain attack has not converged, or stops at a place that others pass",
    "report the lower number: sweep with --attack worst and with 100 steps",
)


@final
@dataclass(frozen=True)
class _Teller:
    bench: Bench
    base: Trial

    def measured(self, other: Trial) -> dict[str, Number]:
        gain, low = self.bench.gain(self.base, other)
        return {
            f"recall@1 {self.base.name}": self.base.recall,
            f"recall@1 {other.name}": other.recall,
            "lower by": gain,
            "at least (95 %)": low,
        }

    def beaten(self, check: str, other: Trial, what: str, why: _Reason) -> Finding:
        """Failed where what should not win does."""
        numbers, (gain, low) = self.measured(other), self.bench.gain(self.base, other)
        if low > 0:
            says = f"{what} does more harm than {self.base.name}: R@1 lower by {gain:.3f}"
            return Finding(name=check, verdict="failed", says=says, measured=numbers, **vars(why))
        says = f"{what} does not beat {self.base.name}"
        return Finding(name=check, verdict="ok", says=says, measured=numbers)

    def better(self, check: str, other: Trial, what: str) -> Finding:
        """A warning where a better attack says that the plain one's number is too good."""
        numbers, (gain, low) = self.measured(other), self.bench.gain(self.base, other)
        if low > 0 and gain >= MUCH:
            says = f"{what}: R@1 {other.recall:.3f}, lower by {gain:.3f}; that is the number"
            return Finding(name=check, verdict="warning", says=says, measured=numbers, **vars(WEAK))
        says = f"{what}: R@1 {other.recall:.3f}, {gain:+.3f} lower"
        return Finding(name=check, verdict="ok", says=says, measured=numbers)


def _white_box(clean: Trial, base: Trial, eps: float) -> Finding:
    numbers: dict[str, Number] = {
        "queries": int(np.isfinite(clean.hits).sum()),
        "eps": eps,
        "recall@1 clean": clean.recall,
        f"recall@1 {base.name}": base.recall,
    }
    if base.refused:
        return Finding(
            name="white-box",
            verdict="failed",
            says=f"{base.name} cannot be run: {base.refused}",
            measured=numbers,
            cause="no gradient reaches the picture",
            remedy=ADAPT,
        )
    says = f"R@1 {clean.recall:.3f} clean, {base.recall:.3f} under {base.name} at ε = {eps:g}"
    return Finding(name="white-box", verdict="ok", says=says, measured=numbers)


def _transfer(tell: _Teller, moved: list[Trial]) -> Finding:
    if not moved:
        says = "needs a victim without the defence, trained alike; give --twin"
        return Finding(name="transfer", verdict="not checked", says=says)
    best = min(moved, key=lambda trial: trial.recall)
    if best.refused:
        says = f"the twin gives no gradient: {best.refused}"
        return Finding(name="transfer", verdict="not checked", says=says)
    return tell.beaten("transfer", best, f"{best.name}, who never saw the victim,", LEAKS)


def _larger(tell: _Teller, double: Trial, eps: float) -> Finding:
    other = replace(double, name=f"at ε = {eps:g}")
    numbers = tell.measured(other)
    rise, low = tell.bench.gain(other, tell.base)
    if low > 0:
        says = f"twice the budget does less harm: R@1 higher by {rise:.3f}"
        return Finding(
            name="larger-eps", verdict="failed", says=says, measured=numbers, **vars(BROKEN)
        )
    says = f"R@1 {other.recall:.3f} with twice the budget"
    return Finding(name="larger-eps", verdict="ok", says=says, measured=numbers)


def _unbounded(tell: _Teller, beyond: Trial) -> Finding:
    bench, name = tell.bench, "unbounded"
    interval = identity_bootstrap(beyond.hits, bench.split.query.identities, bench.seed)
    low = interval[0] if interval else beyond.recall
    judgement = bench.system.judge(bench.labels, bench.system.gallery)
    chance = float((judgement.matches / judgement.items.clamp(min=1)).mean())
    numbers: dict[str, Number] = {
        "recall@1": beyond.recall,
        "at least (95 %)": low,
        "by chance": chance,
    }
    if low > MUCH + chance:
        says = f"R@1 {beyond.recall:.3f} is left where a picture may become almost anything"
        return Finding(name=name, verdict="failed", says=says, measured=numbers, **vars(BROKEN))
    says = f"R@1 {beyond.recall:.3f} where a picture may become almost anything"
    return Finding(name=name, verdict="ok", says=says, measured=numbers)


def _draws(tell: _Teller, drawn: Trial | None) -> Finding:
    if drawn is None:
        says = "the same answer to the same picture: nothing is drawn"
        return Finding(name="draws", verdict="ok", says=says)
    gain, low = tell.bench.gain(tell.base, drawn)
    beats = low > 0
    says = f"the victim draws; with the mean gradient of {DRAWS} draws R@1 {drawn.recall:.3f}"
    return Finding(
        name="draws",
        verdict="failed" if beats else "warning",
        says=f"{says}, lower by {gain:.3f}" if beats else says,
        measured=tell.measured(replace(drawn, name=f"with {DRAWS} draws")),
        cause="what is random in the victim hides its mean gradient, which an attacker can have",
        remedy="attack the mean over draws (views=identity+identity+…), and say how many",
    )


def _lowest(bench: Bench, clean: Trial, worst: Trial) -> Finding:
    interval = identity_bootstrap(worst.hits, bench.split.query.identities, bench.seed)
    low, high = interval or (worst.recall, worst.recall)
    return Finding(
        name="lowest",
        verdict="ok",
        says=f"per query the worst of all that was tried within ε: R@1 {worst.recall:.3f}, "
        f"95 % {low:.3f}–{high:.3f}",
        measured={"recall@1 clean": clean.recall, "recall@1": worst.recall},
    )
