"""The workers of one data-parallel run, as each of them sees the others: sums, gathered rows, agreements. Only torch.distributed, no Ray.

Every exchange is a sum. A gather is the sum of blocks that are zero outside of one's own rows, so values arrive as they left, and one operation
with one derivative (the sum again) serves batch statistics, means and gathered rows, to any order of differentiation.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(days=2)      # workers wait for the leader's validation; one that has died is noticed by its closed connection


class PeerLost(RuntimeError):
    """An exchange failed: another worker is gone."""


@dataclass(frozen=True)
class Share:
    """One worker's rows of a global batch.

    first stop   its rows
    whole        rows of the global batch
    copies       1; or the number of workers, where the batch is too small to be divided and every one of them computes all of it
    """

    first: int
    stop: int
    whole: int
    copies: int = 1

    @property
    def rows(self) -> int:
        return self.stop - self.first

    @property
    def weighed(self) -> int:
        """Rows over all workers: what sums over them are divided by for a mean over the batch."""
        return self.whole * self.copies


def share(whole: int, rank: int, world: int) -> Share:
    """Rows of a batch for a worker: runs of consecutive rows, as even as can be. Each worker gets two rows at least, or all of them get all."""
    if whole < 2 * world:
        return Share(0, whole, whole, world)
    return Share(rank * whole // world, (rank + 1) * whole // world, whole)


class Group:
    """All workers of a run, seen from the one with number `rank` of `world`; number 0 leads."""

    def __init__(self, *, sync_bn: bool = False):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.sync_bn = sync_bn
        self.control: Any = dist.new_group(backend="gloo", timeout=PATIENCE)      # for plain facts, so that no device is waited for
        self.share = Share(0, 1, 1)                                               # of the step that is running
        self.stepping = False                                                     # outside of steps all workers compute the same
        self.seconds = 0.0                                                        # spent in exchanges of steps; where a device does not wait, only in asking

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def shared(self, whole: int) -> Share:
        return share(whole, self.rank, self.world)

    # -- numbers -------------------------------------------------------------------------------------------------------------------

    def add(self, value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Sum over all workers, in place. Errors: PeerLost."""
        began = time.perf_counter()
        try:
            dist.all_reduce(value, op)
        except RuntimeError as error:
            raise PeerLost(str(error).splitlines()[0]) from error
        self.seconds += time.perf_counter() - began if self.stepping else 0.0
        return value

    def total(self, value: Tensor) -> Tensor:
        """Sum over all workers, differentiable."""
        return _Sum.apply(value, self)  # type: ignore[no-any-return]

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the rows of the global batch of what each worker has for its own, [n] -> [], differentiable."""
        return self.total(value.sum()) / self.share.weighed

    def rows(self, value: Tensor) -> Tensor:
        """[n, …] of each worker -> [N, …] of the global batch, without gradient."""
        if self.share.copies > 1:
            return value.detach()
        blank = torch.zeros((self.share.whole, *value.shape[1:]), device=value.device, dtype=torch.uint8 if value.dtype == torch.bool else value.dtype)
        blank[self.share.first:self.share.stop] = value.detach()
        return self.add(blank).to(value.dtype)

    def all_rows(self, value: Tensor) -> Tensor:
        """[n, …] of each worker -> [N, …], differentiable: what any worker makes of these rows sends gradient back to their owner."""
        if self.share.copies > 1:
            return value
        return self.total(self._between(value, torch.zeros_like(value[:1])))

    def own_rows(self, value: Tensor) -> Tensor:
        """[n, …] -> [N, …]: gradient runs through one's own rows, others' are constants."""
        if self.share.copies > 1:
            return value
        others = self.rows(value)
        return torch.cat([others[:self.share.first], value, others[self.share.stop:]])

    def _between(self, value: Tensor, blank: Tensor) -> Tensor:
        before, behind = self.share.first, self.share.whole - self.share.stop
        return torch.cat([blank.expand(before, *value.shape[1:]), value, blank.expand(behind, *value.shape[1:])])

    def flat(self, values: list[Tensor]) -> None:
        """Sum each of these over all workers, in place: one exchange for each type of number."""
        for kind in dict.fromkeys(v.dtype for v in values):
            held = [v for v in values if v.dtype == kind]
            one = self.add(torch.cat([v.reshape(-1) for v in held]))
            with torch.no_grad():
                torch._foreach_copy_(held, [part.view(v.shape) for part, v in zip(one.split([v.numel() for v in held]), held)])

    def statistics(self, batch: Tensor) -> Tensor:
        """Batch statistics of all workers: their mean, each weighted by its rows. With sync_bn they are equal already."""
        if not self.stepping or self.sync_bn:
            return batch
        return self.add(batch.detach() * (self.share.rows / self.share.weighed))

    # -- facts ---------------------------------------------------------------------------------------------------------------------

    def agree(self, *numbers: int) -> list[int]:
        """The largest of each over all workers."""
        held = torch.tensor(numbers, dtype=torch.int64)
        self._control(dist.all_reduce, held, dist.ReduceOp.MAX)
        return held.tolist()

    def meet(self) -> None:
        """Wait for all workers."""
        self.agree(0)

    def tell(self, facts: Any = None) -> Any:
        """The leader's facts, at every worker (plain data)."""
        text = json.dumps(facts).encode() if self.leads else b""
        length = torch.tensor([len(text)])
        self._control(dist.broadcast, length, 0)
        body = torch.frombuffer(bytearray(text), dtype=torch.uint8) if self.leads else torch.empty(int(length), dtype=torch.uint8)
        self._control(dist.broadcast, body, 0)
        return json.loads(bytes(body.tolist()))

    def hand(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The leader's tensors, at every worker, on the CPU."""
        held = {k: v.detach().to("cpu").contiguous() for k, v in (tensors or {}).items()} if self.leads else {}
        listed = self.tell([[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in held.items()])
        found = {}
        for name, shape, kind in listed:
            value = held[name] if self.leads else torch.empty(shape, dtype=getattr(torch, kind))
            if value.numel():
                self._control(dist.broadcast, value.view(-1).view(torch.uint8), 0)
            found[name] = value
        return found

    def align(self, values: list[Tensor]) -> None:
        """Overwrite these with the leader's: on devices whose sums are not reproducible, replicas would drift apart by rounding."""
        for value in values:
            held = value if value.is_contiguous() else value.contiguous()
            try:
                dist.broadcast(held, 0)
            except RuntimeError as error:
                raise PeerLost(str(error).splitlines()[0]) from error
            if held is not value:
                with torch.no_grad():
                    value.copy_(held)

    def _control(self, exchange: Any, *arguments: Any) -> None:
        try:
            exchange(*arguments, group=self.control)
        except RuntimeError as error:
            raise PeerLost(str(error).splitlines()[0]) from error


class _Sum(torch.autograd.Function):
    """Sum over all workers. Whatever a worker makes of the sum depends on every summand, so its derivative is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return group.add(value.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grads[0].contiguous(), ctx.group), None


__all__ = ["Group", "PeerLost", "Share", "share"]
