"""Some rooms share their name with a verb or decorator of the package (`composer.inner`, `composer.data`, `composer.optim`, `composer.ablate`).
Importing such a room makes `composer.<name>` the module; being callable, it still works as what users know by that name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def make_callable(name: str, target: Callable[..., Any]) -> None:
    """Let the module `name` be called as `target`."""
    kind = type("CallableModule", (ModuleType,), {"__call__": lambda _self, *args, **kwargs: target(*args, **kwargs)})
    sys.modules[name].__class__ = kind
