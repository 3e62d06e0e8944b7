"""Layers of several networks at once: rows [S·N, …] stand member by member, weights carry a leading axis S.

Every layer takes and gives such rows, so the code between layers (flatten, ReLU, pools, sums) needs no change, and neither do losses, views and
attacks, whose rows do not look at each other. The gradient of a sum over all rows has each member's own gradient in its own slice.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.engine.scope import Scope, _Convolution, _masked, _Scoped

FEW = 16                       # outputs of a linear layer


class _Linear:
    """One batched product for all members."""

    def forward(self: Any, x: Tensor) -> Tensor:
        count = self.__dict__["members"]
        rows = x.reshape(count, -1, x.shape[-1])
        if self.bias is None:
            out = torch.bmm(rows, self.weight.transpose(1, 2))
        else:
            out = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.transpose(1, 2))
        return out.view(*x.shape[:-1], out.shape[-1])


class _Conv:
    """Member by member on a CPU, where a grouped convolution gains nothing; one grouped convolution on a device that waits for launches."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return grouped(self, x) if x.is_cuda else one_by_one(self, x)


def one_by_one(layer: Any, x: Tensor) -> Tensor:
    count = layer.__dict__["members"]
    weights, biases = layer.weight.unbind(0), [None] * count if layer.bias is None else layer.bias.unbind(0)
    rule = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return torch.cat([F.conv2d(rows, w, b, *rule) for rows, w, b in zip(x.chunk(count), weights, biases)])


def grouped(layer: Any, x: Tensor) -> Tensor:
    """[S·N,C,H,W] -> [N,S·C,H,W], one convolution of S times the groups, and back."""
    count = layer.__dict__["members"]
    wide = x.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)
    bias = None if layer.bias is None else layer.bias.flatten()
    out = F.conv2d(wide, layer.weight.flatten(0, 1), bias, layer.stride, layer.padding, layer.dilation, count * layer.groups)
    return out.unflatten(1, (count, -1)).transpose(0, 1).flatten(0, 1)


class _Norm:
    """Batch norm under a scope: every member has its own statistics; `scope.scratch` is [S, …]."""

    def forward(self: Any, x: Tensor) -> Tensor:
        scope: Scope = self.__dict__["scope"]
        count = self.__dict__["members"]
        if not scope.batch:
            return _running(self, x, count)
        weights, biases = (([None] * count) if t is None else t.unbind(0) for t in (self.weight, self.bias))
        offset, n, size = self.__dict__["span"]
        made = []
        for k, (rows, w, b) in enumerate(zip(x.chunk(count), weights, biases)):
            scratch = None if scope.scratch is None else scope.scratch[k]
            if scope.rows is not None:
                layer = SimpleNamespace(weight=w, bias=b, eps=self.eps, span=(offset, n, size), running_mean=self.running_mean[k],
                                        running_var=self.running_var[k])
                made.append(_masked(layer, rows, SimpleNamespace(rows=scope.rows.chunk(count)[k], scratch=scratch)))  # type: ignore[arg-type]
                continue
            mean, var = (None, None) if scratch is None else (scratch[offset:offset + n], scratch[size + offset:size + offset + n])
            made.append(F.batch_norm(rows, mean, var, w, b, True, 0.0 if scratch is None else 1.0, self.eps))
        return torch.cat(made)


def _running(layer: Any, x: Tensor, count: int) -> Tensor:
    """Eval mode: a multiplication and an addition for all members."""
    scale = torch.rsqrt(layer.running_var + layer.eps)
    scale = scale if layer.weight is None else layer.weight * scale
    shift = -layer.running_mean * scale if layer.bias is None else layer.bias - layer.running_mean * scale
    shape = (count, 1, -1, *([1] * (x.dim() - 2)))
    return torch.addcmul(shift.view(shape), x.unflatten(0, (count, -1)), scale.view(shape)).flatten(0, 1)


class _Looped:
    """A layer of another kind: called once a member, with that member's weights."""

    def forward(self: Any, *args: Any) -> Tensor:
        count = self.__dict__["members"]
        whole = dict(self.named_parameters())
        weights = [dict(zip(whole, each)) for each in zip(*(w.unbind(0) for w in whole.values()), strict=True)] or [{}] * count
        parts = zip(*(a.chunk(count) if isinstance(a, Tensor) else [a] * count for a in args), strict=True)
        return torch.cat([torch.func.functional_call(self.__dict__["bare"], own, given) for own, given in zip(weights, parts, strict=True)])


def put_packed(model: nn.Module, models: list[nn.Module]) -> dict[str, nn.Parameter]:
    """Turn `model`, a copy of the first of `models`, into all of them at once; the stacked parameters [S, …] by name.

    Errors: Unpackable where a module above its layers has weights of its own, or constants that differ.
    """
    _walk("", model, len(models))
    owners = dict(model.named_modules())
    found = stacked_parameters(models, {name for name, module in owners.items() if isinstance(module, _Linear)})
    for name, parameter in found.items():
        path, _, last = name.rpartition(".")
        owners[path]._parameters[last] = parameter
    for name, value in models[0].named_buffers():
        if not isinstance(owners[name.rpartition(".")[0]], _Norm) and not all(torch.equal(value, dict(m.named_buffers())[name]) for m in models[1:]):
            raise Unpackable(f"the buffer {name} of the network differs among the runs")
    return found


def stacked_parameters(models: list[nn.Module], turned: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """[S, …] by name. `turned`: modules whose matrices lie by columns, as their batched gradients come out; not those with few outputs, for which
    a CPU's batched product by columns takes half as long again."""
    held = [{name: p.detach() for name, p in m.named_parameters()} for m in models]
    found = {}
    for name, p in models[0].named_parameters():
        by_columns = name.rpartition(".")[0] in turned and p.dim() == 2 and len(p) >= FEW
        found[name] = nn.Parameter(stack([each[name] for each in held], turned=by_columns), requires_grad=p.requires_grad)
    return found


class Unpackable(Exception):
    """Why runs cannot be packed, as a sentence without its full stop."""


def stack(tensors: list[Tensor], *, turned: bool = False) -> Tensor:
    """[S, …], every slice laid out in memory as the tensor it comes from; `turned` matrices by columns."""
    first = tensors[0]
    if turned:
        return torch.stack([t.t() for t in tensors]).transpose(1, 2)
    order = sorted(range(first.dim()), key=lambda d: (first.stride(d), -d), reverse=True)           # outermost first
    laid = torch.stack([t.permute(order) for t in tensors])
    return laid.permute(0, *(1 + order.index(d) for d in range(first.dim())))


def _walk(path: str, module: nn.Module, count: int) -> None:
    """Give every layer its packed class; what lies inside a looped layer stays."""
    kind = _kind(module)
    if kind is _Looped:
        if not path:
            raise Unpackable(f"the network {type(module).__name__} has weights outside its layers")
        module.__dict__["bare"] = copy.deepcopy(module)
    if kind is not None:
        plain = type(module)
        module.__class__ = type("Packed" + plain.__name__, (kind, plain), {})
        module.__dict__["members"] = count
        return
    for name, child in module.named_children():
        _walk(f"{path}.{name}" if path else name, child, count)


def _kind(module: nn.Module) -> type | None:
    """How a layer is packed; None: it has nothing of its own."""
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return _Linear
    if isinstance(module, nn.Conv2d) and forward in (nn.Conv2d.forward, _Convolution.forward) and module.padding_mode == "zeros":
        return _Conv
    if isinstance(module, _Scoped):
        return _Norm
    own = next(module.parameters(recurse=False), None) is not None
    return _Looped if own or isinstance(module, nn.modules.batchnorm._NormBase) else None
