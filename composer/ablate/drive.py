"""`composer ablate`: a grid becomes tasks, tasks become results, results become tables. Run again, it trains only what is missing."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate.tree import Course, Stem, Tree, courses, tree_of
from composer.ablate.types import Cell, Failure, Grid, Outcome, Task
from composer.engine.record import Record, read_json
from composer.engine.session import Settings
from composer.errors import ComposerError

WORK = "composer.ablate.work:work"


@dataclass(frozen=True)
class Options:
    """How a grid runs.

    jobs, gpus_per_run, address, retries, env, sys_path   as `composer.ablate.launch.LaunchOptions`
    threads     of each task; 0: those that the study was begun with, else the machine's cores over the jobs
    share       train epochs that cells have in common once
    again       try again what diverged
    """

    settings: Settings = field(default_factory=Settings)
    jobs: int = 1
    gpus_per_run: float = 0.0
    address: str = ""
    retries: int = 2
    threads: int = 0
    share: bool = True
    again: bool = False
    quiet: bool = False
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    sys_path: tuple[str, ...] = ()


class Drive:
    """One grid on its way: `Drive(grid, options).run()`."""

    def __init__(self, grid: Grid, options: Options):
        self.grid, self.out = grid, Path(options.settings.out)
        self.folder = self.out / "studies" / grid.name
        held = read_json(self.folder / "grid.json") or {}
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = options.threads or held.get("threads") or max(1, cores // max(1, options.jobs))
        self.options = options
        self._with_threads()
        self.courses: dict[str, Course] = courses(grid, options.settings)
        self.tree: Tree = tree_of(self.courses, share=options.share)

    def _with_threads(self) -> None:
        """Keys hold the number of threads: the tree must be that of the workers."""
        from composer.ablate.local import set_torch_threads

        import torch  # noqa: F401  so that the number is set before keys are made

        set_torch_threads(self.threads)

    # -- what there is to do -------------------------------------------------------------------------------------------------------

    def finished(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Results that the store has."""
        found = {}
        for cell in self.grid.distinct:
            for seed in self.grid.seeds:
                result = Record(self.out, cell.recipe, seed, self.options.settings.precision).result
                if result:
                    found[cell.name, seed] = result
        return found

    def diverged(self) -> dict[tuple[str, int], Failure]:
        """Runs that are known to diverge: another try would end alike. They are forgotten where the cell has another key."""
        held = {} if self.options.again else read_json(self.folder / "diverged.json") or {}
        return {(cell, seed): Failure(cell, seed, found[seed_text]["why"], diverged=True, exit_code=3)
                for cell, found in held.items() if cell in self.courses for seed in self.grid.seeds
                if (seed_text := str(seed)) in found and found[seed_text]["key"] == self.courses[cell].key}

    def tasks(self, done: set[tuple[str, int]], tags: Any = lambda cell, seed: {}) -> list[Task]:
        """Everything else as tasks, the prefixes first."""
        files = {cell.name: self._file(cell) for cell in self.grid.distinct}
        found: list[Task] = []
        for seed in self.grid.seeds:
            for stem in self.tree.stems:
                found += self._of_stem(stem, seed, "", 0, done, files, tags)
        return found

    def _of_stem(self, stem: Stem, seed: int, after: str, behind: int, done: set[tuple[str, int]], files: dict[str, str], tags: Any) -> Iterator[Task]:
        missing = [name for name in stem.cells if (name, seed) not in done]
        if not missing:
            return
        if len(stem.cells) > 1:
            if len(missing) > 1:
                task = self._prefix(stem, seed, after, behind, files, missing)
                yield task
                after, behind = task.id, stem.last
            for child in stem.children:
                yield from self._of_stem(child, seed, after, behind, done, files, tags)
        for name in stem.ends:
            if name in missing:
                cell = self.grid.cell(name)
                spec = {"kind": "run", "recipe": files[name], "name": cell.recipe.name, "seed": seed, "settings": self._settings(), "tags": tags(cell, seed)}
                yield Task(f"{name}/s{seed}", "run", f"{name}, seed {seed}", spec, after, self.tree.lengths[name] - behind, name, seed)

    def _prefix(self, stem: Stem, seed: int, after: str, behind: int, files: dict[str, str], missing: list[str]) -> Task:
        host, *others = missing
        guests = [(files[n], self.grid.cell(n).recipe.name) for n in others if self.courses[n].passive]
        spec = {"kind": "prefix", "recipe": files[host], "name": self.grid.cell(host).recipe.name, "seed": seed, "until": stem.last,
                "guests": guests, "settings": {**self._settings(), "track": False}}
        return Task(f"1-{stem.last} of {host}/s{seed}", "prefix", f"epochs {behind + 1}-{stem.last} of {len(missing)} cells, seed {seed}", spec, after,
                    stem.last - behind)

    def _settings(self) -> dict[str, Any]:
        s = self.options.settings
        return {"out": str(self.out.absolute()), "data_root": str(Path(s.data_root).absolute()), "download": s.download, "device": s.device,
                "precision": s.precision, "backend": s.backend, "deterministic": s.deterministic, "track": s.track, "quiet": self.options.jobs != 0 or s.quiet,
                "checkpoint_seconds": s.checkpoint_seconds, "full_other": s.full_other, "share": self.options.share}

    def _file(self, cell: Cell) -> str:
        """The cell's recipe, filled in: all that a worker needs of it."""
        from composer.ablate.work import load_cell

        path = self.folder / "cells" / f"{slug(cell.name)}.cell.toml"
        text = replace(cell.recipe, toggle={}, search={}, expect={}).filled()         # its own toggles may mean nothing here
        if not path.exists() or path.read_text() != text:
            atomic.write_text(path, text)
        read = load_cell(str(path), cell.recipe.name)
        if read.experiment_id != cell.recipe.experiment_id:
            raise RuntimeError(f"{path} does not say what the cell {cell.name} means")
        return str(path.absolute())

    # -- running -------------------------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """The Summary. Errors: ComposerError; Stopped after a signal, with everything kept."""
        from composer.ablate.summary import summarise
        from composer.report.ablation.write import write_all
        from composer.track_grid import close_grid

        began = time.monotonic()
        self._note()
        parent, status = self._open(), "KILLED"
        try:
            results, failed = self._launch(parent)
            outcome = self._outcome(results, failed, time.monotonic() - began)
            summary = summarise(self.grid, outcome, self.out, mlflow_parent_run_id=parent.run_id)
            write_all(summary, self.folder)
            self._slim(results)
            status = "FINISHED" if results else "FAILED"
        finally:
            folders = [Record(self.out, c.recipe, s, self.options.settings.precision).folder for c in self.grid.distinct for s in self.grid.seeds]
            close_grid(parent, self.folder, {}, status, children=[f for f in folders if f.is_dir()])
        return summary

    def _launch(self, parent: Any) -> tuple[dict[tuple[str, int], dict[str, Any]], list[Failure]]:
        from composer.ablate.launch import LaunchOptions, launch
        from composer.track_grid import child_tags

        results, lost = self.finished(), self.diverged()
        def tags(cell: Cell, seed: int) -> dict[str, str]:
            return child_tags(parent, cell.name, seed, {t: t not in cell.off for t in self.grid.toggles})

        tasks = self.tasks({*results, *lost}, tags)
        o = self.options
        if tasks:
            launching = LaunchOptions(folder=self.folder, jobs=o.jobs, address=o.address, gpus_per_run=o.gpus_per_run, threads=self.threads, retries=o.retries,
                                      env=o.env, sys_path=o.sys_path, quiet=o.quiet, title=self.grid.name)
            answers = launch(tasks, WORK, launching)
            for task in (t for t in tasks if t.kind == "run"):
                answer = answers.get(task.id, {"failed": {"why": "it was not begun"}})
                if "result" in answer:
                    results[task.cell, task.seed] = answer["result"]
                else:
                    why = answer["failed"]
                    lost[task.cell, task.seed] = Failure(task.cell, task.seed, why["why"], bool(why.get("diverged")), int(why.get("exit_code") or 1))
        self._keep_diverged(lost.values())
        return results, list(lost.values())

    def _keep_diverged(self, lost: Any) -> None:
        held: dict[str, dict[str, Any]] = {}
        for failure in lost:
            if failure.diverged:
                held.setdefault(failure.cell, {})[str(failure.seed)] = {"key": self.courses[failure.cell].key, "why": failure.why}
        atomic.write_json(self.folder / "diverged.json", held)

    def _outcome(self, results: dict[tuple[str, int], dict[str, Any]], failed: list[Failure], seconds: float) -> Outcome:
        seeds = len(self.grid.seeds)
        return Outcome(results, tuple(failed), self.tree.trained * seeds, self.tree.unshared * seeds, self.tree.common(), self.tree.forks, seconds)

    def _note(self) -> None:
        """What this grid is, before anything runs; `composer runs` counts by it what the store still needs."""
        grid = self.grid
        cells = [{"name": c.name, "off": list(c.off), "same_as": c.same_as, "recipe": c.recipe.name, "experiment_id": c.recipe.experiment_id,
                  "runs": [Record(self.out, c.recipe, s, self.options.settings.precision).name for s in grid.seeds]} for c in grid.cells]
        atomic.write_json(self.folder / "grid.json", {
            "name": grid.name, "design": grid.design, "toggles": list(grid.toggles), "seeds": list(grid.seeds), "base": grid.base, "threads": self.threads,
            "share": self.options.share, "command": list(self.options.command), "notes": list(grid.notes), "cells": cells})

    def _open(self) -> Any:
        from composer.track_grid import open_grid

        grid, settings = self.grid, self.options.settings
        ids = {f"cell.{c.name}": c.recipe.experiment_id for c in grid.cells}
        keys = {f"key.{name}": course.key for name, course in self.courses.items()}
        params = {"design": grid.design, "toggles": " ".join(grid.toggles), "seeds": " ".join(map(str, grid.seeds)), "cells": len(grid.cells)}
        return open_grid(self.out, grid.name, {**params, **ids, **keys}, {"design": grid.design}, folder=self.folder,
                         experiment=grid.cells[0].recipe.name if grid.design != "study" else grid.name, enabled=settings.track)

    def _slim(self, results: Mapping[tuple[str, int], dict[str, Any]]) -> None:
        """Only leaves and forks keep their checkpoints; other stretches keep their curves."""
        from composer.engine import checkpoint
        from composer.engine.walk import lineage

        forks = {stem.last for stem in self.tree.walk() if len(stem.cells) > 1}
        for cell, seed in results:
            record = Record(self.out, self.grid.cell(cell).recipe, seed, self.options.settings.precision)
            last = (record.facts.get("nodes") or [{}])[-1].get("folder")
            if not last or not (self.out / "nodes" / last).is_dir():
                continue
            for folder in lineage(self.out / "nodes" / last)[:-1]:
                epochs = (read_json(folder / "key.json") or {}).get("epochs") or [0, 0]
                if epochs[1] not in forks:
                    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
                        (folder / name).unlink(missing_ok=True)


def slug(name: str) -> str:
    """A cell's name as a file name."""
    plain = re.sub(r"[^\w.+-]+", "_", name)[:80]
    if plain == name:
        return plain
    import hashlib

    return f"{plain}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"


def named(grid: Grid, *, stem: str) -> Grid:
    """The grid under a name of its own: what its cells are is part of it, so that two grids never share a folder."""
    import hashlib

    text = json.dumps([[c.name, c.recipe.experiment_id] for c in grid.cells])
    return replace(grid, name=f"{stem}-{hashlib.blake2b(text.encode(), digest_size=3).hexdigest()}")


def check_jobs(options: Options) -> None:
    """Errors: ComposerError for numbers that mean nothing."""
    for flag, value in (("--jobs", options.jobs), ("--threads", options.threads), ("--gpus-per-run", options.gpus_per_run), ("--retries", options.retries)):
        if value < 0:
            raise ComposerError(f"{flag} {value}", where="command line", fix="at least 0")
