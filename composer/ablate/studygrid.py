"""A study as a grid of cells: its rows that train, a sweep's row with one cell for each point of its grid. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from composer.ablate.equal import content, undisturbed
from composer.ablate.types import Cell, Grid
from composer.errors import ComposerError, Errors
from composer.recipe.paths import Dotted, show
from composer.recipe.studies import Row, Study
from composer.recipe.study_command import seed_list

COMPONENT = {"terms": 2, "views": 2, "parts": 2, "phase": 2, "augment": 2, "inner": 2}       # how long the path of one component is


def grid_of_study(study: Study, *, seeds: int | Sequence[int] | None = None) -> Grid:
    """The study's cells, checked and compared; rows that are external or printed only have none.

    seeds   in place of the study's own
    Errors: Errors with everything that does not compile, each named by its cell.
    """
    cells, first, errors = [], dict[str, str](), list[ComposerError]()
    with undisturbed():
        for cell in _cells(study):
            try:
                same = first.setdefault(content(cell.recipe), cell.name)
            except ComposerError as error:
                errors += [ComposerError(e.what, where=e.where, why="\n".join(filter(None, [f"in cell {cell.name}", e.why])), fix=e.fix) for e in error.all]
                continue
            cells.append(replace(cell, same_as="" if same == cell.name else same))
    if errors:
        raise Errors(errors)
    base = next((cell.name for cell in cells if cell.row and cell.row.kind == "cell"), "")
    equal = [f"{cell.name} is the same run as {cell.same_as}" for cell in cells if cell.same_as]
    return Grid(name=study.name, design="study", toggles=(), seeds=seed_list(seeds) if seeds is not None else study.seeds, cells=tuple(cells), base=base,
                analysis=study.analysis, study=study, notes=(*study.notes, *equal, *confounds(study)))


def _cells(study: Study) -> Iterator[Cell]:
    for row in study.rows:
        for number, (point, recipe) in enumerate(row.points(), 1):
            yield Cell(name=row.name if row.kind == "cell" else f"{row.name}#{number}", recipe=recipe, row=row, point=point)


def confounds(study: Study) -> list[str]:
    """Cells that differ from another cell of the same recipe in several components at once, and the cells that tell those apart."""
    notes = []
    changed = {row.name: (row, things(row)) for row in study.cells if row.recipe is not None}
    for name, (row, mine) in changed.items():
        alike = {n: their for n, (other, their) in changed.items() if n != name and _recipe_of(other) == _recipe_of(row)}
        plain = next((n for n, their in alike.items() if not their), None)
        if len(mine) > 1 and plain:
            apart = [n for n, their in alike.items() if their and their < mine]
            notes.append(f"{name} differs from {plain} in {len(mine)} things ({', '.join(sorted(mine))}): their difference is confounded"
                         + (f"; {' and '.join(apart)} tell them apart" if apart else ""))
    return notes


def _recipe_of(row: Row) -> tuple[str, str]:
    return (row.recipe.name, row.recipe.setting) if row.recipe else ("", "")


def things(row: Row) -> frozenset[str]:
    """The components that a row's own edit touches. A term put where another is dropped is one swap; a part that goes with its term is one thing."""
    edit = row.edits[-1] if row.edits else None
    if edit is None:
        return frozenset()
    gone = {_component(path) for path in (*edit.set, *edit.drop)}
    added = {_component(path) for path in edit.put}
    swapped = {path[:-1] for path in gone}
    found = gone | {path for path in added if path[:-1] not in swapped}
    terms = {path for path in found if path[0] == "terms" or "terms" in path[2:]}
    return frozenset(show(path) for path in (found if not terms else {p for p in found if p[0] != "parts"}))


def _component(path: Dotted) -> Dotted:
    if path[0] == "inner" and len(path) > 2:
        return path[:4] if path[2] == "terms" else path[:3]
    return path[:COMPONENT.get(path[0], len(path))]
