"""TRADES (Zhang et al., ICML 2019): 39 units with ten steps. The attack asks for the clean logits anew at every step, the loss twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import ascend


def divergence(model: nn.Module, x_adv: Tensor, x: Tensor) -> Tensor:
    """sum_i KL(p(x_i) || p(x'_i)), the network asked for both; x' first."""
    return F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="sum")


def attack(model: nn.Module, x: Tensor, noise: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    model.eval()
    x_adv = x.detach() + 0.001 * noise
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(divergence(model, x_adv, x), [x_adv])
        x_adv = ascend(x_adv, grad, x, eps, step_size)
    model.train()
    return x_adv.detach().clamp(0.0, 1.0)


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 0.031, step_size: float = 0.007,
         steps: int = 10, beta: float = 6.0) -> Tensor:
    x_adv = attack(model, x, noise, eps, step_size, steps)
    optimizer.zero_grad()
    natural = F.cross_entropy(model(x), y)
    robust = divergence(model, x_adv, x) / len(x)
    loss = natural + beta * robust
    loss.backward()
    optimizer.step()
    return loss.detach()
