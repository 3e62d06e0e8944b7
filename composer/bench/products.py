"""The products of a network's layers with weights, each by itself: what they are at their real shapes, the ways to compute them, a clock.

A layer has three: forward, input gradient (dgrad), weight gradient (wgrad). Ways of a convolution are PyTorch's in either memory layout and, on a
CPU, oneDNN's with prepared weights (`models/packed.py`); of a linear layer, weights stored as [out, in] or as [in, out].
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from composer.models.packed import PackedConv, available

KINDS = ("forward", "dgrad", "wgrad")
BURST, MOST = 1e-3, 1000                        # a timing on a CPU: calls for about so many seconds, and not more calls than this
CALLS, AHEAD = 10, 10_000_000                   # on CUDA: so many calls, queued while the device spins for so many cycles
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
aten = torch.ops.aten


@dataclass(frozen=True)
class Product:
    """What a layer multiplies: input and weight by their shapes (a linear layer's are [N,C] and [D,C]).

    way    of a convolution: stride, padding, dilation, transposed, output padding, groups; of a linear layer nothing
    first  its input is data, not what other layers made of it
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    way: tuple[Any, ...] = ()
    first: bool = False


@dataclass(frozen=True)
class Way:
    """One of a product's three computations, done one way."""

    product: Product
    kind: str
    layout: str
    call: Callable[[], Any]


Timer = Callable[[Way], tuple[float, ...]]       # seconds of one call by the clock and, on a CPU, of the processor


# -- the layers ------------------------------------------------------------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Writes down the convolutions and linear layers of a forward, in order, where PyTorch dispatches them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func._schema.name
        if name == "aten::convolution":
            x, weight, _, *way = args
            self._add(x, weight.shape, tuple(tuple(w) if isinstance(w, list) else w for w in way))
        elif name in ("aten::mm", "aten::addmm"):
            x, turned = args[-2:]
            self._add(x, turned.shape[::-1], ())
        return func(*args, **(kwargs or {}))

    def _add(self, x: Tensor, weight: Sequence[int], way: tuple[Any, ...]) -> None:
        self.found[Product(tuple(x.shape), tuple(weight), way, first=not x.requires_grad)] += 1


def products(model: nn.Module, x: Tensor) -> Counter[Product]:
    """The calls of layers with weights in one forward of the batch x, in eval mode; the network is left as it was."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.enable_grad(), _Recorder() as recorder:
            model.eval()(x.detach())
    finally:
        for m, training in modes:
            m.training = training
    return recorder.found


# -- the ways --------------------------------------------------------------------------------------------------------------------------------


def ways(product: Product, device: torch.device | str) -> list[Way]:
    """All ways of all three computations. What is multiplied is noise."""
    generator = torch.Generator(device).manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator, device=device) for shape in (product.x, product.weight))
    made = _convolution(product, x, weight) if product.way else _linear(x, weight)
    return [Way(product, kind, layout, call) for (layout, kind), call in made.items()]


def _linear(x: Tensor, weight: Tensor) -> dict[tuple[str, str], Callable[[], Tensor]]:
    g, turned = x @ weight.t(), weight.t().contiguous()
    return {("out x in", "forward"): lambda: x @ weight.t(), ("out x in", "dgrad"): lambda: g @ weight, ("out x in", "wgrad"): lambda: g.t() @ x,
            ("in x out", "forward"): lambda: x @ turned, ("in x out", "dgrad"): lambda: g @ turned.t(), ("in x out", "wgrad"): lambda: x.t() @ g}


def _convolution(product: Product, x: Tensor, weight: Tensor) -> dict[tuple[str, str], Callable[[], Any]]:
    g = aten.convolution(x, weight, None, *product.way)
    made: dict[tuple[str, str], Callable[[], Any]] = {}
    for layout, memory_format in LAYOUTS.items():
        if layout == "contiguous" or x.ndim == 4:
            laid = (t.contiguous(memory_format=memory_format) for t in (x, weight, g))
            made |= {(layout, kind): call for kind, call in zip(KINDS, _plain(*laid, product.way), strict=True)}
    if x.ndim == 4 and x.device.type == "cpu" and not product.way[3] and available():
        made |= {("packed", kind): call for kind, call in zip(KINDS, _packed(x, weight, g, product.way), strict=False)}
    return made


def _plain(x: Tensor, weight: Tensor, g: Tensor, way: tuple[Any, ...]) -> list[Callable[[], Any]]:
    def back(*wanted: bool) -> Callable[[], Any]:
        return lambda: aten.convolution_backward(g, x, weight, None, *way, [*wanted, False])

    return [lambda: aten.convolution(x, weight, None, *way), back(True, False), back(False, True)]


def _packed(x: Tensor, weight: Tensor, g: Tensor, way: tuple[Any, ...]) -> list[Callable[[], Any]]:
    """Forward and input gradient with prepared weights; for the weight gradient there is nothing to prepare."""
    stride, padding, dilation, _, _, groups = way
    conv = nn.Conv2d(groups * weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation, groups, bias=False)
    conv.weight.data = weight
    layer = PackedConv(conv, None, relu=False)
    layer.refresh()
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    return [lambda: layer.run(x, None), lambda: layer.back(g, x)]


# -- the clocks ------------------------------------------------------------------------------------------------------------------------------


def on_cpu(way: Way) -> tuple[float, float]:
    """Seconds of a call, by the clock and of the processor, over a burst. A call before it fetches the data, and says how many fit."""
    begin = time.perf_counter()
    way.call()
    once = time.perf_counter() - begin
    calls = min(MOST, max(1, math.ceil(BURST / max(once, 1e-9))))
    used, begin = time.process_time(), time.perf_counter()
    for _ in range(calls):
        way.call()
    return (time.perf_counter() - begin) / calls, (time.process_time() - used) / calls


def on_cuda(way: Way) -> tuple[float]:
    """Seconds of a call on the device, by events. The burst waits in the queue while the device spins, so launches are not timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    way.call()
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD)
    begin.record()
    for _ in range(CALLS):
        way.call()
    end.record()
    end.synchronize()
    return (begin.elapsed_time(end) / 1e3 / CALLS,)


@contextmanager
def any_kernel() -> Iterator[None]:
    """Within, CUDA may take the fastest kernel, deterministic or not; whether float32 may be rounded to tf32 stays as it is."""
    deterministic, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if deterministic:
        torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        if deterministic:
            torch.use_deterministic_algorithms(True)
