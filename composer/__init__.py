"""composer: an adversarial-training method is a value.

Authors of primitives import the decorators (`from composer import loss`); users the verbs (`composer.load`, `composer.run`). Neither imports torch.
"""

from typing import Any

from composer.registry import (augment, ball, data, gain, head, inner, loss, measure, model, optim, part, phase, radius, schedule, start,
                               view)

__version__ = "0.1.0"
_VERBS = ("build", "check", "load", "run", "show")
__all__ = ["augment", "ball", "data", "gain", "head", "inner", "loss", "measure", "model", "optim", "part", "phase", "radius", "schedule",
           "start", "view", "ablate", *_VERBS]


def __getattr__(name: str) -> Any:
    if name == "ablate":                       # a room that can be called: composer.callmodule
        import importlib

        return importlib.import_module("composer.ablate")
    if name in _VERBS:
        from composer import api

        return getattr(api, name)
    raise AttributeError(f"module 'composer' has no attribute '{name}'")
