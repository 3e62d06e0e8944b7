"""Several runs in lockstep: seeds and cells of a small network trained together, so that the price of a call is paid once for all.

Their plans are one up to numbers (`pack_plans`).

Every member keeps its own streams, order, augmentation, parts, meter and checkpoints; its weights, momentum and running statistics are slices of
stacked tensors. Results equal those of the member alone to rounding, never bit for bit: the width of the pack stands in the members' keys.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor

from composer.engine.chain import Node
from composer.engine.dials import Clock, evaluate
from composer.engine.feed import Batch
from composer.engine.lock import Lock
from composer.engine.pack_layers import Unpackable
from composer.engine.pack_net import PackedNet
from composer.engine.pack_optim import clip_each, decay_at_perturbed, update_of
from composer.engine.pack_plans import OwnDial, merged
from composer.engine.pack_state import PackedMeter
from composer.engine.pack_step import PackedExecutor, couples
from composer.engine.peak import reset_peak
from composer.engine.train import Progress, Trainer, stopped
from composer.errors import Diverged
from composer.plan.types import Call, Plan
from composer.plan.whole import scheduled


def why_not(plan: Plan, parts: dict[str, Any]) -> str:
    """Why runs of this plan cannot be packed, as a sentence without its full stop; '' where they can."""
    programs = (plan.prelude, plan.outer, *(p for i in plan.inner for p in (i.preamble, i.body)))
    calls = [s for p in programs for s in p.steps if isinstance(s, Call)]
    coupled = next((c.path for c in calls if c.second_order and couples(c)), "")
    if coupled:
        return f"{coupled} differentiates twice and couples the rows of a batch"
    if any(a.slot == "model" for c in (*(s for p in programs for s in p.steps), *plan.inner, *(m for m in plan.moments if m.when == "after_step"))
           for a in c.args):
        return "a call asks for the network itself"
    weights = next((i for i in plan.inner if i.over_weights), None)
    if weights is not None and (weights.climbs != 1 or weights.forwards):
        return f"inner.weights ({weights.use}) looks at the loss more than once"
    trained = next((id for id, part in parts.items() if hasattr(part, "network") and part.network() is not None), "")
    return f"part '{trained}' trains a network of its own" if trained else ""


@dataclass(frozen=True)
class Absent:
    """What is to know of a member whose seat is free, as its trainer would say it."""

    recipe: Any
    plan: Plan
    values: dict[str, Any]
    clock: Callable[[int, int], Clock]

    @classmethod
    def of(cls, node: Node, clock: Callable[[int, int], Clock]) -> Absent:
        return cls(node.segment.recipe, node.plan, values_of(node), clock)


def values_of(node: Node) -> dict[str, Any]:
    """What schedules may follow, by path, as a stretch's trainer knows it."""
    return {**{d.path: d.ref for d in node.plan.dials}, **scheduled(node.segment.recipe)}


class Lockstep(Trainer):
    """One stretch of epochs for several members, whose trainers do everything that is not a step.

    members   trainers of the same stretch, at the same step; afterwards at its end, or in `lost` with the error that ended them
    net       of all of them; it says in which slots they sit
    absent    by slot: whose seat is free, where it would have had other numbers than the first member. They decide which calls are made member by
              member, so the others go on bit for bit
    """

    def __init__(self, members: Sequence[Trainer], net: PackedNet, absent: Mapping[int, Absent] | None = None):
        lead = members[0]
        self.members, self.slots, self.seats = list(members), net.seats.spread(members), net.seats.taken
        self.said: list[Any] = [t if slot in self.seats else (absent or {}).get(slot, t) for slot, t in enumerate(self.slots)]
        self.lost: dict[int, Diverged] = {}                    # place among the members -> why
        self.session, self.node, self.recipe, self.values = lead.session, lead.node, lead.recipe, lead.values
        self.net, self.feed, self.on_cpu = net, lead.feed, lead.on_cpu
        self.plan = merged([each.plan for each in self.said], [each.values for each in self.said])
        self.executor = PackedExecutor(self.plan, net, [t.parts for t in members], [t.session.streams for t in members],
                                       threats=[each.recipe.threat.eps for each in self.said])
        self.meter = PackedMeter([t.meter for t in members], net.seats)  # type: ignore[assignment]
        self.update = update_of(members, net, self.said)
        self.parameters = list(net.parameters.values())
        self.clip = self._clip()
        self._saved_at = time.monotonic()

    @property
    def alive(self) -> list[Trainer]:
        return [t for k, t in enumerate(self.members) if k not in self.lost]

    @property
    def progress(self) -> Progress:  # type: ignore[override]
        return (self.alive or self.members)[0].progress

    @property
    def hooks(self) -> Any:  # type: ignore[override]
        return (self.alive or self.members)[0].hooks

    # -- the loop ------------------------------------------------------------------------------------------------------------------

    def run_all(self, locks: Sequence[Lock]) -> None:
        """Train to the end of the stretch, all members that stay finite. Errors: Stopped, after every member was saved."""
        for t in self.members:
            t._check_steps()
        reset_peak(self.session.device)
        first, segment = self.progress, self.node.segment
        if first.judged < first.epoch and first.batch == 0 and first.epoch >= segment.first:
            self._each(methodcaller("_judge", first.epoch))
        for epoch in range(first.epoch + 1, segment.last + 1):
            self._epoch(epoch, locks)
            if not self.alive:
                return
            self._each(methodcaller("_check_finite", epoch))
            self._each(methodcaller("_end_epoch", epoch))
            if epoch == segment.last:
                if self.node.ends:
                    self._each(self._end_phase, epoch)
                self._save_all()
            self._each(methodcaller("_judge", epoch))
        self._save_all()

    def _epoch(self, epoch: int, locks: Sequence[Lock]) -> None:
        for batch in self.batches(epoch):
            at = time.monotonic()
            self._step(batch, epoch)
            taken = (time.monotonic() - at) / len(self.members)
            for t in self.alive:
                t._stepping, t._steps, t._images = t._stepping + taken, t._steps + 1, t._images + len(batch.y) // len(self.slots)
                t.progress.seconds += taken
            if self.alive:
                self.hooks.step_done(epoch, self.progress.batch, self.feed.steps)
            for lock in locks:
                lock.beat()
            if not self.alive:
                return
            self._between(epoch)

    def _between(self, epoch: int) -> None:
        """Between two steps: a wish to stop, a checkpoint that is due."""
        reason, due = self._asked()
        if not (reason or due):
            return
        self._each(methodcaller("_check_finite", epoch))
        self._save_all()
        if reason:
            raise stopped(reason, f"in epoch {epoch}, after step {self.progress.step}", "a checkpoint was written")

    def _each(self, do: Any, *more: Any) -> None:
        """For every member that is still there; one that diverges is there no more."""
        for k, t in enumerate(self.members):
            if k not in self.lost:
                try:
                    do(t, *more)
                except Diverged as error:
                    self.lost[k] = error

    def _end_phase(self, t: Trainer, epoch: int) -> None:
        t.executor.moments("phase_end", t._roots(epoch))
        t.net.project()

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The members' next batches, one behind the other."""
        p = self.progress
        feeds = [t.feed.batches(epoch, p.step, p.batch) for t in self.slots]
        for own in zip(*feeds, strict=True):
            soft = None if own[0].y_soft is None else torch.cat([b.y_soft for b in own])
            yield Batch(self.net.layout(torch.cat([b.x for b in own])), torch.cat([b.y for b in own]), torch.cat([b.i for b in own]), soft)

    # -- one step ------------------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch, epoch: int) -> None:
        ex = self.executor
        self._set_dials(epoch, self.progress.batch)
        totals, means, env = ex.forward(batch.roots(), self.progress.step)
        if self.on_cpu:
            self._look(totals, means, epoch)
        ex.forget(env, self.meter.reads)
        totals.sum().backward()
        if self.clip is not None:
            clip_each(self.parameters, self.clip)
        if self.recipe.optim.decay_at == "perturbed" and "weights" in env:
            decay_at_perturbed(self.update, self.net, env["weights"])
        self.update.step()
        for t in self.members:
            t.net.project()
        for p in self.parameters:
            p.grad = None
        ex.write_statistics(env)
        ex.after(env)
        ex.moments("after_step", env)
        self.meter.add(means, env, batch.y)
        for t in self.alive:
            t.progress.step += 1
            t.progress.batch += 1

    def _look(self, totals: Tensor, means: Tensor, epoch: int) -> None:
        """Members whose loss is not finite are lost; their slices go on beside the others', to no effect."""
        if math.isfinite(totals.detach().sum().item()):
            return
        finite = torch.isfinite(totals.detach()).tolist()
        for k, (t, slot) in enumerate(zip(self.members, self.seats, strict=True)):
            if not finite[slot] and k not in self.lost:
                try:
                    t._diverged(means[:, slot], epoch)
                except Diverged as error:
                    self.lost[k] = error

    def _set_dials(self, epoch: int, batch: int) -> None:
        """Schedules of all, and of each member's own."""
        for dial in self.plan.dials:
            t, path = (self.said[dial.slot], dial.plain) if isinstance(dial, OwnDial) else (self.members[0], dial.path)
            self.executor.numbers.set(dial.path, evaluate(dial.ref, t.clock(epoch, batch), t.values.__getitem__, path=path))
        self.update.tune(epoch, batch)

    def _clip(self) -> float | Tensor | None:
        """The largest norm of a gradient: one for all or none, or each member's own [S]."""
        limits = [each.recipe.optim.clip for each in self.said]
        if len(set(limits)) == 1:
            return limits[0]
        return torch.tensor([math.inf if limit is None else limit for limit in limits], dtype=self.net.dtype, device=self.net.device)

    # -- state ---------------------------------------------------------------------------------------------------------------------

    def _save_all(self) -> None:
        for k, (t, slot) in enumerate(zip(self.members, self.seats, strict=True)):
            if k not in self.lost:
                self.update.hand_back(t, slot)
                t.save()
        self._saved_at = time.monotonic()


__all__ = ["Lockstep", "Unpackable", "clip_each", "why_not"]
