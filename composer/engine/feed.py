"""Batches: bytes gathered by a seeded order, wherever they lie (`images`), scaled and augmented on the device. No worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from composer.engine.images import Resident, Streamed, ahead, place_of
from composer.engine.streams import Streams
from composer.recipe.types import Use
from composer.registry import REGISTRY, Registry


@dataclass
class Batch:
    x: Tensor
    y: Tensor
    i: Tensor
    y_soft: Tensor | None = None

    def roots(self) -> dict[str, Any]:
        return {"x": self.x, "y": self.y, "i": self.i} | ({} if self.y_soft is None else {"y_soft": self.y_soft})


class Feed:
    """The training rows of a data set in epochs of batches.

    Rows of an `extra` set fill a fixed fraction of every batch; an epoch is one pass over the rows of `train`. `i` is a row's place in train
    (extra rows follow behind). `path` stands before the names of its streams: a second reader of the same rows draws for itself.
    """

    def __init__(self, dataset: Any, rows: Tensor, *, batch_size: int, streams: Streams, augment: tuple[Use, ...] = (), keep_last: bool = True,
                 layout: Callable[[Tensor], Tensor] = lambda x: x, device: torch.device | str = "cpu", registry: Registry = REGISTRY,
                 path: str = "", data_on: str = "auto", held: dict[str, Any] | None = None):
        self.device, self.streams, self.layout, self.path = torch.device(device), streams, layout, path
        self.rows, self.data_on = rows.cpu(), data_on
        self.held = {} if held is None else held              # what lies on the device, shared by the feeds of a run
        extra = dataset.extra
        self.splits = [dataset.train] if extra is None else [dataset.train, extra]
        self.train_size, self.extra_size = len(dataset.train.y), 0 if extra is None else len(extra.y)
        self.scale, self.classes, self.batch_size = float(dataset.scale), dataset.classes, batch_size
        self.from_extra = _from_extra(dataset, batch_size)
        self.own = batch_size - self.from_extra
        self.steps = steps_in(dataset, len(rows), batch_size, keep_last)
        self.augment = [self._augmentation(use, registry) for use in augment]
        self.soft = any(soft for _, soft in self.augment)
        self._extra_orders: dict[int, Tensor] = {}

    @property
    def place(self) -> str:
        """Where the images lie: device, host or disk."""
        size = sum(split.x.numel() for split in self.splits)
        return place_of(self.data_on, size, any(getattr(split, "mapped", False) for split in self.splits), self.device)

    @property
    def images(self) -> Resident | Streamed:
        if "images" not in self.held:
            parts = [split.x for split in self.splits]
            self.held["images"] = Resident(parts, self.device) if self.place == "device" else Streamed(parts, self.device)
        return self.held["images"]

    @property
    def y(self) -> Tensor:
        """Labels of train and extra, on the device."""
        if "y" not in self.held:
            self.held["y"] = torch.cat([split.y for split in self.splits]).to(self.device)
        return self.held["y"]

    def batches(self, epoch: int, step: int, first: int = 0) -> Iterator[Batch]:
        """The batches of a (1-based) epoch of the run, from the given one on; `step` counts all steps before it."""
        return ahead(self._made(epoch, step, first), self.device)

    def _made(self, epoch: int, step: int, first: int) -> Generator[Batch]:
        rows = self._rows_of(epoch, first)
        for k, (x, (_, there)) in enumerate(zip(self.images.fetch(rows, self.batch_size), rows, strict=True)):
            yield self._batch(x, there, step + k)

    def _rows_of(self, epoch: int, first: int) -> list[tuple[Tensor, Tensor]]:
        """The rows of each batch, on the host and on the device (copied in one go)."""
        order = self.rows[self._order("data/order", epoch, len(self.rows))]
        here = [torch.cat([order[k * self.own:(k + 1) * self.own], *self._extra(epoch, k)]) for k in range(first, self.steps)]
        there = torch.cat(here).to(self.device).split([len(rows) for rows in here]) if here else ()
        return list(zip(here, there, strict=True))

    def _order(self, name: str, step: int, n: int) -> Tensor:
        return Streams(self.streams.seed).permutation(f"{self.path}{name}", step, n)

    def _batch(self, x: Tensor, rows: Tensor, step: int) -> Batch:
        x = self.layout(x.float().div_(self.scale))
        batch = Batch(x, self.y[rows], rows)
        if self.soft:
            batch.y_soft = F.one_hot(batch.y, self.classes).to(x.dtype)
        for apply, soft in self.augment:
            result = apply(batch, step)
            if soft:
                batch.x, batch.y_soft = result
            else:
                batch.x = result
        batch.x = self.layout(batch.x)
        return batch

    def _extra(self, epoch: int, k: int) -> tuple[Tensor, ...]:
        """The next rows of the extra set, in an order of their own that is redrawn when it has been used up."""
        if not self.from_extra:
            return ()
        first = ((epoch - 1) * self.steps + k) * self.from_extra
        places = torch.arange(first, first + self.from_extra)
        laps = places // self.extra_size
        held = {lap: self._extra_orders[lap] if lap in self._extra_orders else self._order("data/extra", lap, self.extra_size) for lap in laps.unique().tolist()}
        self._extra_orders = held
        return (torch.cat([order[places[laps == lap] % self.extra_size] for lap, order in held.items()]) + self.train_size,)

    def _augmentation(self, use: Use, registry: Registry) -> tuple[Callable[[Batch, int], Any], bool]:
        primitive = registry.get("augment", use.use)
        path = f"{self.path}augment.{use.id}"

        def apply(batch: Batch, step: int) -> Any:
            values = [self.streams.draw(n.draw, f"{path}.{n.name}", step, batch.x) if n.draw else getattr(batch, n.name) for n in primitive.needs]
            return primitive.fn(*values, **use.options)

        return apply, bool(primitive.flags.get("soft"))


def steps_in(dataset: Any, rows: int, batch_size: int, keep_last: bool) -> int:
    """Steps of an epoch over so many rows of train."""
    own = batch_size - _from_extra(dataset, batch_size)
    return -(-rows // own) if keep_last else rows // own


def _from_extra(dataset: Any, batch_size: int) -> int:
    """Rows of a batch that come from the extra set."""
    return round(batch_size * dataset.extra_fraction) if dataset.extra is not None else 0
