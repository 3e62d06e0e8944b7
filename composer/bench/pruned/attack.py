"""The attack all pruned loops share: gradient for the images alone, whatever mode the network stands in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from composer.bench.modes import ascend


def climb(model: nn.Module, x_adv: Tensor, x: Tensor, objective: Callable[[Tensor], Tensor], eps: float, step_size: float,
          steps: int) -> Tensor:
    """`steps` projected sign steps up `objective(logits)` from x_adv around x."""
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(objective(model(x_adv)), x_adv)
        x_adv = ascend(x_adv, grad, x, eps, step_size)
    return x_adv.detach().clamp(0.0, 1.0)


def uniform_start(x: Tensor, noise: Tensor, eps: float) -> Tensor:
    return (x + (2 * noise - 1) * eps).clamp(0.0, 1.0)


def gaussian_start(x: Tensor, noise: Tensor) -> Tensor:
    return x + 0.001 * noise
