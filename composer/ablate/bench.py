"""Studies of kind "bench": the columns are times of a step. Every cell takes a stated number of steps, and none is trained to its end.

A pass over all cells is made for each seed, so that several seeds are several measurements at different times. Cells are measured one after the other,
never side by side. Nothing is judged and nothing is kept but the times.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate.names import slug
from composer.ablate.tree import Course
from composer.ablate.types import Cell, Grid, Task
from composer.engine.record import read_json

WARM = 10                       # steps that are not counted: kernels are chosen, memory is found
STEPS = 50                      # that are
BLOCKS = 5                      # the counted steps are timed in so many blocks, whose spread is told
MEASURE = "seconds_per_step"


def is_bench(grid: Grid) -> bool:
    return grid.study is not None and grid.study.kind == "bench"


def record_file(folder: Path, cell: str, seed: int) -> Path:
    return folder / "bench" / f"{slug(cell)}-s{seed}.json"


def key_of(course: Course, steps: int) -> dict[str, Any]:
    """What a time is of: the bits that are computed, machine and threads included, and how long it was looked at."""
    return {"key": course.key, "warm": WARM, "steps": steps}


def measured(grid: Grid, courses: Mapping[str, Course], folder: Path, steps: int) -> dict[tuple[str, int], dict[str, Any]]:
    """Results that are there."""
    found = {}
    for cell in grid.distinct:
        for seed in grid.seeds:
            held = read_json(record_file(folder, cell.name, seed)) or {}
            if held.get("of") == key_of(courses[cell.name], steps):
                found[cell.name, seed] = held["result"]
    return found


def tasks(cells: Sequence[Cell], seeds: Sequence[int], done: set[tuple[str, int]], files: Mapping[str, str], settings: Mapping[str, Any],
          courses: Mapping[str, Course], folder: Path, steps: int) -> Iterator[Task]:
    """All cells with one seed, then with the next."""
    for seed in seeds:
        for cell in cells:
            if (cell.name, seed) not in done:
                spec = {"kind": "bench", "recipe": files[cell.name], "name": cell.recipe.name, "seed": seed, "settings": {**settings, "track": False},
                        "record": str(record_file(folder, cell.name, seed).absolute()), "of": key_of(courses[cell.name], steps)}
                yield Task(f"steps of {cell.name}/s{seed}", "bench", f"{steps} steps of {cell.name}, seed {seed}", spec, cell=cell.name, seed=seed)


# -- in a worker ---------------------------------------------------------------------------------------------------------------------


def bench(spec: Mapping[str, Any], recipe: Any, settings: Any) -> dict[str, Any]:
    """Measure one cell; its result as a run's, with times in the place of accuracies."""
    from composer.engine.session import Session
    from composer.plan.cost import plan_cost

    session = Session(recipe, spec["seed"], settings)
    warm, steps = spec["of"]["warm"], spec["of"]["steps"]
    began = time.monotonic()
    blocks = seconds(session, warm, steps)
    cost = plan_cost(session.nodes[-1].plan).at(session.dataset.classes)
    passes = {name: getattr(cost, name) * steps for name in ("forward", "dgrad", "wgrad")}
    result = {
        "run": "", "recipe": recipe.name, "setting": recipe.setting, "seed": spec["seed"], "experiment_id": recipe.experiment_id,
        "prefix_key": session.nodes[-1].key, "weights_sha256": None, "epochs": 0, "steps": steps, "seconds": round(time.monotonic() - began, 3),
        "passes": passes, "protocol": "times", "classes": session.dataset.classes, "n": {MEASURE: steps}, "selected": "last",
        "selected_epoch": None, "metrics": {MEASURE: sum(blocks) / steps}, "metrics_other": {}, "units": {MEASURE: "s"}, "trust": {}, "out": str(settings.out),
        "mlflow_run_id": None, "bench": {"warm": warm, "steps": steps, "blocks": [b * BLOCKS / steps for b in blocks], "device": device_name(session.device)}}
    atomic.write_json(Path(spec["record"]), {"of": spec["of"], "result": result})
    return result


def seconds(session: Any, warm: int, steps: int) -> list[float]:
    """Seconds of each block of counted steps, in the run's last stretch: everything from a batch on the device to the updated weights.

    Batches are made between the clocks, as in a run's own record. A block ends when the device has done what it was given.
    """
    from composer.engine.train import Progress, Trainer

    node = session.nodes[-1]
    parts = session.parts(node, {})
    trainer = Trainer(session, node, Progress(), parts, session.optimizer(node.segment, parts), None)
    batches, found = endless(trainer), []
    for block in (warm, *[steps // BLOCKS] * (BLOCKS - 1), steps - steps // BLOCKS * (BLOCKS - 1)):
        spent = 0.0
        for _ in range(block):
            epoch, batch = next(batches)
            at = time.perf_counter()
            trainer._step(batch, epoch)
            spent += time.perf_counter() - at
        at = time.perf_counter()
        wait(session.device)
        found.append(spent + time.perf_counter() - at)
    return found[1:]


def endless(trainer: Any) -> Iterator[tuple[int, Any]]:
    """(epoch, batch) of the stretch's first epoch, again and again: its schedules stand where they begin."""
    epoch = trainer.node.segment.first
    while True:
        trainer.progress.batch = 0
        for batch in trainer.feed.batches(epoch, trainer.progress.step):
            yield epoch, batch


def wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def device_name(device: Any) -> str:
    from composer.engine.session import device_kind

    return device_kind(device)
