"""The frozen network of an attack on a CPU: batch norm folded into the convolutions, their weights laid out as oneDNN wants them.

While an attack climbs, the weights and the running statistics stand still, so both can be prepared once a training step (`refresh`). The network's
forward is traced, and each convolution becomes one node with the batch norm, the sum and the ReLU that follow it (`packed_layer.py`). First order
only; values differ from the plain network's by rounding.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from composer.models.packed_layer import PackedConv, available

__all__ = ["PackedConv", "PackedNet", "available"]

ADDS, RELUS = (operator.add, operator.iadd, torch.add), (F.relu, torch.relu, torch.relu_)


class PackedNet:
    """Logits (and the head's input) of a model in eval mode; its convolutions and batch norms as they stood at the last `refresh`, the rest live.

    note   what was folded and packed, and what was left as it is
    layers the packed ones; none: not worth using
    """

    def __init__(self, model: nn.Module):
        self.embeds = hasattr(model, "embed") and hasattr(model, "head")
        root = _Both(model) if self.embeds else _Alone(model)
        try:
            traced = _Tracer().trace(root)
        except Exception as error:  # noqa: BLE001 (whatever a foreign forward does under tracing, the plain network remains)
            self.layers, self.note = [], f"not packed: {type(error).__name__} under tracing"
            return
        graph = fx.GraphModule(root, traced)
        self.layers, left = _rewrite(graph)
        convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        norms, folded = sum(_is_norm(m) for m in model.modules()), sum(layer.norm is not None for layer in self.layers)
        said = f"{len(self.layers)} of {convolutions} convolutions packed, {folded} of {norms} batch norms folded"
        self.note = said if convolutions else "it has no convolutions"
        self.note += f"; as they are: {', '.join(left)}" if left else ""
        self._graph = graph

    def refresh(self) -> None:
        """Take the weights and running statistics as they stand now."""
        with torch.no_grad():
            for layer in self.layers:
                layer.refresh()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._graph(x)


class _Both(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        embedded = self.model.embed(x)
        return self.model.head(embedded), embedded


class _Alone(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.model(x), None


class _Tracer(fx.Tracer):
    """Modules without children are leaves, whatever class they are given by others."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return not any(True for _ in m.children()) or super().is_leaf_module(m, name)


# -- the rewriting ---------------------------------------------------------------------------------------------------------------------------


def _rewrite(graph: fx.GraphModule) -> tuple[list[PackedConv], list[str]]:
    """Convolutions with what follows them, each as one node. Returns them, and the names of modules left as they are with the reason."""
    modules, calls = dict(graph.named_modules()), _calls(graph)
    found: list[PackedConv] = []
    left: list[str] = []
    for node in list(graph.graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d):
            continue
        reason = _unfit(module) or ("" if calls[node.target] == 1 else "called more than once")
        if reason:
            left.append(f"{node.target.removeprefix('model.')} ({reason})")
            continue
        layer, last, other = _absorb(node, module, modules, calls)
        graph.add_module(f"packed_{len(found)}", layer)
        with graph.graph.inserting_before(last):
            made = graph.graph.call_module(f"packed_{len(found)}", (node.args[0], *((other,) if other is not None else ())))
        last.replace_all_uses_with(made)
        found.append(layer)
        graph.graph.eliminate_dead_code()
    left += [f"{name.removeprefix('model.')} (no convolution before it)" for name, n in calls.items() if n and _is_norm(modules[name])
             and not any(layer.norm is modules[name] for layer in found)]
    graph.graph.lint()
    graph.recompile()
    return found, left


def _calls(graph: fx.GraphModule) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found[node.target] = found.get(node.target, 0) + 1
    return found


def _absorb(node: fx.Node, conv: nn.Conv2d, modules: dict[str, nn.Module], calls: dict[str, int]) -> tuple[PackedConv, fx.Node, fx.Node | None]:
    """(the layer, the last node it stands for, the node it adds): the batch norm, the sum and the ReLU that only this convolution feeds."""
    norm, other, relu, last = None, None, False, node
    after = _only_user(last)
    if after is not None and after.op == "call_module" and _is_norm(modules.get(after.target)) and calls[after.target] == 1:
        norm, last = modules[after.target], after
        after = _only_user(last)
    if after is not None and _adds(after):
        a, b = after.args
        other, last = (b if a is last else a), after
        after = _only_user(last)
    if after is not None and _relu(after, modules):
        relu, last = True, after
    return PackedConv(conv, norm, relu), last, other


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(node: fx.Node) -> bool:
    plain = node.op == "call_function" and node.target in ADDS or node.op == "call_method" and node.target in ("add", "add_")
    return plain and len(node.args) == 2 and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args) and node.args[0] is not node.args[1]


def _relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(node.target), nn.ReLU)
    return node.op == "call_function" and node.target in RELUS or node.op == "call_method" and node.target in ("relu", "relu_")


def _is_norm(module: Any) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.track_running_stats


def _unfit(conv: nn.Conv2d) -> str:
    if conv.padding_mode != "zeros":
        return f"padding by {conv.padding_mode}"
    return "padding by name" if isinstance(conv.padding, str) else ""
