"""Peak memory of a step. On CUDA the allocator's own high-water mark; elsewhere the bytes of all tensors alive at once, followed one
allocation at a time, which is the same on every run (scratch space inside one operation is not seen).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows every storage an operation creates until it is freed. `peak` and `alive` are bytes above what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in before:
                self._follow(tensor)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known or storage.nbytes() == 0:
            return
        self.alive += storage.nbytes()
        self.peak = max(self.peak, self.alive)
        self._known[key] = weakref.finalize(storage, self._freed, key, storage.nbytes())
        self._known[key].atexit = False

    def _freed(self, key: int, nbytes: int) -> None:
        self.alive -= nbytes
        self._known.pop(key, None)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_memory(step: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Bytes `step` holds at its peak above what was held before it."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        step()
    return live.peak
