"""The sweep of a study's row: every point of its grid, the rungs at which runs are dropped, a winner for each selector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from composer import atomic
from composer.errors import ComposerError
from composer.recipe.studies import Row
from composer.search.options import SweepOptions
from composer.search.plots import pictures
from composer.search.propose import Points, over
from composer.search.report import write_tables
from composer.search.store import Store
from composer.search.sweep import Goal, anew, as_begun, keys_of, name_of, note_dropped, settled, summary, work_tracked
from composer.search.trial import measures_of, validated
from composer.track_grid import GridRun, close_grid, open_grid


def run_grid(row: Row, options: SweepOptions, *, parent: GridRun | None = None) -> dict[str, Any]:
    """Train the points of a row of kind sweep, and choose a winner by each of its selectors on held-out images.

    parent  the run in MLflow below which the trials stand; None: one of the sweep's own

    Successive halving where the row has rungs: all points are trained to the first, its `keep` best by the last selector go on to the next, and so on;
    between further rungs the share that goes on is the same again. The test split is not looked at: what a winner is worth there, its runs with
    the study's seeds tell.

    Returns the sweep's result; beside it `winners[selector]["point"]`, the number of the winning point in the order of `row.points()`.
    Errors: ComposerError for a row that is no sweep, and where no point has a result.
    """
    if row.kind != "sweep" or row.recipe is None:
        raise ComposerError(f"{row.name} is no sweep", where=row.where, fix='kind = "sweep"')
    options = settled(replace(options, grid=True, asha=False))
    recipe, points = row.recipe, [point for point, _ in row.points()]
    each = validated(recipe)
    keys = keys_of(recipe, row.select, each)
    measures_of(recipe, [key for key in keys.values() if key not in each])
    goal = Goal(keys[row.select[-1]], row.select, keys, each)
    space = {path: {"choices": list(values)} for path, values in row.grid.items()}
    facts = {"recipe": recipe.name, "setting": recipe.setting, "experiment_id": recipe.experiment_id, "space": space, "points": len(points),
             "seed": options.seed, "metric": goal.metric, "sampler": "grid", "precision": options.settings.precision}
    rungs = row.rungs[:-1]
    store = Store(options.settings.out, options.name or name_of(recipe, facts | {"rungs": list(row.rungs), "keep": row.keep}))
    options = anew(store, options)
    held = store.begin(facts | {"threads": options.threads, "rungs": list(rungs), "keep": row.keep})
    options = replace(as_begun(options, held), trials=len(points))
    mine = parent or open_grid(store.out, store.name, facts, {"kind": "sweep", "recipe": recipe.name, "row": row.name}, folder=store.folder,
                               experiment=recipe.name, enabled=options.settings.track)
    _halve(row, store, points, goal, options, mine, rungs)
    result = summary(recipe, store, goal, options, space, rungs) | {"row": row.name, "keep": row.keep}
    for won in result["winners"].values():
        won["point"] = won["trial"]
    if not result["winners"]:
        raise ComposerError(f"no point of {row.name} has a result", where=str(store.folder), fix="read the trials' folders",
                            why="\n".join(f"point {t['number']}: {t['status']}: {t['why'].splitlines()[0]}" for t in result["trials"] if t["why"]))
    result["plots"] = [str(p) for p in pictures(store.trials(), result, store.folder / "plots")]
    write_tables(store.folder, result)
    note_dropped(mine, store)
    if parent is None:
        close_grid(mine, store.folder, {f"best/{s}": won["score"] for s, won in result["winners"].items()},
                   children=[store.trial(n) for n in range(len(points))])
    result["mlflow_parent_run_id"] = mine.run_id
    atomic.write_json(store.folder / "results.json", result)
    return result


def _halve(row: Row, store: Store, points: Sequence[dict[str, Any]], goal: Goal, options: SweepOptions, parent: GridRun, rungs: Sequence[int]) -> None:
    import time

    deadline = time.time() + options.budget if options.budget else 0.0
    assert row.recipe is not None
    for number, epoch in enumerate(rungs):
        source = Points(store, points, deadline=deadline)
        source.jobs = [job for job in source.jobs if not (store.trial(job.number) / f"rung-{epoch}.json").exists()
                       and store.read(job.number).status != "pruned"]
        work_tracked(row.recipe, source, store, goal, options, parent, until=epoch)
        if over(deadline):
            return
        drop(store, len(points), epoch, places(len(points), row.keep or len(points), number), goal.metric)
    source = Points(store, points, deadline=deadline, ended=("done", "diverged", "invalid", "pruned"))
    work_tracked(row.recipe, source, store, goal, options, parent)


def places(points: int, keep: int, rung: int) -> int:
    """How many go on after a rung: `keep` after the first, then again the same share of them, at least one.

    Formula: keep · (keep / points)^rung, rounded   [runs]
    """
    return max(1, round(keep * (keep / points) ** rung)) if rung else min(keep, points)


def drop(store: Store, points: int, epoch: int, keep: int, metric: str) -> None:
    """End the points that are not among the best at this rung. Equal ones go on in their order. Those that some other run had trained beyond it already
    have no record there and are not dropped: they cost nothing."""
    from composer.search.store import read

    held = {n: read(store.trial(n) / f"rung-{epoch}.json") for n in range(points) if store.read(n).status in ("unfinished", "done")}
    scores = {n: row.get(metric, -math.inf) for n, row in held.items() if row}
    order = sorted(scores, key=lambda n: (-scores[n], n))
    for number in order[keep:]:
        if store.read(number).status == "unfinished":
            store.end(number, "pruned", why=f"not among the best {keep} after epoch {epoch}", metrics=held[number])
