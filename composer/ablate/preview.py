"""What a grid will take, before it runs: its tree, epochs shared, passes, disk, and time from a step that is measured here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from composer.ablate.describe import describe
from composer.ablate.drive import Drive
from composer.ablate.tree import Stem, passes_of
from composer.ablate.types import Grid

SHOWN = 60                # stems of the tree that a terminal shows


def preview(drive: Drive) -> dict[str, Any]:
    """Numbers of the whole grid: {"cells", "runs", "missing", "epochs_trained", "epochs_unshared", "passes", "disk_bytes", "seconds", "gpu_hours", …}.

    seconds are of training alone, over the tasks that run at once; evaluation comes on top.
    """
    grid, tree, seeds = drive.grid, drive.tree, len(drive.grid.seeds)
    passes = passes_of(tree, drive.courses) * seeds
    with drive.as_workers():
        per_pass = seconds_per_pass(drive)
    done = {*drive.finished(), *drive.diverged()}
    share = left(drive, done) / max(1, tree.trained * seeds)
    training = passes * per_pass * share
    at_once = max(1, drive.options.jobs)
    on_gpu = _on_gpu(drive)
    return {
        "study": grid.name, "design": grid.design, "cells": len(grid.cells), "distinct": len(grid.distinct), "seeds": list(grid.seeds),
        "runs": seeds * len(grid.distinct), "missing": seeds * len(grid.distinct) - len(done), "epochs_trained": tree.trained * seeds,
        "epochs_unshared": tree.unshared * seeds, "epochs_left": round(share * tree.trained * seeds), "forks": list(tree.forks), "passes": passes,
        "disk_bytes": disk(drive), "seconds_per_pass": per_pass, "seconds": training / at_once, "jobs": drive.options.jobs, "threads": drive.threads,
        "gpu_hours": training / 3600 * (drive.options.gpus_per_run or 1.0) if on_gpu else 0.0, "out": str(drive.folder)}


def left(drive: Drive, done: set[tuple[str, int]]) -> int:
    """Epochs that are still to be trained: stems below which a run is missing."""
    return sum(stem.epochs for seed in drive.grid.seeds for stem in drive.tree.walk() if any((name, seed) not in done for name in stem.cells))


def disk(drive: Drive) -> int:
    """Bytes of the checkpoints that stay, two of each leaf and fork, and the judged weights of each run."""
    kept = sum(2 * drive.courses[stem.cells[0]].state for stem in drive.tree.walk())
    judged = sum(drive.courses[cell.name].state for cell in drive.grid.distinct)
    return (kept + judged) * len(drive.grid.seeds)


def seconds_per_pass(drive: Drive, warm: int = 1, steps: int = 3) -> float:
    """The median step of the base cell's last stretch, over its passes."""
    from statistics import median

    from composer.engine.session import Session
    from composer.engine.train import Progress, Trainer
    from composer.plan.cost import plan_cost

    grid = drive.grid
    recipe = next((c for c in grid.cells if c.name == grid.base), grid.cells[0]).recipe
    session = Session(recipe, grid.seeds[0], drive.options.settings)
    node = session.nodes[-1]
    parts = session.parts(node, {})
    trainer = Trainer(session, node, Progress(), parts, session.optimizer(node.segment, parts), None)
    times = []
    for batch, _ in zip(trainer.feed.batches(node.segment.first, 0), range(warm + steps), strict=False):
        began = time.perf_counter()
        trainer._step(batch, node.segment.first)
        if session.device.type == "cuda":
            import torch

            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times[warm:] or times) / max(1, plan_cost(node.plan).at(session.dataset.classes).units)


def _on_gpu(drive: Drive) -> bool:
    from composer.engine.session import pick_device

    return pick_device(drive.options.settings.device).type == "cuda"


# -- in words ------------------------------------------------------------------------------------------------------------------------


def renderables(drive: Drive, numbers: Mapping[str, Any]) -> list[Any]:
    """The cells, the tree and the numbers, for rich."""
    from rich.text import Text

    lines = [f"{numbers['epochs_trained']:,} epochs are trained, {numbers['epochs_unshared']:,} without sharing; {numbers['epochs_left']:,} of them are left",
             f"{numbers['passes']:,} passes (forwards, input and weight gradients, in batches)",
             f"about {_bytes(numbers['disk_bytes'])} of checkpoints under {numbers['out']}",
             f"about {_span(numbers['seconds'])} of training left with {_jobs(numbers)}, from a step measured now; evaluation comes on top"]
    if numbers["gpu_hours"]:
        lines.append(f"about {numbers['gpu_hours']:.1f} GPU-hours")
    return [*describe(drive.grid), Text(""), _tree(drive), Text(""), *map(Text, lines)]


def _tree(drive: Drive) -> Any:
    from rich.text import Text
    from rich.tree import Tree as Branches

    seeds = len(drive.grid.seeds)
    top = Branches(Text(f"every seed's tree{f' ({seeds} of them)' if seeds > 1 else ''}", style="bold"))
    left = [SHOWN]

    def add(branch: Any, stem: Stem) -> None:
        if left[0] <= 0:
            return
        left[0] -= 1
        names = ", ".join(stem.cells) if len(stem.cells) <= 4 else f"{', '.join(stem.cells[:3])} and {len(stem.cells) - 3} more"
        here = branch.add(Text(f"epochs {stem.first}-{stem.last}  {names}"))
        for child in stem.children:
            add(here, child)

    for stem in drive.tree.stems:
        add(top, stem)
    more = sum(1 for _ in drive.tree.walk()) - SHOWN
    if more > 0:
        top.add(Text(f"and {more} stretches more"))
    return top


def _jobs(numbers: Mapping[str, Any]) -> str:
    jobs = f"{numbers['jobs']} jobs" if numbers["jobs"] > 1 else "one task at a time"
    return f"{jobs} of {numbers['threads']} thread{'' if numbers['threads'] == 1 else 's'}"


def _bytes(count: int) -> str:
    from composer.report.store import amount

    return amount(count)


def _span(seconds: float) -> str:
    from composer.report.table import span

    return span(seconds)


def plain(grid: Grid, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """--dry-run --json."""
    cells = [{"name": c.name, "off": list(c.off), "same_as": c.same_as, "void": dict(c.void), "experiment_id": c.recipe.experiment_id} for c in grid.cells]
    return {**numbers, "cells": cells, "notes": list(grid.notes), "resolution": grid.resolution, "aliases": {k: list(v) for k, v in grid.aliases.items()},
            "nested": {k: list(v) for k, v in grid.nested.items()}}
