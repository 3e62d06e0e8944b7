"""What can be wrong with a grid's [analysis], told before anything is trained."""

from __future__ import annotations

from composer.ablate.types import ANALYSIS, Grid


def check_analysis(grid: Grid) -> None:
    """Errors: ComposerError where the declared family names no contrast of this design. A study's names were compared with its rows as it was read."""
    from composer.ablate.statistics import Input, Settings, planned_family

    if grid.design == "study" or not grid.analysis.get("family"):
        return
    chosen = {key: grid.analysis[key] for key in ANALYSIS if grid.analysis.get(key) is not None}
    cells = {cell.name: cell for cell in grid.cells}
    void = {grid.base, *(name for name, cell in cells.items() if cell.same_as)}           # cells without a difference of their own
    chosen["family"] = [name for name in chosen["family"] if name not in void]
    base = cells[grid.base].same_as or grid.base
    planned_family(Input(
        metrics={}, levels={name: {t: -1 if t in cell.off else 1 for t in grid.toggles} for name, cell in cells.items()}, reference=base, design=grid.design,
        nested=grid.nested, aliases=grid.aliases, settings=Settings(**chosen), same_as={name: cell.same_as for name, cell in cells.items() if cell.same_as}))
