"""A sweep's points in MLflow: every one has a run below the grid's, also one that was dropped at a rung and so never became a run of its own.

A point on its way to a rung is not tracked: rows and studies may share it. What it was stands in the rungs' records; from there it goes to the
journal of the run that it would have become. Taken up again later, it goes on in that run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from composer import atomic
from composer.ablate.rungs import Dropped, Ladders
from composer.ablate.types import Cell, Failure, Grid
from composer.engine.lock import Held, Lock
from composer.engine.record import Record, flat
from composer.track import outlived
from composer.track_grid import GridRun, below, note_child, tags_held
from composer.track_journal import Journal
from composer.track_names import clean

Records = Callable[[str, int], Record]
Tags = Callable[[Cell, int], dict[str, str]]
Lost = Mapping[tuple[str, int], Failure]
DROPPED = "dropped"           # the tag that says at which rung
TRAINED = "epochs_trained"    # of a run that was begun here: no tracker has told them
LOST = ("failed", "diverged")


def note_points(parent: GridRun, grid: Grid, ladders: Ladders, records: Records, tags: Tags, lost: Lost) -> None:
    """Write down what the rungs know of every point and seed, and what ended without a run; take back what is no longer so. May be called at any
    time, again and again.

    records  (cell, seed) -> the record of its run
    tags     (cell, seed) -> `child_tags` of its run
    """
    if not parent.tracked:
        return
    points = {name for ladder in ladders.all for name in ladder.sources}
    ours = {DROPPED, _elsewhere(parent), TRAINED, *LOST}
    for cell in grid.distinct:
        for seed in grid.seeds:
            drop, failure = ladders.dropped.get(cell.name), lost.get((cell.name, seed))
            record = records(cell.name, seed)
            journal = Journal(record.folder)
            begun = bool(journal.starts())
            if drop or failure or begun and (cell.name in points or ours & tags_held(journal).keys()):
                held = ladders.records(cell.name, seed) if cell.name in points else {}
                with outlived(parent.tracker):
                    _note(parent, cell, seed, record, held, tags(cell, seed), drop, failure)


def noted(grid: Grid, ladders: Ladders, records: Records) -> bool:
    """Whether all that were dropped have been written down."""
    return all(Journal(records(name, seed).folder).starts() for name in ladders.dropped for seed in grid.seeds)


def _note(parent: GridRun, cell: Cell, seed: int, record: Record, held: Mapping[int, Any], tags: dict[str, str], drop: Dropped | None,
          failure: Failure | None) -> None:
    """One run, unless another process is at it: then its own tracker speaks. A run that is there learns only what it cannot know."""
    recipe, last = cell.recipe, max(held, default=0)
    rows = {epoch: {f"held-out/{name}": value for name, value in each["metrics"].items()} for epoch, each in held.items()}
    try:
        with Lock(record.folder):
            journal = Journal(record.folder)
            said, known = _said(parent, journal, record, drop, failure), int(tags_held(journal).get(TRAINED, -1))
            untold = all(TRAINED in start["tags"] for start in journal.starts())
            if untold and last > known:
                nodes = held[last].get("nodes") or [] if held else []
                for epoch, row in _curve(record, nodes, last).items():
                    rows[epoch] = row | rows.get(epoch, {})
                record.keep(tracked=nodes)
                keys = [name.partition("-")[0].partition("+")[0] for name in nodes]
                said |= {TRAINED: str(last)} | ({"prefix_key": keys[-1], "nodes": " ".join(keys)} if keys else {})
            elif known >= 0 and not untold:
                said[TRAINED] = str(max(known, last, (record.result or {}).get("epochs", 0)))
            params = {"recipe": recipe.name, "setting": recipe.setting, "seed": seed} | flat(recipe.tables)
            tags = {"experiment_id": recipe.experiment_id, **tags}
            note_child(parent, record.folder, record.name, params, tags, said, rows, "FAILED" if failure else "KILLED")
    except Held:
        return


def _said(parent: GridRun, journal: Journal, record: Record, drop: Dropped | None, failure: Failure | None) -> dict[str, str]:
    """Tags that may change: a larger `keep` takes a point up again, and what failed may succeed. In a run of another grid they bear this one's name."""
    mine, held = not journal.starts() or below(parent, journal), tags_held(journal)
    name = DROPPED if mine else _elsewhere(parent)
    past = (name, *LOST) if mine and (drop or failure or record.result) else (name,)
    said = {tag: "no: taken up again" for tag in past if tag in held}
    if drop:
        said[name] = f"at the rung after epoch {drop.epoch}: place {drop.place} of {drop.of}, {drop.keep} went on"
    if failure and mine:
        said["diverged" if failure.diverged else "failed"] = failure.why.splitlines()[0] if failure.why else "no reason given"
    return said


def _elsewhere(parent: GridRun) -> str:
    return clean(f"composer.{DROPPED}.{parent.name}")


def _curve(record: Record, nodes: list[str], last: int) -> dict[int, dict[str, float]]:
    """Epoch -> what was recorded there, as a run itself would have told it."""
    rows = [row for name in nodes for row in atomic.read_lines(record.folder.parents[1] / "nodes" / name / "metrics.jsonl")]
    return {row["epoch"]: {k: v for k, v in row.items() if k not in ("epoch", "step") and v is not None} for row in rows if row["epoch"] <= last}
