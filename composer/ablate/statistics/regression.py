"""The second line: least squares with seeds as blocks, and the correlation between cells that decides whether its assumption is fair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from composer.ablate.statistics.contrasts import common_seeds, kind_of, per_seed
from composer.ablate.statistics.design import Grid, Term, grid
from composer.ablate.statistics.inputs import Input, Values
from composer.ablate.statistics.intervals import tied
from composer.ablate.statistics.types import Contrast, Correlation, SecondLine

if TYPE_CHECKING:
    from pandas import DataFrame

LABEL = "least squares, seeds as blocks: assumes equal correlation"


def second_line(data: Input, metric: str, values: Values, terms: Sequence[Term]) -> SecondLine:
    """`y ~ (A + B + ...)**2 + C(seed)` with ±1 coding, each distinct plan once; an effect is twice its coefficient.

    Shown only where all cells fork at one epoch, every cell is there, and every cell has every seed: else `withheld` says why.
    """
    used = [t for t in terms if t.status == "ok"]
    if why := _withheld(data, values, terms, used):
        return SecondLine(metric, label=LABEL, withheld=why)
    plan = grid(data.levels, data.nested, data.design, data.same_as)
    frame = _frame(plan, values, used)
    fit = _fit(frame, len(used))
    if fit.df_resid < 1:
        return SecondLine(metric, label=LABEL, withheld="no degree of freedom is left")
    table = fit.conf_int()
    rows = tuple(Contrast(t.name, metric, kind_of(t), float(2 * fit.params[f"x{i}"]), given=t.given, aliases=t.aliases,
                          ci95=(float(2 * table.loc[f"x{i}", 0]), float(2 * table.loc[f"x{i}", 1]))) for i, t in enumerate(used))
    return SecondLine(metric, rows, LABEL, variance_ratio(values, used), float(np.sqrt(fit.mse_resid)), int(fit.df_resid))


def _withheld(data: Input, values: Values, terms: Sequence[Term], used: Sequence[Term]) -> str:
    seeds = {cell: sorted(values.get(cell, {})) for cell in data.own if data.levels[cell]}
    if not data.one_fork:
        return "the cells fork at different epochs, so their correlations differ"
    if any(t.status == "not estimable" for t in terms) or not all(seeds.values()):
        return "cells are missing"
    if not used:
        return "no effect can be estimated"
    if len({tuple(s) for s in seeds.values()}) > 1:
        return "cells have different seeds"
    if len({tuple(sorted(values[cell].items())) for cell in seeds}) < len(seeds):
        return "two cells have the same results at every seed and would count as one more piece of data"
    stands = {(tuple(levels.values()), cell) for levels, cell in grid(data.levels, data.nested, data.design, data.same_as).rows}
    if len(stands) > len(seeds):
        return "one plan stands for several combinations"
    return "" if len(next(iter(seeds.values()))) > 1 else "one seed"


def _frame(plan: Grid, values: Values, terms: Sequence[Term]) -> DataFrame:
    """One row per distinct cell and seed: y, x0, x1, ... and the seed."""
    import pandas as pd

    columns = [plan.column(t.members) for t in terms]
    rows: list[dict[str, Any]] = []
    first = {cell: i for i, (_, cell) in reversed(list(enumerate(plan.rows)))}
    for cell, i in first.items():
        rows += [{"y": y, "seed": seed, **{f"x{j}": column[i] for j, column in enumerate(columns)}} for seed, y in values[cell].items()]
    return pd.DataFrame(rows)


def _fit(frame: DataFrame, columns: int) -> Any:
    from statsmodels.formula.api import ols

    return ols("y ~ " + " + ".join([*(f"x{i}" for i in range(columns)), "C(seed)"]), frame).fit()


def variance_ratio(values: Values, terms: Sequence[Term]) -> float | None:
    """Largest to smallest variance of the per-seed contrasts, each divided by its sum of squared weights; near 1 under equal correlation."""
    found = []
    for term in terms:
        numbers = list(per_seed(term.weights, values).values())
        if len(numbers) < 2 or tied(numbers):
            return None
        found.append(np.var(numbers, ddof=1) / sum(w * w for w in term.weights.values()))
    return float(max(found) / min(found)) if len(found) > 1 else None


def correlation(metric: str, values: Values, cells: Sequence[str]) -> Correlation | None:
    """Correlation of the cells over their common seeds; None below three seeds or two cells."""
    there = [c for c in cells if values.get(c)]
    seeds = common_seeds(there, values) if len(there) > 1 else []
    if len(seeds) < 3:
        return None
    matrix = np.cov([[values[c][s] for s in seeds] for c in there])
    spread = np.sqrt(np.diag(matrix))
    pairs = {f"{there[i]}|{there[j]}": float(matrix[i, j] / (spread[i] * spread[j])) if spread[i] * spread[j] > 1e-18 else None
             for i, j in combinations(range(len(there)), 2)}
    off = matrix[~np.eye(len(there), dtype=bool)].mean()
    pooled = float(off / np.diag(matrix).mean()) if np.diag(matrix).mean() > 1e-18 else None
    return Correlation(metric, pooled, pairs, pairing_pays(len(seeds)), len(seeds))


def pairing_pays(n: int) -> float:
    """Correlation above which a paired t interval is shorter on average than an unpaired one: 1 - (t(2n-2) / t(n-1))²."""
    from scipy.stats import t

    return float(1 - (t.ppf(0.975, 2 * n - 2) / t.ppf(0.975, n - 1)) ** 2)
