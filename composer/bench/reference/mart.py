"""MART (Wang et al., ICLR 2020): 26 units with ten steps, none redundant."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.modes import ascend


def attack(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, eps: float, step_size: float, steps: int) -> Tensor:
    model.eval()
    x_adv = x.detach() + 0.001 * noise
    for _ in range(steps):
        x_adv.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), [x_adv])
        x_adv = ascend(x_adv, grad, x, eps, step_size)
    model.train()
    return x_adv.detach().clamp(0.0, 1.0)


def boosted_ce(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of -log p_y - log(1.0001 - p_k + 1e-12), k the most probable wrong class."""
    probs = F.softmax(logits, dim=1)
    top = probs.argsort(dim=1)
    rival = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    return F.cross_entropy(logits, y) + F.nll_loss(torch.log(1.0001 - probs + 1e-12), rival)


def weighted_kl(logits_adv: Tensor, logits: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of KL(p(x) || p(x') + 1e-12) times 1.0000001 - p_y(x); the gradient runs through both networks' outputs."""
    probs = F.softmax(logits, dim=1)
    kl = F.kl_div(torch.log(F.softmax(logits_adv, dim=1) + 1e-12), probs, reduction="none").sum(dim=1)
    miss = 1.0000001 - probs.gather(1, y[:, None])[:, 0]
    return (kl * miss).mean()


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, eps: float = 0.031, step_size: float = 0.007,
         steps: int = 10, beta: float = 5.0) -> Tensor:
    x_adv = attack(model, x, y, noise, eps, step_size, steps)
    optimizer.zero_grad()
    logits = model(x)
    logits_adv = model(x_adv)
    loss = boosted_ce(logits_adv, y) + beta * weighted_kl(logits_adv, logits, y)
    loss.backward()
    optimizer.step()
    return loss.detach()
