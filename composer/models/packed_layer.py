"""A convolution with what follows it, its weights prepared: conv(+ bias)(+ other)(relu) in one call of oneDNN.

Its gradient by the image is one more convolution: with the flipped kernel where the stride is 1, as a product with the kernel and a sum over its
windows where there are next to no input channels, else PyTorch's own.

The calls are those PyTorch's own compiler uses (`torch.ops.mkldnn`), which promise nothing: they are tried once on a small case, and where they are
missing or wrong, as in float64, plain convolutions with the folded weights stand in.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

THIN = 4            # input channels up to which an input gradient is a product and a sum over windows
CHANNELS = torch.channels_last


class PackedConv(nn.Module):
    """relu(conv(x) · scale + shift + other), its weights prepared by `refresh`. The modules are those of the network, not copies."""

    def __init__(self, conv: nn.Conv2d, norm: Any, relu: bool):
        super().__init__()
        self.__dict__["conv"], self.__dict__["norm"] = conv, norm          # out of named_modules: they belong to the network
        self.relu = relu
        self.stride, self.padding, self.dilation, self.groups = list(conv.stride), list(conv.padding), list(conv.dilation), conv.groups
        self.flips = conv.groups == 1 and set(self.stride) == set(self.dilation) == {1} and all(
            p < k for p, k in zip(self.padding, conv.kernel_size))
        self.thin = conv.groups == 1 and set(self.dilation) == {1} and conv.in_channels <= THIN < conv.out_channels
        self.weight: Any = None
        self._packed: Any = None
        self._turned: Any = None

    def refresh(self) -> None:
        conv = self.conv
        weight, bias = folded(conv, self.norm)
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.fast = weight.device.type == "cpu" and weight.dtype == torch.float32 and available()
        self._packed = self._turned = None

    def run(self, x: Tensor, other: Tensor | None) -> Tensor:
        if not self.fast:
            out = F.conv2d(x, tagged(self.weight, "forward", self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)
            out = out if other is None else out.add_(other)
            return out.relu_() if self.relu else out
        if self._packed is None:
            made = torch.ops.mkldnn._reorder_convolution_weight(self.weight.contiguous(), self.padding, self.stride, self.dilation, self.groups,
                                                                list(x.shape))
            self._packed = tagged(made, "forward", self.weight)
        way = (self.padding, self.stride, self.dilation, self.groups)
        relu = "relu" if self.relu else "none"
        if other is None:
            return _pointwise(x, self._packed, self.bias, *way, relu, [], "")
        return _pointwise_sum(x, other, self._packed, self.bias, *way, "add", 1.0, "relu" if self.relu else None, [], "")

    def back(self, g: Tensor, x: Tensor) -> Tensor:
        """The gradient by the image; x gives its shape."""
        if not (self.fast and (self.thin or self.flips)):
            return torch.ops.aten.convolution_backward(g, x, self.weight, None, self.stride, self.padding, self.dilation, False, [0, 0], self.groups,
                                                       [True, False, False])[0]
        if self._turned is None:
            self._turned = tagged(self._turn(g), "dgrad", self.weight)
        if self.thin:
            windows = _pointwise(g, self._turned, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
            summed = F.fold(windows.flatten(2), x.shape[2:], self.conv.kernel_size, padding=self.padding, stride=self.stride)
            return summed.contiguous(memory_format=CHANNELS)
        return _pointwise(g, self._turned, None, self._around(), [1, 1], [1, 1], 1, "none", [], "")

    def _turn(self, g: Tensor) -> Tensor:
        """The kernel of the convolution that takes gradients back."""
        out = self.weight.shape[0]
        if self.thin:
            kernel, padding = self.weight.reshape(out, -1).t().reshape(-1, out, 1, 1).contiguous(), [0, 0]
        else:
            kernel, padding = self.weight.flip(2, 3).transpose(0, 1).contiguous(), self._around()
        return torch.ops.mkldnn._reorder_convolution_weight(kernel, padding, [1, 1], [1, 1], 1, list(g.shape))

    def _around(self) -> list[int]:
        return [k - 1 - p for k, p in zip(self.conv.kernel_size, self.padding)]

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        fits = other is None or other.shape[1:] == self._shape(x)
        out = _Layer.apply(x, other if fits else None, self if fits else self._without_relu())
        if fits:
            return out
        return F.relu(out + other) if self.relu else out + other

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        sides = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in
                 zip(x.shape[2:], self.padding, self.dilation, self.conv.kernel_size, self.stride))
        return (self.conv.out_channels, *sides)

    def _without_relu(self) -> PackedConv:
        """For a sum that broadcasts: the same weights, the sum and the ReLU done outside."""
        made = PackedConv(self.conv, self.norm, False)
        made.weight, made.bias, made.fast = self.weight, self.bias, self.fast
        return made


class _Layer(torch.autograd.Function):
    """A packed layer, differentiated once, by the image and by what is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, other: Tensor | None, layer: PackedConv) -> Tensor:
        out = layer.run(x, other)
        ctx.layer = layer
        ctx.save_for_backward(*((x, out) if layer.relu else (x,)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x, *out = ctx.saved_tensors
        g = torch.ops.aten.threshold_backward(g, out[0], 0) if out else g
        return (ctx.layer.back(g, x) if ctx.needs_input_grad[0] else None), (g if ctx.needs_input_grad[1] else None), None


def folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [D,C,k,k] and bias [D] of the convolution with the batch norm behind it, on running statistics."""
    if norm is None:
        return conv.weight, conv.bias
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    bias = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
    return conv.weight * scale.view(-1, 1, 1, 1), bias if norm.bias is None else bias + norm.bias


def tagged(weight: Tensor, product: str, of: Tensor) -> Tensor:
    """A prepared weight says which product of which layer it stands for, so that passes can be counted by it."""
    weight.product = (product, tuple(of.shape))  # type: ignore[attr-defined]
    return weight


def _pointwise(*args: Any) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(*args)


def _pointwise_sum(*args: Any) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise.binary(*args)


@cache
def available() -> bool:
    """Whether this build's oneDNN calls are there and agree with a plain convolution on a small case."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x, w, b = torch.randn(2, 3, 5, 5).contiguous(memory_format=CHANNELS), torch.randn(4, 3, 3, 3), torch.randn(4)
            packed = torch.ops.mkldnn._reorder_convolution_weight(w, [1, 1], [1, 1], [1, 1], 1, [2, 3, 5, 5])
            plain = F.conv2d(x, w, b, 1, 1)
            way = ([1, 1], [1, 1], [1, 1], 1)
            got = _pointwise(x, packed, b, *way, "relu", [], ""), _pointwise_sum(x, plain, packed, b, *way, "add", 1.0, None, [], "")
            return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, (plain.relu(), 2 * plain), strict=True))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
