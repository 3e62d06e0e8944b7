"""`composer ablate --tune T`: every cell gets the same trials over its own search space before it is trained with the grid's seeds.

Ablating at the full recipe's hyper-parameters answers "what if it is removed"; tuned cells answer "is it needed".
"""

from __future__ import annotations

from dataclasses import replace

from composer.ablate.drive import Options
from composer.ablate.names import named
from composer.ablate.progress import Board
from composer.ablate.types import Grid


def planned(grid: Grid, trials: int, epochs: int = 0) -> Grid:
    """For a dry run: the grid as it is before its tuning, with what that costs as a note."""
    each = [epochs or cell.recipe.segments()[-1].last for cell in grid.distinct]
    note = (f"--tune {trials}: first each of the {len(each)} cells is tuned by {trials} trials, {trials * sum(each)} epochs in all; they are not counted here, and "
            "cells that are tuned apart share fewer epochs")
    return replace(grid, notes=(*grid.notes, note))


def tuned_grid(grid: Grid, options: Options, trials: int, epochs: int = 0) -> Grid:
    """The grid with every distinct cell at the best of its trials. `epochs`: of a trial; 0: as many as the cell's own run. Errors: those of a sweep; ComposerError where a tuning is cut short."""
    from composer.search.options import SweepOptions
    from composer.search.tune import tune

    search = SweepOptions(trials=trials, jobs=options.jobs, gpus_per_run=options.gpus_per_run, address=options.address, retries=options.retries,
                          threads=options.threads, settings=replace(options.settings, quiet=True))
    found, said, board = {}, [], Board([], quiet=options.quiet)
    for cell in grid.distinct:
        def say(text: str, name: str = f"tuning {cell.name} ({len(found) + 1} of {len(grid.distinct)})") -> None:
            board.say(f"{name}: {text}")

        done = tune(cell.recipe, replace(search, name=f"{grid.name}-tune-{len(found)}", say=say), seeds=grid.seeds, epochs=epochs or None)
        found[cell.name] = done.recipe
        values = ", ".join(f"{path} = {value:.4g}" if isinstance(value, float) else f"{path} = {value}" for path, value in done.values.items())
        said.append(f"{cell.name} is tuned: {values} (the best of {done.trials} trials of {done.epochs} epochs, {done.metric}, seed {done.seed})")
    how = f"every cell alike: {trials} trials each over its own search paths, learning rate and weight decay; then fresh seeds."
    cells = tuple(replace(cell, recipe=found[cell.same_as or cell.name]) for cell in grid.cells)
    return named(replace(grid, cells=cells, tuned=how, notes=(*grid.notes, *said)), stem=f"{grid.name}-tuned")

