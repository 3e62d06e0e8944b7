"""TRADES with adversarial weight perturbation: 33 units with ten steps. No copy of the network: the ascent writes no statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import frozen_statistics, momentum, perturbed, twice
from composer.bench.pruned.trades import attack, objective


def directions(model: nn.Module, gamma: float, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """gamma ||w|| g / (||g|| + 1e-20) for every weight of two dimensions or more, g the gradient of the loss."""
    weights = {name: w for name, w in model.named_parameters() if w.ndim > 1 and "weight" in name}
    grads = torch.autograd.grad(loss(), list(weights.values()))
    with torch.no_grad():
        return {name: gamma * w.norm() / (g.norm() + 1e-20) * g for (name, w), g in zip(weights.items(), grads, strict=True)}


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 8 / 255, step_size: float = 2 / 255,
         steps: int = 10, beta: float = 6.0, gamma: float = 0.005) -> Tensor:
    x_adv = attack(model, x, noise, eps, step_size, steps)
    with frozen_statistics(model):
        up = directions(model, gamma, lambda: objective(model(x), model(x_adv), y, beta))
    with perturbed(model, up):
        logits_adv = model(x_adv)
        with momentum(model, twice, writes=2):              # the original writes x_adv, x, x
            logits = model(x)
        loss = objective(logits, logits_adv, y, beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()
