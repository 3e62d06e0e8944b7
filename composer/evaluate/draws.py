"""Noise for attacks that does not depend on the batch size: image i's noise is a function of (seed, path, i) and its shape alone."""

from __future__ import annotations

import torch

from composer.seeds import stream_seed
from composer.shapes import Tensor

CHUNK = 64      # images drawn at a time; part of the definition of the noise, not a tuning knob


class Draws:
    """The random inputs of one measure: `rows(kind, path, rows, like)` gives the noise of some images, `seed(path, step)` a seed of its own.

    Drawn on the CPU, so that every device starts from the same points.
    """

    def __init__(self, seed: int, prefix: str):
        self._seed, self.prefix = seed, prefix

    @property
    def base(self) -> int:
        """The evaluation's own seed."""
        return self._seed

    def seed(self, path: str, step: int | str) -> int:
        return stream_seed(self._seed, f"{self.prefix}/{path}", step)

    def bits(self, path: str, rows: Tensor, words: int) -> Tensor:
        """[len(rows), words] int32 on the CPU: 32 fair coins a word, of each of the images `rows` (ascending) its own."""
        pieces = []
        for start in torch.unique(rows // CHUNK).tolist():
            generator = torch.Generator().manual_seed(self.seed(path, start * CHUNK))
            drawn = torch.randint(-2**31, 2**31, (CHUNK, words), generator=generator, dtype=torch.int32)
            pieces.append(drawn[rows[(rows >= start * CHUNK) & (rows < (start + 1) * CHUNK)] - start * CHUNK])
        return torch.cat(pieces)

    def rows(self, kind: str, path: str, rows: Tensor, like: Tensor) -> Tensor:
        """Noise of the images `rows` (ascending indices on the CPU), shaped after `like`; kind as in shapes.Shape.draw."""
        from composer.engine.streams import Streams

        streams = Streams(self._seed)
        pieces = []
        for start in torch.unique(rows // CHUNK).tolist():
            full = torch.empty(CHUNK, *like.shape[1:])
            drawn = streams.draw(kind, f"{self.prefix}/{path}", start * CHUNK, full)
            inside = rows[(rows >= start * CHUNK) & (rows < (start + 1) * CHUNK)] - start * CHUNK
            pieces.append(drawn[inside])
        return torch.cat(pieces).to(device=like.device, dtype=like.dtype)
