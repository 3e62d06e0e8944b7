"""Working through a source of trials: one after the other in this process, or as trials of Ray Tune."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, Stopped
from composer.recipe.recipe import Recipe
from composer.search.options import SweepOptions, cores
from composer.search.propose import Job, Source
from composer.search.store import Store
from composer.search.trial import Work, train

MakeWork = Callable[[int], Work]
CRASHES = 2                      # times a trial whose process died is taken up again, from its last checkpoint
LEAVING = 90                     # seconds that a stopped trial has to save its state before its process is given up
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
               "TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0", "TUNE_MAX_PENDING_TRIALS_PG": "1",
               "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TRAIN_V2_ENABLED": "1"}


def work_through(recipe: Recipe, source: Source, store: Store, make: MakeWork, options: SweepOptions) -> None:
    """Train every trial the source hands out. Errors: Stopped after Ctrl-C or SIGTERM; unfinished trials go on the next time."""
    if options.jobs == 0:
        _here(recipe, source, make, options)
    else:
        _ray(recipe, source, store, make, options)


def _here(recipe: Recipe, source: Source, make: MakeWork, options: SweepOptions) -> None:
    set_threads(options.threads)
    while job := source.next():
        how = train(recipe, job.values, make(job.number), lambda epoch, metrics, n=job.number: source.seen(n, epoch, metrics))
        source.ended(job.number)
        options.say(f"trial {job.number}: {how}")


def set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


# -- Ray -------------------------------------------------------------------------------------------------------------------------


def _ray(recipe: Recipe, source: Source, store: Store, make: MakeWork, options: SweepOptions) -> None:
    from composer.plugins import for_workers

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import tune

    scratch = store.folder / ".tune"
    shutil.rmtree(scratch, ignore_errors=True)            # of a driver that was killed
    work = make(0)
    trainable = tune.with_parameters(in_worker, recipe=recipe, work=work, plugins=for_workers(), folder=os.getcwd(), threads=options.threads)
    resources: dict[str, float] = {"cpu": 1} | ({"gpu": options.gpus_per_run} if options.gpus_per_run else {})
    with cluster(ray, options), cleanly(scratch), sigterm_ends():
        searcher, scheduler, teller = adapters(source, store, options)
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(search_alg=searcher, scheduler=scheduler, num_samples=100_000, max_concurrent_trials=options.jobs,
                                        reuse_actors=True),
            run_config=tune.RunConfig(name="sweep", storage_path=str(scratch), verbose=0, callbacks=[teller],
                                      failure_config=tune.FailureConfig(max_failures=CRASHES)))
        try:
            tuner.fit()
        except KeyboardInterrupt:
            raise stopped(store, "Ctrl-C", 130) from None
        except SystemExit:
            raise stopped(store, "SIGTERM", 75) from None


def stopped(store: Store, by: str, code: int) -> Stopped:
    error = Stopped(f"the sweep was stopped by {by}", where=str(store.folder), why="what was trained is kept", fix="run the same command again to go on")
    error.exit_code = code
    return error


@contextmanager
def cluster(ray: Any, options: SweepOptions) -> Any:
    """A Ray of our own for the time of the sweep, or the one that is there."""
    import logging

    mine = not ray.is_initialized()
    if mine:
        logging.getLogger("ray").setLevel(logging.ERROR)
        threads, here = str(options.threads or 1), str(Path(__file__).resolve().parents[2])
        environment = {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "RAY_CHDIR_TO_TRIAL_DIR": "0",
                                    "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))}}
        given: dict[str, Any] = {"address": options.address} if options.address else {
            "address": "local", "num_cpus": max(options.jobs, cores()), "include_dashboard": False, "object_store_memory": 100 * 2**20}
        try:
            ray.init(**given, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ComposerError(f"Ray does not start: {error}", where=f"--address {options.address}" if options.address else "",
                                fix="--jobs 0 runs the trials in this process, without Ray") from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def cleanly(scratch: Path) -> Any:
    """Tune's own notes are not what a sweep goes on from: they go when it ends."""
    try:
        yield
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def sigterm_ends() -> Any:
    """SIGTERM as SystemExit, in place of Ray's own handler, which prints a stack and aborts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: Any) -> None:
        raise SystemExit(75)

    old = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old if old is not None else signal.SIG_DFL)


def in_worker(config: dict[str, Any], *, recipe: Recipe, work: Work, plugins: tuple[str, ...], folder: str, threads: int) -> None:
    """The trainable of Ray Tune: one report an epoch, which does not return where the scheduler stops the trial."""
    import json
    from dataclasses import replace

    from ray import tune

    if os.path.isdir(folder):
        os.chdir(folder)
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(LEAVING)
    from composer.plugins import load_all

    load_all(plugins, exact=True)
    set_threads(threads)

    def told(epoch: int, metrics: dict[str, float]) -> str:
        try:
            tune.report({"number": config["number"], "epoch": epoch, "metrics": json.dumps(metrics)})
        except SystemExit:                                # how Tune's session leaves a trial that was stopped
            return "stopped"
        return ""

    how = train(recipe, json.loads(config["values"]), replace(work, number=config["number"]), told)
    if how == "stopped":
        raise SystemExit(0)                               # a plain return would wait for the scheduler once more
    tune.report({"number": config["number"], "epoch": -1, "metrics": "{}"})


def adapters(source: Source, store: Store, options: SweepOptions) -> tuple[Any, Any, Any]:
    """Ray Tune's searcher and scheduler in front of a source, and a callback that says what goes on."""
    import json

    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class FromSource(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="epoch", mode="max")
            self.numbers: dict[str, int] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            job: Job | None = source.next()
            if job is None:
                return Searcher.FINISHED
            self.numbers[trial_id] = job.number
            return {"number": job.number, "values": json.dumps(job.values)}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            number = self.numbers.pop(trial_id, None)
            if number is None:
                return
            if error and store.read(number).status == "unfinished":
                store.end(number, "failed", why=f"its process died {CRASHES + 1} times")
            source.ended(number)
            options.say(f"trial {number}: {store.read(number).status}")

        def save(self, checkpoint_path: str) -> None: ...      # a sweep goes on from its own record

        def restore(self, checkpoint_path: str) -> None: ...

    class AsSourceSays(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if "number" not in result or result["epoch"] < 0:
                return TrialScheduler.CONTINUE
            why = source.seen(result["number"], result["epoch"], json.loads(result["metrics"]))
            return TrialScheduler.STOP if why else TrialScheduler.CONTINUE

    class Teller(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
            if result.get("epoch", -1) > 0:
                shown = "  ".join(f"{k} {100 * v:.2f} %" for k, v in json.loads(result["metrics"]).items())
                options.say(f"trial {result['number']}, epoch {result['epoch']}: {shown}")

    return FromSource(), AsSourceSays(), Teller()
