"""`composer ablate`: a grid becomes tasks, tasks become results, results become tables. Run again, it trains only what is missing."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer import atomic
from composer.ablate import bench
from composer.ablate.diverged import known, note
from composer.ablate.external import external_results
from composer.ablate.names import slug
from composer.ablate.pack_tasks import answers_of, outsider, packed
from composer.ablate.packs import packs_for
from composer.ablate.planned import PRECISIONS, check_analysis, check_jobs, plugins_named, threads_of
from composer.ablate.rungs import Ladders, ends, record_file
from composer.ablate.slim import slim
from composer.ablate.stop import Died
from composer.ablate.tasks import Maker
from composer.ablate.tree import Course, Tree, courses, tree_of
from composer.ablate.types import Cell, Failure, Grid, Outcome, Task
from composer.engine.record import Record, read_json
from composer.engine.session import Settings
from composer.errors import Stopped

WORK = "composer.ablate.work:work"
ALONE = "-alone"              # behind the name of a study whose runs share nothing: its results stand beside the shared ones
Results = dict[tuple[str, int], dict[str, Any]]
Lost = dict[tuple[str, int], Failure]


@dataclass(frozen=True)
class Options:
    """How a grid runs.

    jobs, gpus_per_run, address, retries, env, sys_path   as `composer.ablate.launch.LaunchOptions`
    threads     of each task; 0: those that the study was begun with, else `threads_of`
    share       train epochs that cells have in common once
    again       try again what diverged
    steps       that a study of kind bench measures
    pack        train seeds of a cell, and cells that are one up to numbers, together: auto, off, or at most so many runs (`packs`)
    """

    settings: Settings = field(default_factory=Settings)
    jobs: int = 1
    gpus_per_run: float = 0.0
    address: str = ""
    retries: int = 2
    threads: int = 0
    share: bool = True
    again: bool = False
    steps: int = bench.STEPS
    quiet: bool = False
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    sys_path: tuple[str, ...] = ()
    pack: str = "off"


class Drive:
    """One grid on its way: `Drive(grid, options).run()`."""

    def __init__(self, grid: Grid, options: Options):
        self.out = Path(options.settings.out)
        self.grid = grid = grid if options.share else replace(grid, name=f"{grid.name}{ALONE}")
        self.options = options = replace(options, settings=replace(options.settings, share=options.share))
        self.folder = self.out / "studies" / grid.name
        held = read_json(self.folder / "grid.json") or read_json(self.out / "studies" / grid.name.removesuffix(ALONE) / "grid.json") or {}
        self.threads = options.threads or held.get("threads") or threads_of(options)
        check_analysis(grid)
        with self.as_workers():
            self.courses: dict[str, Course] = courses(grid, options.settings)
        self.bench, self.ends = bench.is_bench(grid), ends(grid.cells)
        self.ladders = Ladders(grid, self.courses, self.folder)
        self._tree: tuple[Any, Tree] | None = None
        self.ladders.settle(self.finished(), self.diverged())
        with self.as_workers():
            self.packs = packs_for(grid, self.tree, options.pack, self.options.settings, held, self._record)
        if self.packs.note:
            self.grid = replace(self.grid, notes=(*self.grid.notes, self.packs.note))

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
        if self.bench:
            return bench.measured(self.grid, self.courses, self.folder, self.options.steps)
        found = {}
        for cell in self.grid.distinct:
            for seed in self.grid.seeds:
                result = self._record(cell.name, seed).result
                if result and self._compared(cell.name, seed):
                    found[cell.name, seed] = result
        return found

    def _record(self, name: str, seed: int) -> Record:
        return Record(self.out, self.grid.cell(name).recipe, seed, self.options.settings.variant)

    def _compared(self, name: str, seed: int) -> bool:
        """What its sweep selects by has been measured."""
        held = read_json(record_file(self.folder, name, seed, 0)) if name in self.ends else None
        return name not in self.ends or bool(held) and set(self.ends[name]) <= set(held["metrics"]) and held["key"] == self.courses[name].key

    def diverged(self) -> Lost:
        return known(self.folder, self.grid, self.courses) if not self.options.again else {}

    def tasks(self, done: set[tuple[str, int]], tags: Any = lambda cell, seed: {}, number: int | None = None) -> list[Task]:
        """Everything else as tasks, the prefixes first. `number`: of the round that takes the points of sweeps to their next rungs; None: to the end."""
        files = {cell.name: self._file(cell) for cell in self.grid.distinct}
        if self.bench:
            return list(bench.tasks(self.grid.distinct, self.grid.seeds, done, files, self._settings(), self.courses, self.folder, self.options.steps))
        gone = {(name, seed) for name in self.ladders.dropped for seed in self.grid.seeds}
        rungs = self.ladders.wanted(number) if number is not None else None
        maker = Maker(self.grid, self.courses, self.tree_to(number), files, self._settings(), tags, rungs, self._more)
        return packed((task for seed in self.grid.seeds for task in maker.of_seed(seed, done | gone)), self.packs,
                      lambda name: (files[name], self.grid.cell(name).recipe.name) if name in files else outsider(self.out, name))

    def tree_to(self, number: int | None = None) -> Tree:
        """The tree of what is trained: points end where they were dropped, and at the rung with this number."""
        lengths = self.ladders.lengths(number)
        return tree_of({name: replace(course, tokens=course.tokens[:lengths[name]]) for name, course in self.courses.items()}, share=self.options.share)

    @property
    def tree(self) -> Tree:
        lengths = tuple(self.ladders.lengths().items())
        if self._tree is None or self._tree[0] != lengths:
            self._tree = (lengths, self.tree_to())
        return self._tree[1]

    def _more(self, name: str, seed: int, epoch: int) -> dict[str, Any]:
        """What a sweep's points are judged by on held-out images, and where that is kept."""
        measures = self.ladders.measures(name) if epoch else self.ends.get(name, ())
        at = epoch or len(self.courses[name].tokens)
        record = str(record_file(self.folder, name, seed, epoch).absolute())
        return {"measures": list(measures), "record": record, "key": self.ladders.key(name, at)} if measures else {}

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
        from composer.ablate.points import note_points
        from composer.ablate.summary import summarise
        from composer.report.ablation.write import write_all
        from composer.track_grid import close_grid, link_kept

        began = time.monotonic()
        results, lost = self.finished(), self.diverged()
        missing = any((c.name, s) not in results and (c.name, s) not in lost for c in self.grid.distinct for s in self.grid.seeds
                      if c.name not in self.ladders.dropped)
        held = {} if missing else read_json(self.folder / "results.json") or {}
        if held and (same := self._as_held(held, results, lost)):
            return same
        self._note()
        parent, status = self._open(), "KILLED"
        link_kept(parent, {self._record(*pair).folder: pair for pair in results if not self.bench})
        try:
            results, failed = self._launch(parent, results, lost)
            outcome = self._outcome(results, failed, held.get("seconds") or time.monotonic() - began)
            summary = summarise(self.grid, outcome, self.out, mlflow_parent_run_id=parent.run_id)
            write_all(summary, self.folder)
            slim(self.out, self.tree, [self._record(cell, seed) for cell, seed in results])
            status = "FINISHED" if results else "FAILED"
        finally:
            if not self.bench:
                note_points(parent, self.grid, self.ladders, self._record, self._tags(parent), lost)
            folders = [self._record(c.name, s).folder for c in self.grid.distinct for s in self.grid.seeds]
            close_grid(parent, self.folder, {}, status, children=[f for f in folders if f.is_dir()])
            if parent.note:                                   # records that MLflow lacks
                print(parent.note, file=sys.stderr)
        return summary

    def _as_held(self, held: Mapping[str, Any], results: Results, lost: Lost) -> Any:
        """The Summary of a grid that has nothing left to do, if its tables say the same and nothing waits to be tracked; else None."""
        from composer.ablate.points import noted
        from composer.ablate.summary import summarise
        from composer.track_journal import Journal

        tracked = held.get("mlflow_parent_run_id")
        if Journal(self.folder).waiting() or not (tracked or not self.options.settings.track) or not (self.folder / "report.html").exists():
            return None
        if tracked and not noted(self.grid, self.ladders, self._record):
            return None
        summary = summarise(self.grid, self._outcome(results, list(lost.values()), held.get("seconds") or 0.0), self.out, mlflow_parent_run_id=tracked)
        return summary if json.loads(json.dumps(atomic.plain(summary.as_dict()))) == held else None

    def _launch(self, parent: Any, results: Results, lost: Lost) -> tuple[Results, list[Failure]]:
        from composer.ablate.launch import LaunchOptions, launch

        o, tags = self.options, self._tags(parent)
        jobs = min(o.jobs, 1) if self.bench else o.jobs             # times are of a cell alone
        launching = LaunchOptions(folder=self.folder, jobs=jobs, address=o.address, gpus_per_run=o.gpus_per_run, threads=self.threads,
                                  retries=o.retries, env={**o.env, **plugins_named()}, sys_path=o.sys_path, quiet=o.quiet)
        for number in (*range(self.ladders.settled, self.ladders.rounds), None):        # a round decides what the next one's tasks are
            title = self.grid.name if number is None else f"{self.grid.name}, to rung {number + 1} of {self.ladders.rounds}"
            tasks = self.tasks(self._behind(number, results, lost), tags, number)
            try:
                if tasks:
                    self._take(tasks, launch(tasks, WORK, replace(launching, title=title)), results, lost)
            except Stopped as stop:
                self._take(tasks, getattr(stop, "answers", {}), results, lost)
                if isinstance(stop, Died):
                    wanted = {(c.name, s) for c in self.grid.distinct for s in self.grid.seeds if c.name not in self.ladders.dropped}
                    raise Died(stop.because, stop.answers, len(wanted & set(results)), len(wanted)) from None
                raise
            finally:
                note(self.folder, self.grid, self.courses, lost)
            self.ladders.settle(results, lost)
        return results, list(lost.values())

    def _tags(self, parent: Any) -> Any:
        """(cell, seed) -> the tags of its run."""
        from composer.track_grid import child_tags

        return lambda cell, seed: child_tags(parent, cell.name, seed, {t: t not in cell.off for t in self.grid.toggles})

    def _behind(self, number: int | None, results: Results, lost: Lost) -> set[tuple[str, int]]:
        """What needs no task in this round."""
        rungs = self.ladders.wanted(number) if number is not None else {}
        judged = {(name, seed) for name, epoch in rungs.items() for seed in self.grid.seeds if self.ladders.judged(name, seed, epoch) is not None}
        return {*results, *lost, *judged}

    def _take(self, tasks: Sequence[Task], answers: Mapping[str, Mapping[str, Any]], results: Results, lost: Lost) -> None:
        for task in (t for t in tasks if t.kind != "prefix" and t.id in answers):
            for (cell, seed), answer in answers_of(task, answers[task.id]).items():
                if "result" in answer:
                    results[cell, seed] = answer["result"]
                elif "failed" in answer:
                    why = answer["failed"]
                    lost[cell, seed] = Failure(cell, seed, why["why"], bool(why.get("diverged")), int(why.get("exit_code") or 1))

    def _outcome(self, results: Results, failed: list[Failure], seconds: float) -> Outcome:
        seeds = len(self.grid.seeds)
        foreign, unfit = external_results(self.grid, self.options.settings)
        if self.bench:
            return Outcome({**results, **foreign}, (*failed, *unfit), seconds=seconds)
        gone, tree = self.ladders.dropped, self.tree
        kept = {pair: result for pair, result in results.items() if pair[0] not in gone}
        return Outcome({**kept, **foreign}, (*failed, *unfit), tree.trained * seeds, tree.unshared * seeds, tree.common(), tree.forks, seconds,
                       self.ladders.plain())

    def _note(self) -> None:
        """What this grid is, before anything runs; `composer runs` counts by it what the store still needs."""
        grid = self.grid
        cells = [{"name": c.name, "off": list(c.off), "same_as": c.same_as, "recipe": c.recipe.name, "experiment_id": c.recipe.experiment_id,
                  "runs": [self._record(c.name, s).name for s in grid.seeds]} for c in grid.cells]
        atomic.write_json(self.folder / "grid.json", {
            "name": grid.name, "design": grid.design, "toggles": list(grid.toggles), "seeds": list(grid.seeds), "base": grid.base, "threads": self.threads,
            "share": self.options.share, **self.packs.noted(), "command": list(self.options.command), "notes": list(grid.notes),
            "cells": cells})

    def _open(self) -> Any:
        from composer.track_grid import open_grid

        grid, settings = self.grid, self.options.settings
        ids = {f"cell.{c.name}": c.recipe.experiment_id for c in grid.cells}
        keys = {f"key.{name}": course.key for name, course in self.courses.items()}
        params = {"design": grid.design, "toggles": " ".join(grid.toggles), "seeds": " ".join(map(str, grid.seeds)), "cells": len(grid.cells)}
        return open_grid(self.out, grid.name, {**params, **ids, **keys}, {"design": grid.design}, folder=self.folder,
                         experiment=grid.cells[0].recipe.name if grid.design != "study" else grid.name, enabled=settings.track)


__all__ = ["PRECISIONS", "Drive", "Options", "check_jobs"]
