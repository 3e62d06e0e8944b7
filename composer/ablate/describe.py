"""A grid in words, for `--dry-run`: its cells, what is equal or void, aliases, notes. No torch."""

from __future__ import annotations

from typing import Any

from composer.ablate.design import ROMAN
from composer.ablate.types import Cell, Grid
from composer.recipe.paths import show
from composer.recipe.write import quote

SHOWN = 64                      # cells that a terminal lists; the rest is counted


def heading(grid: Grid) -> str:
    """'full design of ema, margin: 4 cells, 3 different, 3 seeds, 9 runs'."""
    what = f"study {grid.name}" if grid.study else f"{grid.design} design of {', '.join(grid.toggles)}"
    resolution = f" (resolution {ROMAN[min(grid.resolution, len(ROMAN) - 1)]})" if grid.resolution else ""
    different = "" if len(grid.distinct) == len(grid.cells) else f", {len(grid.distinct)} different"
    seeds = len(grid.seeds)
    return (f"{what}{resolution}: {_count(len(grid.cells), 'cell')}{different}, {_count(seeds, 'seed')} ({', '.join(map(str, grid.seeds))}), "
            f"{_count(seeds * len(grid.distinct), 'run')}")


def rows(grid: Grid) -> list[tuple[str, str, str]]:
    """Of every cell: its name, what it changes, and what is to be known of it."""
    return [(cell.name, _changes(cell), _remarks(cell, grid)) for cell in grid.cells]


def alias_lines(grid: Grid) -> list[str]:
    """'ema:margin = kl:start', each set of effects once."""
    sets = {tuple(sorted((effect, *others), key=lambda e: (e.count(":"), e))) for effect, others in grid.aliases.items()}
    return [" = ".join(each) for each in sorted(sets)]


def without_cells(grid: Grid) -> list[str]:
    """Rows of a study that train nothing, and why."""
    return [f"{row.name}: {row.absent or ('in print only' if row.kind == 'printed' else f'evaluated as it is, {row.checkpoint}')}"
            for row in (grid.study.rows if grid.study else ()) if row.kind in ("external", "printed")]


def describe(grid: Grid) -> list[Any]:
    """Rich renderables in the order in which they are read."""
    from rich.table import Table
    from rich.text import Text

    listed = rows(grid)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("cell", "changes", ""):
        table.add_column(title, overflow="fold")
    for row in listed[:SHOWN]:
        table.add_row(*map(Text, row))
    found: list[Any] = [Text(heading(grid)), table]
    if len(listed) > SHOWN:
        found.append(Text(f"and {len(listed) - SHOWN} cells more"))
    for title, lines in (("rows without a run", without_cells(grid)), ("cannot be told apart", alias_lines(grid)), ("notes", list(grid.notes))):
        if lines:
            found += [Text(""), Text(title, style="bold"), *(Text(f"  {line}") for line in lines)]
    return found


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _changes(cell: Cell) -> str:
    if cell.point:
        return ", ".join(f"{path} = {value}" for path, value in cell.point.items())
    if cell.row is not None:
        said = [f"{show(p)} = {quote(v)}" for e in cell.row.edits for p, (v, _) in e.set.items()]
        said += [f"without {show(p)}" for e in cell.row.edits for p in e.drop] + [f"with {show(p)}" for e in cell.row.edits for p in e.put]
        return ", ".join([cell.recipe.name, *said])
    return f"without {', '.join(cell.off)}" if cell.off else "nothing"


def _remarks(cell: Cell, grid: Grid) -> str:
    said = [f"same run as {cell.same_as}"] if cell.same_as else []
    said += [f"{name} is void inside {outer}" for name, outer in cell.void.items()]
    return "; ".join([*said, *(["the others are compared with it"] if cell.name == grid.base else [])])
