"""PGD adversarial training, attack in evaluation mode: 23 units with ten steps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.pruned.attack import climb, uniform_start


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10) -> Tensor:
    model.eval()
    x_adv = climb(model, uniform_start(x, noise, eps), x, lambda logits: F.cross_entropy(logits, y), eps, step_size, steps)
    model.train()
    loss = F.cross_entropy(model(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
