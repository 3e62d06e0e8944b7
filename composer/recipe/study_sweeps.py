"""What a sweep's row says: its grid, the measures that choose winners, the rungs at which runs are dropped."""

from __future__ import annotations

import itertools
from typing import Any

from composer.errors import suggest
from composer.recipe.edit import Edit
from composer.recipe.problems import told_at
from composer.recipe.recipe import Recipe
from composer.recipe.studies import as_path
from composer.recipe.study_command import rescaled
from composer.recipe.write import quote
from composer.registry import REGISTRY


def read_grid(reading: Any, path: tuple[str, ...], cell: dict[str, Any], recipe: Recipe | None) -> dict[str, tuple[Any, ...]]:
    """Path -> its values. Each value is tried as an edit of the row's recipe."""
    grid, found = cell["grid"], {}
    if not isinstance(grid, dict) or not grid:
        reading.fail((*path, "grid"), f"grid = {quote(grid)}", why="a table of paths and lists is needed", fix='write { "train.lr.value" = [0.1, 0.01] }')
        return {}
    for text, values in grid.items():
        here = (*path, "grid", text)
        where = f"{reading.doc.place(here)}  cells.{path[1]}"
        if not isinstance(values, list) or not values:
            reading.fail(here, f'"{text}" = {quote(values)}', why="a list of values is needed")
            continue
        dotted = as_path(text, where, reading.errors)
        if dotted and reading.said.says(dotted):
            reading.notes.append(f"the command line sets {text}: the grid of {path[1]} has no such axis")
            continue
        for value in values if recipe and dotted else ():
            wrong = reading.bases.edited(recipe, (Edit(f"cells.{path[1]}", where, set={dotted: (value, where)}),), plan=False)[1]
            reading.errors += [told_at(e, where) for e in wrong if (e.where, e.what) not in {(o.where, o.what) for o in recipe.wrong}]
        found[text] = tuple(values)
    return found


def read_select(reading: Any, path: tuple[str, ...], cell: dict[str, Any], recipe: Recipe | None) -> tuple[str, ...]:
    """Measures of the row's protocol, or registered ones: each picks a winner of its own on held-out images."""
    value = cell["select"]
    if not isinstance(value, list) or not value or not all(isinstance(s, str) for s in value):
        reading.fail((*path, "select"), f"select = {quote(value)}", why="a list of measures is needed", fix='write select = ["clean", "pgd-20"]')
        return ()
    uses = {n.replace("_", "-"): n for n in REGISTRY.names("measure")} | ({m.name: m.use for m in recipe.evaluate.measures} if recipe else {})
    measures = {name for name, use in uses.items() if not REGISTRY.get("measure", use).flags.get("unit")} if recipe else set(value)
    for name in value:
        if recipe and name in uses and name not in measures:
            reading.fail((*path, "select"), f"'{name}' cannot select", why="a diagnostic is no accuracy", fix=f"one of {', '.join(sorted(measures))}")
            continue
        if name not in measures:
            reading.fail((*path, "select"), f"there is no measure '{name}'", fix=suggest(name, measures, "measures"))
    return tuple(value)


def read_rungs(reading: Any, path: tuple[str, ...], cell: dict[str, Any], recipe: Recipe | None, grid: dict[str, Any]) -> tuple[tuple[int, ...], int | None]:
    """(rungs, keep): epochs of the whole run, the last its end, and how many runs go on after the first."""
    rungs, keep = cell.get("rungs", []), cell.get("keep")
    if not isinstance(rungs, list) or not all(map(count, rungs)) or any(a >= b for a, b in itertools.pairwise(rungs)):
        reading.fail((*path, "rungs"), f"rungs = {quote(rungs)}", why="epochs of the run, ever larger, are needed")
        return (), None
    if bool(rungs) != (keep is not None) or keep is not None and (not count(keep) or keep < 1):
        reading.fail((*path, "keep"), f"keep = {quote(keep)}", why="rungs and keep stand together: how many runs go on")
        return (), None
    stretches = recipe.stretches()[0] if recipe and rungs else ()
    if stretches and rungs[-1] != stretches[-1].last and reading.said:
        rungs = rescaled(tuple(rungs), stretches[-1].last)
        reading.notes.append(f"the rungs of {path[1]} are epochs {', '.join(map(str, rungs))} of this run" if len(rungs) > 1 else
                             f"{path[1]} has no rungs: a run of {rungs[-1]} epochs has no place for them")
        return (rungs, keep) if len(rungs) > 1 else ((), None)
    if stretches and rungs[-1] != stretches[-1].last:
        reading.fail((*path, "rungs"), f"rungs = {quote(rungs)}", why=f"the run ends with epoch {stretches[-1].last}, and so does the last rung")
    return tuple(rungs), keep


def count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
