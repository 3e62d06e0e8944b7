"""Tracking of many runs as one: a parent run in MLflow, and tags that put each run of a grid or a sweep below it.

The parent is a run like any other: its records go to a journal on disk first (`composer.track`), so a grid outlives a server that is away. A run
started meanwhile names its parent by the journal's key, which is known before the server gives an id; the sender puts the id in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.track import FLUSH, NullTracker, Tracker, deliver, make_tracker, outlived, own_store
from composer.track_journal import Journal, locked
from composer.track_names import EXPERIMENT, PARENT, PARENT_AT, PARENT_KEY, bare, clean, finite

ARTIFACTS = ("grid.json", "sweep.json", "results.json", "failed.json", "table.md", "table.csv", "table.tex", "table.json", "effects.csv", "runs.csv",
             "report.html", "trials.csv", "trials.json", "best*.toml", "plots", "cells")


@dataclass
class GridRun:
    """The parent run of a grid. `run_id` is None without MLflow, and while its server is away; `note` says what is missing."""

    out: Path
    name: str
    experiment: str
    tracker: Tracker
    folder: Path
    key: str = ""

    @property
    def run_id(self) -> str | None:
        return self.tracker.run_id

    @property
    def tracked(self) -> bool:
        return not isinstance(self.tracker, NullTracker)

    @property
    def note(self) -> str:
        return self.tracker.note


def open_grid(out: Path, name: str, params: Mapping[str, Any], tags: Mapping[str, Any], *, folder: Path | None = None, experiment: str = "",
              enabled: bool = True) -> GridRun:
    """Begin or resume the parent run, before any worker starts: this creates the store, which two processes must not do at once.

    folder      keeps the journal, so that the same command finds the same run again; default <out>/studies/<name>
    experiment  MLflow's experiment, where all its children must be too; default the grid's name
    """
    folder = Path(folder or Path(out) / "studies" / name)
    experiment = experiment or name
    tracker = make_tracker(out, experiment=experiment, enabled=enabled, folder=folder)
    if isinstance(tracker, NullTracker):
        return GridRun(Path(out), name, experiment, tracker, folder)
    tracker.start(name, params, {"composer.grid": name, **tags})
    tracker.wait(FLUSH["file"] if tracker.uri.startswith("sqlite") else FLUSH["server"])     # type: ignore[attr-defined]
    return GridRun(Path(out), name, experiment, tracker, folder, Journal(folder).key())


def child_tags(grid: GridRun, cell: str, seed: int, toggles: Mapping[str, bool], nodes: Sequence[str] = ()) -> dict[str, str]:
    """Tags of one run of the grid, for `engine.run.run(tags=…)`. `toggles`: name -> whether it is on. `nodes`: keys of the nodes it consists of."""
    if not grid.tracked:
        return {}
    tags = {PARENT_KEY: grid.key, PARENT_AT: os.path.relpath(grid.folder, grid.out), EXPERIMENT: grid.experiment, "cell": cell, "seed": str(seed)}
    tags |= {PARENT: grid.run_id} if grid.run_id else {}
    tags |= {f"toggle.{name}": "on" if on else "off" for name, on in toggles.items()}
    return tags | ({"nodes": " ".join(nodes)} if nodes else {})


def link_kept(grid: GridRun, kept: Mapping[Path, tuple[str, int]]) -> None:
    """Runs that were there before the grid: their tags say that they are part of it, and the parent's say which they are. Nothing else of theirs
    changes; one that stands below another grid stays there.

    kept   folder of a finished run -> (cell, seed)
    """
    if not grid.tracked or not grid.run_id:
        return
    with outlived(grid.tracker):
        _link(grid, kept)


def _link(grid: GridRun, kept: Mapping[Path, tuple[str, int]]) -> None:
    mine = {(r["name"], r["value"]) for r in tags_of(Journal(grid.folder))}
    for folder, (cell, seed) in kept.items():
        journal, there = Journal(folder), Journal(folder).state().get("run_id")
        starts = [start["tags"] for start in journal.starts()]
        if not starts or any(tags.get(PARENT_KEY) == grid.key for tags in starts):
            continue
        held = {r["name"] for r in tags_of(journal)}
        if PARENT not in held and not any(PARENT_KEY in tags for tags in starts):
            journal.add("tag", name=PARENT, value=grid.run_id)
        if (name := clean(f"composer.grid.{grid.name}")) not in held:
            journal.add("tag", name=name, value=f"{cell}, seed {seed}")
        entry = (clean(f"composer.kept.{cell}.s{seed}"), there or folder.name)
        if entry not in mine:
            Journal(grid.folder).add("tag", name=entry[0], value=entry[1])


def note_child(grid: GridRun, folder: Path, name: str, params: Mapping[str, Any], tags: Mapping[str, str], said: Mapping[str, str],
               rows: Mapping[int, Mapping[str, float]], status: str) -> None:
    """Records of a run of the grid that no tracker followed, or that one followed without knowing all of it: they go to the journal in its folder, and
    `close_grid` delivers them. What the journal says already is not said again; the caller holds the folder's lock.

    params, tags, status  of a run that has no journal yet: it begins and ends here (FINISHED, FAILED or KILLED)
    said                  tags that may change from one call to the next
    rows                  step -> name -> number
    """
    if not grid.tracked:
        return
    journal = Journal(folder)
    starts = journal.starts()
    if not starts:
        uri = getattr(grid.tracker, "uri", "")
        journal.add("start", key=journal.key(), name=name, experiment=grid.experiment, params=dict(params), tags={**tags, **said}, run_id=None,
                    uri="" if uri == own_store(grid.out) else bare(uri))
    held = tags_held(journal)
    for key, value in said.items():
        if held.get(clean(key)) != value:
            journal.add("tag", name=clean(key), value=value)
    there = {(key, r["step"]): value for _, r in journal.pending(0) if r["op"] == "metrics" for key, value in r["values"].items()}
    for step, row in sorted(rows.items()):
        if new := {key: value for key, value in finite(row)[0].items() if there.get((key, step)) != value}:
            journal.add("metrics", step=step, values=new)
    if not starts:
        journal.add("finish", status=status)


def below(grid: GridRun, journal: Journal) -> bool:
    """Whether the run stands below this grid."""
    held = tags_held(journal)
    return held.get(PARENT_KEY) == grid.key or bool(grid.run_id) and held.get(PARENT) == grid.run_id


def tags_held(journal: Journal) -> dict[str, str]:
    """The run's tags, by the names they have in MLflow."""
    return {clean(k): v for start in journal.starts() for k, v in start["tags"].items()} | {r["name"]: r["value"] for r in tags_of(journal)}


def tags_of(journal: Journal) -> list[dict[str, Any]]:
    """The tags that were set beside those of its starts."""
    return [record for _, record in journal.pending(0) if record["op"] == "tag"]


def close_grid(grid: GridRun, folder: Path, metrics: Mapping[str, float], status: str = "FINISHED", *, children: Iterable[Path] = ()) -> None:
    """The grid's files as artifacts, its numbers as metrics, and its end (FINISHED, FAILED or KILLED).

    children  folders of its runs: one whose process died without a word is ended as KILLED, and what it could not send is sent
    """
    for pattern in ARTIFACTS:
        for path in sorted(Path(folder).glob(pattern)):
            grid.tracker.artifact(path)
    if metrics:
        grid.tracker.metrics(metrics, 0)
    grid.tracker.finish(status)
    if not grid.tracked:
        return
    left = [Journal(path) for path in children]
    for journal in left:
        with outlived(grid.tracker):
            end_child(journal)
    if any(journal.waiting() for journal in left):
        deliver(grid.out)


def end_child(journal: Journal) -> None:
    """A run that was started and never ended is one whose process was killed."""
    with locked(journal.folder / "track.lock", wait=0) as dead:
        ops = [record["op"] for _, record in journal.pending(0)] if dead and journal.path.exists() else []
        if "start" in ops and "finish" not in ops[max(i for i, op in enumerate(ops) if op == "start"):]:
            journal.add("finish", status="KILLED")
