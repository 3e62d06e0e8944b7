"""One worker's rows of every batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from composer.engine.feed import Batch
from composer.engine.fleet_group import Group, Share
from composer.engine.images import ahead
from composer.engine.streams import Rows
from composer.plan.needs import has
from composer.registry import REGISTRY


@dataclass
class OwnRows(Batch):
    """A worker's rows of a batch; the global batch's indices and labels besides, which parts are told after the step."""

    share: Share = field(default_factory=lambda: Share(0, 1, 1))
    all_i: Tensor = field(default_factory=lambda: torch.empty(0))
    all_y: Tensor = field(default_factory=lambda: torch.empty(0))


class Sliced:
    """A feed of which one worker sees its rows: only they are fetched and augmented, with their part of the numbers drawn for the global batch.

    Augmentations that mix images are made of the whole batch, and cut.
    """

    def __init__(self, feed: Any, group: Group, augment: tuple[Any, ...]):
        self._feed, self._group = feed, group
        self._mixes = any(has(REGISTRY.get("augment", use.use).flags.get("couples"), use.options) for use in augment)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def batches(self, epoch: int, step: int, first: int = 0) -> Iterator[OwnRows]:
        """As Feed.batches."""
        if self._mixes:
            return (self._cut(batch) for batch in self._feed.batches(epoch, step, first))
        return ahead(self._made(epoch, step, first), self._feed.device)

    def _made(self, epoch: int, step: int, first: int) -> Iterator[OwnRows]:
        feed = self._feed
        rows = feed._rows_of(epoch, first)
        shares = [self._group.shared(len(here)) for here, _ in rows]
        own = [(here[s.first:s.stop], there[s.first:s.stop]) for (here, there), s in zip(rows, shares)]
        for k, x in enumerate(feed.images.fetch(own, feed.batch_size)):
            share, plain = shares[k], feed.streams
            feed.streams = Rows(plain, share.first, share.stop, share.whole)
            try:
                batch = feed._batch(x, own[k][1], step + k)
            finally:
                feed.streams = plain
            yield OwnRows(**vars(batch), share=share, all_i=rows[k][1], all_y=feed.y[rows[k][1]])

    def _cut(self, batch: Batch) -> OwnRows:
        share = self._group.shared(len(batch.y))
        mine = {name: value[share.first:share.stop] if isinstance(value, Tensor) else value for name, value in vars(batch).items()}
        return OwnRows(**mine, share=share, all_i=batch.i, all_y=batch.y)


__all__ = ["OwnRows", "Sliced"]
