"""The floor: what a step's products alone take on this machine, each done the fastest way found. A step's time over it says how much is left.

    floor = sum over calls l of layers with weights: F t(l, forward) + D(l) t(l, input gradient) + W t(l, weight gradient)   [s]

F, D, W are the plan's passes. t is measured at the call's own shapes in float32 (`products.py`): short repetitions, all ways of all layers in
turn; of each way the median, of the ways the least.

A lower bound, which no implementation needs to reach. Left out is all that lies between the products: batch norm, ReLU, sums, pooling, losses,
projection, optimiser, draws, and the moves from one layer's best layout to the next one's. Products of two activations (attention) are no layer's.

    first layers     D(l) = max(0, D - W) where a layer takes the images: a pass that is differentiated by the weights has data at its input, which
                     need no gradient. Where one is taken nevertheless (weight gradients of double backwards), this layer is counted short
    joined batches   a pass over two batches counts as two; a layer that is called twice counts twice
    double backward  a forward and a weight gradient, as the plan counts it
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from composer.bench.products import Product, Timer, Way, any_kernel, on_cpu, on_cuda, products, ways
from composer.bench.timer import Timing
from composer.errors import ComposerError
from composer.plan.cost import plan_cost
from composer.plan.types import Cost

ROUNDS = 5


@dataclass(frozen=True)
class Layer:
    """A product, how often one forward calls it, the passes of each call, and by kind the fastest way with its seconds."""

    product: Product
    calls: int
    passes: dict[str, int]
    best: dict[str, tuple[str, float]]

    @property
    def seconds(self) -> float:
        return self.calls * sum(n * self.best[kind][1] for kind, n in self.passes.items() if n)

    def as_dict(self) -> dict[str, Any]:
        best = {kind: {"layout": layout, "ms": 1e3 * seconds} for kind, (layout, seconds) in self.best.items()}
        return {"input": list(self.product.x), "weight": list(self.product.weight), "first": self.product.first, "calls": self.calls,
                "passes": dict(self.passes), "best": best, "ms": 1e3 * self.seconds}


@dataclass(frozen=True)
class Floor:
    """The floor of one step, layer by layer; layers of equal shapes are one entry. `processor` [s] is the same sum in processor time, on a CPU."""

    layers: tuple[Layer, ...]
    processor: float | None = None

    @property
    def seconds(self) -> float:
        return sum(layer.seconds for layer in self.layers)

    def over(self, timing: Timing) -> dict[str, float]:
        """Each variant's median time over the floor."""
        return {name: v.median / self.seconds for name, v in timing.variants.items()}

    def over_processor(self, timing: Timing) -> dict[str, float] | None:
        """The same in processor time, which other programs move less."""
        return None if self.processor is None else {name: statistics.median(v.processor) / self.processor for name, v in timing.variants.items()}

    def as_dict(self, timing: Timing) -> dict[str, Any]:
        """Plain data; `over` by the variants of a timing."""
        processor = {} if self.processor is None else {"processor_ms": 1e3 * self.processor, "over_processor": self.over_processor(timing)}
        return {"ms": 1e3 * self.seconds, "over": self.over(timing), **processor, "layers": [layer.as_dict() for layer in self.layers]}

    def table(self, timing: Timing) -> str:
        """The timing's table with the floor in it; where the clock was noisy, a line in processor time."""
        text, over = timing.text(machine=False, floor=self.seconds), self.over_processor(timing)
        if not timing.noisy or over is None:
            return text
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in over.items())
        return f"{text}\nover the floor in processor time, as the clock was noisy: {said}"


def floor_of(step: Any) -> Floor:
    """The floor of an engine's step (`subject.Subject`): its network, its batch, its plan's passes."""
    return floor(step.model, step.batch.x, plan_cost(step.plan).at(step.session.dataset.classes))


def floor(model: nn.Module, x: Tensor, cost: Cost, *, rounds: int = ROUNDS, timer: Timer | None = None) -> Floor:
    """The floor of passes over the batch x [N,C,H,W], on its device, with PyTorch's threads as they are set; each of `rounds` times every way once.

    Errors: ComposerError where the network has no layer with weights.
    """
    called = products(model, x)
    if not called:
        raise ComposerError("this network has no convolution and no linear layer, so it has no floor")
    timer = timer or (on_cuda if x.device.type == "cuda" else on_cpu)
    asked = {product: passes(product, cost) for product in called}
    with torch.no_grad(), any_kernel():
        each = [way for product in called for way in ways(product, x.device) if asked[product][way.kind]]
        taken = [[timer(way) for way in each] for _ in range(rounds)]
    layers = []
    for clock in range(len(taken[0][0])):
        best = _fastest(each, [statistics.median(times[clock] for times in of_way) for of_way in zip(*taken, strict=True)])
        layers.append(tuple(Layer(product, n, asked[product], best[product]) for product, n in called.items()))
    return Floor(layers[0], sum(layer.seconds for layer in layers[1]) if len(layers) > 1 else None)


def _fastest(each: Sequence[Way], medians: Sequence[float]) -> dict[Product, dict[str, tuple[str, float]]]:
    """By product and kind the way of the least median, with its seconds."""
    best: dict[Product, dict[str, tuple[str, float]]] = {way.product: {} for way in each}
    for way, seconds in zip(each, medians, strict=True):
        found = best[way.product]
        found[way.kind] = min(found.get(way.kind, ("", math.inf)), (way.layout, seconds), key=lambda pair: pair[1])
    return best


def passes(product: Product, cost: Cost) -> dict[str, int]:
    """How often a step runs each of a call's three products."""
    return {"forward": cost.forward, "dgrad": max(0, cost.dgrad - cost.wgrad) if product.first else cost.dgrad, "wgrad": cost.wgrad}
