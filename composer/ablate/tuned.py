"""`composer ablate --tune T`: every cell gets the same trials over its own search space before it is trained with the grid's seeds.

Ablating at the full recipe's hyper-parameters answers "what if it is removed"; tuned cells answer "is it needed".
"""

from __future__ import annotations

from dataclasses import replace

from composer.ablate.drive import Options
from composer.ablate.names import named
from composer.ablate.types import Grid


def tuned_grid(grid: Grid, options: Options, trials: int, epochs: int = 0) -> Grid:
    """The grid with every distinct cell at the best of its trials. `epochs`: of a trial; 0: as many as the cell's own run. Errors: those of a sweep; ComposerError where a tuning is cut short."""
    from composer.search.options import SweepOptions
    from composer.search.tune import tune

    search = SweepOptions(trials=trials, jobs=options.jobs, gpus_per_run=options.gpus_per_run, address=options.address, threads=options.threads,
                          settings=replace(options.settings, quiet=True))
    found, said = {}, []
    for cell in grid.distinct:
        done = tune(cell.recipe, replace(search, name=f"{grid.name}-tune-{len(found)}"), seeds=grid.seeds, epochs=epochs or None)
        found[cell.name] = done.recipe
        values = ", ".join(f"{path} = {value:.4g}" if isinstance(value, float) else f"{path} = {value}" for path, value in done.values.items())
        said.append(f"{cell.name} is tuned: {values} (the best of {done.trials} trials of {done.epochs} epochs, {done.metric}, seed {done.seed})")
    how = f"every cell alike: {trials} trials each over its own search paths, learning rate and weight decay; then fresh seeds."
    cells = tuple(replace(cell, recipe=found[cell.same_as or cell.name]) for cell in grid.cells)
    return named(replace(grid, cells=cells, tuned=how, notes=(*grid.notes, *said)), stem=f"{grid.name}-tuned")

