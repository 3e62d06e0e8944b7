"""From what a user names to a grid on its way: `composer ablate`, `composer.ablate(…)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.ablate.drive import Drive, Options, check_jobs
from composer.ablate.names import named
from composer.ablate.types import Grid
from composer.errors import ComposerError


def grid_for(target: Any, toggles: Sequence[str] = (), *, design: str | None = None, seeds: Any = None, setting: str | None = None, sets: Sequence[str] = (),
             drops: Sequence[str] = (), resolution: int = 4, name: str = "", settings: Any = None) -> Grid:
    """The grid of a study (a file or a name), or of a recipe (also a Recipe) and its toggles, with a graded measure where images are few (`graded`).

    settings   of the runs: where data lies whose size decides that
    Errors: Errors with everything that is wrong; ComposerError for flags that do not fit.
    """
    from composer.ablate.cells import grid_of
    from composer.ablate.graded import graded, graded_study
    from composer.ablate.studygrid import grid_of_study
    from composer.recipe.load import load
    from composer.recipe.studies import find_study, load_study

    if isinstance(target, (str, Path)) and find_study(target):
        if toggles or design:
            raise ComposerError("--toggle" if toggles else "--design", where="command line", why=f"{target} is a study: its cells are written in it",
                                fix="name a recipe, or leave it away")
        grid = grid_of_study(graded_study(load_study(target, setting=setting, sets=sets, drops=drops, seeds=seeds), settings))
        if not grid.cells:
            raise ComposerError(f"the study {grid.name} trains nothing", why="none of its rows has a recipe to train")
        return grid if not (setting or sets or drops or name) else named(grid, stem=name or grid.name)
    if not isinstance(target, (str, Path)) and (setting or sets or drops):
        said = ", ".join(name for name, value in (("setting", setting), ("sets", sets), ("drops", drops)) if value)
        raise ComposerError(f"{said} for a recipe that is loaded", why="they are read with a recipe's file", fix="give them to composer.load, or use recipe.edit")
    if isinstance(target, (str, Path)):
        _check_there(target)
    recipe = load(target, setting=setting, sets=sets, drops=drops) if isinstance(target, (str, Path)) else target
    recipe, note = graded(recipe, recipe.analysis.get("primary"), toggles, settings)
    grid = grid_of(recipe, toggles, design=design, seeds=5 if seeds is None else seeds, name=name, resolution=resolution)
    grid = replace(grid, notes=(*grid.notes, *([note] if note else [])))
    return named(grid, stem=name or f"{recipe.name}-{'-'.join(toggles)}"[:80])


def _check_there(target: str | Path) -> None:
    """What is neither may have been meant as either."""
    from composer.errors import suggest
    from composer.recipe import find
    from composer.recipe.studies import study_names

    root = find.shipped()
    try:
        find.find_recipe(target, root)
    except ComposerError:
        if Path(target).is_file():
            raise
        raise ComposerError(f"there is no recipe and no study '{target}'", why="no such file, and nothing shipped of that name",
                            fix=suggest(Path(target).stem, [*find.recipe_names(root), *study_names(root)], "recipes and studies")) from None


def ablate(target: Any = "mart_ours", toggles: str | Sequence[str] = (), *, design: str | None = None, seeds: Any = None, setting: str | None = None,
           sets: Sequence[str] = (), drops: Sequence[str] = (), out: str | Path = "runs", jobs: int = 1, **options: Any) -> dict[str, Any]:
    """Run a grid and hand back design's JSON: `composer.ablate(recipe, toggles=["ema", "margin"], seeds=5)`.

    target   a recipe or a study, as a value, file or name
    toggles  names, or one text with commas
    options  of `composer.ablate.drive.Options` (gpus_per_run, address, retries, threads, share, pack, quiet) and of a run (data_root, device, …)
    """
    from composer.engine.session import Settings

    own = {key: options.pop(key) for key in ("gpus_per_run", "address", "retries", "threads", "share", "again", "steps", "env", "sys_path", "pack") if key in options}
    quiet = options.get("quiet", False)
    settings = Settings(out=Path(out), **{k: Path(v) if k == "data_root" else v for k, v in options.items()})
    names = [name.strip() for name in toggles.split(",") if name.strip()] if isinstance(toggles, str) else toggles
    grid = grid_for(target, names, design=design, seeds=seeds, setting=setting, sets=sets, drops=drops, settings=settings)
    return run_grid(grid, Options(settings=settings, jobs=jobs, quiet=quiet, **own)).as_dict()


def run_grid(grid: Grid, options: Options) -> Any:
    """The Summary of a grid that is run to its end."""
    from composer.engine.run import writable

    check_jobs(options)
    writable(Path(options.settings.out))
    return Drive(grid, options).run()
