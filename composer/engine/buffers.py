"""Tensors that stay where they are: a recorded step reads its inputs from them and leaves its outputs in them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Buffers:
    """Copies of a step's inputs at fixed addresses, by name. `load` fills them; shapes and layouts never change."""

    def __init__(self, values: dict[str, Tensor]):
        self.held = {name: value.detach().clone() for name, value in values.items()}

    def load(self, values: dict[str, Tensor]) -> None:
        for name, held in self.held.items():
            held.copy_(values[name], non_blocking=True)


class Unchanged:
    """What a rehearsal may write and must not: batch norm's running statistics, put back at the end."""

    def __init__(self, stats: Any):
        self.tensors = [] if stats is None else [stats.flat, stats.count]

    def __enter__(self) -> None:
        self._before = [t.clone() for t in self.tensors]

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for tensor, before in zip(self.tensors, self._before, strict=True):
                tensor.copy_(before)


def shapes(values: dict[str, Tensor]) -> tuple[Any, ...]:
    """What two batches must share to be served by one recording."""
    return tuple((name, tuple(v.shape), v.stride(), v.dtype) for name, v in values.items())
