"""Running statistics as inputs: a forward hands its batch statistics out, and the plan writes them when it is safe.

Writing them inside the forward, as `nn.BatchNorm2d` does, silently corrupts the gradient of an earlier eval-mode forward of the same module
(its backward reads the running statistics). Here all running means and variances of a model are views of one flat tensor; a train-mode pass
fills a scratch tensor of the same layout (`F.batch_norm` with momentum 1), and a write is one `lerp_`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.engine.twice import convolution, fits, pairs, pays


class Scope:
    """What the batch norms of one model do in the current pass."""

    def __init__(self) -> None:
        self.batch = False                    # batch statistics, else the running ones
        self.scratch: Tensor | None = None    # where batch statistics go; None: nobody wants them
        self.rows: Tensor | None = None       # [N] mask: statistics over these rows alone
        self.twice = False                    # the pass is differentiated twice
        self.norm: Callable[[Any, Tensor, Scope], Tensor] | None = None      # batch norm over more rows than this process has


class Stats:
    """The running statistics of a model, flat: all means, then all variances."""

    def __init__(self, layers: list[nn.Module], device: torch.device):
        self.size = sum(int(layer.num_features) for layer in layers)
        self.flat = torch.empty(2 * self.size, device=device, dtype=layers[0].running_mean.dtype)  # type: ignore[union-attr]
        self.count = torch.zeros(len(layers), dtype=torch.long, device=device)
        self.together: Callable[[Tensor], Tensor] | None = None         # batch statistics of several processes made one
        momenta = {0.1 if layer.momentum is None else float(layer.momentum) for layer in layers}
        self.momentum: float | Tensor = momenta.pop() if len(momenta) == 1 else torch.empty_like(self.flat)
        offset = 0
        for k, layer in enumerate(layers):
            n = int(layer.num_features)
            mean, var = self.flat[offset:offset + n], self.flat[self.size + offset:self.size + offset + n]
            mean.copy_(layer.running_mean)
            var.copy_(layer.running_var)
            self.count[k] = layer.num_batches_tracked
            layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, self.count[k]
            if isinstance(self.momentum, Tensor):
                self.momentum[offset:offset + n] = self.momentum[self.size + offset:self.size + offset + n] = layer.momentum
            layer.__dict__["span"] = (offset, n, self.size)
            offset += n

    def scratch(self) -> Tensor:
        return torch.zeros_like(self.flat)

    def write(self, batch: Tensor) -> None:
        """running = (1 - momentum) · running + momentum · batch"""
        self.flat.lerp_(batch if self.together is None else self.together(batch), self.momentum)
        self.count.add_(1)

    def replace(self, batches: Iterable[tuple[Tensor, int]]) -> None:
        """running = mean of the batches' statistics, each weighted by its number of images; what was there is forgotten. None: it stays.

        Every batch is computed before anything is written, and the counters stay.
        """
        total, images = torch.zeros_like(self.flat), 0
        for batch, n in batches:
            total.add_(batch, alpha=n)
            images += n
        if images:
            self.flat.copy_(total / images)


class _Scoped:
    """Mixed into a batch norm: its forward asks the scope."""

    def forward(self: Any, x: Tensor) -> Tensor:
        scope: Scope = self.__dict__["scope"]
        if not scope.batch:
            if scope.twice and self.__dict__.get("folds"):
                return x                                                # it is in the convolution before
            if scope.twice and self.weight is not None:
                return _affine(self, x)
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if scope.norm is not None:
            return scope.norm(self, x, scope)
        if scope.rows is not None:
            return _masked(self, x, scope)
        if scope.scratch is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        offset, n, size = self.__dict__["span"]
        flat = scope.scratch
        return F.batch_norm(x, flat[offset:offset + n], flat[size + offset:size + offset + n], self.weight, self.bias, True, 1.0, self.eps)


def _affine(layer: Any, x: Tensor) -> Tensor:
    """Eval-mode batch norm as one multiplication and one addition: its second derivative is a fraction of what F.batch_norm's costs."""
    scale = layer.weight * torch.rsqrt(layer.running_var + layer.eps)
    shape = (1, -1, *([1] * (x.dim() - 2)))
    return torch.addcmul((layer.bias - layer.running_mean * scale).view(shape), x, scale.view(shape))


def _masked(layer: Any, x: Tensor, scope: Scope) -> Tensor:
    """Batch norm over the rows of the mask alone, static in shape; no kept row means no update."""
    assert scope.rows is not None
    keep = scope.rows.to(x.dtype)
    cells = x[0, 0].numel()
    count = keep.sum() * cells
    row = keep.view(-1, *([1] * (x.dim() - 1)))
    dims = [d for d in range(x.dim()) if d != 1]
    safe = count.clamp(min=1)
    mean = (x * row).sum(dims) / safe
    shape = (1, -1, *([1] * (x.dim() - 2)))
    centred = x - mean.view(shape)
    var = (centred.square() * row).sum(dims) / safe
    if scope.scratch is not None:
        offset, n, size = layer.__dict__["span"]
        unbiased = var.detach() * safe / (safe - 1).clamp(min=1)
        scope.scratch[offset:offset + n] = torch.where(count > 0, mean.detach(), layer.running_mean)
        scope.scratch[size + offset:size + offset + n] = torch.where(count > 0, unbiased, layer.running_var)
    out = centred * torch.rsqrt(var + layer.eps).view(shape)
    return out if layer.weight is None else out * layer.weight.view(shape) + layer.bias.view(shape)


class _Convolution(nn.Conv2d):
    """A convolution that asks the scope whether its pass is differentiated twice."""

    def forward(self, x: Tensor) -> Tensor:
        scope: Scope = self.__dict__["scope"]
        if not scope.twice:
            return super().forward(x)
        norm = self.__dict__.get("norm")
        if norm is not None:
            norm.__dict__["folds"] = not scope.batch and pays(self, x)
        return convolution(self, x, norm if norm is not None and norm.__dict__["folds"] else None)


_classes: dict[type, type] = {}


def fold(model: nn.Module) -> None:
    """For passes that are differentiated twice: eval-mode batch norms go into the convolutions they follow."""
    for layer, norm in pairs(model):
        if isinstance(layer, _Convolution) and isinstance(norm, _Scoped):
            layer.__dict__["norm"] = norm


def install(model: nn.Module, device: torch.device) -> tuple[Scope, Stats | None]:
    """Put every tracking batch norm and every plain convolution of the model under one scope; parameter and buffer names stay."""
    scope = Scope()
    for layer in [m for m in model.modules() if fits(m)]:
        layer.__class__ = _Convolution
    for layer in [m for m in model.modules() if isinstance(m, _Convolution)]:
        layer.__dict__["scope"] = scope
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        plain = type(layer)
        if not issubclass(plain, _Scoped):
            layer.__class__ = _classes.setdefault(plain, type("Scoped" + plain.__name__, (_Scoped, plain), {}))
        layer.__dict__["scope"] = scope
    return scope, Stats(layers, device) if layers else None
