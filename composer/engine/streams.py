"""Named random streams: every draw is a function of (seed, path, step), so a resumed run needs no generator state and two variants with
the same seed see the same noise, whatever else they draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from composer.seeds import stream_seed


class Streams:
    """Draws of one seed on one device. A generator is kept and reseeded before each draw (2 µs on a CPU)."""

    def __init__(self, seed: int, device: torch.device | str = "cpu"):
        self.seed, self.device = seed, torch.device(device)
        self._generator = torch.Generator(self.device)

    def generator(self, path: str, step: int | str = 0) -> torch.Generator:
        return self._generator.manual_seed(stream_seed(self.seed, path, step))

    def uniform(self, path: str, step: int | str, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [0,1)."""
        return torch.rand(shape, generator=self.generator(path, step), device=self.device)

    def gaussian(self, path: str, step: int | str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator(path, step), device=self.device)

    def permutation(self, path: str, step: int | str, n: int) -> Tensor:
        """A permutation of range(n), int64, drawn on the CPU so that every device sees the same order."""
        generator = torch.Generator().manual_seed(stream_seed(self.seed, path, step))
        return torch.randperm(n, generator=generator).to(self.device)

    def draw(self, kind: str, path: str, step: int | str, like: Tensor) -> Tensor:
        """The noise a primitive's need asks for (shapes.Shape.draw), shaped after the images `like`."""
        if kind == "uniform":
            return self.uniform(path, step, tuple(like.shape))
        if kind == "gaussian":
            return self.gaussian(path, step, tuple(like.shape))
        if kind == "rows":
            return self.uniform(path, step, (like.shape[0], 4))
        raise ValueError(f"unknown kind of draw: {kind}")


class Rows(Streams):
    """The same streams, seen by some rows of a batch: noise is drawn for the whole batch and cut, so it does not depend on how a batch is divided
    among micro-batches or workers.

    first stop   the rows of the batch that are seen here
    whole        rows of the batch
    """

    def __init__(self, streams: Streams, first: int, stop: int, whole: int):
        super().__init__(streams.seed, streams.device)
        self.first, self.stop, self.whole = first, stop, whole

    def draw(self, kind: str, path: str, step: int | str, like: Tensor) -> Tensor:
        batch = like[:1].expand(self.whole, *like.shape[1:])                  # only its shape is looked at
        return super().draw(kind, path, step, batch)[self.first:self.stop]
