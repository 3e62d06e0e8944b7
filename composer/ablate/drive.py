"""`composer ablate`: a grid becomes tasks, tasks become results, results become tables. Run again, it trains only what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate.external import external_results
from composer.ablate.names import slug
from composer.ablate.planned import check_analysis
from composer.ablate.tree import Course, Stem, Tree, courses, tree_of
from composer.ablate.types import Cell, Failure, Grid, Outcome, Task
from composer.engine.record import Record, read_json
from composer.engine.session import Settings
from composer.errors import ComposerError, Stopped

WORK = "composer.ablate.work:work"
PRECISIONS = ("fp32", "tf32", "bf16")
Results = dict[tuple[str, int], dict[str, Any]]
Lost = dict[tuple[str, int], Failure]


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
        check_analysis(grid)
        with self.as_workers():
            self.courses: dict[str, Course] = courses(grid, options.settings)
        self.tree: Tree = tree_of(self.courses, share=options.share)

    @contextlib.contextmanager
    def as_workers(self) -> Iterator[None]:
        """With their number of threads: it is in the keys, and in what a step costs."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    # -- what there is to do -------------------------------------------------------------------------------------------------------

    def finished(self) -> Results:
        """Results that the store has."""
        found = {}
        for cell in self.grid.distinct:
            for seed in self.grid.seeds:
                result = Record(self.out, cell.recipe, seed, self.options.settings.precision).result
                if result:
                    found[cell.name, seed] = result
        return found

    def diverged(self) -> Lost:
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
            found += self._of_stems(seed, done, files, tags)
        return found

    def _of_stems(self, seed: int, done: set[tuple[str, int]], files: dict[str, str], tags: Any) -> Iterator[Task]:
        """Depth first; what only one cell still needs is that cell's own business."""
        waiting = [(stem, "", 0) for stem in self.tree.stems[::-1]]
        while waiting:
            stem, after, behind = waiting.pop()
            missing = [name for name in stem.cells if (name, seed) not in done]
            if len(missing) > 1:
                task = self._prefix(stem, seed, after, behind, files, missing)
                yield task
                after, behind = task.id, stem.last
            if len(stem.cells) > 1 and missing:
                waiting += [(child, after, behind) for child in stem.children[::-1]]
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
            if load_cell(str(path), cell.recipe.name).experiment_id != cell.recipe.experiment_id:
                raise RuntimeError(f"{path} does not say what the cell {cell.name} means")
        return str(path.absolute())

    # -- running -------------------------------------------------------------------------------------------------------------------

    def run(self) -> Any:
        """The Summary. Errors: ComposerError; Stopped after a signal, with everything kept."""
        from composer.ablate.summary import summarise
        from composer.report.ablation.write import write_all
        from composer.track_grid import close_grid

        began = time.monotonic()
        results, lost = self.finished(), self.diverged()
        missing = any((c.name, s) not in results and (c.name, s) not in lost for c in self.grid.distinct for s in self.grid.seeds)
        held = {} if missing else read_json(self.folder / "results.json") or {}
        if held and (same := self._as_held(held, results, lost)):
            return same
        self._note()
        parent, status = self._open(), "KILLED"
        try:
            results, failed = self._launch(parent, results, lost)
            outcome = self._outcome(results, failed, held.get("seconds") or time.monotonic() - began)
            summary = summarise(self.grid, outcome, self.out, mlflow_parent_run_id=parent.run_id)
            write_all(summary, self.folder)
            self._slim(results)
            status = "FINISHED" if results else "FAILED"
        finally:
            folders = [Record(self.out, c.recipe, s, self.options.settings.precision).folder for c in self.grid.distinct for s in self.grid.seeds]
            close_grid(parent, self.folder, {}, status, children=[f for f in folders if f.is_dir()])
        return summary

    def _as_held(self, held: Mapping[str, Any], results: Results, lost: Lost) -> Any:
        """The Summary of a grid that has nothing left to do, if its tables say the same and nothing waits to be tracked; else None."""
        from composer.ablate.summary import summarise
        from composer.track_journal import Journal

        tracked = held.get("mlflow_parent_run_id")
        if Journal(self.folder).waiting() or not (tracked or not self.options.settings.track) or not (self.folder / "report.html").exists():
            return None
        summary = summarise(self.grid, self._outcome(results, list(lost.values()), held.get("seconds") or 0.0), self.out, mlflow_parent_run_id=tracked)
        return summary if json.loads(json.dumps(atomic.plain(summary.as_dict()))) == held else None

    def _launch(self, parent: Any, results: Results, lost: Lost) -> tuple[Results, list[Failure]]:
        from composer.ablate.launch import LaunchOptions, launch
        from composer.track_grid import child_tags

        def tags(cell: Cell, seed: int) -> dict[str, str]:
            return child_tags(parent, cell.name, seed, {t: t not in cell.off for t in self.grid.toggles})

        tasks = self.tasks({*results, *lost}, tags)
        o = self.options
        try:
            if tasks:
                launching = LaunchOptions(folder=self.folder, jobs=o.jobs, address=o.address, gpus_per_run=o.gpus_per_run, threads=self.threads,
                                          retries=o.retries, env=o.env, sys_path=o.sys_path, quiet=o.quiet, title=self.grid.name)
                self._take(tasks, launch(tasks, WORK, launching), results, lost)
        except Stopped as stop:
            self._take(tasks, getattr(stop, "answers", {}), results, lost)
            raise
        finally:
            self._keep_diverged(lost)
        return results, list(lost.values())

    def _take(self, tasks: Sequence[Task], answers: Mapping[str, Mapping[str, Any]], results: Results, lost: Lost) -> None:
        for task in (t for t in tasks if t.kind == "run" and t.id in answers):
            answer = answers[task.id]
            if "result" in answer:
                results[task.cell, task.seed] = answer["result"]
            else:
                why = answer["failed"]
                lost[task.cell, task.seed] = Failure(task.cell, task.seed, why["why"], bool(why.get("diverged")), int(why.get("exit_code") or 1))

    def _keep_diverged(self, lost: Lost) -> None:
        """Beside those of other seeds and cells, which an earlier call may have run."""
        asked = {(cell.name, seed) for cell in self.grid.cells for seed in self.grid.seeds}
        held = {cell: {seed: why for seed, why in found.items() if (cell, int(seed)) not in asked}
                for cell, found in (read_json(self.folder / "diverged.json") or {}).items()}
        for failure in lost.values():
            if failure.diverged:
                held.setdefault(failure.cell, {})[str(failure.seed)] = {"key": self.courses[failure.cell].key, "why": failure.why}
        atomic.write_json(self.folder / "diverged.json", {cell: found for cell, found in held.items() if found})

    def _outcome(self, results: Results, failed: list[Failure], seconds: float) -> Outcome:
        seeds = len(self.grid.seeds)
        foreign, unfit = external_results(self.grid, self.options.settings)
        return Outcome({**results, **foreign}, (*failed, *unfit), self.tree.trained * seeds, self.tree.unshared * seeds, self.tree.common(), self.tree.forks, seconds)

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
        """Only leaves and forks keep their checkpoints, forks of other grids too; other stretches keep their curves."""
        from composer.ablate.work import FORK
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
                if epochs[1] not in forks and not (folder / FORK).exists():
                    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
                        (folder / name).unlink(missing_ok=True)


def check_jobs(options: Options) -> None:
    """Errors: ComposerError for numbers and words that mean nothing, and for a device that is not there."""
    from composer.engine.session import pick_device

    precision = options.settings.precision
    if precision not in PRECISIONS:
        raise ComposerError(f"--precision {precision}", where="command line", fix=f"one of {', '.join(PRECISIONS)}")
    pick_device(options.settings.device)
    for flag, value in (("--jobs", options.jobs), ("--threads", options.threads), ("--gpus-per-run", options.gpus_per_run), ("--retries", options.retries)):
        if value < 0:
            raise ComposerError(f"{flag} {value}", where="command line", fix="at least 0")
