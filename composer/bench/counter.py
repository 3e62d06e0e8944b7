"""Counts the passes of a training step: forwards, input gradients (dgrad), weight gradients (wgrad), writes of running statistics.

One layer stands for the network, the *witness*: any layer but the first (whose input gradient nobody needs for data), with weights of a
shape few others have. A convolution's or a linear layer's three products are told apart where PyTorch dispatches them, so the count is
exact and the same on every machine. The witness is known by the shape of its weights, not by their address: passes at perturbed weights
(AWP), through a copy of the network or with batch norm folded in count too. Not seen: replays of a captured graph. A gradient of a gradient
runs the network's products once more: they count as the forward and the weight gradient they are. In a network of one layer the first is the witness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from composer.errors import ComposerError

CONVOLUTION_BACKWARD = {"convolution_backward", "convolution_backward_overrideable"}


@dataclass(frozen=True)
class Passes:
    """Passes over one batch. `bn_writes` counts writes of running statistics, which cost next to nothing and change the result."""

    forward: int = 0
    dgrad: int = 0
    wgrad: int = 0
    bn_writes: int = 0

    @property
    def units(self) -> int:
        """Cost, one unit being a forward pass; an input gradient and a weight gradient cost one each."""
        return self.forward + self.dgrad + self.wgrad

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Witness:
    """The layers whose products are counted: the shape of their weights, how many share it, and whether they convolve."""

    shape: tuple[int, ...]
    layers: int

    @property
    def convolves(self) -> bool:
        return len(self.shape) > 2


def witness(model: nn.Module) -> Witness:
    """The witness of a network: convolutions before linear layers, rare shapes before common ones, the middle before the ends."""
    shapes = [tuple(p.shape) for p in model.parameters() if p.ndim in (2, 4)]
    if not shapes:
        raise ComposerError("this network has no convolution and no linear layer, so its passes cannot be counted")
    inner = {s for s in shapes if s != shapes[0]} or {shapes[0]}
    middle = len(shapes) / 2
    best = min(inner, key=lambda s: (len(s) <= 2, shapes.count(s), abs(shapes.index(s) - middle)))
    return Witness(best, shapes.count(best))


class PassCounter(TorchDispatchMode):
    """A context that counts the passes made within: `with PassCounter(model) as counter: step()`, then `counter.counts`.

    batch   images of a batch: a pass over two joined batches counts as two. None: a pass is a pass, whatever it is made over
    """

    def __init__(self, model: nn.Module, batch: int | None = None):
        super().__init__()
        self.batch = batch
        self.witness = witness(model)
        self._shapes = {tuple(p.shape) for p in model.parameters()}
        statistics = next((b for name, b in model.named_buffers() if name.split(".")[-1] == "running_mean"), None)
        self._statistics = None if statistics is None else _address(statistics)
        self._seen = dict.fromkeys(("forward", "dgrad", "wgrad"), 0)
        self._bn_writes = 0
        self._weights: set[int] = set()
        self._inputs: set[int] = set()          # what the weights were multiplied with: images, and gradients on their way back

    @property
    def counts(self) -> Passes:
        whole = self.witness.layers * (self.batch or 1)
        uneven = [kind for kind, n in self._seen.items() if n % whole]
        if uneven:
            what = "products" if self.batch is None else f"images (in batches of {self.batch})"
            raise ComposerError(f"{self._seen[uneven[0]]} {uneven[0]} {what} over the {self.witness.layers} layers of shape {self.witness.shape}",
                                why="not every pass runs all of them over whole batches, so passes cannot be counted by them")
        return Passes(**{kind: n // whole for kind, n in self._seen.items()}, bn_writes=self._bn_writes)

    def _add(self, kind: str, images: int) -> None:
        self._seen[kind] += 1 if self.batch is None else images

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if self.witness.convolves:
            self._convolution(name, args, result)
        elif name in ("mm", "addmm"):
            self._product(*args[-2:], result)
        if self._statistics is not None and self._writes_statistics(func._schema, name, args, kwargs or {}):
            self._bn_writes += 1
        return result

    def _convolution(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "_convolution_pointwise" and hasattr(args[1], "product"):       # a prepared weight (models/packed_layer.py) says what it stands for
            kind, shape = args[1].product
            if shape == self.witness.shape:
                self._add(kind, len(args[0]))
            return
        if name.startswith("_reorder"):                                            # a preparation, no product
            return
        if name in CONVOLUTION_BACKWARD and tuple(args[2].shape) == self.witness.shape:
            for kind, wanted in zip(("dgrad", "wgrad"), args[-1], strict=False):
                if wanted:
                    self._add(kind, len(args[1]))
        elif "convolution" in name and "backward" not in name and tuple(args[1].shape) == self.witness.shape:
            self._add("forward", len(args[0]))
        elif name == "convolution" and self._doubly(args[1], result):
            self._add("wgrad", args[0].shape[1])

    def _doubly(self, kernel: Tensor, result: Tensor) -> bool:
        """Whether a convolution is the weight gradient of a double backward: PyTorch convolves the tangents with the gradients, channels as images."""
        out, into, *size = self.witness.shape
        fits = tuple(result.shape[:2]) == (into, out) and all(a >= b for a, b in zip(result.shape[2:], size, strict=True))
        return fits and tuple(kernel.shape) not in self._shapes

    def _product(self, a: Tensor, b: Tensor, result: Tensor) -> None:
        """`x @ W.T` is a forward, `g @ W` an input gradient, `g.T @ x` a weight gradient: told apart by shapes and by whose memory is read."""
        out, into = self.witness.shape
        here = {_address(a), _address(b)}
        if tuple(b.shape) == (into, out) and b.stride() == (1, into):
            self._add("forward", len(a))
            self._weights.add(_address(b))
            self._inputs.add(_address(a))
        elif here & self._weights and tuple(b.shape) == (out, into):
            self._add("dgrad", len(a))
            self._inputs.add(_address(a))
        elif here & self._inputs and tuple(result.shape) in ((out, into), (into, out)):
            self._add("wgrad", a.shape[1])

    def _writes_statistics(self, schema: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Batch norm in training mode, or any operation that writes in place, on the witness's running mean."""
        given = {a.name: (a, args[i] if i < len(args) else kwargs.get(a.name)) for i, a in enumerate(schema.arguments)}
        if "batch_norm" in name:
            trains = given["training"][1] if "training" in given else "backward" not in name
            return bool(trains) and "backward" not in name and self._holds_statistics(given.get("running_mean", (None, None))[1])
        return any(a.alias_info is not None and a.alias_info.is_write and self._holds_statistics(value) for a, value in given.values())

    def _holds_statistics(self, value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(self._holds_statistics(v) for v in value)
        return isinstance(value, Tensor) and _address(value) == self._statistics


def _address(tensor: Tensor) -> int:
    """Where a tensor's memory begins; 0 for the few kinds of tensors that have no memory of their own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def count(model: nn.Module, step: Callable[[], Any], batch: int | None = None) -> Passes:
    """The passes one call of `step` makes; with `batch`, weighed by the batches each is made over."""
    with PassCounter(model, batch) as counter:
        step()
    return counter.counts


def flops(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image's forward pass in convolutions and linear layers, two a multiply-add."""
    total = 0

    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += 2 * output.numel() * math.prod(weight.shape[1:])

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [m.register_forward_hook(hook) for m in layers]
    training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return total
