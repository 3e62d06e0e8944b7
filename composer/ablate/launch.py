"""Run a forest of tasks: in this process, on this machine's cores through Ray, or on a cluster (`launch_ray`)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from composer.ablate import progress
from composer.ablate.forest import Answer, Forest
from composer.ablate.local import Report, file_of, run_here
from composer.ablate.stop import Stop
from composer.ablate.types import Task


@dataclass(frozen=True)
class LaunchOptions:
    """How to run.

    folder        the study's: progress/, logs/ and tasks.jsonl (who did what where) lie in it. Shared by all machines of a cluster
    jobs          tasks at once; 0: in this process, one after the other. With an address 0 means as many as the cluster holds
    address       of an existing Ray cluster ("host:port" or "auto")
    gpus_per_run  GPUs a task needs, or a share of one; with 0 and Ray, tasks see no GPU
    cpus          cores a task needs; 0: as many as it has threads
    threads       CPU threads of a task's mathematics; 0: as the process finds them. They are part of what is computed: keep them
    retries       times a task is begun again whose worker was killed
    calls         tasks a worker process does before it is replaced; 0: no limit, and one where it has a GPU
    env           environment of the workers, beside threads (COMPOSER_PLUGINS, ...)
    sys_path      folders put before the workers' module search path
    grace         seconds that running tasks have to write a checkpoint after a stop
    """

    folder: Path
    jobs: int = 0
    address: str = ""
    gpus_per_run: float = 0.0
    cpus: float = 0.0
    threads: int = 1
    retries: int = 2
    calls: int = 0
    env: Mapping[str, str] = field(default_factory=dict)
    sys_path: tuple[str, ...] = ()
    grace: float = 90.0
    quiet: bool = False
    title: str = ""

    @property
    def cores(self) -> float:
        return self.cpus or max(1, self.threads)

    @property
    def here(self) -> bool:
        return self.jobs == 0 and not self.address

    def setup(self, task: Task | None = None) -> dict[str, Any]:
        """What `call` is told; without a task: in this process, whose streams stay as they are."""
        log = str(self.folder / "logs" / f"{file_of(task)}.log") if task else None
        return {"threads": self.threads, "sys_path": list(self.sys_path), "gpus": self.gpus_per_run if task else 0.0, "log": log}


def launch(tasks: Sequence[Task], work: str, options: LaunchOptions, report: Report | None = None) -> dict[str, Answer]:
    """Do all tasks and return their answers by id.

    tasks   in any order; `after` names the task that comes before
    work    "package.module:function", called with a task's spec (and `stop_file`, `progress_file`) in some process; its answer is JSON.
            An exception becomes {"failed": {"why", "diverged", "exit_code"}}; the tasks behind a failed one fail for its reason
    report  who is told; a progress display on stderr by default

    Errors: Stopped after SIGTERM (exit code 75) or Ctrl-C (130), with what was answered until then as its `answers`; ComposerError where Ray
    or its cluster cannot be had.
    """
    if not tasks:
        return {}
    forest = Forest(tasks)
    board = contextlib.nullcontext(report) if report else progress.Board(tasks, options.title, quiet=options.quiet, redraw=not options.here)
    folder = options.folder.absolute()
    with Stop(folder) as stop, board as told:
        try:
            if options.here:
                run_here(forest, work, folder, options.setup(), stop, told)
            else:
                from composer.ablate.launch_ray import run_on_ray

                run_on_ray(forest, work, options, folder, stop, told)
        except KeyboardInterrupt:
            stop.ask("Ctrl-C")
        except SystemExit:                                    # Ray's answer to a SIGTERM while it starts
            stop.ask("SIGTERM")
        if stop.reason and forest.left:
            raise stop.error(forest.answers, len(tasks))
    return forest.answers
