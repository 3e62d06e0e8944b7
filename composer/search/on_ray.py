"""Working through a source of trials as trials of Ray Tune, on this machine or on a cluster.

Ray Tune places trials, takes up those whose process died, and asks the source what to do. Its loop runs in a thread: once Ray's head has died it
waits for an answer for a minute, and then Ray ends the process. This thread sees that, and the wish to stop.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.ablate.launch import LaunchOptions
from composer.ablate.launch_ray import await_a_place, cluster
from composer.ablate.local import share_gpu
from composer.ablate.progress import Board
from composer.ablate.pulse import Pulse
from composer.ablate.stop import Died, Stop
from composer.errors import Stopped
from composer.recipe.recipe import Recipe
from composer.search.options import SweepOptions
from composer.search.propose import Job, Source
from composer.search.store import Store
from composer.search.trial import Work, set_threads, train

LEAVING = 90                     # seconds that stopped trials have to save their state before their processes are given up
POLL = 0.5                       # seconds between two looks at Ray
WAIT = 2.0                       # seconds that Tune's loop has to hear that nobody waits for it
ENVIRONMENT = {"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
               "TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0", "TUNE_MAX_PENDING_TRIALS_PG": "1",
               "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TRAIN_V2_ENABLED": "1", "RAY_ENABLE_AUTO_CONNECT": "0"}


class Leave(BaseException):
    """Out of Tune's loop at once. No Exception: for one Tune would ask a Ray that may be gone to tidy up."""


def work_on_ray(recipe: Recipe, source: Source, store: Store, make: Callable[[int], Work], options: SweepOptions) -> None:
    """Train every trial the source hands out. Errors: Stopped after Ctrl-C or SIGTERM, Died (a Stopped) where Ray itself dies: no trial is to blame."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    work, start = make(0), launching(store, options)
    with Stop(store.folder) as stop, cleanly(store.folder / ".tune") as scratch:
        try:
            with cluster(start, Board([], quiet=True)):
                stop.listen()                             # Ray has put its own handler in the place of ours
                watch = Watch(store, options, stop)
                await_a_place(start, stop, watch.look, "lower --gpus-per-run, or begin the sweep anew (--fresh, or another --name) with "
                              f"--threads lower than {options.threads}: this one keeps those it was begun with")
                watch.over(tuner(recipe, source, replace(work, settings=replace(work.settings, stop_file=str(stop.file))), watch, scratch, start.cores))
        except KeyboardInterrupt:
            stop.ask("Ctrl-C")
        except SystemExit:                                # Ray's answer to a SIGTERM while it starts
            stop.ask("SIGTERM")
        except Leave:
            pass
        if stop.reason:
            raise stopped(store, stop.reason)


def launching(store: Store, options: SweepOptions) -> LaunchOptions:
    """Ray as the launcher of grids starts it: a trial takes as many cores as it has threads."""
    return LaunchOptions(store.folder, jobs=options.jobs, address=options.address, gpus_per_run=options.gpus_per_run, threads=options.threads,
                         env=ENVIRONMENT, sys_path=(str(Path(__file__).resolve().parents[2]),))


def stopped(store: Store, by: str) -> Stopped:
    error = Stopped(f"the sweep was stopped by {by}", where=str(store.folder), why="what was trained is kept", fix="run the same command again to go on")
    error.exit_code = 130 if by == "Ctrl-C" else 75
    return error


def died(store: Store, why: str, options: SweepOptions) -> Died:
    kept = sum(trial.status not in ("unfinished", "failed") for trial in store.trials())
    return Died(why, {}, kept, max(options.trials, store.count()), what="trials")


@contextmanager
def cleanly(scratch: Path) -> Iterator[Path]:
    """Tune's own notes are not what a sweep goes on from: they go when it ends, as do those of a driver that was killed. Its remarks on lost workers
    would be pages; the sweep tells of them."""
    shutil.rmtree(scratch, ignore_errors=True)
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.air")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.CRITICAL)
    try:
        yield scratch
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        shutil.rmtree(scratch, ignore_errors=True)


def tuner(recipe: Recipe, source: Source, work: Work, watch: Watch, scratch: Path, cpus: float) -> Any:
    from ray import tune

    from composer.plugins import for_workers

    options = watch.options
    trainable = tune.with_parameters(in_worker, recipe=recipe, work=work, plugins=for_workers(), folder=os.getcwd(), threads=options.threads,
                                     gpus=options.gpus_per_run)
    resources: dict[str, float] = {"cpu": cpus} | ({"gpu": options.gpus_per_run} if options.gpus_per_run else {})
    searcher, scheduler, looks = adapters(source, watch)
    return tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=100_000, max_concurrent_trials=options.jobs or None,
                                    reuse_actors=True),
        run_config=tune.RunConfig(name="sweep", storage_path=str(scratch), verbose=0, callbacks=[looks],
                                  failure_config=tune.FailureConfig(max_failures=options.retries)))


class Watch:
    """What this thread looks at while Tune's loop runs in another one."""

    def __init__(self, store: Store, options: SweepOptions, stop: Stop):
        import ray

        self.store, self.options, self.stop = store, options, stop
        self.pulse, self.until, self.left, self.gone = Pulse(ray), 0.0, False, ""
        self.error: BaseException | None = None

    def over(self, tuner: Any) -> None:
        """Tune's loop to its end. Errors: its own; Died where Ray is gone, Leave where stopped trials have had their time."""
        thread = threading.Thread(target=self._fit, args=(tuner,), name="composer-tune", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(POLL)
                self.look()
        finally:
            self.left = True
            thread.join(WAIT)
        if self.error is not None:
            self.look(now=True)                           # what Tune says of a Ray that is gone is of no use
            raise self.error

    def _fit(self, tuner: Any) -> None:
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001  it is raised in the other thread
            self.error = error

    def look(self, now: bool = False) -> None:
        """Errors: Died where Ray is gone, Leave where stopped trials have had their time."""
        why = self.gone or self.pulse.why(now)
        if why and not self.stop.reason:
            self.stop.touch()                             # workers that outlive their Ray end by it
            raise died(self.store, why, self.options)
        if self.stop.reason and not self.until:
            self.until = time.monotonic() + LEAVING
            self.options.say(f"{self.stop.reason}: waiting for running trials to write their checkpoints (at most {LEAVING} s)")
        if self.stop.reason and (why or time.monotonic() > self.until):
            raise Leave

    def step(self, blamed: bool = False) -> None:
        """Called in Tune's loop. `blamed`: a trial's process has died. Errors: Leave where it was Ray's fault, and where nobody waits any longer."""
        if blamed:
            self.gone = self.gone or self.pulse.why(now=True)
        if self.left or self.gone:
            raise Leave


def in_worker(config: dict[str, Any], *, recipe: Recipe, work: Work, plugins: tuple[str, ...], folder: str, threads: int, gpus: float) -> None:
    """The trainable of Ray Tune: one report an epoch, which does not return where the scheduler stops the trial."""
    from ray import tune

    if os.path.isdir(folder):
        os.chdir(folder)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LEAVING)
    from composer.plugins import load_all

    load_all(plugins, exact=True)
    set_threads(threads)
    share_gpu(gpus)

    def told(epoch: int, metrics: dict[str, float]) -> str:
        try:
            tune.report({"number": config["number"], "epoch": epoch, "metrics": json.dumps(metrics)})
        except SystemExit:                                # how Tune's session leaves a trial that was stopped
            return "stopped"
        return ""

    how = ""
    if not os.path.exists(work.settings.stop_file):
        try:
            how = train(recipe, json.loads(config["values"]), replace(work, number=config["number"]), told)
        except Stopped:                                   # its state is saved, and nobody asked Tune to end it
            how = "left"
    if how == "stopped":
        raise SystemExit(0)                               # a plain return would wait for the scheduler once more
    tune.report({"number": config["number"], "epoch": -1, "metrics": "{}"})


def adapters(source: Source, watch: Watch) -> tuple[Any, Any, Any]:
    """Ray Tune's searcher and scheduler in front of a source, and a callback that looks whether to leave."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    store, options = watch.store, watch.options

    class FromSource(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="epoch", mode="max")
            self.numbers: dict[str, int] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            job: Job | None = None if watch.stop.reason else source.next()
            if job is None:
                return Searcher.FINISHED
            self.numbers[trial_id] = job.number
            return {"number": job.number, "values": json.dumps(job.values)}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            number = self.numbers.pop(trial_id, None)
            if number is None:
                return
            if error:
                watch.step(blamed=True)
            if error and store.read(number).status == "unfinished":
                store.end(number, "failed", why=f"its process died {options.retries + 1} times")
            source.ended(number)

        def save(self, checkpoint_path: str) -> None: ...      # a sweep goes on from its own record

        def restore(self, checkpoint_path: str) -> None: ...

    class AsSourceSays(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "number" not in result or result["epoch"] < 0:
                return TrialScheduler.CONTINUE
            why = source.seen(result["number"], result["epoch"], json.loads(result["metrics"]))
            return TrialScheduler.STOP if why else TrialScheduler.CONTINUE

    class Looks(tune.Callback):
        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            watch.step()

    return FromSource(), AsSourceSays(), Looks()
