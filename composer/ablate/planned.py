"""What can be wrong with a grid's [analysis], and with how it is to run, told before anything is trained."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from composer.ablate import bench
from composer.ablate.types import ANALYSIS, Grid
from composer.errors import ComposerError

if TYPE_CHECKING:
    from composer.ablate.drive import Options

PRECISIONS = ("fp32", "tf32", "bf16", "bf16-attack")


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


def check_jobs(options: Options) -> None:
    """Errors: ComposerError for numbers and words that mean nothing, and for a device that is not there."""
    from composer.engine.session import pick_device

    precision = options.settings.precision
    if precision not in PRECISIONS:
        raise ComposerError(f"--precision {precision}", where="command line", fix=f"one of {', '.join(PRECISIONS)}")
    pick_device(options.settings.device)
    for flag, value, least in (("--jobs", options.jobs, 0), ("--threads", options.threads, 0), ("--gpus-per-run", options.gpus_per_run, 0),
                               ("--retries", options.retries, 0), ("--steps", options.steps, bench.BLOCKS)):
        if value < least:
            raise ComposerError(f"{flag} {value}", where="command line", fix=f"at least {least}")


def threads_of(options: Any) -> int:
    """CPU threads of a task of a grid, or of a sweep's trial: this machine's cores over the tasks that it does at once. That is `jobs`; where that is
    as many as a cluster holds, it is as many as this machine's GPUs take by `gpus_per_run`, and one without GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    at_once = options.jobs
    if options.address and not options.jobs and options.gpus_per_run:
        import torch

        at_once = int(max(1, torch.cuda.device_count()) / options.gpus_per_run + 1e-6)
    return max(1, cores // max(1, at_once))


def plugins_named() -> dict[str, str]:
    """What workers must load of what this process has loaded beside the shipped plugins, whoever named it: a worker's folder may be another one."""
    from composer.plugins import VARIABLE, for_workers

    files = for_workers()
    return {VARIABLE: os.pathsep.join(files)} if files else {}
