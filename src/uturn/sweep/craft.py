"""Crafting and scoring, batch by batch: gradients here, files behind, scores of what files hold.

Jobs that share a trail climb together. A job's pictures are written, decoded again and certified in
the background while the next gradients are taken; then they are scored, and its part is committed.
The next queries are decoded ahead. What is scored is the PNG decoded again, never the tensor that
an attack returned.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from uturn.attacks.blackbox import BlackBox, asked_together
from uturn.attacks.loop import Attack
from uturn.attacks.together import Share, attack_together
from uturn.data.channels import PAPER_QUALITY, jpeg
from uturn.data.pictures import Picture, Pictures, decode
from uturn.data.split import Split
from uturn.parallel import ahead, behind, threaded
from uturn.portions import Portion
from uturn.retrieval import metrics
from uturn.retrieval.judge import Labels
from uturn.sweep import checks
from uturn.sweep.agenda import batches
from uturn.sweep.insider import Goal
from uturn.sweep.plan import CLEAN, Job, Plan, together
from uturn.sweep.scorer import SHOWN, Queries, Scorer
from uturn.sweep.store import Row, RunFolder
from uturn.types import Scene
from uturn.victims.preprocessing import by_shape
from uturn.victims.victim import Victim, to_picture

WORSE = {
    **dict.fromkeys(("ap", "r_precision", "inp", "tpr"), min),
    **dict.fromkeys(("first_match_rank", "normalised_rank", "label_rank"), max),
}
"""Which of two values of a column is the worse for the victim."""

IN_FLIGHT = 4
"""Batches of a job that may be on their way to the disk while others are crafted."""

Make: TypeAlias = Callable[[], Picture]
"""Makes a picture that is to be written."""

Scores: TypeAlias = list[dict[str, Any]]
"""What every scorer says of a batch."""


class Informant(Protocol):
    """Says what attackers are given beyond their pictures (`uturn.sweep.insider`)."""

    def goal(
        self, job: Job, names: Sequence[str], labels: Labels, features: Tensor
    ) -> Goal | None: ...

    def scene(
        self,
        job: Job,
        names: Sequence[str],
        labels: Labels,
        features: Tensor,
        goal: Goal | None,
    ) -> Scene: ...


class Looker(Protocol):
    """Who looks at crafted pictures: a sweep's `Scorer`, or one for pictures of the gallery."""

    @property
    def victim(self) -> Victim: ...

    @property
    def insider(self) -> Informant: ...

    def look(self, pictures: Sequence[Picture]) -> Tensor:
        """Raw features ``(B, D)`` of decoded pictures."""
        ...

    def score(
        self,
        queries: Queries,
        before: Tensor,
        scored: list[Picture],
        sizes: Sequence[tuple[int, float]],
        goal: Goal | None,
    ) -> dict[str, Any]:
        """``rows``, one per picture, and whatever else a part of the run folder is to keep."""
        ...


def craft(
    plan: Plan,
    folder: RunFolder,
    split: Split,
    scorers: Sequence[Looker],
    missing: Mapping[int, list[Job]],
    shown: tqdm[Any],
) -> None:
    """Do what is ``missing`` in the run folder, jobs by batch (`Agenda.missing`).

    The first of ``scorers`` is attacked, the others score the same pictures. A stop at any moment
    loses at most one batch of the jobs that climb together, and what is on its way to the disk.
    ``shown`` is told of every part that is committed.

    Raises:
        UturnError: a picture cannot be read or written, or is not within its budget.
    """
    cut = batches(plan, split)
    with behind() as pool:
        crafter = _Crafter(plan, folder, split, scorers, pool, shown, Portion(plan.batch_size))
        loaded = ahead(pool, crafter.load, (cut[number] for number in missing))
        for (number, jobs), (pictures, clean) in zip(missing.items(), loaded, strict=True):
            crafter.do(jobs, _Batch.look(number, cut[number], pictures, clean, scorers))
        crafter.settle(0)


@final
@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch of queries, and the features of the clean ones by every scorer."""

    number: int
    queries: Queries
    features: list[Tensor]

    @classmethod
    def look(
        cls,
        number: int,
        batch: range,
        pictures: Pictures,
        clean: list[Picture],
        scorers: Sequence[Looker],
    ) -> _Batch:
        """Through the victims, at the ``clean`` pictures of ``batch``."""
        labels = Labels.of(pictures, scorers[0].victim.device)
        queries = Queries(pictures, clean, labels, shown=sum(i < SHOWN for i in batch))
        return cls(number, queries, [scorer.look(clean) for scorer in scorers])

    @property
    def names(self) -> tuple[str, ...]:
        return self.queries.pictures.names


@final
@dataclass(eq=False)
class _Draft:
    """What a job has of a batch so far."""

    make: dict[int, Make]
    """Pictures to be written, by their position."""
    seconds: float = 0.0
    gradients: float = 0.0
    """Spent on all of them together; shared ones count for each only in part."""
    asked: dict[int, int] = field(default_factory=dict)
    """By position, how many pictures the system was asked."""
    prior_gradients: int = 0
    """Borrowed from another network for a picture, at the most."""
    climbed: dict[int, Row] = field(default_factory=dict)
    """By position, how the objective rose (`checks.climbed`), where one was climbed."""


@final
@dataclass(frozen=True, eq=False)
class _Group:
    """Jobs that climb together on a batch, with what each has of it."""

    members: list[tuple[Job, _Draft]]
    batch: _Batch
    goal: Goal | None
    amend: Callable[[Scores], None] | None


@final
@dataclass(frozen=True, eq=False)
class _File:
    """A picture as its file decodes, how far it is from the clean one, and the file's hash."""

    scored: Picture
    size: tuple[int, float]
    digest: str


@final
@dataclass(frozen=True, eq=False)
class _Written:
    """A batch of a job whose pictures are on their way to the disk."""

    job: Job
    batch: _Batch
    draft: _Draft
    goal: Goal | None
    amend: Callable[[Scores], None] | None
    """What there is to say beside what the scorers see."""
    files: Future[list[_File]]


@final
@dataclass(frozen=True, eq=False)
class _Crafter:
    """A plan with everything loaded, and what is under way."""

    plan: Plan
    folder: RunFolder
    split: Split
    scorers: Sequence[Looker]
    pool: Executor
    """Where files are coded, one batch after another."""
    shown: tqdm[Any]
    portion: Portion
    """How many pictures are attacked at a time."""
    pending: deque[_Written] = field(default_factory=deque)

    @property
    def attacked(self) -> Looker:
        """Whose gradients are used."""
        return self.scorers[0]

    # -- queries ----------------------------------------------------------------------------

    def load(self, batch: range) -> tuple[Pictures, list[Picture]]:
        """Decode a batch of queries and write the clean ones, which everything is held against."""
        victim, pictures = self.attacked.victim, self.split.query.subset(np.array(batch))

        def one(position: int) -> Picture:
            name, picture = pictures.names[position], pictures.read(position)
            self.folder.write_picture(Job(CLEAN, 0), name, victim.canvas(picture, self.plan.at))
            return decode(self.folder.picture(Job(CLEAN, 0), name))

        return pictures, threaded(one, range(len(pictures)))

    # -- crafting ---------------------------------------------------------------------------

    def do(self, jobs: list[Job], batch: _Batch) -> None:
        """Craft a batch of ``jobs``, and commit what is there."""
        for group in together(jobs):
            names = "+".join(dict.fromkeys(job.name for job in group))
            self.shown.set_postfix_str(names, refresh=False)
            if group[0].waits:
                self.settle(0)
            if group[0].members:
                self._worst(group[0], batch)
            elif group[0].attack is None:
                self._send(group[0], batch, _Draft({}))
            else:
                self._climb(group, batch)

    def _climb(self, jobs: list[Job], batch: _Batch) -> None:
        """Attack a batch by jobs that climb together; each is sent to disk when it is done."""
        kept = self._kept(jobs[0], batch)
        goal = self.attacked.insider.goal(
            jobs[0], batch.names, batch.queries.labels, batch.features[0]
        )
        amend = partial(_mark, kept) if jobs[0].weaker else None
        group = _Group([(job, _Draft(dict(kept))) for job in jobs], batch, goal, amend)
        attacked = [i for i in range(len(batch.names)) if i not in kept]
        for positions, images in by_shape(batch.queries.clean[i] for i in attacked):
            which = [attacked[position] for position in positions]
            self.portion.through(len(which), partial(self._attack, group, images, which))
        if not attacked:
            job, draft = group.members[0]
            self._send(job, batch, draft, goal, amend)

    def _attack(self, group: _Group, images: Tensor, which: list[int], part: range) -> None:
        """Attack the ``part`` of ``images``, which are those ``which`` of the batch."""
        batch, insider = group.batch, self.attacked.insider
        images, which = images[part.start : part.stop], which[part.start : part.stop]
        names = [batch.names[i] for i in which]
        # Where this is done again for want of memory, some had arrived before.
        members = [pair for pair in group.members if which[0] not in pair[1].make]
        goal = None if group.goal is None else replace(group.goal, chosen=group.goal.chosen[which])
        labels = batch.queries.labels[torch.tensor(which)]
        scene = insider.scene(members[0][0], names, labels, batch.features[0][which], goal)
        for shares in self._found([job for job, _ in members], images, scene, names):
            for share in shares:
                (job, draft), pictures = members[share.member], share.found.images.cpu()
                makes = (partial(self._picture, picture) for picture in pictures)
                draft.make |= dict(zip(which, makes, strict=True))
                draft.seconds += share.found.seconds
                draft.gradients += share.gradients * len(which)
                draft.asked |= dict(zip(which, share.found.asked.tolist(), strict=True))
                draft.climbed |= dict(zip(which, checks.climbed(share.found), strict=False))
                draft.prior_gradients = max(draft.prior_gradients, share.found.prior_gradients)
                if len(draft.make) == len(batch.names):
                    self._send(job, batch, draft, group.goal, group.amend)
            self.settle(IN_FLIGHT)

    def _found(
        self, jobs: list[Job], images: Tensor, scene: Scene, names: Sequence[str]
    ) -> Iterator[list[Share]]:
        victim, seed = self.attacked.victim, self.plan.seed + jobs[0].repeat
        climbing = [job.attack for job in jobs if isinstance(job.attack, Attack)]
        asking = [job.attack for job in jobs if isinstance(job.attack, BlackBox)]
        if climbing:
            yield from attack_together(climbing, victim, images, scene, names=names, seed=seed)
        elif asking:
            yield from asked_together(asking, victim, images, scene, names=names, seed=seed)
        elif jobs[0].attack:
            found = jobs[0].attack(victim, images, scene, names=names, seed=seed)
            yield [Share(0, found, found.gradients)]

    def _picture(self, image: Tensor) -> Picture:
        picture = to_picture(image)
        return jpeg(picture, PAPER_QUALITY) if self.plan.mode == "paper" else picture

    def _kept(self, job: Job, batch: _Batch) -> dict[int, Make]:
        """By position, the pictures of a smaller ε at which a query was lost already."""
        if job.weaker is None:
            return {}
        firsts = [
            torch.tensor(
                [row["first_match_rank"] or torch.nan for row in part["scores"][0]["rows"]]
            )
            for part in (self.folder.part(of, batch.number) for of in (Job(CLEAN, 0), job.weaker))
        ]
        lost = metrics.attack_success(*firsts) == 1
        paths = [self.folder.picture(job.weaker, name) for name in batch.names]
        return {i: partial(decode, paths[i]) for i in lost.nonzero()[:, 0].tolist()}

    def _worst(self, job: Job, batch: _Batch) -> None:
        """Per query the member's picture that is worst for the attacked ranking, scored again.

        Worst is the latest first match, and among equals the least average precision. What is
        reported of the attacked victim is the worst of any member by each measure, so that no
        number of this row is ever better than a member's. Other victims score the picture.
        """
        parts = [self.folder.part(member, batch.number) for member in job.members]
        by_query = list(zip(*(part["scores"][0]["rows"] for part in parts), strict=True))
        draft = _Draft({}, seconds=sum(part["seconds"] for part in parts))
        assert isinstance(self.attacked, Scorer)  # only sweeps have a worst
        precision = self.attacked.precision
        for position, rows in enumerate(by_query):
            damage = [(row["first_match_rank"] or 0, -(row[precision] or 0.0)) for row in rows]
            member = job.members[damage.index(max(damage))]
            path = self.folder.picture(member, rows[0]["query"])
            draft.make[position] = partial(decode, path)
        self._send(job, batch, draft, amend=partial(extremes, by_query))

    # -- files and scores ---------------------------------------------------------------------

    def _send(
        self,
        job: Job,
        batch: _Batch,
        draft: _Draft,
        goal: Goal | None = None,
        amend: Callable[[Scores], None] | None = None,
    ) -> None:
        """To disk, where the pictures are not there already, and back."""
        columns: list[Sequence[Any]] = [batch.names, batch.queries.clean]
        if draft.make:
            columns.append([draft.make[i] for i in range(len(batch.names))])
        files = self.pool.submit(threaded, partial(self._certified, job), *columns)
        self.pending.append(_Written(job, batch, draft, goal, amend, files))

    def _certified(self, job: Job, name: str, clean: Picture, make: Make | None = None) -> _File:
        """What a picture's file holds, once the picture is there."""
        if make is not None:
            self.folder.write_picture(job, name, make())
        scored = decode(self.folder.picture(job, name))
        lossy = self.plan.mode == "paper"  # JPEG keeps no budget; the row's flags say so
        size = checks.measure(job, name, clean, scored, lossy=lossy)
        return _File(scored, size, self.folder.digest(job, name))

    def settle(self, most: int) -> None:
        """Score and commit what is on disk; wait until no more than ``most`` are on their way."""
        while self.pending and (len(self.pending) > most or self.pending[0].files.done()):
            self._commit(self.pending[0])  # one that fails is not forgotten
            self.pending.popleft()

    def _commit(self, written: _Written) -> None:
        job, batch = written.job, written.batch
        files = written.files.result()
        scored, sizes = [file.scored for file in files], [file.size for file in files]
        scores: Scores = [
            scorer.score(batch.queries, before, scored, sizes, written.goal)
            for scorer, before in zip(self.scorers, batch.features, strict=True)
        ]
        if written.amend:
            written.amend(scores)
        draft = written.draft
        for score in scores:
            for position, row in enumerate(score["rows"]):
                row["asked"] = draft.asked.get(position, 0)
        for position, (file, row) in enumerate(zip(files, scores[0]["rows"], strict=True)):
            row["sha256"] = file.digest  # once is enough: who else scores sees the same file
            row |= draft.climbed.get(position, {})
        keys = ("seconds", "gradients", "prior_gradients")
        cost = {key: getattr(draft, key) for key in keys}
        self.folder.add_part(job, batch.number, {**cost, "scores": scores})
        self.shown.update((job.work + len(self.plan.transfer_to)) * len(batch.names))


def extremes(by_query: Sequence[Sequence[Row]], scores: Scores) -> None:
    """Put the worst of all members' values into the rows of the attacked victim."""
    for worst, rows in zip(scores[0]["rows"], by_query, strict=True):
        for key in worst:
            extreme = WORSE.get(re.split("[|@]", key)[0])
            if extreme and worst[key] is not None:
                worst[key] = extreme(row[key] for row in rows)


def _mark(kept: dict[int, Make], scores: Scores) -> None:
    """Say in every row whether the picture is that of a smaller ε."""
    for score in scores:
        for position, row in enumerate(score["rows"]):
            row["kept"] = position in kept
