"""A stand-in for torch while the catalogue is being read, so that `composer list` does not pay two seconds for torch.

Inside `lazy_torch()` an `import torch` (or torch.nn, torch.nn.functional, torch.autograd) in a primitive's module binds a small module
object; its first attribute access imports the real torch and puts it into every global that held a stand-in. Outside the block
`sys.modules` is as it was, so other code never sees the stand-in. `importlib.util.LazyLoader` cannot do this: torch's own start-up
imports its submodules and finds itself half-loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAMES = ("torch", "torch.nn", "torch.nn.functional", "torch.autograd")
_standins: dict[str, _Standin] = {}


class _Standin(ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__version__":
            raise AttributeError(attribute)  # the import system's questions are no use of torch
        return getattr(_load(self.__name__), attribute)


def _load(name: str) -> ModuleType:
    for stand in NAMES:
        if isinstance(sys.modules.get(stand), _Standin):
            del sys.modules[stand]
    real = importlib.import_module(name)
    for module in list(sys.modules.values()):
        space = getattr(module, "__dict__", None)
        if type(module) is _Standin or not isinstance(space, dict):
            continue
        for key, value in list(space.items()):
            if type(value) is _Standin:
                space[key] = importlib.import_module(value.__name__)
    return real


def missing() -> bool:
    """True where torch cannot be found at all (found out without importing it)."""
    return "torch" not in sys.modules and importlib.util.find_spec("torch") is None


@contextlib.contextmanager
def lazy_torch():
    """Within the block, imports of torch bind the stand-in, unless torch is loaded already."""
    if "torch" in sys.modules:
        yield
        return
    for name in NAMES:
        if name not in _standins:
            standin = _standins[name] = _Standin(name)
            standin.__path__ = []  # a package, to the import system
            parent, _, leaf = name.rpartition(".")
            if parent:
                _standins[parent].__dict__[leaf] = standin
        sys.modules[name] = _standins[name]
    try:
        yield
    finally:
        for name in NAMES:
            if isinstance(sys.modules.get(name), _Standin):
                del sys.modules[name]
