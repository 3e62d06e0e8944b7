"""composer: an adversarial-training method is a value."""

from composer.registry import (augment, ball, data, gain, head, inner, loss, measure, model, optim, part, phase, radius, schedule, start,
                               view)

__version__ = "0.1.0"
__all__ = ["augment", "ball", "data", "gain", "head", "inner", "loss", "measure", "model", "optim", "part", "phase", "radius", "schedule",
           "start", "view"]
