"""PGD adversarial training with adversarial weight perturbation, everything in training mode: 27 units with ten steps.

The ascent's pass over x_adv writes the running statistics in place of the original's pass that compares restarts: same weights, same images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import perturbed
from composer.bench.pruned.attack import climb, uniform_start
from composer.bench.pruned.trades_awp import directions


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10, gamma: float = 0.01) -> Tensor:
    model.train()
    x_adv = climb(model, uniform_start(x, noise, eps), x, lambda logits: F.cross_entropy(logits, y), eps, step_size, steps)
    with perturbed(model, directions(model, gamma, lambda: F.cross_entropy(model(x_adv), y))):
        loss = F.cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model(x)
    return loss.detach()
