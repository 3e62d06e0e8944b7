"""MART with LMA-AT's margin loss and averaged-logit alignment (recipes/mart_ours.toml): 26 units with ten steps.

Loss, a mean over the batch: boosted CE of x' + sum_{j != y} max(0, delta - z_y + z_j)^2 of x' + beta KL(p(x) || p(x')) (1.0000001 - p_y(x))
+ weight mHuber_alpha(e(x') - e(x)), with e = decay * average + (1 - decay) * logits. The attack climbs CE and the margin loss.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from composer.bench.pruned.attack import climb, gaussian_start
from composer.bench.pruned.mart import boosted_ce


def margin(logits: Tensor, y: Tensor, delta: float) -> Tensor:
    """Mean over the batch; the label's own place adds delta^2, taken off again."""
    short = F.relu(delta - logits.gather(1, y[:, None]) + logits)
    return short.square().sum(dim=1).mean() - delta**2


def modified_huber(difference: Tensor, alpha: float) -> Tensor:
    """alpha^2 (1 - cos(d / alpha)) = 2 alpha^2 sin^2(d / 2 alpha) up to |d| = alpha pi / 2, alpha |d| + (1 - pi / 2) alpha^2 beyond; the mean."""
    size = difference.abs()
    near = 2 * (alpha * torch.sin(difference / (2 * alpha))).square()
    far = alpha * size + (1 - math.pi / 2) * alpha**2
    return torch.where(size <= alpha * math.pi / 2, near, far).mean()


def miss_kl(logits: Tensor, logits_adv: Tensor, y: Tensor) -> Tensor:
    logp = F.log_softmax(logits, dim=1)
    kl = F.kl_div(F.log_softmax(logits_adv, dim=1), logp, reduction="none", log_target=True).sum(dim=1)
    return (kl * (1.0000001 - logp.gather(1, y[:, None])[:, 0].exp())).mean()


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, average: dict[str, Tensor], eps: float = 8 / 255,
         step_size: float = 2 / 255, steps: int = 10, beta: float = 5.0, delta: float = 0.9, decay: float = 0.2, alpha: float = 5.345,
         weight: float = 86.0) -> Tensor:
    """`average` holds the logits' averages by place in the batch, [N,K] under "clean" and "adv", zero before the first step; it is written."""
    n = len(x)

    def rises(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, y) + margin(logits, y, delta)

    model.eval()
    x_adv = climb(model, gaussian_start(x, noise), x, rises, eps, step_size, steps)
    model.train()
    logits, logits_adv = model(x), model(x_adv)
    clean = decay * average["clean"][:n] + (1 - decay) * logits
    adv = decay * average["adv"][:n] + (1 - decay) * logits_adv
    loss = (boosted_ce(logits_adv, y) + margin(logits_adv, y, delta) + beta * miss_kl(logits, logits_adv, y)
            + weight * modified_huber(adv - clean, alpha))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    average["clean"][:n].copy_(clean.detach())
    average["adv"][:n].copy_(adv.detach())
    return loss.detach()


def zero_average(n: int, classes: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    return {"clean": torch.zeros(n, classes, device=device), "adv": torch.zeros(n, classes, device=device)}
