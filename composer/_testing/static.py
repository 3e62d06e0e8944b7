"""A watch for what keeps a primitive from being captured: reading a tensor's value in Python, and shapes that depend on values."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from composer._testing.report import Broken

READS = {"item": ".item()", "tolist": ".tolist()", "numpy": ".numpy()", "__bool__": "a Python branch on a tensor", "__float__": "float() of a tensor",
         "__int__": "int() of a tensor", "__index__": "a tensor used as a Python index"}
SHAPES = {"nonzero": "nonzero", "masked_select": "masked_select", "unique": "unique", "argwhere": "argwhere"}


class Static(TorchFunctionMode):
    """Within this mode each such operation raises Broken."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in READS:
            raise Broken(f"it reads a tensor's value in Python ({READS[name]}): a device would have to wait, and a captured step could not repeat it")
        if name in SHAPES or (name == "where" and len(args) == 1) or (name in ("__getitem__", "__setitem__") and _masks(args[1])):
            raise Broken(f"a shape depends on values ({SHAPES.get(name, 'an index by a mask')}): use where, gather or a product with the mask")
        if name == "one_hot" and len(args) < 2 and kwargs.get("num_classes", -1) == -1:
            raise Broken("one_hot without num_classes has a shape that depends on values")
        return func(*args, **kwargs)


def _masks(index: Any) -> bool:
    parts = index if isinstance(index, (tuple, list)) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool and part.ndim for part in parts)
