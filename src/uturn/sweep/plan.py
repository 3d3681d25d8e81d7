"""The plan: which attacks at which ε on which victim and data. A frozen value, checked up front."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, final, get_args

from uturn import specs
from uturn.attacks.blackbox import BlackBox, asks
from uturn.attacks.loop import Attack
from uturn.attacks.presets import MEMBERS, WORST, Mode, load_attack
from uturn.attacks.problem import Attacker, draws
from uturn.attacks.threats import Threat
from uturn.data.channels import CHANNELS
from uturn.errors import ArgumentError
from uturn.retrieval.index import read_index
from uturn.retrieval.metrics import CONVENTIONS
from uturn.victims.victim import At, Precision

CLEAN = "clean"

Unreadable = Literal["fail", "skip"]


@final
@dataclass(frozen=True)
class Job:
    """One row of the result table: the clean queries (ε = 0), an attack at an ε, or the worst.

    The worst has ``members`` in place of an attack: per query it takes the member's picture
    that the ranking suffers most from.
    """

    name: str
    eps: float
    attack: Attacker | None = None
    members: tuple[Job, ...] = ()
    weaker: Job | None = None
    """The attack at the ε before, whose pictures are kept where they were enough."""
    repeat: int = 0
    """By how much its seed is larger than the plan's; 0 where nothing is drawn."""

    @property
    def threat(self) -> Threat | None:
        """What its pictures may differ by from the clean ones; None: by nothing."""
        if self.members:
            return self.members[0].threat
        return None if self.attack is None else self.attack.threat

    @property
    def folder(self) -> str:
        """Where its pictures lie below ``images/``; no two attacks share a place."""
        if self.eps == 0:
            return CLEAN
        name = re.sub(r"[^\w.=,+-]", "_", self.name)
        if name != self.name.replace(":", "_", 1) or len(name) > 100:
            digest = hashlib.blake2b(self.name.encode(), digest_size=4).hexdigest()
            name = f"{name[:80]}-{digest}"
        again = f",repeat{self.repeat}" if self.repeat else ""
        return f"{name}/eps{self.eps}{again}"

    @property
    def gradients(self) -> int:
        """Gradients per query, those of the members included."""
        own = 0 if self.attack is None else self.attack.gradients
        return own + sum(member.gradients for member in self.members)

    @property
    def asked(self) -> int:
        """Pictures that the system may be asked per query."""
        return 0 if self.attack is None else asks(self.attack)

    @property
    def work(self) -> int:
        """Passes through the victim that this job makes per query, if it shares none of them."""
        return 1 + (0 if self.members else self.gradients + self.asked)

    @property
    def waits(self) -> bool:
        """Whether it needs what others of the same batch have committed."""
        return bool(self.members) or self.weaker is not None


def together(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs in groups that go together, in the order of their firsts.

    Attacks on one trail climb together (`uturn.attacks.together`), black boxes ask together
    (`uturn.attacks.blackbox`), each seed for itself. Who waits for others goes alone, and so do
    other loops of their own.
    """
    groups = dict[Any, list[Job]]()
    for job in jobs:
        attack = job.attack
        shared = attack if isinstance(attack, (Attack, BlackBox)) and not job.waits else None
        key = job if shared is None else (shared.trail, job.repeat)
        groups.setdefault(key, []).append(job)
    return list(groups.values())


@final
@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides the numbers of a sweep. ``queries=None`` takes all of them.

    ``batch_size`` is part of it because floating point sums depend on it in the last bits,
    and a sign step can turn a last bit into a level.
    """

    victim: str
    data: str
    attacks: tuple[str, ...] = ("fast", "basic", "least_likely", "odfa")
    eps: tuple[float, ...] = (2, 4, 8, 12, 16)
    queries: int | None = None
    seed: int = 0
    seeds: int = 1
    """With how many seeds, this one and those that follow it, attacks that draw are repeated. Which
    queries are asked is drawn by the first of them."""
    convention: str | None = None
    """Of average precision; None is ``plain``, in paper mode ``trapezoid``."""
    index: str | None = None
    """None is ``exact`` as the victim was published, in paper mode ``exact:cosine``; else a spec of
    `uturn.retrieval.index.read_index`."""
    rerank: str | None = None
    """Stages between index and metrics, such as ``aqe:n=5+k-reciprocal``; None is none."""
    at: At = "model"
    """Whether the picture on the victim's grid is changed, or the one in the file."""
    mode: Mode = "default"
    """``paper`` is the original pipeline: its attacks, truncation, JPEG, trapezoid."""
    scales: tuple[float, ...] = (1.0,)
    """At which the victim looks at queries and gallery, averaging the embeddings."""
    survive: tuple[str, ...] = ()
    """Channels (`uturn.data.channels`) after which every picture is scored once more."""
    transfer_to: tuple[str, ...] = ()
    """Other victims, by their specs, that score the same pictures (black-box transfer)."""
    monotone: bool = False
    """Whether a query that is lost at a smaller ε keeps that picture and is not attacked again."""
    max_queries: int | None = None
    """Pictures that an attack may ask the system per query, whatever its spec says."""
    unreadable: Unreadable = "fail"
    """What becomes of pictures that cannot be read: they stop the run, or are left out and told."""
    precision: Precision = "float32"
    """What attacks are searched in after their first step; scores are always of float32."""
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        specs.choose("mode", self.mode, get_args(Mode))
        specs.choose("place to attack", self.at, get_args(At))
        specs.choose("precision", self.precision, get_args(Precision))
        specs.choose("policy for unreadable pictures", self.unreadable, get_args(Unreadable))
        paper = self.mode == "paper"
        if self.convention is None:
            object.__setattr__(self, "convention", "trapezoid" if paper else "plain")
        if self.index is None:
            object.__setattr__(self, "index", "exact:cosine" if paper else "exact")
        specs.choose("convention", str(self.convention), CONVENTIONS)
        depth = read_index(str(self.index), "cosine").depth
        if depth is not None and self.convention != "plain":
            raise ArgumentError(
                f"{self.index} answers with its first {depth}, of which average precision is "
                f"map@{depth} and not {self.convention}; use --index exact, or --convention plain"
            )
        for channel in self.survive:
            specs.choose("channel", channel, CHANNELS)
        # Ascending whole numbers are ints: one way to write a plan, one folder per ε.
        levels = sorted(int(eps) if float(eps).is_integer() else float(eps) for eps in self.eps)
        object.__setattr__(self, "eps", tuple(levels))
        for what, values in (("attacks", self.attacks), ("eps", self.eps)):
            if not values or len(set(values)) != len(values):
                raise ArgumentError(f"{what} must be given, each once; got {list(values)}")
        if len({self.victim, *self.transfer_to}) <= len(self.transfer_to):
            raise ArgumentError(
                f"every victim scores once; got {self.victim} and to transfer to "
                f"{list(self.transfer_to)}"
            )
        for name, count in (("batch size", self.batch_size), ("number of seeds", self.seeds)):
            if count < 1:
                raise ArgumentError(f"the {name} must be at least 1, got {count}")
        if paper and WORST in self.attacks:
            raise ArgumentError(f"{WORST} is a set of attacks of its own, which the paper has not")
        list(self.jobs())  # an unknown attack or an impossible ε fails here, not in an hour

    @property
    def victims(self) -> tuple[str, ...]:
        """The specs of all that score: first the one that is attacked."""
        return (self.victim, *self.transfer_to)

    def jobs(self) -> Iterator[Job]:
        """The clean queries first, then every attack at every ε; what ``worst`` needs before it.

        Repeats with other seeds follow their first; what draws nothing has none.
        """
        yield Job(CLEAN, 0)
        for name in self._names():
            for eps in self.eps:
                yield from dict.fromkeys(self._job(name, eps, n) for n in range(self.seeds))

    def rows(self) -> dict[tuple[str, float], list[Job]]:
        """The jobs of each row of the table, by attack and ε: of one seed after another."""
        found = dict[tuple[str, float], list[Job]]()
        for job in self.jobs():
            found.setdefault((job.name, job.eps), []).append(job)
        return found

    def _job(self, name: str, eps: float, repeat: int) -> Job:
        if name == WORST:
            members = tuple(self._job(member, eps, repeat) for member in MEMBERS)
            return Job(WORST, eps, members=members, repeat=max(each.repeat for each in members))
        smaller = self.eps[: self.eps.index(eps)] if self.monotone else ()
        weaker = self._job(name, smaller[-1], repeat) if smaller else None
        attack = load_attack(name, eps=eps, mode=self.mode, max_queries=self.max_queries)
        return Job(name, eps, attack, weaker=weaker, repeat=repeat if draws(attack) else 0)

    def _names(self) -> list[str]:
        """The attacks, each once, with the members of ``worst`` before it."""
        wanted = [
            n for name in self.attacks for n in ((*MEMBERS, name) if name == WORST else (name,))
        ]
        return list(dict.fromkeys(wanted))

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """What an option is where nothing is said of it, as `configuration` has it."""
        optional = {f.name: f.default for f in fields(cls) if f.default is not MISSING}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in optional.items()}

    def configuration(self) -> dict[str, Any]:
        """The plan as JSON holds it, with every attack spelled out."""
        spelled = {
            f"{job.name} eps={job.eps}": repr(job.attack or [member.name for member in job.members])
            for job in self.jobs()
            if job.eps and not job.repeat
        }
        plan = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**plan, "jobs": spelled}
