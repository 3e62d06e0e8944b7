"""Rows that are measured against another row's network wait for its run: a rank under the plainly trained network, a transfer from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from composer.ablate.types import Grid, Task

NAMING = ("reference", "source")        # options of measures that name a file, a run, or a recipe's run beside


def named(grid: Grid) -> set[str]:
    """Names of recipes that some cell's measures ask for."""
    return {str(spec.options[option]) for cell in grid.distinct for spec in cell.recipe.evaluate.measures for option in NAMING if spec.options.get(option)}


def behind_references(tasks: Iterable[Task], grid: Grid) -> list[Task]:
    """One seed's tasks: the runs that others name come first, one behind the other, and whatever else the seed has follows the last of them."""
    made, names = list(tasks), named(grid)
    leads = [task for task in made if task.kind == "run" and grid.cell(task.cell).recipe.name in names]
    placed: dict[str, Task] = {}
    last = ""
    for lead in leads:
        _place(_way(lead, made), placed, last)
        last = lead.id
    _place(made, placed, last)
    return list(placed.values())


def _way(task: Task, tasks: list[Task]) -> list[Task]:
    """The task with those it follows, the first one first."""
    by_id, way = {each.id: each for each in tasks}, [task]
    while way[0].after:
        way.insert(0, by_id[way[0].after])
    return way


def _place(tasks: list[Task], placed: dict[str, Task], last: str) -> None:
    """Behind what is placed. Who would begin at once, or right after something placed, begins after `last` (which comes after all that is placed)."""
    before = set(placed)
    for task in tasks:
        if task.id not in before:
            placed[task.id] = replace(task, after=last) if last and (not task.after or task.after in before) else task
