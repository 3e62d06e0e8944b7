"""Batch norm over the rows of all workers (--sync-bn), forward and backward, in training passes and in train-mode attacks alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer.engine.fleet_group import Group
from composer.engine.scope import Scope


def across(group: Group) -> Any:
    """The function for `Scope.norm`."""
    def norm(layer: Any, x: Tensor, scope: Scope) -> Tensor:
        return synchronised(layer, x, scope, group)

    return norm


def synchronised(layer: Any, x: Tensor, scope: Scope, group: Group) -> Tensor:
    """Normalise local rows [n,C,…] by mean and variance over all workers' rows (those of scope.rows where it says so).

    Formula: mean = sum_r c_r m_r / c, var = sum_r (s_r + c_r (m_r - mean)^2) / c, with count c_r, mean m_r and summed squares s_r about it
             of each worker; one exchange of 1 + 2C numbers forward, one backward. Unlike a sum of squares, this loses no digits.

    Everything is made of differentiable pieces, so the gradient through the statistics reaches other workers' rows, to any order.
    """
    count, mean, squares = _local(x, scope)
    own = torch.cat([count.view(1), mean, squares])
    block = torch.nn.functional.pad(own.unsqueeze(0), (0, 0, group.rank, group.world - 1 - group.rank))      # [workers, 1 + 2C]
    every, n = group.total(block), mean.shape[0]
    counts, means, sums = every[:, :1], every[:, 1:1 + n], every[:, 1 + n:]
    total = counts.sum()
    safe = total.clamp(min=1)
    centre = (counts * means).sum(0) / safe
    var = (sums + counts * (means - centre).square()).sum(0) / safe
    _hand_out(layer, scope, centre.detach(), var.detach(), total.detach() / group.share.copies)
    scale = torch.rsqrt(var + layer.eps)
    scale = scale if layer.weight is None else scale * layer.weight
    shift = -centre * scale if layer.bias is None else layer.bias - centre * scale
    shape = (1, -1, *([1] * (x.dim() - 2)))
    return torch.addcmul(shift.view(shape), x.to(scale.dtype), scale.view(shape)).to(x.dtype)


def _local(x: Tensor, scope: Scope) -> tuple[Tensor, Tensor, Tensor]:
    """This worker's count [], mean [C] and sum of squares about it [C]."""
    full = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    dims, cells = [d for d in range(x.dim()) if d != 1], x[0, 0].numel()
    if scope.rows is None:
        var, mean = torch.var_mean(full, dims, correction=0)
        count = torch.full((), float(x.shape[0] * cells), dtype=full.dtype, device=x.device)
        return count, mean, var * count
    row = scope.rows.to(full.dtype).view(-1, *([1] * (x.dim() - 1)))
    count = row.sum() * cells
    mean = (full * row).sum(dims) / count.clamp(min=1)
    centred = full - mean.view(1, -1, *([1] * (x.dim() - 2)))
    return count, mean, (centred.square() * row).sum(dims)


def _hand_out(layer: Any, scope: Scope, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Batch statistics for whoever wants to write them; none over no row."""
    if scope.scratch is None:
        return
    offset, n, size = layer.__dict__["span"]
    unbiased = var * count / (count - 1).clamp(min=1)
    scope.scratch[offset:offset + n] = torch.where(count > 0, mean, layer.running_mean)
    scope.scratch[size + offset:size + offset + n] = torch.where(count > 0, unbiased, layer.running_var)


__all__ = ["across", "synchronised"]
