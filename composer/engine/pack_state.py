"""What the members of a pack keep for themselves, under one name: streams, parts with their memory, meters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composer.engine.meter import Meter
from composer.engine.pack_net import Seats
from composer.engine.streams import Streams


class PackedStreams:
    """Every member's own draws, one behind the other."""

    def __init__(self, members: Sequence[Streams]):
        self.members = list(members)

    def draw(self, kind: str, path: str, step: int | str, like: Tensor) -> Tensor:
        parts = like.chunk(len(self.members))
        return torch.cat([streams.draw(kind, path, step, part) for streams, part in zip(self.members, parts, strict=True)])


class PackedPart:
    """The members' parts under one name; each is given its own rows. In a free slot stands what the first member's part says."""

    def __init__(self, members: Sequence[Any], seats: Seats):
        self.__dict__.update(members=list(members), seats=seats)

    def __setattr__(self, name: str, value: Any) -> None:
        for member in self.members:
            setattr(member, name, value)

    def tune(self, name: str, values: dict[int, Any]) -> None:
        """An option of the members in these slots."""
        for slot, member in zip(self.seats.taken, self.members, strict=True):
            if slot in values:
                setattr(member, name, values[slot])

    def read(self, *values: Any, **more: Any) -> dict[str, Tensor]:
        made = [part.read(*own, **more) for part, own in zip(self.members, self._apart(values), strict=True)]
        free = [{name: value.detach() for name, value in made[0].items()}] * self.seats.width      # its gradient must not reach the first member
        by_slot = {**dict(enumerate(free)), **dict(zip(self.seats.taken, made, strict=True))}
        return {name: torch.cat([each[name] for each in by_slot.values()]) for name in made[0]}

    def after_step(self, *values: Any, **more: Any) -> None:
        for part, own in zip(self.members, self._apart(values), strict=True):
            part.after_step(*own, **more)

    def _apart(self, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not values:
            return [()] * len(self.members)
        by_slot = list(zip(*(value.chunk(self.seats.width) for value in values), strict=True))
        return [by_slot[slot] for slot in self.seats.taken]


class PackedMeter:
    """The members' meters, filled together; theirs are rows of the sums here."""

    def __init__(self, members: Sequence[Meter], seats: Seats):
        self.points, self.radii, self.reads = members[0].points, members[0].radii, members[0].reads
        self.width = seats.width
        for name in ("sums", "count", "low", "high"):
            held = torch.stack(seats.spread([getattr(m, name) for m in members]))
            setattr(self, f"_{name}", held)
            for slot, member in zip(seats.taken, members, strict=True):
                setattr(member, name, held[slot])

    def add(self, means: Tensor, env: dict[str, Any], y: Tensor) -> None:
        """means [T,S], y [S·N]"""
        n = len(y) // self.width
        with torch.no_grad():
            found = [means.double().T]
            if self.points:
                found.append(torch.stack([(env[out].argmax(1) == y).double().view(self.width, n).mean(1) for _, out in self.points], 1))
            if self.radii:
                radii = torch.stack([env[slot] for _, slot in self.radii]).view(len(self.radii), self.width, n)
                found.append(radii.double().mean(2).T)
                self._low.copy_(torch.minimum(self._low, radii.amin(2).T))      # type: ignore[attr-defined]
                self._high.copy_(torch.maximum(self._high, radii.amax(2).T))    # type: ignore[attr-defined]
            self._sums.add_(torch.cat(found, 1), alpha=n)                       # type: ignore[attr-defined]
            self._count.add_(n)                                                 # type: ignore[attr-defined]
