"""PGD adversarial training, everything in training mode, the log's clean pass kept for what it writes: 24 units with ten steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import momentum, twice
from composer.bench.pruned.attack import climb, uniform_start


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10) -> Tensor:
    model.train()
    x_adv = climb(model, uniform_start(x, noise, eps), x, lambda logits: F.cross_entropy(logits, y), eps, step_size, steps)
    with momentum(model, twice, writes=2):                  # the original's pass that compares restarts sees x_adv too
        logits = model(x_adv)
    loss = F.cross_entropy(logits, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model(x)
    return loss.detach()
