"""From accuracies per cell and seed to one number per seed and contrast, and its t interval: the primary result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from composer.ablate.statistics.design import Term
from composer.ablate.statistics.inputs import Values
from composer.ablate.statistics.intervals import t_interval, tied
from composer.ablate.statistics.power import minimum_detectable
from composer.ablate.statistics.types import Contrast, Estimate, Kind


def common_seeds(cells: Sequence[str], values: Values) -> list[int]:
    """Seeds that every one of these cells has, in the order of the first."""
    first, *rest = [values.get(cell, {}) for cell in cells]
    return [seed for seed in first if all(seed in other for other in rest)]


def per_seed(weights: Mapping[str, float], values: Values) -> dict[int, float]:
    """The contrast of each seed that all its cells have."""
    return {seed: float(sum(w * values[cell][seed] for cell, w in weights.items())) for seed in common_seeds(list(weights), values)}


def estimate(cell: str, metric: str, values: Mapping[int, float]) -> Estimate:
    """Mean over seeds with its t interval."""
    numbers = [float(v) for v in values.values()]
    return Estimate(cell, metric, float(np.mean(numbers)), dict(zip(values, numbers, strict=True)), _sd(numbers), t_interval(numbers))


def contrast(term: Term, metric: str, kind: Kind, values: Values) -> Contrast:
    """One term on one metric: mean, spread, 95 % t interval with n - 1 degrees of freedom and the minimum detectable effect."""
    if term.status != "ok":
        return Contrast(term.name, metric, kind, status=term.status, why=term.why, aliases=term.aliases, given=term.given)
    seeds = per_seed(term.weights, values)
    numbers = list(seeds.values())
    if not numbers:
        return Contrast(term.name, metric, kind, status="not estimable", why="its cells have no seed in common", aliases=term.aliases,
                        given=term.given, weights=term.weights)
    same, spread = tied(numbers), _sd(numbers)
    return Contrast(term.name, metric, kind, float(np.mean(numbers)), seeds, spread, t_interval(numbers), aliases=term.aliases, given=term.given,
                    weights=term.weights, tied=same, mde=None if spread is None or same else minimum_detectable(spread, len(numbers)))


def delta(cell: str, reference: str) -> Term:
    """Cell minus reference: below 0 where taking the component out hurts."""
    return Term(cell, (cell,), (), {cell: 1.0, reference: -1.0})


def kind_of(term: Term) -> Kind:
    if term.interaction:
        return "interaction"
    return "conditional" if term.given else "main"


def _sd(numbers: Sequence[float]) -> float | None:
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
