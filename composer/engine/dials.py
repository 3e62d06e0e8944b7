"""What a schedule says at a given epoch and step, in plain Python numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from composer.errors import ComposerError
from composer.options import Ref
from composer.registry import REGISTRY, Registry


@dataclass(frozen=True)
class Clock:
    """Where a run's schedules stand: epoch (1-based), step (0-based), both counted from where the schedules last began."""

    epoch: int
    step: int
    steps_per_epoch: int
    epochs: int

    @property
    def progress(self) -> float:
        """Steps done over steps to do, in [0,1]."""
        return self.step / max(1, self.steps_per_epoch * self.epochs)

    def ahead(self, epochs: int) -> Clock:
        return Clock(self.epoch + epochs, self.step + epochs * self.steps_per_epoch, self.steps_per_epoch, self.epochs)

    def begin(self) -> Clock:
        return Clock(1, 0, self.steps_per_epoch, self.epochs)


def evaluate(value: Any, clock: Clock, lookup: Callable[[str], Any], registry: Registry = REGISTRY, path: str = "") -> float:
    """The number a value stands for now. `lookup(path)` gives the value another path holds (for `follow`)."""
    if not isinstance(value, Ref):
        return value
    primitive = registry.get(value.kind, value.use)
    facts: dict[str, Any] = {"epoch": clock.epoch, "step": clock.step, "progress": clock.progress, "epochs": clock.epochs}
    needs = [n.name for n in primitive.needs]
    if "ratio" in needs:
        followed = value.options["path"]
        other = lookup(followed)
        if other is value:
            raise ComposerError(f"the schedule at {path or 'this path'} follows itself", fix="follow another path")
        first = evaluate(other, clock.begin(), lookup, registry, followed)
        now = evaluate(other, clock.ahead(int(value.options.get("early", 0))), lookup, registry, followed)
        facts["ratio"] = now / first if first else 0.0
    return primitive.fn(*(facts[name] for name in needs), **value.options)
