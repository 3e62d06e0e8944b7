"""The whole analysis of a grid in one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from composer.ablate.statistics import collapse, regression
from composer.ablate.statistics.beside import beside
from composer.ablate.statistics.columns import Reading, column, image_noises, terms
from composer.ablate.statistics.contrasts import contrast
from composer.ablate.statistics.design import Term
from composer.ablate.statistics.inputs import Input, Settings, Values
from composer.ablate.statistics.noise import disagreement
from composer.ablate.statistics.notes import banners, notes
from composer.ablate.statistics.power import verdict
from composer.ablate.statistics.types import Analysis, Beside, Column, Contrast
from composer.errors import ComposerError, suggest


def analyse(data: Input) -> Analysis:
    """Estimates, deltas, effects, the second line, collapses, printed numbers, banners and notes of one grid under one protocol."""
    primary = _check(data)
    values = {metric: collapse.filled(data, metric) for metric in [primary, *(m for m in data.metrics if m != primary)]}
    flags = {metric: _flags(data, metric, by) for metric, by in values.items()}
    reading = Reading("all runs", data, values, flags, primary, "effect" if data.design in ("full", "fractional") else "delta", tested=True)
    everything, family = column(reading)
    found = collapse.collapses(data)
    second = {m: regression.second_line(data, m, by, terms(data, by)) for m, by in values.items()} if reading.estimand == "effect" else {}
    related = {m: r for m, by in values.items() if (r := regression.correlation(m, by, data.own))}
    result = Analysis(primary, reading.estimand, tuple(name for _, name in family), everything, _if_trained(reading, found),
                      collapse.rows(data, found), second, related, _beside(reading, everything))
    return replace(result, banners=banners(data, result), notes=notes(data, result))


def planned_family(data: Input) -> tuple[str, ...]:
    """The family's names before anything is trained; `data` may be without metrics.

    Errors: ComposerError for what [analysis] names and this design does not have, so that it is found before the runs and not after them.
    """
    primary = data.settings.primary or next(iter(data.metrics), "primary")
    made_up = {primary: {cell: {0: 0.5} for cell in data.own}}
    return analyse(replace(data, metrics=made_up, flags={}, images={}, runs={}, printed={})).family


def paired_difference(first: Values, second: Values, metric: str = "best - last", settings: Settings | None = None) -> dict[str, Contrast]:
    """First minus second per seed within each cell, such as best minus last: {cell: {seed: value}} twice -> {cell: Contrast}."""
    settings = settings or Settings()
    result = {}
    for cell in [c for c in first if c in second]:
        c = contrast(Term(cell, (cell,), (), {"first": 1.0, "second": -1.0}), metric, "delta", {"first": first[cell], "second": second[cell]})
        result[cell] = replace(c, verdict=verdict(c, settings.alpha))
    return result


def _check(data: Input) -> str:
    """The primary metric's name, after looking for what no statistic could mend."""
    if not data.metrics:
        raise ComposerError("no metric to analyse", why="no run has a result", fix="run the cells first")
    if data.reference is not None and data.reference not in data.levels:
        raise ComposerError(f"reference {data.reference!r}", why="it is no cell of the grid", fix=suggest(data.reference, data.levels, "cells"))
    for metric, by in data.metrics.items():
        if strange := [cell for cell in by if cell not in data.levels]:
            raise ComposerError(f"{metric}: cell {strange[0]!r}", why="it has no levels", fix=suggest(strange[0], data.levels, "cells"))
        if bad := [(c, s) for c, runs in by.items() for s, v in runs.items() if not np.isfinite(v)]:
            raise ComposerError(f"{metric} of {bad[0][0]}, seed {bad[0][1]} is not finite", why="a mean over it would be no number",
                                fix="leave a diverged run out of the metric and hand it in as diverged")
    primary = data.settings.primary or next(iter(data.metrics))
    if primary not in data.metrics:
        raise ComposerError(f"primary = {primary!r}", where="[analysis]", why="it was not measured", fix=suggest(primary, data.metrics, "metrics"))
    return primary


def _flags(data: Input, metric: str, values: Values) -> dict[str, dict[int, Any]]:
    """Flags as handed in, none where they are not those behind the values; a diverged run that stands at 1/K has 1/K on every image."""
    if disagreement(data.metrics[metric], data.flags.get(metric, {})):
        return {}
    flags = {cell: dict(runs) for cell, runs in data.flags.get(metric, {}).items()}
    size = collapse.images_of(data, metric)
    for cell, runs in data.runs.items() if flags and size else ():
        for seed, run in runs.items():
            if run.diverged and seed in values.get(cell, {}) and seed not in data.metrics[metric].get(cell, {}):
                flags.setdefault(cell, {})[seed] = np.full(size, values[cell][seed])
    return flags


def _if_trained(reading: Reading, found: Mapping[str, Mapping[int, str]]) -> Column | None:
    """The grid without the seeds that collapsed in any cell; None where none did, or none is left."""
    dropped = tuple(sorted({seed for reasons in found.values() for seed in reasons}))
    if not dropped:
        return None
    kept = {m: {c: {s: v for s, v in runs.items() if s not in dropped} for c, runs in by.items()} for m, by in reading.values.items()}
    trained, _ = column(replace(reading, name="if it trained", values=kept, tested=False))
    return replace(trained, dropped_seeds=dropped) if trained.cells else None


def _beside(reading: Reading, everything: Column) -> dict[str, dict[str, Beside]]:
    """Printed numbers beside the cells they belong to."""
    result: dict[str, dict[str, Beside]] = {}
    for cell, by in reading.data.printed.items():
        for metric, printed in by.items():
            ours = everything.cells.get(cell, {}).get(metric)
            if ours is not None:
                image = image_noises(reading, metric, [({cell: 1.0}, list(ours.values))])[0]
                result.setdefault(cell, {})[metric] = beside(ours, printed, image, reading.data.settings.beside_margin)
    return result
