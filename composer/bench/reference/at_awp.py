"""PGD adversarial training with adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020): 38 units with ten steps.

The loop of `rice_at` with the perturbation of `trades_awp` around the update; the pass for the log comes after the weights are put back.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import perturbed
from composer.bench.reference.rice_at import attack
from composer.bench.reference.trades_awp import directions


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, proxy: nn.Module, eps: float = 8 / 255,
         step_size: float = 2 / 255, steps: int = 10, gamma: float = 0.01) -> Tensor:
    model.train()
    x_adv = (x + attack(model, x, y, noise, eps, step_size, steps)).clamp(0.0, 1.0)
    with perturbed(model, directions(model, proxy, gamma, lambda net: F.cross_entropy(net(x_adv), y))):
        loss = F.cross_entropy(model(x_adv), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    F.cross_entropy(model(x), y)
    return loss.detach()
