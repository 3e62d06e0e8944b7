"""PGD adversarial training as Rice, Wong and Kolter (ICML 2020) run it: 35 units with ten steps.

The network stays in training mode all the time. Each attack step fills the weights' gradients too, a last pass compares restarts (of which
there is one), and after the update the clean batch is run once more for the log: K + 3 writes of the running statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


def attack(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    best_loss = torch.zeros(len(x), device=x.device, dtype=x.dtype)
    best = torch.zeros_like(x)
    delta = (2 * noise - 1) * eps
    delta = torch.max(torch.min(delta, 1 - x), -x).requires_grad_()
    for _ in range(steps):
        F.cross_entropy(model(x + delta), y).backward()
        with torch.no_grad():
            moved = (delta + step_size * delta.grad.sign()).clamp(-eps, eps)
            delta.copy_(torch.max(torch.min(moved, 1 - x), -x))
            delta.grad.zero_()
    every_loss = F.cross_entropy(model(x + delta), y, reduction="none")
    keep = every_loss >= best_loss
    best[keep] = delta.detach()[keep]
    return best


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10) -> Tensor:
    model.train()
    delta = attack(model, x, y, noise, eps, step_size, steps)
    loss = F.cross_entropy(model((x + delta).clamp(0.0, 1.0)), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    F.cross_entropy(model(x), y)
    return loss.detach()
