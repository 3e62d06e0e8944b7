"""A function of tensors, traced once for each shape of its arguments and compiled whole.

The trace is a run of the function in which every operation is written down, `torch.autograd.grad` and gradients of gradients included, so that
one straight graph holds a forward and its backward. Tensors that the function reaches without being given them (weights, running statistics, what
schedules move, the memory of parts) enter the graph as further inputs: they are read where they lie, each time. What cannot be written down,
such as a branch on a value, is refused with the reason, and the function is then called as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

Function = Callable[..., list[Tensor]]
Lower = Callable[[fx.GraphModule, list[Tensor]], Callable[..., Any]]


@dataclass
class Traced:
    """One graph: what it runs as, the tensors it reads beside its arguments, and itself, for those who watch operations."""

    run: Callable[..., Any]
    held: list[Tensor]
    graph: fx.GraphModule


class Refused(Exception):
    """A function that cannot be traced or compiled; the message says why."""


class Program:
    """`fn` with a graph for every shape, stride, type and sharing of its arguments. Errors: Refused, from the first call of a shape on."""

    def __init__(self, fn: Function, lower: Lower):
        self.fn, self.lower = fn, lower
        self._made: dict[Any, Traced | Refused] = {}

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        places = {id(t): k for k, t in reversed(list(enumerate(tensors)))}
        key = tuple((t.shape, t.stride(), t.dtype, places[id(t)]) for t in tensors)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(tensors)
        if isinstance(made, Refused):
            raise made
        own = [t for k, t in enumerate(tensors) if places[id(t)] == k]
        with torch.no_grad():
            run = made.graph if watched() else made.run
            return list(run(*own, *made.held))

    def _make(self, tensors: list[Tensor]) -> Traced | Refused:
        own = list({id(t): t for t in tensors}.values())
        try:
            graph, held = trace(self.fn, tensors)
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return Traced(self.lower(graph, [*(t.detach() for t in own), *held]), held, graph)
        except Refused as refusal:
            return refusal
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (a compiler fails with anything)
            return Refused(f"the compiler failed: {first_line(error)}")


def watched() -> bool:
    """Whether somebody counts operations now: a compiled kernel has none to show, its graph has."""
    return torch._C._len_torch_dispatch_stack() > 0


def trace(fn: Function, tensors: list[Tensor]) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph of fn(*tensors) over the distinct arguments and, behind them, the tensors it reaches by itself, which are returned beside it."""
    from torch.fx.experimental.proxy_tensor import make_fx

    place: dict[int, int] = {}
    for t in tensors:
        place.setdefault(id(t), len(place))
    own = list({id(t): t for t in tensors}.values())

    def spread(*args: Tensor) -> list[Tensor]:
        return fn(*(args[place[id(t)]] for t in tensors))

    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = make_fx(spread, tracing_mode="real")(*(t.detach() for t in own))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (tracing raises what the traced code and PyTorch raise)
        raise Refused(first_line(error)) from None
    return graph, lift(graph)


def lift(graph: fx.GraphModule) -> list[Tensor]:
    """Make inputs of the tensors that a graph holds."""
    held: list[Tensor] = []
    inputs: dict[int, fx.Node] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1:]
    for node in list(graph.graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(graph, node.target)
        if id(tensor) not in inputs:
            with graph.graph.inserting_after(last[0]) if last else graph.graph.inserting_before(next(iter(graph.graph.nodes))):
                inputs[id(tensor)] = graph.graph.placeholder(f"held_{len(held)}")
            inputs[id(tensor)].meta.update(node.meta)
            last = [inputs[id(tensor)]]
            held.append(tensor.detach())
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return held


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
