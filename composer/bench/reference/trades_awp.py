"""TRADES with adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020): 48 units with ten steps.

The copy of the network climbs the training loss by one plain SGD step; the direction per weight tensor (two dimensions or more, named
`weight`), scaled to gamma times the tensor's norm, is added to the network, which is updated there and then put back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from composer.bench.modes import perturbed
from composer.bench.reference.trades import attack


def directions(model: nn.Module, proxy: nn.Module, gamma: float, loss: Callable[[nn.Module], Tensor], lr: float = 0.01) -> dict[str, Tensor]:
    """gamma ||w|| d / (||d|| + 1e-20), d the change of w in the copy after one step up the loss; the step's length cancels."""
    proxy.load_state_dict(model.state_dict())
    proxy.train()
    optimizer = SGD(proxy.parameters(), lr=lr)
    optimizer.zero_grad()
    (-loss(proxy)).backward()
    optimizer.step()
    moved = dict(proxy.named_parameters())
    result = {}
    with torch.no_grad():
        for name, w in model.named_parameters():
            if w.ndim > 1 and "weight" in name:
                d = moved[name] - w
                result[name] = gamma * w.norm() / (d.norm() + 1e-20) * d
    return result


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, noise: Tensor, *, proxy: nn.Module, eps: float = 8 / 255,
         step_size: float = 2 / 255, steps: int = 10, beta: float = 6.0, gamma: float = 0.005) -> Tensor:
    x_adv = attack(model, x, noise, eps, step_size, steps)

    def loss_of(net: nn.Module) -> Tensor:
        natural = F.cross_entropy(net(x), y)
        robust = F.kl_div(F.log_softmax(net(x_adv), dim=1), F.softmax(net(x), dim=1), reduction="batchmean")
        return natural + beta * robust

    with perturbed(model, directions(model, proxy, gamma, loss_of)):
        robust = F.kl_div(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x), dim=1), reduction="batchmean")
        natural = F.cross_entropy(model(x), y)
        loss = natural + beta * robust
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()
