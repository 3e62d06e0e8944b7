"""What the plain loops share: the projected sign step, and batch norm's running statistics written twice, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def ascend(point: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float) -> Tensor:
    """A sign step, projected onto the box of radius eps around x, then onto [0,1]."""
    point = point.detach() + step_size * grad.sign()
    point = torch.min(torch.max(point, x - eps), x + eps)
    return point.clamp(0.0, 1.0)


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def momentum(model: nn.Module, change: Callable[[float], float], writes: int = 1) -> Iterator[None]:
    """Within, a layer of momentum m writes its running statistics with change(m) and counts `writes` batches.

    A pass that is left out because an equal one runs would have written the same statistics again. Two writes of one s with momentum m are
    one with 1-(1-m)^2; see `twice`, `first_and_third`, `second`.
    """
    layers = batch_norms(model)
    kept = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = change(layer.momentum)
    try:
        yield
    finally:
        for layer, m in zip(layers, kept, strict=True):
            layer.momentum = m
            if writes > 1 and layer.num_batches_tracked is not None:
                layer.num_batches_tracked += writes - 1


def twice(m: float) -> float:
    """Two equal writes in a row."""
    return 1 - (1 - m) ** 2


def second(m: float) -> float:
    """The second of three writes a, b, a when only a and b are made: its weight in the sum is m(1-m)."""
    return m * (1 - m)


def first_and_third(m: float) -> float:
    """The first of three writes a, b, a when only a and b are made: a's weight in the sum is m + m(1-m)^2, and b follows."""
    return (m + m * (1 - m) ** 2) / (1 - second(m))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within, training-mode batch norm uses the batch's statistics and writes nothing."""
    layers = [layer for layer in batch_norms(model) if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def perturbed(model: nn.Module, directions: dict[str, Tensor]) -> Iterator[None]:
    """Within, the named parameters stand at w + v; afterwards v is taken off again, from wherever the optimiser has moved them."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, v in directions.items():
            parameters[name].add_(v)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, v in directions.items():
                parameters[name].sub_(v)
