"""Accuracy at equal cost: how far each cell is when it has spent what the cheapest one spends in all.

Read from what validation measured after every epoch, so it is of held-out training images and never of the test split. Costs are passes, as everywhere.
A run that has more to spend is in the middle of its schedule at that point, so this says what an observer would have seen there, not what the
cell reaches when it is planned for that budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.ablate.summary.blocks import Found
from composer.ablate.summary.gather import history
from composer.ablate.summary.lines import record
from composer.ablate.types import Cell

EQUAL = 1.02                    # costs that differ by less are equal


def budget_of(cells: Mapping[str, Cell], found: Mapping[str, Found], out: Path) -> dict[str, Any]:
    """{"metric", "passes", "of", "rows": [{"name", "passes", "epochs", "epoch", "at", "end", "delta", "why"}]}; {} where all cost the same.

    epoch  the last epoch that ends within the budget, None where it cannot be known: `why` says why
    at     mean, t interval and values over seeds there; `end`: after the cell's own last epoch; `delta`: at minus the cheapest cell's, paired by seed
    """
    costs = {name: curve for name, by in found.items() if by and (curve := spent(cells[name], by, out))}
    totals = {name: curve[-1] for name, curve in costs.items()}
    if len(totals) < 2 or max(totals.values()) < EQUAL * min(totals.values()):
        return {}
    cheapest = min(totals, key=totals.__getitem__)
    attack = cells[cheapest].recipe.select.attack
    if attack is None:
        return {}
    rows = [_row(name, cells[name], found[name], costs[name], totals[cheapest], attack, out) for name in costs]
    first = next(row for row in rows if row["name"] == cheapest)
    return {"metric": attack.name, "n": min(cells[cheapest].recipe.select.n or cells[cheapest].recipe.select.held_out, cells[cheapest].recipe.select.held_out),
            "passes": totals[cheapest], "of": cheapest, "rows": [row | {"delta": _delta(row, first)} for row in rows]}


def spent(cell: Cell, found: Found, out: Path) -> list[float]:
    """Passes behind the run after each of its epochs; [] where its record is gone, or adds up to another sum than the run's own."""
    from composer.plan.cost import epoch_forwards, plan_cost
    from composer.plan.whole import plans_of

    for result in found.values():
        rows = {int(row["epoch"]): int(row["step"]) for row in history(out, str(result.get("run") or "")) if row.get("step") is not None}
        own, done, before = sum((result.get("passes") or {}).values()), 0.0, 0
        curve: list[float] = []
        for segment, plan in plans_of(cell.recipe):
            units = plan_cost(plan).at(int(result.get("classes") or 0)).units
            for epoch in range(segment.first, segment.last + 1):
                if epoch not in rows:
                    break
                steps, before = rows[epoch] - before, rows[epoch]
                done += units * steps + sum(epoch_forwards(plan, epoch=epoch, batches=steps).values())
                curve.append(done)
        if curve and own and abs(done / own - 1) < 0.01 and len(curve) == int(result.get("epochs") or 0):
            return curve
    return []


def _row(name: str, cell: Cell, found: Found, costs: list[float], budget: float, attack: Any, out: Path) -> dict[str, Any]:
    epoch = max((e for e, cost in enumerate(costs, 1) if cost <= budget * (1 + 1e-9)), default=0)
    row: dict[str, Any] = {"name": name, "passes": costs[-1], "epochs": len(costs), "epoch": epoch or None, "at": None, "end": None, "why": ""}
    mine = cell.recipe.select.attack
    if mine is None or (mine.use, mine.options) != (attack.use, attack.options):
        return row | {"epoch": None, "why": "validated by another attack"}
    if not epoch:
        return row | {"why": "its first epoch costs more"}
    key, at, end = f"val/{attack.name}", {}, {}
    for seed, result in found.items():
        rows = {int(r["epoch"]): r for r in history(out, str(result.get("run") or ""))}
        values = [rows.get(e, {}).get(key) for e in (epoch, len(costs))]
        if None not in values:
            at[seed], end[seed] = map(float, values)
    return row | ({"at": record(at), "end": record(end)} if at else {"epoch": None, "why": "no validation kept"})


def _delta(row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any] | None:
    """Paired by seed, at the same cost."""
    from composer.ablate.statistics import paired_difference

    if row is first or not row["at"] or not first["at"] or row["name"] == first["name"]:
        return None
    a, b = (dict(zip(r["at"]["seeds"], r["at"]["values"], strict=True)) for r in (row, first))
    both = [seed for seed in a if seed in b]
    if not both:
        return None
    found = paired_difference({"": {s: a[s] for s in both}}, {"": {s: b[s] for s in both}})[""]
    return {"mean": found.estimate, "ci95": list(found.ci95) if found.ci95 else None, "n": found.n, "seeds": both}
