"""Judging a model leaves no trace: modes, gradients, random states and the tracer are afterwards what they were."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from composer.shapes import Tensor


class Judge:
    """Any model as images -> fresh float32 logits, by its eager form where it is compiled.

    Calling it under autograd gives contiguous gradients for the images only. A module's parameters are frozen by `undisturbed`; a bare
    function may hide parameters, so its own graph is kept behind a wall.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], meter: list[int] | None = None):
        self.model = getattr(model, "_orig_mod", model)
        self.module = self.model if isinstance(self.model, torch.nn.Module) else None
        floats = [p for p in self.module.parameters() if p.is_floating_point()] if self.module is not None else []
        self.device = floats[0].device if floats else None
        self.dtype = floats[0].dtype if floats else torch.float32
        self.meter = meter if meter is not None else [0]

    @property
    def calls(self) -> int:
        """Forward passes so far, also those of a folded twin."""
        return self.meter[0]

    def raw(self, x: Tensor) -> Tensor:
        self.meter[0] += 1
        return self.model(x.to(self.dtype)).float()

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            if self.module is not None:
                x = x.view_as(x)
                x.register_hook(torch.Tensor.contiguous)      # channels-last weights give channels-last gradients, which some attacks `.view`
                return self.raw(x)
            from composer.evaluate._isolated import isolated

            return isolated(self.raw, x)
        with torch.no_grad():
            return self.raw(x).clone(memory_format=torch.contiguous_format)    # Square writes into what it is given

    def verdict(self, x: Tensor) -> Tensor:
        """The logits that decide whether an attack has succeeded."""
        return self(x)

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """[N] bool: argmax is the label. Logits that are not finite answer nothing, so they count as wrong."""
        logits = self.verdict(x)
        return (logits.argmax(1) == y) & logits.isfinite().all(1)


def plainly(model: Any) -> Any:
    """The model as attacks can trust it: float32, contiguous, eager. Itself where it is so, else a copy that shares nothing with it.

    Half precision hides small gradients, channels-last weights give gradients that some attacks cannot `.view`, and a compiled model looks to
    the attack library like one that changes. A model that cannot be copied is judged as it is, its inputs and logits cast.
    """
    module = getattr(model, "_orig_mod", model)
    if not isinstance(module, torch.nn.Module):
        return module
    tensors = [*module.parameters(), *module.buffers()]
    half = any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)
    compiled = any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in module.modules())
    if not (half or compiled or any(t.ndim in (4, 5) and not t.is_contiguous() for t in tensors)):
        return module
    try:
        module = _eager(copy.deepcopy(module))
    except (RuntimeError, TypeError, NotImplementedError):            # it holds what cannot be copied: it is judged as it stands
        return module
    return (module.float() if half else module).to(memory_format=torch.contiguous_format)


def _eager(module: torch.nn.Module) -> torch.nn.Module:
    """Compiled submodules replaced by what they compile."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "_orig_mod"):
                setattr(parent, name, child._orig_mod)
    for one in module.modules():
        one._compiled_call_impl = None
    return module


@contextlib.contextmanager
def eager_precision() -> Iterator[None]:
    """Neither autocast of the caller's reaches into the block, nor tf32: float32 products are float32's."""
    products = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in products]
    try:
        for each in products:
            each.allow_tf32 = False
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False) if torch.cuda.is_available() else contextlib.nullcontext():
            yield
    finally:
        for each, allowed in zip(products, before, strict=True):
            each.allow_tf32 = allowed


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[Judge]:
    """Within the block the model, or its plain copy, is in eval mode with frozen parameters; everything is put back, also after an error, and also
    the buffers of a model that counts in eval mode."""
    judge = Judge(plainly(model))
    module = judge.module
    buffers = [(m, name, b, b.clone()) for m in module.modules() for name, b in m._buffers.items() if b is not None] if module is not None else []
    modes = [(m, m.training) for m in module.modules()] if module is not None else []
    params = [(p, p.requires_grad, p.grad) for p in module.parameters()] if module is not None else []
    tracer = sys.gettrace()
    with random_states(), eager_precision(), torch.inference_mode(False), torch.enable_grad():
        try:
            if module is not None:
                module.eval()
                for p, *_ in params:
                    p.requires_grad_(False)
            yield judge
        finally:
            for m, training in modes:
                m.training = training
            _put_back(buffers)
            for p, needs, grad in params:
                p.requires_grad_(needs)
                p.grad = grad
            if sys.gettrace() is not tracer:
                sys.settrace(tracer)


def _put_back(buffers: list[tuple[torch.nn.Module, str, Tensor, Tensor]]) -> None:
    """The very tensors that were there, with their values. Batch norm writes without raising a tensor's version, so values are compared."""
    with torch.no_grad():
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def random_states() -> Iterator[None]:
    """Python's, numpy's and torch's global generators (every started CUDA device too) leave the block as they entered it."""
    import numpy

    cuda = torch.cuda.is_initialized()
    python, array, cpu = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if cuda else []
    queued = list(getattr(torch.cuda, "_queued_calls", []))      # seeding a sleeping CUDA is only noted down, to be done when it wakes
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(array)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(devices)
        elif not torch.cuda.is_initialized() and hasattr(torch.cuda, "_queued_calls"):
            torch.cuda._queued_calls[:] = queued
