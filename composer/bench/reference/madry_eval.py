"""PGD adversarial training (Madry et al., ICLR 2018) with the attack in evaluation mode: 23 units with ten steps, none redundant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import ascend


def attack(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    model.eval()
    x_adv = (x + (2 * noise - 1) * eps).clamp(0.0, 1.0)
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), [x_adv])
        x_adv = ascend(x_adv, grad, x, eps, step_size)
    model.train()
    return x_adv.detach()


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10) -> Tensor:
    x_adv = attack(model, x, y, noise, eps, step_size, steps)
    loss = F.cross_entropy(model(x_adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
