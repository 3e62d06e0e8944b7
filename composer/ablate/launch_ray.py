"""Tasks as processes through Ray, on this machine or on a cluster. The only module of the room that imports Ray.

Ray starts processes, finds places and notices dead workers. What follows what, retries and the wish to stop are ours: a task is handed to Ray
when it may start and a place is free, so that depth-first order holds and nothing waits inside Ray that a stop would have to find.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer import atomic
from composer.ablate import progress
from composer.ablate.forest import Forest, failed
from composer.ablate.local import THREADS, WAIT_FOR_OTHERS, Report, call, progress_file, settle, spec_of
from composer.ablate.pulse import Pulse
from composer.ablate.stop import Died, Stop
from composer.ablate.types import Task
from composer.errors import ComposerError
from composer.rayhost import OBJECTS, apart_from_our_signals, bring_token, reachable, temporary_folder

if TYPE_CHECKING:
    from composer.ablate.launch import LaunchOptions

POLL = 0.5                      # seconds between two looks at progress files
PLACES = 15.0                   # seconds between two looks at the size of a cluster
JOIN = 120.0                    # seconds that a cluster has to show a place for the first task
QUICK = 0.1                     # seconds: tasks shorter than this queue inside Ray, where the way to the driver and back costs more than they do
LATE = "timed out during startup"        # Ray's words
QUEUE = 16                      # that many a place
# No statistics sent; no copy of the project where the driver was begun by `uv run`; no GPU for a task that asked for none; and no remarks of
# Ray's on lost workers, which would go to stdout: the board tells of those. Workers as eager as a run without Ray.
HABITS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
          "RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_worker_niceness": "0"}


def run_on_ray(forest: Forest, work: str, options: LaunchOptions, folder: Path, stop: Stop, report: Report) -> None:
    """Do the tasks of a forest. Ends early once `stop.reason` is there, when all running tasks have ended or their time for it is over.

    Errors: ComposerError where Ray or its cluster cannot be had, or no task fits on it.
    """
    with cluster(options, report):
        stop.listen()                                         # Ray has put its own handler in the place of ours
        _Driver(forest, work, options, folder, stop, report).run()


def environment(options: LaunchOptions) -> dict[str, str]:
    """Of every worker, from its first instruction on: Ray would set OMP_NUM_THREADS by itself."""
    threads = dict.fromkeys(THREADS, str(options.threads)) if options.threads > 0 else {}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, (*options.sys_path, os.environ.get("PYTHONPATH"))))} if options.sys_path else {}
    return {**threads, **path, **HABITS, "PYTHONUNBUFFERED": "1", **options.env}


@contextlib.contextmanager
def cluster(options: LaunchOptions, report: Report) -> Iterator[None]:
    """Ray as the options say: its own on this machine, gone at the end; or a cluster that is there, which stays. One that this process has
    started before is used as it is."""
    os.environ.update({name: os.environ.get(name, value) for name, value in HABITS.items()})
    if options.address:
        bring_token()
    try:
        import ray
    except ImportError as error:
        raise ComposerError(f"Ray cannot be imported: {error}", fix="pip install 'ray[tune]>=2.40', or --jobs 0") from None
    if ray.is_initialized():
        yield
        return
    report.say(f"joining the Ray cluster at {options.address}" if options.address else f"starting Ray with {options.jobs} workers")
    folder = None if options.address else temporary_folder()
    try:
        _start(ray, options, folder)
        yield
    finally:                                                  # a signal while Ray starts comes here too
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, options: LaunchOptions, folder: Path | None) -> None:
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "runtime_env": {"env_vars": environment(options)}}
    try:
        if options.address:
            reachable(options.address)
            ray.init(address=options.address, **common)
            return
        with apart_from_our_signals():
            _twice(ray, {"address": "local", "num_cpus": max(1, round(options.jobs * options.cores)), "num_gpus": None if options.gpus_per_run else 0,
                         "include_dashboard": False, "object_store_memory": OBJECTS, "_temp_dir": str(folder), **common})
    except Exception as error:  # noqa: BLE001  on a machine that is too busy Ray raises bare ones
        where = f"--address {options.address}" if options.address else f"--jobs {options.jobs}"
        raise ComposerError(f"Ray does not start: {error}", where=where, fix="--jobs 0 works without Ray" if not options.address else
                            "check that the cluster is up, with this Python and this version of Ray") from None


def _twice(ray: Any, given: Mapping[str, Any]) -> None:
    """Ray gives its servers half a minute to start; on a machine that is very busy they may need a second try. Errors: Ray's."""
    try:
        ray.init(**given)
    except Exception as error:
        if LATE not in str(error):
            raise
        ray.shutdown()
        ray.init(**given)


def nodes(ray: Any) -> list[Mapping[str, float]]:
    """What each machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def places(machines: Sequence[Mapping[str, float]], options: LaunchOptions) -> int:
    """Tasks that fit on the machines at once: by cores, by GPUs (a share does not cross GPUs, a task no machines), and no more than `jobs`."""
    found = 0
    for has in machines:
        here = int(has.get("CPU", 0) / options.cores + 1e-6)
        if options.gpus_per_run:
            gpus, share = has.get("GPU", 0), options.gpus_per_run
            here = min(here, int(gpus) * int(1 / share + 1e-6) if share < 1 else int(gpus / share + 1e-6))
        found += here
    return min(found, options.jobs) if options.jobs else found


def await_a_place(options: LaunchOptions, stop: Stop, look: Callable[[], None], fix: str = "lower --gpus-per-run or --threads") -> None:
    """Wait until a task fits; `look` sees meanwhile whether Ray lives. Errors: ComposerError where no task will ever fit."""
    import ray

    end = time.monotonic() + (JOIN if options.address else 0)
    while not places(found := nodes(ray), options) and not stop.reason:
        look()
        if time.monotonic() >= end:
            each = sorted({f"{has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs" for has in found})
            raise ComposerError(f"no task fits: each needs {options.cores:g} cores and {options.gpus_per_run:g} GPUs",
                                why=f"a machine of Ray's has {', or '.join(each) or 'nothing'}", fix=fix)
        time.sleep(POLL)


class _Driver:
    """Hands ready tasks to Ray and takes their answers, until all have one or a stop is asked for."""

    def __init__(self, forest: Forest, work: str, options: LaunchOptions, folder: Path, stop: Stop, report: Report):
        import ray

        self.ray, self.forest, self.work, self.options, self.folder, self.stop, self.report = ray, forest, work, options, folder, stop, report
        limit = options.calls or (1 if options.gpus_per_run else 0)
        kind = {"num_cpus": options.cores, "num_gpus": options.gpus_per_run, "max_retries": 0, "max_calls": limit}
        self.remote = ray.remote(**kind)(call).options(runtime_env={"env_vars": environment(options)})
        self.flying: dict[Any, Task] = {}
        self.pulse = Pulse(ray)
        self.attempts: dict[str, int] = {}
        self.later: list[tuple[float, Task]] = []
        self.free, self._looked, self._polled = 0, -PLACES, 0.0
        self.seconds = QUICK                                  # that tasks take, of late

    def run(self) -> None:
        await_a_place(self.options, self.stop, self._check)
        while self.forest.left and not self.stop.reason:
            self._submit()
            self._collect(POLL)
            self._look()
        if self.flying:
            self._wind_down()

    def _check(self, now: bool = False) -> None:
        """Errors: Died where Ray is gone. Workers that outlive it are asked to end."""
        why = self.pulse.why(now)
        if why and not self.stop.reason:
            self.stop.touch()
            answers = self.forest.answers
            runs = [task.id for task in self.forest.tasks.values() if task.kind == "run"]
            raise Died(why, answers, sum("result" in answers.get(name, {}) for name in runs), len(runs))

    def _places(self) -> int:
        """A cluster may grow and shrink."""
        now = time.monotonic()
        if now - self._looked >= PLACES:
            self._looked, self.free = now, places(nodes(self.ray), self.options)
        return self.free

    # -- the loop

    def _submit(self) -> None:
        now = time.monotonic()
        for due in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove(due)
            self.forest.put_back(due[1])
        while self.forest.ready and len(self.flying) < self._places() * (QUEUE if self.seconds < QUICK else 1):
            task = self.forest.take()
            self.attempts[task.id] = self.attempts.get(task.id, 0) + 1
            progress_file(self.folder, task).unlink(missing_ok=True)
            reference = self.remote.remote(self.work, spec_of(task, self.folder, self.stop), self.options.setup(task))
            self.flying[reference] = task
            self.report.started(task, self.attempts[task.id])

    def _collect(self, seconds: float) -> None:
        if not self.flying:
            time.sleep(min(seconds, 0.1))
            return
        done, rest = self.ray.wait(list(self.flying), num_returns=1, timeout=seconds)
        if done and rest:
            done += self.ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in done:
            self._take(self.flying.pop(reference), reference)

    def _take(self, task: Task, reference: Any) -> None:
        """An answer, or what became of the worker."""
        errors = self.ray.exceptions
        try:
            got = json.loads(self.ray.get(reference))
        except errors.TaskCancelledError:
            return
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError, errors.RayActorError) as error:
            self._lost(task, _first_line(error))
            return
        except errors.RayError as error:
            self._check(now=True)
            got = {"answer": failed(f"Ray could not run it: {error}")}
        facts = {**got.get("facts", {}), "attempt": self.attempts[task.id]}
        self.seconds += (facts.get("seconds", QUICK) - self.seconds) / 4
        if "answer" in got:
            self._note(task, facts, "failed" if "failed" in got["answer"] else "done")
            settle(self.forest, task, {**got, "facts": facts}, self.folder, self.report)
        elif "held" in got:
            self.attempts[task.id] -= 1
            self.report.waiting(task, got["held"])
            self.later.append((time.monotonic() + WAIT_FOR_OTHERS, task))
        elif not self.stop.reason:
            self._lost(task, f"the worker was asked to end ({got['stopped'].splitlines()[0]})")

    def _lost(self, task: Task, why: str) -> None:
        """The worker is gone. What it had saved is there for the next one."""
        self._check(now=True)
        self._note(task, {"attempt": self.attempts[task.id], "why": why}, "lost")
        again = self.attempts[task.id] <= self.options.retries and not self.stop.reason
        self.report.lost(task, why, again)
        if again:
            self.forest.put_back(task)
        elif not self.stop.reason:
            times = self.attempts[task.id]
            settle(self.forest, task, {"answer": failed(f"its worker was lost {times} time{'s' * (times > 1)}: {why}")}, self.folder, self.report)

    def _note(self, task: Task, facts: Mapping[str, Any], end: str) -> None:
        atomic.append_line(self.folder / "tasks.jsonl", {"task": task.id, "end": end, **facts}, sync=False)

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._polled >= POLL:
            self._polled = now
            for task in self.flying.values():
                self.report.at(task, progress.read(progress_file(self.folder, task)))
            self.report.tick()
            self._check()

    # -- the end before the end

    def _wind_down(self) -> None:
        """Running tasks see the stop file and end with a checkpoint; those that do not in time are ended."""
        self.report.say(f"{self.stop.reason}: waiting for {len(self.flying)} running tasks to write their checkpoints (at most {self.options.grace:g} s)")
        end = time.monotonic() + self.options.grace
        with contextlib.suppress(KeyboardInterrupt):
            while self.flying and time.monotonic() < end:
                self._collect(0.1)
        for reference in self.flying:
            self.ray.cancel(reference, force=True)


def _first_line(error: BaseException) -> str:
    """Ray's reasons are pages long."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"the worker was lost ({type(error).__name__}{': ' + first if first else ''})"
