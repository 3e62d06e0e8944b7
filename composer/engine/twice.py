"""A convolution that is differentiated twice, each derivative by the kernel made for it.

PyTorch's double backward of a convolution finds the weight's second derivative by convolving transposed copies, which takes several times what
the weight gradient itself takes. All derivatives of y = w * x by x, and by x and w, are convolutions of the same three kinds, so here each is
the forward, the input gradient X or the weight gradient W of `aten.convolution`:

    dx = X(g, w)        d<dx, u>/dg = w * u        d<dx, u>/dw = W(g, u)

The gradient of the weight is differentiated no further: no plan asks for it, and asking is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Way = tuple[Any, ...]       # stride, padding, dilation, transposed, output padding, groups
_forward, _backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


def convolution(layer: nn.Conv2d, x: Tensor, norm: Any = None) -> Tensor:
    """F.conv2d by the layer, [N,C,H,W] -> [N,D,H',W'], cheap to differentiate twice; with `norm`, the eval-mode batch norm that follows is in it.

    The gradients of image and weight are nodes of their own: autograd runs the one that is asked for, and no other.
    """
    way = (list(layer.stride), list(layer.padding), list(layer.dilation), False, [0, 0], layer.groups)
    weight, bias = (layer.weight, layer.bias) if norm is None else folded(layer, norm)
    y = _OfImage.apply(x, weight, way)
    y = _Joined.apply(y, _OfWeight.apply(x.detach(), weight, y.shape, way))      # detached: an edge to x would have it run for x
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def pays(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether scaling the layer's weight is less work than scaling its output; late layers of a deep network have more weights than pixels."""
    cells = x.shape[2] * x.shape[3] // (layer.stride[0] * layer.stride[1])
    return layer.weight.numel() < x.shape[0] * layer.out_channels * cells


def folded(layer: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the batch norm behind it, on running statistics; gradients reach both modules' parameters."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean * scale if layer.bias is None else (layer.bias - norm.running_mean) * scale
    return layer.weight * scale.view(-1, 1, 1, 1), bias if norm.bias is None else bias + norm.bias


def pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions whose output goes into one batch norm and nowhere else, with it. A forward that cannot be traced has none."""
    from torch import fx

    class Tracer(fx.Tracer):            # its own, not models/packed.py's: what it finds decides bits, and the engine's files are in every key
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return not any(True for _ in m.children()) or super().is_leaf_module(m, name)

    try:
        nodes = list(Tracer().trace(model).nodes)
    except Exception:  # noqa: BLE001 (a forward with branches on values, or anything else a foreign one does)
        return []
    called: dict[str, int] = {}
    for node in nodes:
        if node.op == "call_module":
            called[node.target] = called.get(node.target, 0) + 1
    found = []
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1 and called[node.target] == called[before.target] == 1:
            layer, norm = model.get_submodule(before.target), model.get_submodule(node.target)
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                found.append((layer, norm))
    return found


def fits(layer: nn.Module) -> bool:
    """Whether a module is a convolution as this room differentiates it: plain, zero padded, padding in numbers."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _x(g: Tensor, like: Tensor, w: Tensor, way: Way) -> Tensor:
    return _backward(g, like, w, None, *way, [True, False, False])[0]


def _w(g: Tensor, x: Tensor, like: Tensor, way: Way) -> Tensor:
    return _backward(g, x, like, None, *way, [False, True, False])[1]


class _OfImage(torch.autograd.Function):
    """w * x, differentiated by x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, way: Way) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.way = way
        return _forward(x, w, None, *way)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return (_ImageGradient.apply(g, x, w, ctx.way) if ctx.needs_input_grad[0] else None), None, None


class _OfWeight(torch.autograd.Function):
    """w * x, differentiated by w alone, and once; its value is never read, so it is one number, spread over the shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, shape: torch.Size, way: Way) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.way = way
        return x.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor | None, None, None]:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return None, (_w(g, x, w, ctx.way) if ctx.needs_input_grad[1] else None), None, None


class _Joined(torch.autograd.Function):
    """The value of the first; the gradient goes to both."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return g, g


class _ImageGradient(torch.autograd.Function):
    """X(g, w), the shape of x; x itself does not matter."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, way: Way) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.way = way
        return _x(g, x, w, way)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:  # type: ignore[override]
        g, w = ctx.saved_tensors
        by_g, _, by_w, _ = ctx.needs_input_grad
        return (_forward(u, w, None, *ctx.way) if by_g else None), None, (_w(g, u, w, ctx.way) if by_w else None), None
