"""The model behind a wall: gradients reach the images and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor


class Isolated(torch.autograd.Function):
    """model(x) whose backward yields the input gradient only, contiguous.

    Some attacks call `.backward()`, which would fill the `.grad` of the model's parameters, and some `.view` the gradient, which a
    channels-last model does not allow. Here the model's own graph is differentiated with respect to its input alone.
    """

    @staticmethod
    def forward(ctx, x, model):  # type: ignore[override]
        with torch.enable_grad():
            inside = x.detach().requires_grad_()
            out = model(inside)
        ctx.inside, ctx.out = inside, out
        return out.detach().clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        if not ctx.out.requires_grad:
            return torch.zeros_like(ctx.inside), None
        (inner,) = torch.autograd.grad(ctx.out, ctx.inside, grad, retain_graph=True, allow_unused=True)
        return (torch.zeros_like(ctx.inside) if inner is None else inner.contiguous()), None


def isolated(model, x: Tensor) -> Tensor:
    return Isolated.apply(x, model)
