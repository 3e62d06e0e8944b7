"""Random layers that see a part of a batch: masks are drawn for the whole batch and cut, so they do not depend on how it is divided.

A dropout multiplies its input by a mask, so the layer's own answer to a batch of ones is that mask, drawn by the layer itself from the generator
the pass has seeded; its rows times the input are what the undivided batch would have had there, bit for bit on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

AFFINE = (nn.AlphaDropout, nn.FeatureAlphaDropout)      # these add as well: a mask alone does not say what they do
Piece = tuple[int, int, int]                            # first row, the row behind the last, rows of the whole batch


class Shared:
    """What the random layers of one model know: which rows of the batch the pass now sees; None: all of it."""

    def __init__(self) -> None:
        self.piece: Piece | None = None


class _Divided:
    """Mixed into a random layer: its forward asks for the piece."""

    def forward(self: Any, x: Tensor) -> Tensor:
        shared: Shared = self.__dict__["shared"]
        if shared.piece is None or not self.training:
            return super().forward(x)  # type: ignore[misc]
        first, stop, whole = shared.piece
        joined = x.shape[0] // (stop - first)                                   # points that go through one forward, one behind the other
        ones = torch.ones((joined * whole, *x.shape[1:]), dtype=x.dtype, device=x.device)
        if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            ones = ones.contiguous(memory_format=torch.channels_last)          # a mask is filled in the order of memory
        masks = super().forward(ones)  # type: ignore[misc]
        return x * (masks[first:stop] if joined == 1 else torch.cat([each[first:stop] for each in masks.split(whole)]))


_classes: dict[type, type] = {}


def install(layers: list[nn.Module]) -> Shared:
    """Put these layers under one `Shared`; names and options stay."""
    shared = Shared()
    for layer in layers:
        plain = type(layer)
        if not issubclass(plain, _Divided) and not isinstance(layer, AFFINE):
            layer.__class__ = _classes.setdefault(plain, type("Divided" + plain.__name__, (_Divided, plain), {}))
        layer.__dict__["shared"] = shared
    return shared


def indivisible(layers: list[nn.Module]) -> list[str]:
    """Names of the kinds of layers that cannot draw for a part of a batch."""
    return sorted({type(layer).__name__ for layer in layers if isinstance(layer, AFFINE)})
