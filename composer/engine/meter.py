"""Sums of an epoch, kept on the device: read once, at its end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer.plan.types import Plan, Slot


class Meter:
    """Means over an epoch's images of every term, of the accuracy at every point, and of radii (with their extremes)."""

    def __init__(self, plan: Plan, device: torch.device):
        self.terms = [t.id for t in plan.outer.terms]
        self.points = [(p, out) for step in plan.outer.passes if step.batch for p, out in zip(step.points, step.outs)]
        self.radii = [(i.id, i.eps.name) for i in plan.inner if isinstance(i.eps, Slot)]
        self.reads = frozenset(slot for _, slot in (*self.points, *self.radii))
        size = len(self.terms) + len(self.points) + len(self.radii)
        self.sums = torch.zeros(size, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.low = torch.full((len(self.radii),), torch.inf, device=device)
        self.high = torch.full((len(self.radii),), -torch.inf, device=device)

    def add(self, means: Tensor, env: dict[str, Any], y: Tensor, copies: int = 1) -> None:
        """`copies`: the same rows are added by so many."""
        n = y.shape[0] / copies
        with torch.no_grad():
            found = [means.double()]
            if self.points:
                found.append(torch.stack([(env[out].argmax(1) == y).double().mean() for _, out in self.points]))
            if self.radii:
                radii = torch.stack([env[slot] for _, slot in self.radii])
                found.append(radii.double().mean(1))
                self.low, self.high = torch.minimum(self.low, radii.amin(1)), torch.maximum(self.high, radii.amax(1))
            self.sums.add_(torch.cat(found), alpha=n)
            self.count.add_(n)

    def read(self) -> dict[str, float]:
        """Metrics of the epoch so far."""
        count = float(self.count)
        if not count:
            return {}
        values = (self.sums / count).tolist()
        names = [f"train/terms.{t}" for t in self.terms] + [f"train/accuracy.{'clean' if p == 'x' else p.removeprefix('x_')}" for p, _ in self.points]
        names += [f"train/radius.{id}.mean" for id, _ in self.radii]
        found = dict(zip(names, values))
        for k, (id, _) in enumerate(self.radii):
            found[f"train/radius.{id}.min"], found[f"train/radius.{id}.max"] = float(self.low[k]), float(self.high[k])
        return found

    def broken(self) -> str:
        """The first term whose sum is not finite, or ''."""
        bad = (~torch.isfinite(self.sums[:len(self.terms)])).nonzero().flatten().tolist()
        return f"terms.{self.terms[bad[0]]}" if bad else ""

    def reset(self) -> None:
        self.sums.zero_()
        self.count.zero_()
        self.low.fill_(torch.inf)
        self.high.fill_(-torch.inf)

    def state(self) -> dict[str, Tensor]:
        return {"sums": self.sums, "count": self.count, "low": self.low, "high": self.high}

    def load(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state().items():
            value.copy_(state[name])
