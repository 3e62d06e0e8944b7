"""Batches: uint8 on the device, gathered by a seeded order, augmented there. No worker processes for sets that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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
                 path: str = ""):
        self.device, self.streams, self.layout, self.path = torch.device(device), streams, layout, path
        self.rows = rows.to(self.device)
        extra = dataset.extra
        self.x = torch.cat([dataset.train.x, extra.x]).to(self.device) if extra is not None else dataset.train.x.to(self.device)
        self.y = torch.cat([dataset.train.y, extra.y]).to(self.device) if extra is not None else dataset.train.y.to(self.device)
        self.train_size, self.extra_size = len(dataset.train.y), 0 if extra is None else len(extra.y)
        self.scale, self.classes, self.batch_size = float(dataset.scale), dataset.classes, batch_size
        self.from_extra = _from_extra(dataset, batch_size)
        self.own = batch_size - self.from_extra
        self.steps = steps_in(dataset, len(rows), batch_size, keep_last)
        self.augment = [self._augmentation(use, registry) for use in augment]
        self.soft = any(soft for _, soft in self.augment)

    def batches(self, epoch: int, step: int, first: int = 0) -> Iterator[Batch]:
        """The batches of a (1-based) epoch of the run, from the given one on; `step` counts all steps before it."""
        order = self.rows[self.streams.permutation(f"{self.path}data/order", epoch, len(self.rows))]
        for k in range(first, self.steps):
            yield self.batch(order[k * self.own:(k + 1) * self.own], step + k - first, epoch, k)

    def batch(self, rows: Tensor, step: int, epoch: int, k: int) -> Batch:
        if self.from_extra:
            rows = torch.cat([rows, self._extra(epoch, k)])
        x = self.layout(self.x[rows].float().div_(self.scale))
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

    def _extra(self, epoch: int, k: int) -> Tensor:
        """The next rows of the extra set, in an order of their own that is redrawn when it has been used up."""
        first = ((epoch - 1) * self.steps + k) * self.from_extra
        found = []
        for at in range(first, first + self.from_extra):
            found.append((at // self.extra_size, at % self.extra_size))
        orders = {lap: self.streams.permutation(f"{self.path}data/extra", lap, self.extra_size) for lap in {lap for lap, _ in found}}
        return torch.stack([orders[lap][at] for lap, at in found]) + self.train_size

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
