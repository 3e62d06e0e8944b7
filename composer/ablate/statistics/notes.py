"""The sentences that stand above and below a table of results."""

from __future__ import annotations

from composer.ablate.statistics.inputs import Input
from composer.ablate.statistics.noise import disagreement
from composer.ablate.statistics.power import points
from composer.ablate.statistics.types import MIN_TEST_SEEDS, Analysis, Contrast


def banners(data: Input, result: Analysis) -> tuple[str, ...]:
    """What must be read before the numbers."""
    found = []
    counts = seeds_by_row(result)
    few = {row: n for row, n in counts.items() if n < MIN_TEST_SEEDS}
    if few and len(few) == len(counts):
        found.append(f"intervals only: {_seeds_in_words(min(few.values()))}, tests need {MIN_TEST_SEEDS}")
    elif few:
        found.append(f"intervals only for {', '.join(f'{row} ({_seeds_in_words(n)})' for row, n in few.items())}: tests need {MIN_TEST_SEEDS}")
    collapsed, runs = sum(r.collapsed for r in result.collapse), sum(r.n for r in result.collapse)
    if collapsed:
        found.append(f"{collapsed} of {runs} runs collapsed: read the rates and the column \"if it trained\"")
    return tuple(found)


def seeds_by_row(result: Analysis) -> dict[str, int]:
    """Seeds behind each contrast of the primary metric, or behind each cell where nothing is compared."""
    found = {c.term: c.n for c in _contrasts(result) if c.status == "ok"}
    return found or {cell: by[result.primary].n for cell, by in result.all_runs.cells.items() if result.primary in by}


def _seeds_in_words(n: int) -> str:
    return f"{n} seed{'s' if n != 1 else ''}"


def _contrasts(result: Analysis) -> list[Contrast]:
    column, m = result.all_runs, result.primary
    return [by[m] for by in column.deltas.values() if m in by] + [e for e in column.effects if e.metric == m]


def notes(data: Input, result: Analysis) -> tuple[str, ...]:
    """The footer's statistical part, one sentence each."""
    return (*_estimand(data, result), *_seeds(data, result), *_images(data, result), *_ties(result), *_effects(result), *_correlation(result),
            *_collapse(data, result), *_bounds(data, result))


def _estimand(data: Input, result: Analysis) -> list[str]:
    if result.estimand == "effect":
        text = "an effect is the mean with the component minus the mean without it, over the levels of the other toggles"
    else:
        text = f"a delta is a cell minus {data.reference}, seed by seed" if data.reference else "cells stand alone: no reference was named"
    family = f"family of {len(result.family)} on {result.primary}: {', '.join(result.family)}" if result.family else "no family: nothing is tested"
    return [text, family + "; every other metric is descriptive"]


def _seeds(data: Input, result: Analysis) -> list[str]:
    m = result.primary
    by_cell = {cell: set(by[m].values) for cell, by in result.all_runs.cells.items() if m in by}
    seeds = set().union(*by_cell.values()) if by_cell else set()
    found = []
    if data.common_epochs and data.epochs:
        found.append(f"{data.common_epochs} of {data.epochs} epochs are common to these cells; n = {len(seeds)} seeds: means have {len(seeds)}, "
                     f"not {sum(map(len, by_cell.values()))}, independent draws")
    for cell, has in by_cell.items():
        if gone := sorted(seeds - has):
            found.append(f"{cell} has no result for seed {', '.join(map(str, gone))}: its contrasts use the seeds in common")
    if absent := [cell for cell in data.own if cell not in by_cell]:
        found.append(f"no result for {', '.join(absent)}")
    return found


def _images(data: Input, result: Analysis) -> list[str]:
    without = [c for c in _contrasts(result) if c.status == "ok" and c.n > 1 and not c.tied and c.ci_both is None]
    found = ["image noise was not measured for every contrast: without it nothing is bold"] if without else []
    for metric, by in data.metrics.items():
        if wrong := disagreement(by, data.flags.get(metric, {})):
            found.append(f"{metric} has no image noise: {wrong}")
    return found


def _ties(result: Analysis) -> list[str]:
    column, m = result.all_runs, result.primary
    return [f"{cell} and the reference tie at every seed: if the checkpoint was selected before their last fork they are one model"
            for cell, by in column.deltas.items() if m in by and by[m].tied and abs(by[m].estimate or 0.0) <= 1e-12]


def _effects(result: Analysis) -> list[str]:
    found = []
    for e in result.effects(shown_only=False):
        if e.status in ("not estimable", "not defined"):
            found.append(f"{e.term}: {e.status} ({e.why})")
        elif e.aliases and e.status == "ok":
            found.append(f"{e.term} is aliased with {', '.join(e.aliases)}")
        elif e.kind == "main" and not e.shown:
            found.append(f"{e.term}: an interaction's interval excludes 0, read its simple effects")
    if line := result.second_line.get(result.primary):
        if line.withheld:
            found.append(f"least squares is not shown: {line.withheld}")
        elif line.variance_ratio:
            found.append(f"{line.label}; largest to smallest contrast variance {line.variance_ratio:.1f}")
    return found


def _correlation(result: Analysis) -> list[str]:
    c = result.correlation.get(result.primary)
    if c is None or c.pooled is None or c.pays_above is None:
        return []
    return [f"correlation between cells over seeds {c.pooled:.2f} (n = {c.n}); pairing shortens an interval above {c.pays_above:.2f}"]


def _collapse(data: Input, result: Analysis) -> list[str]:
    found = []
    if not (data.classes or "chance" in data.settings.thresholds) or data.clean not in data.metrics:
        found.append("collapse to chance was not judged: it needs the clean accuracy and the number of classes")
    hit = [r for r in result.collapse if r.collapsed]
    if not hit:
        return found
    found += [f"{r.cell}: {r.collapsed} of {r.n} runs collapsed ({'; '.join(f'seed {s} {why}' for s, why in r.reasons.items())})" for r in hit]
    if result.if_trained is None:
        return [*found, "no seed trained in every cell: there is no column \"if it trained\""]
    gone = ", ".join(map(str, result.if_trained.dropped_seeds))
    text = (f"\"if it trained\" leaves seed {gone} out of every cell; \"all runs\" keeps collapses at their accuracy, and its interval, wide as it "
            "is, holds no promise for how often the next runs collapse")
    return [*found, text]


def _bounds(data: Input, result: Analysis) -> list[str]:
    m = result.primary
    if m in data.graded:
        return []
    near = [cell for cell, by in result.all_runs.cells.items() if m in by and not 0.05 <= by[m].mean <= 0.95]
    return [f"{', '.join(near)}: within {points(0.05)} points of 0 or 1, where t intervals of accuracies are rough"] if near else []
