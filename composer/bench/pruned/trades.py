"""TRADES with one clean pass for the attack and one for the loss: 27 units with ten steps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import first_and_third, momentum, second
from composer.bench.pruned.attack import climb, gaussian_start


def attack(model: nn.Module, x: Tensor, noise: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    model.eval()
    with torch.no_grad():
        target = F.softmax(model(x), dim=1)

    def objective(logits: Tensor) -> Tensor:
        return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="sum")

    x_adv = climb(model, gaussian_start(x, noise), x, objective, eps, step_size, steps)
    model.train()
    return x_adv


def objective(logits: Tensor, logits_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    kl = F.kl_div(F.log_softmax(logits_adv, dim=1), F.softmax(logits, dim=1), reduction="batchmean")
    return F.cross_entropy(logits, y) + beta * kl


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 0.031, step_size: float = 0.007,
         steps: int = 10, beta: float = 6.0) -> Tensor:
    x_adv = attack(model, x, noise, eps, step_size, steps)
    with momentum(model, first_and_third, writes=2):        # the original writes x, x_adv, x
        logits = model(x)
    with momentum(model, second):
        logits_adv = model(x_adv)
    loss = objective(logits, logits_adv, y, beta)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()
