"""Runs that did not train: at chance, catastrophically overfitted, or diverged. They are counted in the open, and never dropped one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from composer.ablate.statistics.inputs import Input, Training, Values
from composer.ablate.statistics.intervals import clopper_pearson
from composer.ablate.statistics.types import CollapseRow
from composer.errors import ComposerError, suggest

DEFAULTS = {"overfit_gap": 0.25, "overfit_drop": 0.5}
KNOWN = ("chance", *DEFAULTS)


def chance_level(classes: int, images: int) -> float:
    """1/K + 3 sqrt(1/K (1 - 1/K) / n): a guesser's accuracy on n images is below it but once in 700 sets."""
    p = 1 / classes
    return p + 3 * math.sqrt(p * (1 - p) / images)


def limits(data: Input) -> dict[str, float]:
    """The declared thresholds with their defaults; `chance` is absent where neither it nor the number of classes is known."""
    for name in data.settings.thresholds:
        if name not in KNOWN:
            raise ComposerError(f"thresholds names {name!r}", where="[analysis]", why="no rule for collapse reads it",
                                fix=suggest(name, KNOWN, "thresholds"))
    images = images_of(data, data.clean)
    computed = {"chance": chance_level(data.classes, images)} if data.classes and images else {}
    return {**DEFAULTS, **computed, **{k: float(v) for k, v in data.settings.thresholds.items()}}


def images_of(data: Input, metric: str) -> int | None:
    sizes = [int(np.size(array)) for runs in data.flags.get(metric, {}).values() for array in runs.values()]
    return sizes[0] if sizes else data.images.get(metric)


def reason(clean: float | None, run: Training, limit: Mapping[str, float], floor: float) -> str:
    """Why this run counts as collapsed, or nothing. `floor` is the accuracy below which a fall of pgd-10 means nothing."""
    if run.diverged:
        return "diverged"
    if clean is not None and "chance" in limit and clean <= limit["chance"]:
        return f"at chance: clean accuracy {clean:.3f} is not above {limit['chance']:.3f}"
    if run.single_step is not None and run.pgd10 is not None and run.single_step - run.pgd10 > limit["overfit_gap"]:
        return f"catastrophic overfitting: single-step {run.single_step:.3f} against pgd-10 {run.pgd10:.3f}"
    epochs = list(run.epochs) or list(range(1, len(run.history) + 1))
    for before, after, epoch in zip(run.history, run.history[1:], epochs[1:], strict=False):
        if before > floor and after <= limit["overfit_drop"] * before:
            end = run.history[-1]
            back = f", and is back at {end:.3f} in the end" if end > limit["overfit_drop"] * before else ""
            return f"catastrophic overfitting: pgd-10 fell from {before:.3f} to {after:.3f} at epoch {epoch}{back}"
    return ""


def collapses(data: Input) -> dict[str, dict[int, str]]:
    """Cell -> seed -> reason, for the runs that collapsed."""
    limit, clean = limits(data), data.metrics.get(data.clean, {})
    images = data.val_images or images_of(data, data.clean)
    floor = chance_level(data.classes, images) if data.classes and images else 0.0
    found = {}
    for cell in data.own:
        reasons = {s: reason(clean.get(cell, {}).get(s), data.runs.get(cell, {}).get(s, Training()), limit, floor) for s in seeds_of(data, cell)}
        found[cell] = {seed: why for seed, why in reasons.items() if why}
    return found


def seeds_of(data: Input, cell: str) -> list[int]:
    """Seeds with an outcome: a value of any metric, or a divergence. A crash has none."""
    seeds = dict.fromkeys(seed for values in data.metrics.values() for seed in values.get(cell, {}))
    seeds.update(dict.fromkeys(seed for seed, run in data.runs.get(cell, {}).items() if run.diverged))
    return list(seeds)


def rows(data: Input, found: Mapping[str, Mapping[int, str]]) -> tuple[CollapseRow, ...]:
    """k of n and the exact interval of the rate, for every cell with an outcome."""
    result = []
    for cell in data.own:
        k, n = len(found[cell]), len(seeds_of(data, cell))
        if n:
            result.append(CollapseRow(cell, k, n, k / n, clopper_pearson(k, n), dict(found[cell])))
    return tuple(result)


def filled(data: Input, metric: str) -> Values:
    """The metric with diverged runs at their accuracy: what was measured, else 1/K, a constant answer's (accuracies only)."""
    values = {cell: dict(data.metrics[metric].get(cell, {})) for cell in data.own}
    if data.classes and metric not in data.graded:
        for cell, runs in data.runs.items():
            for seed, run in runs.items():
                if run.diverged and cell in values:
                    values[cell].setdefault(seed, 1 / data.classes)
    return values
