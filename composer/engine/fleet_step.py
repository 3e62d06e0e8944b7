"""One worker's part of a training step: its rows of the global batch, and what it takes to make that the step of the whole batch.

The sum of the terms is a mean over N images, so each worker divides what its rows sum to by N, and the workers' sums add up to the step's. What
couples rows goes over all workers: the mean of a normalised gain, the need of a coupled term (gathered), the gradient of an ascent over
weights. Draws are made for the global batch and cut (`streams.Rows`, `masks`). A part's memory is the same at every worker: it is read at one's own
rows, and its moments are given everybody's. Attacks on images need nobody else's rows, unless their terms are coupled or their batch norm is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from composer.engine.backend import Backend
from composer.engine.backend_compiled import FoldedExecutor
from composer.engine.climb import Env, Op
from composer.engine.fleet_feed import OwnRows
from composer.engine.fleet_group import Group
from composer.engine.fleet_norm import across
from composer.engine.meter import Meter
from composer.engine.net import Net
from composer.engine.step import Executor
from composer.engine.streams import Rows
from composer.inner.ascent import Ascent
from composer.plan.needs import has
from composer.plan.types import Call, InnerPlan, Plan, Read, Summand
from composer.registry import Need


class FleetExecutor(Executor):
    """Runs the programs of a plan on a worker's rows. Total and means are its summands of the global ones."""

    def __init__(self, plan: Plan, net: Net, parts: dict[str, Any], streams: Any, *, group: Group, nets: list[Net], **more: Any):
        self.group, self.nets = group, nets
        super().__init__(plan, net, parts, streams, **more)
        self.all_rows, self._whole = streams, {}

    @contextmanager
    def sharing(self, batch: OwnRows) -> Iterator[None]:
        """Within, the step is that of the batch's share: draws, masks and statistics are of the global batch."""
        share, group = batch.share, self.group
        group.share, group.stepping, self._whole = share, True, {"i": batch.all_i, "y": batch.all_y}
        self.streams = Rows(self.all_rows, share.first, share.stop, share.whole)
        for net in self.nets:
            net.see((share.first, share.stop, share.whole))
            net.scope.norm = across(group) if group.sync_bn else None
        try:
            yield
        finally:
            group.stepping, self.streams = False, self.all_rows
            for net in self.nets:
                net.see(None)
                net.scope.norm = None

    # -- means ---------------------------------------------------------------------------------------------------------------------

    def _mean(self, term: Summand, env: Env) -> Tensor:
        """This worker's summand of the mean over the global batch."""
        loss = env[term.loss]
        if term.gain:
            gain = env[term.gain]
            loss = (gain.detach() if term.detach_gain else gain) * loss
        return loss.sum() / self.group.share.weighed

    def _objective(self, inner: InnerPlan, env: Env) -> Tensor:
        if not inner.over_weights:
            return super()._objective(inner, env)
        return sum((self._weigh(t.weight, self._mean(t, env)) for t in inner.body.terms), start=0.0)  # type: ignore[return-value]

    def _gradients(self, objective: Tensor, leaves: dict[str, Any]) -> dict[str, Any]:
        found = super()._gradients(objective, leaves)
        if isinstance(leaves["point"], dict):
            found["point"] = {name: g.clone() for name, g in found["point"].items()}
            self.group.flat(list(found["point"].values()))
        return found

    def _climb(self, inner: InnerPlan, body: list[Op], base: Env) -> Callable[..., Ascent]:
        climb = super()._climb(inner, body, base)
        if not inner.over_weights:
            return climb

        def together(**points: Any) -> Ascent:
            found = climb(**points)
            return found._replace(objective=self.group.add(found.objective.clone()))

        return together

    # -- rows that depend on each other --------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> Op:
        flag, plain = self.registry.get(call.kind, call.use).flags.get("couples"), replace(call, normalise=False)
        run = self._gathered(plain) if has(flag, call.options) else super()._call(plain)
        if not call.normalise:
            return run
        out, group = call.out, self.group

        def normalised(env: Env) -> None:
            run(env)
            mean = group.mean(env[out])
            env[out] = env[out] / torch.where(mean == 0, torch.ones_like(mean), mean)

        return normalised

    def _gathered(self, call: Call) -> Op:
        """A coupled call on the global batch's tensors; its own rows go on.

        Where it differentiates its pass w.r.t. the image by itself (a Leaf), only rows of one's own have a pass to differentiate: others' are
        constants, which is exact for calls that take nothing from them but their number (`couples_by = "count"`).
        """
        primitive, group, options = self.registry.get(call.kind, call.use), self.group, self._options(call.options)
        gather = group.own_rows if any(need.leaf for need in primitive.needs) else group.all_rows
        needs = {need.name: need for need in primitive.needs}
        args = [(a.slot, a.detach, needs.get(a.need)) for a in call.args]

        def run(env: Env) -> None:
            here = group.share
            taken = []
            for slot, detach, need in args:
                value = env[slot].detach() if detach and isinstance(env[slot], Tensor) else env[slot]
                if (need and need.leaf) or not has_rows(need, value, here.rows):
                    taken.append(value)
                else:
                    taken.append(gather(value) if value.is_floating_point() else group.rows(value))
            told = {k: gather(v) if has_rows(None, v, here.rows) and v.is_floating_point() else v for k, v in options(env, None).items()}
            result = primitive.fn(*taken, **told)
            env[call.out] = result if result.shape[0] == here.rows else result[here.first:here.stop]

        return run

    # -- parts ---------------------------------------------------------------------------------------------------------------------

    def _read(self, read: Read) -> Op:
        """Parts whose memory goes by the place in the batch are told where these rows begin."""
        run, part, group = super()._read(read), self.parts[read.part], self.group
        if not hasattr(part, "offset"):
            return run

        def placed(env: Env) -> None:
            part.offset = group.share.first
            try:
                run(env)
            finally:
                part.offset = 0

        return placed

    def moments(self, when: str, env: Env) -> None:
        """After a step a part is given the rows of the global batch, so that its state stays the same at every worker."""
        if when == "after_step":
            env = dict(env)
            held: dict[str, Any] = dict(self._whole)
            for moment in self.plan.moments:
                if moment.when == when:
                    plan = next(p for p in self.plan.parts if p.id == moment.part)
                    needs = {n.name: n for n in self.registry.get("part", plan.use).method_needs(when)}
                    for arg in moment.args:
                        if arg.slot not in held:
                            held[arg.slot] = self._everybodys(env[arg.slot], needs.get(arg.need))
            env.update(held)
        super().moments(when, env)

    def _everybodys(self, value: Any, need: Need | None) -> Any:
        return self.group.rows(value) if has_rows(need, value, self.group.share.rows) else value


class FleetFolded(FleetExecutor, FoldedExecutor):
    """The same, its attacks in eval mode on the network prepared for a CPU."""


class FleetBackend(Backend):
    """Makes the executors of one worker: `eager`, or `folded` on a CPU."""

    def __init__(self, name: str, group: Group, nets: list[Net]):
        super().__init__(name)
        self.group, self.nets = group, nets

    def executor(self, plan: Plan, net: Any, parts: dict[str, Any], streams: Any, *, keep: frozenset[str] = frozenset(), tail: int = 0, **more: Any) -> Any:
        told = {"say": self.tell} if self.name == "folded" else {}
        return (FleetFolded if told else FleetExecutor)(plan, net, parts, streams, group=self.group, nets=self.nets, **told, **more)


def has_rows(need: Need | None, value: Any, rows: int) -> bool:
    """Whether a tensor has one row for each image: as its annotation says, else by its shape."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return False
    if need is not None and need.shape is not None and need.shape.dims:
        return need.shape.dims.startswith("[N") and value.shape[0] == rows
    return value.shape[0] == rows


class FleetMeter(Meter):
    """Sums over an epoch's images of this worker; read, they are those of all. Reading is done by all workers at once."""

    def __init__(self, plan: Plan, device: torch.device, group: Group):
        super().__init__(plan, device)
        self.group, self.all, self.steps = group, Meter(plan, device), 0

    def add(self, means: Tensor, env: dict[str, Any], y: Tensor, copies: int = 1) -> None:
        """`means` are summands of the global means, as FleetExecutor gives them."""
        self.steps += 1
        super().add(means * (self.group.share.weighed / y.shape[0]), env, y, self.group.share.copies)

    def fold(self) -> Meter:
        """All workers' sums, at every worker; the leader goes on from them, the others from zero."""
        self.all.load(super().state())
        self.group.add(self.all.sums)
        self.group.add(self.all.count)
        self.group.add(self.all.low, dist.ReduceOp.MIN)
        self.group.add(self.all.high, dist.ReduceOp.MAX)
        self._take(self.all.state())
        return self.all

    def read(self) -> dict[str, float]:
        """With what a step spent on exchanges, waiting for the slowest worker included; only where the host waits for them (gloo)."""
        waited = {"time/exchange_ms": 1000 * self.group.seconds / self.steps} if self.steps and self.sums.device.type == "cpu" else {}
        return self.fold().read() | waited

    def reset(self) -> None:
        super().reset()
        self.group.seconds, self.steps = 0.0, 0

    def broken(self) -> str:
        return self.fold().broken()

    def state(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.fold().state().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        self._take(state)

    def _take(self, state: dict[str, Tensor]) -> None:
        super().reset()
        if self.group.leads:
            for name, value in super().state().items():
                value.copy_(state[name])


__all__ = ["FleetBackend", "FleetExecutor", "FleetMeter", "has_rows"]
