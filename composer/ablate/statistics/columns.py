"""One reading of the grid ("all runs", or "if it trained"): estimates, deltas and effects of every metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from composer.ablate.statistics import collapse, families, noise
from composer.ablate.statistics.contrasts import contrast, delta, estimate, kind_of
from composer.ablate.statistics.design import Term, effects, simple
from composer.ablate.statistics.inputs import Input, Values
from composer.ablate.statistics.intervals import both, excludes_zero, t_interval
from composer.ablate.statistics.power import may_be_bold, verdict
from composer.ablate.statistics.types import Column, Contrast, Estimate

Flags = Mapping[str, Mapping[int, Any]]


@dataclass(frozen=True)
class Reading:
    """What one column is made from. `tested`: the family's p values belong to this column."""

    name: str
    data: Input
    values: Mapping[str, Values]                                # the primary metric first
    flags: Mapping[str, Flags]
    primary: str
    estimand: str
    tested: bool


def column(of: Reading) -> tuple[Column, tuple[families.Key, ...]]:
    """The column and its family (empty where nothing is tested)."""
    cells: dict[str, dict[str, Estimate]] = {}
    deltas: dict[str, dict[str, Contrast]] = {}
    rows: list[Contrast] = []
    family: tuple[families.Key, ...] = ()
    for metric in of.values:
        for found in estimates(of, metric):
            cells.setdefault(found.cell, {})[metric] = found
        contrasts = with_images(of, metric, [*_deltas(of, metric), *_effects(of, metric)])
        if of.tested and metric == of.primary:
            family = families.resolve(of.data.settings, contrasts, of.estimand)
            contrasts = families.exploratory(families.adjust(contrasts, family, of.data.settings), of.data.settings)
        contrasts = _with_simple(of, metric, [finish(of, metric, c) for c in contrasts])
        for row in contrasts:
            if row.kind == "delta":
                deltas.setdefault(row.term, {})[metric] = row
        rows += [c for c in contrasts if c.kind != "delta"]
    return Column(of.name, cells, deltas, tuple(rows)), family


def estimates(of: Reading, metric: str) -> list[Estimate]:
    """Mean over seeds of each cell with seed noise, image noise, and both."""
    found = [estimate(cell, metric, of.values[metric][cell]) for cell in of.data.own if of.values[metric].get(cell)]
    noises = image_noises(of, metric, [({e.cell: 1.0}, list(e.values)) for e in found])
    images = None if metric in of.data.graded else collapse.images_of(of.data, metric)
    result = []
    for e, image in zip(found, noises, strict=True):
        interval = image.ninety_five if image else None
        if e.n == 1 and metric not in of.data.graded:
            interval = noise.single_accuracy(e.mean, images) or interval
        result.append(replace(e, ci_image=interval, ci_both=both(e.mean, e.ci95, interval)))
    return result


def terms(data: Input, values: Values) -> list[Term]:
    """The design's effects over the cells that have a value; none where cells have no levels."""
    present = [cell for cell in data.own if values.get(cell)]
    return effects(data.levels, present, data.nested, data.design, data.aliases, data.same_as) if any(data.levels.values()) else []


def _effects(of: Reading, metric: str) -> list[Contrast]:
    if of.estimand != "effect":
        return []
    return [contrast(t, metric, kind_of(t), of.values[metric]) for t in terms(of.data, of.values[metric])]


def _deltas(of: Reading, metric: str) -> list[Contrast]:
    reference, values = of.data.reference, of.values[metric]
    if reference is None:
        return []
    result = []
    for cell in of.data.own:
        term = delta(cell, reference)
        gone = [c for c in (reference, cell) if not values.get(c)]
        if cell != reference:
            result.append(contrast(replace(term, status="not estimable", why=f"no result for {gone[0]}") if gone else term, metric, "delta", values))
    return result


def image_noises(of: Reading, metric: str, wanted: Sequence[tuple[Mapping[str, float], Sequence[int]]]) -> list[noise.ImageNoise | None]:
    """Image noise of many contrasts (weights, seeds) under the same resamples of images."""
    flags = of.flags.get(metric) or {}
    if not flags:
        return [None] * len(wanted)
    columns = [noise.per_image(weights, seeds, flags) if weights else None for weights, seeds in wanted]
    return noise.image_noise(columns, of.data.settings.bootstrap, of.data.settings.bootstrap_seed)


def with_images(of: Reading, metric: str, contrasts: Sequence[Contrast]) -> list[Contrast]:
    """`ci_image`, `ci_both` and the 90 % interval of both for the equivalence test."""
    noises = image_noises(of, metric, [(c.weights if c.status == "ok" else {}, list(c.values)) for c in contrasts])
    result = []
    for c, image in zip(contrasts, noises, strict=True):
        if image is None or c.estimate is None:
            result.append(c)
            continue
        ninety = both(c.estimate, t_interval(list(c.values.values()), 0.90), image.ninety)
        result.append(replace(c, ci_image=image.ninety_five, ci_both=both(c.estimate, c.ci95, image.ninety_five), ci90_both=ninety))
    return result


def finish(of: Reading, metric: str, c: Contrast) -> Contrast:
    """Verdict in words, and whether it may be bold."""
    margin = of.data.settings.equivalence if metric == of.primary and metric not in of.data.graded else None
    alpha = of.data.settings.alpha
    cells = set(c.weights) & set(of.data.selected_on_test)
    return replace(c, verdict=verdict(c, alpha, margin), bold=may_be_bold(c, alpha) and not cells)


def _with_simple(of: Reading, metric: str, contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Where an interaction's interval excludes 0, its simple effects follow it and the two main effects are not shown."""
    data, values = of.data, of.values[metric]
    by_term = {c.term: c for c in contrasts if c.kind in ("main", "conditional")}
    found = [c for c in contrasts if c.kind == "interaction" and c.status == "ok" and not c.aliases and excludes_zero(c.ci_both or c.ci95)]
    if not found:
        return list(contrasts)
    present = [cell for cell in data.own if values.get(cell)]
    after: dict[str, list[Contrast]] = {}
    hidden: set[str] = set()
    for c in found:
        members = tuple(c.term.split(" given ")[0].split(":"))
        new = simple(Term(c.term, members, c.given), data.levels, present, data.nested, data.design, data.same_as)
        rows = with_images(of, metric, [contrast(t, metric, "simple", values) for t in new])
        after[c.term] = [finish(of, metric, row) for row in rows]
        names = {m + (f" given {', '.join(c.given)}" if c.given else "") for m in members}
        hidden |= {name for name in names if name in by_term and len(new) == 4}
    result = []
    for c in contrasts:
        result.append(replace(c, shown=False, bold=False) if c.term in hidden and c.kind != "delta" else c)
        result += after.get(c.term, []) if c.kind == "interaction" else []
    return result
