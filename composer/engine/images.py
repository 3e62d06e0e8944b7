"""Where the training images lie, and how a batch's rows come to the device.

    device   all of them, as bytes, on the device: a batch is one gather there
    host     in the host's memory: rows are gathered into pinned memory and copied
    disk     in a file that is mapped (composer.data.mapped): as host, and only what is touched is ever read

The rows of the next batch are fetched by one thread while a step runs, where they do not lie on the device; on CUDA everything else of the next batch
(copy, scaling, augmentation) runs on a stream of its own. Which rows, and every random number, depend on (seed, path, step) alone, so none of this
moves a bit.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

SHARE = 4                # a set is kept on a CUDA device where it takes at most one part in so many of its memory
RING = 3                 # pinned buffers: one is filled, one copied, one waits


def place_of(asked: str, size: int, mapped: bool, device: torch.device) -> str:
    """`device`, `host` or `disk` for images of so many bytes; `mapped`: their loader has put them on disk."""
    if device.type != "cuda":
        return "disk" if mapped else "device"                # the host's memory is the device's
    fits = size * SHARE <= torch.cuda.get_device_properties(device).total_memory
    if asked == "device" or (asked == "auto" and fits):
        return "device"
    return "disk" if mapped else "host"


class Resident:
    """All images on the device."""

    def __init__(self, parts: list[Tensor], device: torch.device):
        self.x = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(device)

    def fetch(self, rows: Iterable[tuple[Tensor, Tensor]], most: int) -> Iterator[Tensor]:
        """For each batch's rows (on the host, on the device): its images, uint8 [n,C,H,W], on the device. No batch has more than `most`."""
        for _, there in rows:
            yield self.x[there]


class Streamed:
    """Images in the host's memory or in a mapped file, of one split or of two; row numbers run through both."""

    def __init__(self, parts: list[Tensor], device: torch.device):
        self.parts, self.device = [part.numpy() for part in parts], device
        self.first = len(parts[0])                            # rows of the first

    def fetch(self, rows: Iterable[tuple[Tensor, Tensor]], most: int) -> Iterator[Tensor]:
        """As Resident.fetch; the rows behind the ones that are handed out are being gathered meanwhile."""
        ring = self._ring(most)
        with ThreadPoolExecutor(1) as thread:
            waiting: tuple[Future[Tensor], int] | None = None
            for k, (here, _) in enumerate(rows):
                following = (thread.submit(self._gather, here, self._free(ring, k, len(here))), k)
                if waiting is not None:
                    yield self._there(ring, *waiting)
                waiting = following
            if waiting is not None:
                yield self._there(ring, *waiting)

    def _ring(self, most: int) -> list[tuple[Tensor, Any]]:
        """Pinned buffers, each with the event of its last copy; none where no copy is made."""
        if self.device.type != "cuda":
            return []
        shape = (most, *self.parts[0].shape[1:])
        return [(torch.empty(shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(RING)]

    def _free(self, ring: list[tuple[Tensor, Any]], k: int, n: int) -> Tensor:
        """Memory for n images. The thread itself makes no call to CUDA: a graph may be being captured."""
        if not ring:
            return torch.empty((n, *self.parts[0].shape[1:]), dtype=torch.uint8)
        buffer, copied = ring[k % RING]
        copied.synchronize()                                  # three batches ago
        return buffer[:n]

    def _gather(self, rows: Tensor, out: Tensor) -> Tensor:
        import numpy as np

        index, target = rows.numpy(), out.numpy()
        own = int((index < self.first).sum())                 # rows of the first split stand before those of the second
        np.take(self.parts[0], index[:own], axis=0, out=target[:own], mode="clip")
        if own < len(index):
            np.take(self.parts[1], index[own:] - self.first, axis=0, out=target[own:], mode="clip")
        return out

    def _there(self, ring: list[tuple[Tensor, Any]], gathered: Future[Tensor], k: int) -> Tensor:
        x = gathered.result()
        if not ring:
            return x
        there = x.to(self.device, non_blocking=True)
        ring[k % RING][1].record()
        return there


def ahead(made: Generator[Any], device: torch.device) -> Iterator[Any]:
    """The same batches, each made on a stream of its own while the step before it runs; on a CPU as they are.

    `made` gives objects whose tensors are attributes. A batch is handed out when the step's stream waits for it.
    """
    if device.type != "cuda":
        yield from made
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))

    def prepare() -> tuple[Any, Any]:
        with torch.cuda.stream(side):
            return next(made, None), side.record_event()

    try:
        batch, ready = prepare()
        while batch is not None:
            following = prepare()
            main = torch.cuda.current_stream(device)
            main.wait_event(ready)
            for value in vars(batch).values():
                if isinstance(value, Tensor):
                    value.record_stream(main)                 # its memory is the side stream's: it may not be used again before the step is done
            yield batch
            batch, ready = following
    finally:
        made.close()
