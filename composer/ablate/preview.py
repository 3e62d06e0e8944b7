"""What a grid will take, before it runs: its tree, epochs shared, passes, disk, and time from a step that is measured here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from composer.ablate.bench import WARM
from composer.ablate.describe import describe
from composer.ablate.drive import Drive
from composer.ablate.tree import Stem, passes_of, tree_of
from composer.ablate.types import Grid

SHOWN = 60                # stems of the tree that a terminal shows


def preview(drive: Drive) -> dict[str, Any]:
    """Numbers of the whole grid: {"cells", "runs", "missing", "epochs_trained", "epochs_unshared", "passes", "disk_bytes", "seconds", "gpu_hours", …}.

    epochs_trained   the whole tree's, where no point of a sweep is dropped: an upper bound
    epochs_planned   those that are trained at most when points are dropped at their rungs as planned
    seconds          of training alone, seconds_validation, seconds_evaluation and seconds_total beside it: over the tasks that run at once
    gpu_hours, core_hours   of all of it; one of them is 0
    not_timed        measures that are in no seconds
    """
    grid, tree, seeds = drive.grid, drive.tree, len(drive.grid.seeds)
    passes = passes_of(tree, drive.courses) * seeds
    with drive.as_workers():
        session = sample(drive)
        per_pass = seconds_per_pass(session)
    done = {*drive.finished(), *drive.diverged()}
    gone = drive.ladders.dropped
    missing = sum((cell.name, seed) not in done and cell.name not in gone for cell in grid.distinct for seed in grid.seeds)
    share = left(drive, done) / max(1, tree.trained * seeds)
    planned = planned_epochs(drive) * seeds
    if drive.bench:
        return _bench(drive, per_pass)
    training = passes * per_pass * share * planned / max(1, tree.trained * seeds)
    with drive.as_workers():
        judged = seconds_of(drive, session, unjudged(drive, done), share * planned)
    at_once, not_timed = max(1, drive.options.jobs), judged.pop("not_timed")
    total = training + sum(judged.values())
    return {
        "study": grid.name, "design": grid.design, "cells": len(grid.cells), "distinct": len(grid.distinct), "seeds": list(grid.seeds),
        "runs": seeds * len(grid.distinct), "missing": missing, "epochs_trained": tree.trained * seeds, "epochs_unshared": tree.unshared * seeds,
        "epochs_planned": planned, "epochs_left": round(share * planned), "dropped": sorted(gone), "forks": list(tree.forks), "passes": passes,
        "disk_bytes": disk(drive), "seconds_per_pass": per_pass, "seconds": training / at_once, **{name: each / at_once for name, each in judged.items()},
        "seconds_total": total / at_once, "not_timed": not_timed, "jobs": drive.options.jobs, "threads": drive.threads, **_hours(drive, total),
        "out": str(drive.folder)}


def unjudged(drive: Drive, done: set[tuple[str, int]]) -> dict[str, int]:
    """Cell -> its runs that will be judged by the whole protocol. Of a sweep whose points are dropped, as many as go on to the end, the first."""
    gone, fixed, ladders = drive.ladders.dropped, drive.ladders.fixed, drive.ladders.all
    final = {name for ladder in ladders for name in ladder.on_the_way()[:ladder.keeps(len(ladder.rungs) - 1)]}
    names = [cell.name for cell in drive.grid.distinct if cell.name not in gone and (cell.name in fixed or cell.name in final)]
    return {name: sum((name, seed) not in done for seed in drive.grid.seeds) for name in names}


def seconds_of(drive: Drive, session: Any, missing: Mapping[str, int], epochs: float) -> dict[str, Any]:
    """{"seconds_validation", "seconds_evaluation", "not_timed"} of one worker.

    missing  cell -> runs that are still to be judged;  epochs: still to be trained, over all cells
    """
    from composer.engine.beforehand import protocol_passes, seconds_an_image, validation_passes

    each, images = seconds_an_image(session), len(session.dataset.test)
    recipes, lengths = {cell.name: cell.recipe for cell in drive.grid.distinct}, drive.tree.lengths
    found = {name: protocol_passes(recipes[name], images) for name in missing}
    mean = sum(validation_passes(r) * lengths[name] for name, r in recipes.items()) / max(1, sum(lengths.values()))
    return {"seconds_validation": mean * epochs * each, "seconds_evaluation": sum(found[name][0] * count for name, count in missing.items()) * each,
            "not_timed": list(dict.fromkeys(name for _, names in found.values() for name in names))}


def _hours(drive: Drive, seconds: float) -> dict[str, float]:
    on_gpu = _on_gpu(drive)
    return {"gpu_hours": seconds / 3600 * (drive.options.gpus_per_run or 1.0) if on_gpu else 0.0, "core_hours": 0.0 if on_gpu else seconds / 3600 * drive.threads}


def _bench(drive: Drive, per_pass: float) -> dict[str, Any]:
    """Of a study that measures steps: no epoch is trained."""
    grid, steps, done = drive.grid, drive.options.steps + WARM, drive.finished()
    units = {name: course.passes[-1] / course.steps[-1] for name, course in drive.courses.items()}
    left = [cell.name for cell in grid.distinct for seed in grid.seeds if (cell.name, seed) not in done]
    training = sum(units[name] for name in left) * steps * per_pass
    return {
        "study": grid.name, "design": grid.design, "cells": len(grid.cells), "distinct": len(grid.distinct), "seeds": list(grid.seeds),
        "runs": len(grid.seeds) * len(grid.distinct), "missing": len(left), "epochs_trained": 0, "epochs_unshared": 0, "epochs_planned": 0, "epochs_left": 0,
        "dropped": [], "forks": [], "passes": round(sum(units.values()) * steps) * len(grid.seeds), "steps": drive.options.steps, "warm": WARM, "disk_bytes": 0,
        "seconds_per_pass": per_pass, "seconds": training, "seconds_total": training, "jobs": min(1, drive.options.jobs), "threads": drive.threads,
        **_hours(drive, training), "out": str(drive.folder)}


def planned_epochs(drive: Drive) -> int:
    """Epochs of one seed, with as many points dropped at every rung as the study says; what survivors will share is not known yet, and counted full."""
    ladders = drive.ladders
    sure = ladders.sure()
    known = tree_of({name: replace(course, tokens=course.tokens[:sure[name]]) for name, course in drive.courses.items()}, share=drive.options.share)
    return min(drive.tree.trained, known.trained + ladders.beyond())


def left(drive: Drive, done: set[tuple[str, int]]) -> int:
    """Epochs that are still to be trained: stems below which a run is missing."""
    gone = drive.ladders.dropped
    return sum(stem.epochs for seed in drive.grid.seeds for stem in drive.tree.walk()
               if any((name, seed) not in done and name not in gone for name in stem.cells))


def disk(drive: Drive) -> int:
    """Bytes of the checkpoints that stay, two of each leaf and fork, and the judged weights of each run."""
    kept = sum(2 * drive.courses[stem.cells[0]].state for stem in drive.tree.walk())
    judged = sum(drive.courses[cell.name].state for cell in drive.grid.distinct)
    return (kept + judged) * len(drive.grid.seeds)


def sample(drive: Drive) -> Any:
    """The base cell's run, built: what is timed."""
    from composer.engine.session import Session

    grid = drive.grid
    recipe = next((c for c in grid.cells if c.name == grid.base), grid.cells[0]).recipe
    return Session(recipe, grid.seeds[0], drive.options.settings)


def seconds_per_pass(session: Any, warm: int = 1, steps: int = 3) -> float:
    """The median step of the run's last stretch, over its passes."""
    from statistics import median

    from composer.engine.train import Progress, Trainer
    from composer.plan.cost import plan_cost

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

    if drive.bench:
        lines = [(f"a bench: {numbers['steps']} steps of each cell are timed after {numbers['warm']} that are not counted, one cell at a time; nothing is trained to "
                 "its end and nothing is judged"), f"about {_span(numbers['seconds'])} for the {numbers['missing']} measurements that are left, from a step measured now"]
        return [*describe(drive.grid), Text(""), *map(Text, lines)]
    drops = drive.ladders.rounds > 0
    lines = [f"at most {numbers['epochs_planned']:,} epochs are planned: points of sweeps are dropped at their rungs"] if drops else []
    lines += [(f"{numbers['epochs_trained']:,} epochs {'if nothing more were dropped' if drops else 'are trained'}, {numbers['epochs_unshared']:,} without sharing; "
              f"{numbers['epochs_left']:,} {'of the planned ones ' if drops else 'of them '}are left"),
             f"{numbers['passes']:,} passes (forwards, input and weight gradients, in batches)",
             f"about {_bytes(numbers['disk_bytes'])} of checkpoints under {numbers['out']}",
             *_time(numbers)]
    return [*describe(drive.grid), Text(""), _tree(drive), Text(""), *map(Text, lines)]


def _time(numbers: Mapping[str, Any]) -> list[str]:
    parts = ", ".join(f"{_span(numbers[key])} of {word}" for key, word in
                      (("seconds", "training"), ("seconds_validation", "validation"), ("seconds_evaluation", "evaluation")))
    on_gpu = numbers["gpu_hours"] > 0
    hours = f"{_number(numbers['gpu_hours'])} GPU-hours" if on_gpu else f"{_number(numbers['core_hours'])} core-hours; no GPU is used"
    rest = [f"not in it: {', '.join(numbers['not_timed'])}"] if numbers["not_timed"] else []
    return [f"about {_span(numbers['seconds_total'])} left with {_jobs(numbers)}, or {hours}",
            f"of it {parts}, from a step and an attack's pass measured now; half of the images are taken to withstand", *rest]


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


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
