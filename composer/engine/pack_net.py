"""Several networks of one architecture as one: what the executor asks of a `Net`, for all members at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composer.engine.net import Net
from composer.engine.pack_layers import Unpackable, put_packed

PROBED = 2                     # images a network that is packed and its members are compared on


@dataclass(frozen=True)
class Seats:
    """Where the members of a pack sit: `taken` the slot of each, `width` slots in all.

    A member that has gone leaves its slot, and the rest stay: what they compute does not change.
    """

    taken: tuple[int, ...]
    width: int

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """The members' values by slot; the first member's where nobody sits."""
        held = dict(zip(self.taken, values, strict=True))
        return [held.get(slot, values[0]) for slot in range(self.width)]


class PackedStats:
    """Running statistics [S, …] of all members; the members' own are its rows."""

    def __init__(self, members: Sequence[Any]):
        first = members[0]
        self.size, self.momentum = first.size, first.momentum
        self.flat = torch.stack([m.flat for m in members])
        self.count = torch.stack([m.count for m in members])

    def scratch(self) -> Tensor:
        return torch.zeros_like(self.flat)

    def write(self, batch: Tensor) -> None:
        """running = (1 - momentum) · running + momentum · batch, member by member"""
        self.flat.lerp_(batch, self.momentum)
        self.count.add_(1)


class PackedNet(Net):
    """The networks of `members`, as one that takes and gives rows [S·N, …], member by member.

    Afterwards the members' parameters and running statistics are views of the stacked ones: a member is saved, loaded, judged and projected as ever.
    Errors: Unpackable.

    seats   the member of each slot; one that has none is filled with the first member's numbers, which go their own way. None: in order, none free
    shape   of an image: what is packed is held against the members before it trains
    """

    def __init__(self, members: Sequence[Net], shape: tuple[int, ...] = (), seats: Seats | None = None):
        first = members[0]
        super().__init__(copy.deepcopy(first.model), first.device, seed=first.seed, precision=first.precision)
        self.seats = seats or Seats(tuple(range(len(members))), len(members))
        self.members = self.seats.spread(members)
        if self.random:
            raise Unpackable("the network has random layers, which draw for one run at a time")
        self.parameters = dict(put_packed(self.model, [m.model for m in self.members]))
        self._list = list(self.parameters.values())
        self.stats = PackedStats([m.stats for m in self.members]) if first.stats is not None else None  # type: ignore[assignment]
        self.projects, self._folds = False, True             # members project their own weights; nothing is folded here
        if self._head is not None:
            self._head = (self._head[0], first._head[1])     # type: ignore[index]
        self._adopt()
        if shape:
            self._probe(shape)

    def __len__(self) -> int:
        return len(self.members)

    def _adopt(self) -> None:
        """Let the members' tensors be views of the stacked ones."""
        for k in self.seats.taken:
            member = self.members[k]
            for name, p in member.parameters.items():
                p.data = self.parameters[name].data[k]
            if self.stats is None:
                continue
            flat, count = self.stats.flat[k], self.stats.count[k]
            member.stats.flat, member.stats.count = flat, count
            for place, layer in enumerate(_norms(member.model)):
                offset, n, size = layer.__dict__["span"]
                layer.running_mean, layer.running_var = flat[offset:offset + n], flat[size + offset:size + offset + n]
                layer.num_batches_tracked = count[place]
        if self.stats is not None:
            for layer in _norms(self.model):
                offset, n, size = layer.__dict__["span"]
                layer.running_mean, layer.running_var = self.stats.flat[:, offset:offset + n], self.stats.flat[:, size + offset:size + offset + n]

    def _probe(self, shape: tuple[int, ...]) -> None:
        """A network whose own code looks into its layers or mixes rows is found here, before it trains. `shape`: of an image."""
        name = type(self.members[0].model).__name__
        x = torch.rand((len(self) * PROBED, *shape), generator=torch.Generator().manual_seed(0)).to(self.device, self.dtype)
        for batch in (False, True):
            with torch.no_grad():
                alone = torch.cat([net(net.layout(part), batch=batch)[0] for net, part in zip(self.members, x.chunk(len(self)))])
                try:
                    here = self(self.layout(x), batch=batch)[0]
                except (RuntimeError, ValueError, TypeError, IndexError) as error:
                    raise Unpackable(f"the network {name} does not run with stacked weights ({str(error).splitlines()[0]})") from None
            sound = torch.isfinite(alone)
            if not torch.allclose(alone[sound], here[sound], rtol=1e-3, atol=1e-3):
                raise Unpackable(f"the network {name} computes something else with stacked weights")


def _norms(model: torch.nn.Module) -> list[Any]:
    """The batch norms under a scope, in the order of the statistics."""
    return [m for m in model.modules() if "span" in m.__dict__]
