"""`composer run --workers N`: one run on several workers through Ray Train's TorchTrainer. Ray itself starts in `fleet_ray`.

Ray places the workers, on this machine or a cluster, joins them in a process group (NCCL on GPUs, gloo on CPUs) and notices one that is gone;
`fleet_worker.serve` is what each does. Checkpoints are the run's own, in its store, so a lost worker means: begin again from the last one. Retries
are ours and not Ray's, since a run that was stopped or has diverged is not to be tried again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.engine.fleet_ray import cluster
from composer.engine.fleet_worker import Told, error_of, outcomes, serve, spec_of
from composer.engine.lock import STALE, Held
from composer.engine.session import Settings, pick_device
from composer.engine.signals import Signals
from composer.engine.walk import Wish
from composer.errors import ComposerError
from composer.report.live import Live

RETRIES = 3                     # times that training goes on after a worker was lost, without an epoch between
LOOK = 0.1                      # seconds between two looks at what the workers tell


def run_fleet(recipe: Any, *, seed: int, settings: Settings, tags: Mapping[str, str]) -> dict[str, Any]:
    """Train and evaluate on settings.workers workers; the result, as that of a run on one.

    Errors: those of a run; ComposerError where Ray cannot be had or holds too little, or workers are lost again and again.
    """
    _check(recipe, settings)
    if settings.download:                                     # once, and not by every worker
        from composer.data.sets import load

        load(recipe.data.use, recipe.data.options, settings.data_root, True)
    parent = settings.out.absolute() / "fleet"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{recipe.name}-s{seed}-", dir=parent))
    wish, threads = Wish(), threads_of(settings)
    Live(0, 1, quiet=settings.quiet).say(f"starting {settings.workers} workers" + (f" on the Ray cluster at {settings.address}" if settings.address else " through Ray"))
    try:
        with cluster(settings.address, settings.workers * threads, threads), Signals(wish):      # Ray has put handlers of its own in the place of ours
            return _Driver(recipe, seed, settings, tags, folder, wish).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            parent.rmdir()


def threads_of(settings: Settings) -> int:
    """CPU threads of each worker: as OMP_NUM_THREADS says, else this machine's cores divided among its workers."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(said) if said.isdigit() and int(said) else max(1, cores // (1 if settings.address else settings.workers))


def _check(recipe: Any, settings: Settings) -> None:
    """Before Ray starts: what cannot be."""
    from composer.engine.fleet_train import check
    from composer.plan.whole import plans_of

    for flag, value, legal in (("--backend", settings.backend, ("eager", "auto", "folded")), ("--micro-batch", settings.micro_batch, ("whole",))):
        if value not in legal:
            raise ComposerError(f"{flag} {value} with --workers {settings.workers}", where="command line", fix=f"{flag} {legal[0]}")
    for segment, plan in plans_of(recipe):
        check(plan, segment.recipe, settings.workers)


class _Driver:
    """Starts the workers, shows what they tell, and begins again where one is lost."""

    def __init__(self, recipe: Any, seed: int, settings: Settings, tags: Mapping[str, str], folder: Path, wish: Wish):
        self.recipe, self.seed, self.tags, self.folder, self.wish = recipe, seed, tags, folder, wish
        self.threads, self.cuda = threads_of(settings), _cuda(settings)
        self.stop_file = folder / "stop"
        self.settings = replace(settings, stop_file=str(self.stop_file), backend="folded" if settings.backend == "folded" else "eager", device="cuda" if self.cuda else "cpu", download=False)
        self.lost, self.began, self.epochs = 0, False, 0

    def run(self) -> dict[str, Any]:
        _enough(self.settings, self.threads, self.cuda)
        end = 0.0
        while True:
            place = self.folder / f"attempt-{self.lost}"
            place.mkdir(exist_ok=True)
            error = self._attempt(place)
            told = outcomes(place, self.settings.workers)
            for each in told:
                if "defect" in each:
                    raise RuntimeError(f"a worker failed:\n{each['defect']}")
            wrong = next((error_of(placed(each["error"], self.recipe, self.folder)) for each in told if "error" in each), None)
            if isinstance(wrong, Held) and self.lost and time.monotonic() < end:
                time.sleep(2.0)                               # a lost leader's lock on another machine is its own for a while
            elif wrong is not None:
                raise self._ours(wrong)
            elif told and told[0].get("result"):
                return told[0]["result"]
            else:
                end = time.monotonic() + STALE + 30
                self._again(error)
            shutil.rmtree(place, ignore_errors=True)

    def _attempt(self, place: Path) -> BaseException | None:
        """Train until the workers end, however they do."""
        settings = replace(self.settings, fresh=self.settings.fresh and not self.began)
        spec = spec_of(self.recipe, self.seed, settings, self.tags, place, self.threads)
        found: list[BaseException] = []
        thread = threading.Thread(target=_fit, args=(spec, settings.workers, self.threads, self.cuda, found), name="composer-fleet", daemon=True)
        thread.start()
        told, live = Told(place), contextlib.ExitStack()
        with live:
            display: Any = None
            while thread.is_alive():
                thread.join(LOOK)
                display = self._show(told, live, display)
                if self.wish.stop and not self.stop_file.exists():
                    self.stop_file.write_text(self.wish.stop)
            self._show(told, live, display)
        return found[0] if found else None

    def _show(self, told: Told, live: contextlib.ExitStack, display: Any) -> Any:
        for name, arguments, more in told.new():
            if name == "begin":
                epochs, steps, title = arguments
                display = live.enter_context(Live(epochs, steps, f"{title}, {self.settings.workers} workers", quiet=self.settings.quiet))
            else:
                self.began = self.began or name == "phase"
                if name == "epoch" and arguments[0] > self.epochs:
                    self.epochs, self.lost = arguments[0], 0  # it gets on
                getattr(display, name)(*arguments, **more)
        return display

    def _ours(self, error: ComposerError) -> ComposerError:
        """The stop file stands for a SIGTERM; it may have been a Ctrl-C."""
        from composer.engine.train import stopped

        told = "stopped by SIGTERM "
        if self.wish.stop != "Ctrl-C" or not error.what.startswith(told):
            return error
        return stopped(self.wish.stop, error.what.removeprefix(told), error.why)

    def _again(self, error: BaseException | None) -> None:
        """Errors: Stopped where a stop was asked for meanwhile, ComposerError after too many losses."""
        from composer.engine.train import stopped

        said = _why(error)
        if self.wish.stop:
            raise stopped(self.wish.stop, "while a worker was lost", "the last checkpoint is kept")
        self.lost += 1
        if self.lost > RETRIES:
            raise ComposerError(f"workers were lost {self.lost} times in a row", why=said, fix="run the same command again to go on from the last checkpoint")
        Live(0, 1, quiet=self.settings.quiet).say(f"a worker was lost ({said}); going on from the last checkpoint")


def placed(facts: Mapping[str, Any], recipe: Any, folder: Path) -> dict[str, Any]:
    """An error's facts with places that the user can open: a worker reads the recipe from a file of ours, which is soon gone."""
    from composer.plan.whole import place

    def where(said: str) -> str:
        path = said.rpartition("  ")[2]
        return said if not said.startswith(str(folder)) else place(recipe)(path) if re.fullmatch(r"[\w.]+", path) else path

    return {**facts, "all": [{**each, "where": where(each["where"])} for each in facts["all"]]}


def _fit(spec: dict[str, Any], workers: int, threads: int, cuda: bool, found: list[BaseException]) -> None:
    """In a thread of its own: Ray waits, and takes Ctrl-C for itself where it runs in the main one."""
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        TorchTrainer(
            _on_worker, train_loop_config={"spec": spec, "cuda": cuda},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=cuda, resources_per_worker={"CPU": threads, **({"GPU": 1} if cuda else {})}),
            run_config=RunConfig(name="fleet", storage_path=spec["folder"], failure_config=FailureConfig(max_failures=0)),
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo")).fit()
    except BaseException as error:  # noqa: BLE001  whatever it is, the driver judges it
        found.append(error)


def _on_worker(config: dict[str, Any]) -> None:
    device = "cpu"
    if config["cuda"]:
        from ray.train.torch import get_device

        device = str(get_device())
    serve(config["spec"], device)


def _why(error: BaseException | None) -> str:
    """The first line of what Ray says of the first worker that is gone and not merely missing another."""
    each = getattr(error, "worker_failures", {})
    gone = {rank: e for rank, e in each.items() if "PeerLost" not in f"{type(e).__name__} {e}"} or each
    lines = [(f"worker {rank}: " + (str(e).strip().splitlines() or [type(e).__name__])[0])[:160] for rank, e in sorted(gone.items())]
    return lines[0] if lines else (str(error).strip().splitlines() or ["no reason given"])[0][:160] if error else "no reason given"


# -- places -----------------------------------------------------------------------------------------------------------------------------------


def _cuda(settings: Settings) -> bool:
    """With an address the driver's machine need not have the GPUs."""
    if settings.address and settings.device == "auto":
        import ray

        return ray.cluster_resources().get("GPU", 0) >= settings.workers
    return settings.device.startswith("cuda") if settings.address else pick_device(settings.device).type == "cuda"


def _enough(settings: Settings, threads: int, cuda: bool) -> None:
    import ray

    has, needs = ray.cluster_resources(), {"CPU": settings.workers * threads, **({"GPU": settings.workers} if cuda else {})}
    short = {name: number for name, number in needs.items() if has.get(name, 0) < number}
    if short:
        name, number = next(iter(short.items()))
        raise ComposerError(f"--workers {settings.workers} needs {number} {name}s, and Ray has {has.get(name, 0):g}", where="command line",
                            fix="fewer workers" + (", or OMP_NUM_THREADS=1" if name == "CPU" and threads > 1 else ""))


__all__ = ["run_fleet", "threads_of"]
