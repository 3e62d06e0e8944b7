"""Training on several workers in lockstep: a leader, which keeps the store and the record as a run on one worker does, and followers, which know
neither. The leader sends its state once a stretch; from then on every worker takes the same steps on its rows of the same batches.

Gradients are summed by one exchange of all of them after the backward. Why not DistributedDataParallel: a step makes several forwards of one
module, through overlays of its weights and with parameters taken off the tape for the attack, before its one backward, which DDP's hooks do not
follow; and there is little to hide, since ten attack steps without any exchange stand before each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from composer.engine import masks
from composer.engine.checkpoint import Saved
from composer.engine.fleet_feed import OwnRows, Sliced
from composer.engine.fleet_group import Group
from composer.engine.fleet_step import FleetBackend, FleetMeter
from composer.engine.net import Net
from composer.engine.run import Recorded, Runner
from composer.engine.session import Node, Session, Settings
from composer.engine.train import Progress, Trainer
from composer.errors import ComposerError
from composer.plan.needs import has
from composer.plan.types import Call, Plan
from composer.plan.whole import place
from composer.registry import REGISTRY

REASONS = ("", "Ctrl-C", "SIGTERM")


class FleetSession(Session):
    """The built run at one worker."""

    def __init__(self, recipe: Any, seed: int, settings: Settings, group: Group):
        self.group, self.nets = group, []
        super().__init__(recipe, seed, settings)
        self.backend = FleetBackend(self.backend.name, group, self.nets)
        self._joins(self.net)
        if kinds := masks.indivisible(self.net.random):
            raise ComposerError(f"{', '.join(kinds)} cannot draw for a part of a batch", where=place(recipe)("model"), fix="leave out --workers")
        for node in self.nodes:
            check(node.plan, node.segment.recipe, group.world)

    def network(self, part: str, spec: Any = None, *, checkpoint: str | None = None, trains: bool = True) -> Net:
        return self._joins(super().network(part, spec, checkpoint=checkpoint, trains=trains))

    def _joins(self, net: Net) -> Net:
        if net.stats is not None:
            net.stats.together = self.group.statistics
        self.nets.append(net)
        return net


def check(plan: Plan, recipe: Any, workers: int) -> None:
    """Errors: ComposerError for what cannot be divided among so many workers."""
    size = recipe.train.batch_size
    if size < 2 * workers:
        raise ComposerError(f"--workers {workers} with train.batch_size = {size}", where=place(recipe)("train.batch_size"),
                            why="each worker needs two images of a batch at least", fix=f"--workers {max(1, size // 2)}, or a larger batch")
    coupled = [f"inner.{inner.id}" for inner in plan.inner if REGISTRY.get("inner", inner.use).flags.get("couples")]
    coupled += [f"parts.{part.id}" for part in plan.parts if REGISTRY.get("part", part.use).flags.get("couples")]
    programs = (plan.prelude, plan.outer, *(p for inner in plan.inner for p in (inner.preamble, inner.body)))
    coupled += [step.path for p in programs for step in p.steps if isinstance(step, Call) and _tangled(step)]
    if coupled:
        raise ComposerError(f"{', '.join(dict.fromkeys(coupled))} cannot be divided among workers", where="--workers",
                            why="what it does to an image depends on the other images of the batch", fix="leave out --workers, or drop it")


def _tangled(call: Call) -> bool:
    """A term that couples rows and differentiates its pass w.r.t. them by itself: others' rows have no pass at this worker."""
    primitive = REGISTRY.get(call.kind, call.use)
    leaf = any(need.leaf for need in primitive.needs)
    return leaf and has(primitive.flags.get("couples"), call.options) and primitive.flags.get("couples_by") != "count"


class FleetTrainer(Trainer):
    """One stretch at one worker."""

    session: FleetSession

    def __init__(self, session: FleetSession, node: Node, progress: Progress, parts: dict[str, Any], optimizer: torch.optim.Optimizer, hooks: Any):
        super().__init__(session, node, progress, parts, optimizer, hooks)
        self.group = group = session.group
        self.feed: Any = Sliced(self.feed, group, self.recipe.augment)
        self.meter = FleetMeter(node.plan, session.device, group)

    def run(self, lock: Any) -> None:
        """Errors: as Trainer.run, at every worker alike."""
        if self.group.leads:
            self._send()
        super().run(lock)

    def _send(self) -> None:
        """Where training stands, to the followers."""
        segment, saved = self.node.segment, self.state(alone=True)
        self.group.tell({"stretch": [segment.first, segment.last, self.node.ends], "facts": saved.facts})
        self.group.hand(saved.tensors)

    # -- a step --------------------------------------------------------------------------------------------------------------------

    def _step(self, batch: OwnRows, epoch: int) -> None:
        with self.executor.sharing(batch):
            super()._step(batch, epoch)
        self._images += batch.share.whole - len(batch.y)

    def _backward(self, total: Tensor) -> None:
        """The gradient of the global batch at every worker: the sum of the workers' gradients of their summands of the mean."""
        super()._backward(total)
        self.group.flat([p.grad for p in self.parameters if p.grad is not None])

    def _check_loss(self, total: Tensor, means: Tensor, epoch: int) -> None:
        if self.on_cpu:
            told = self.group.add(torch.cat([total.detach().view(1).double(), means.double()]))
            super()._check_loss(told[0], told[1:], epoch)

    def _asked(self) -> tuple[str, bool]:
        """What one worker is asked, all do; the leader's clock says when a checkpoint is due."""
        reason, due = super()._asked()
        number = REASONS.index(reason) if reason in REASONS else REASONS.index("SIGTERM")
        number, at = self.group.agree(number, due and self.group.leads)
        return REASONS[number], bool(at)

    # -- once in a while -----------------------------------------------------------------------------------------------------------

    def _end_epoch(self, epoch: int) -> None:
        super()._end_epoch(epoch)
        self.group.align([*self.net.model.state_dict().values(), *(v for part in self.parts.values() for v in part.state_dict().values())])

    def _judge(self, epoch: int) -> None:
        """The leader validates; the others wait for it."""
        if self.group.leads:
            super()._judge(epoch)
        else:
            self.meter.read()
            self.meter.reset()
            self.progress.judged = epoch
        self.group.meet()

    def save(self) -> None:
        """The leader writes; the others wait, so that nobody ends before the checkpoint is there."""
        if self.group.leads:
            super().save()
        else:
            self.meter.fold()
            self._saved_at = time.monotonic()
        self.group.meet()

    def state(self, *, alone: bool = False) -> Saved:
        """`alone`: without the meter, whose sums the workers would have to put together."""
        if not alone:
            return super().state()
        meter, self.meter = self.meter, SimpleNamespace(state=dict)  # type: ignore[assignment]
        try:
            return super().state()
        finally:
            self.meter = meter


# -- the two roles -----------------------------------------------------------------------------------------------------------------------


class LeadWalk(Recorded):
    """The way of a tracked run, followed by others."""

    def trainer(self, node: Node, progress: Progress, parts: dict[str, Any]) -> Trainer:
        return FleetTrainer(self.session, node, progress, parts, self.session.optimizer(node.segment, parts), self)  # type: ignore[arg-type]

    def train(self) -> Trainer:
        trainer = super().train()
        self.session.group.tell(None)  # type: ignore[attr-defined]
        return trainer


class LeadRunner(Runner):
    """A run whose training others follow. `live` takes the place of the display."""

    def __init__(self, group: Group, live: Callable[..., Any], *arguments: Any):
        super().__init__(*arguments)
        self.group, self.display = group, live

    def _session(self) -> Session:
        return FleetSession(self.recipe, self.seed, self.settings, self.group)

    def _walk(self) -> Recorded:
        return LeadWalk(self)

    def _result(self, trainer: Trainer, *rest: Any) -> dict[str, Any]:
        """With how many workers, and how fast they were."""
        return super()._result(trainer, *rest) | {"workers": facts_of(self.group, self.session)}


def facts_of(group: Group, session: Session) -> dict[str, Any]:
    """For the record: medians over the epochs."""
    from composer import atomic

    rows = [row for node in session.nodes for row in atomic.read_lines(node.folder / "metrics.jsonl")]

    def middle(name: str) -> float | None:
        found = sorted(row[name] for row in rows if row.get(name))
        return round(found[len(found) // 2], 3) if found else None

    return {"n": group.world, "exchange": torch.distributed.get_backend(), "sync_bn": group.sync_bn, "images_per_s": middle("time/images_per_s"),
            "step_ms": middle("time/step_ms"), "exchange_ms": middle("time/exchange_ms")}


class Follower:
    """A worker that does what the leader sends until there is no more. Also its trainers' hooks, which have nothing to tell."""

    def __init__(self, session: FleetSession, stop: Callable[[], str]):
        self.session, self.stop = session, stop

    def follow(self) -> None:
        while order := self.session.group.tell():
            node = self._node(*order["stretch"])
            parts = self.session.parts(node, {})
            trainer = FleetTrainer(self.session, node, Progress(), parts, self.session.optimizer(node.segment, parts), self)
            trainer.restore(Saved(self.session.group.hand(), order["facts"]), meter=False)
            trainer.progress = Progress(**order["facts"]["progress"])
            trainer.run(SimpleNamespace(beat=lambda: None))

    def _node(self, first: int, last: int, ends: bool) -> Node:
        """The stretch as the leader has it: it may have been cut where another run's epochs were taken over."""
        node = next(n for n in self.session.nodes if n.segment.first <= first and last <= n.segment.last)
        return replace(node, segment=replace(node.segment, first=first, last=last), ends=ends)

    def stop_asked(self) -> str:
        return self.stop()

    def step_done(self, epoch: int, batch: int, steps: int) -> None:
        """Nobody is told."""


__all__ = ["FleetSession", "FleetTrainer", "Follower", "LeadRunner", "check"]
