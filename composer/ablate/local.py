"""One task in one process, and all tasks in this one (`--jobs 0`). No Ray here: what a worker runs is what this process would run.

A work function is named as "package.module:function". It takes a spec and returns an answer, both JSON. Beside what the task says, a spec
carries `stop_file` (end with a checkpoint once that file is there) and `progress_file` (see `composer.ablate.progress.tell`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from composer.ablate.forest import Answer, Forest, failed
from composer.ablate.progress import Facts, tell
from composer.ablate.stop import Stop
from composer.ablate.types import Task
from composer.engine.lock import Held
from composer.errors import ComposerError, Stopped

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
WAIT_FOR_OTHERS = 5.0           # seconds between two looks at a task that another process holds


class Report(Protocol):
    """Who is told what happens (`composer.ablate.progress.Board` is one)."""

    def started(self, task: Task, attempt: int) -> None: ...
    def waiting(self, task: Task, why: str) -> None: ...
    def lost(self, task: Task, why: str, again: bool) -> None: ...
    def done(self, task: Task, answer: Answer, facts: Mapping[str, Any]) -> None: ...
    def at(self, task: Task, facts: Facts | None) -> None: ...
    def say(self, text: str) -> None: ...
    def tick(self) -> None: ...


# -- one task ------------------------------------------------------------------------------------------------------------------------


def set_threads(count: int) -> None:
    """CPU threads of the mathematics in this process: by environment for libraries still to be loaded, by call for a loaded torch."""
    if count <= 0:
        return
    os.environ.update(dict.fromkeys(THREADS, str(count)))
    set_torch_threads(count)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """This process is somebody's: after a task it has the number of threads that it had."""
    names, torch = {name: os.environ.get(name) for name in THREADS}, sys.modules.get("torch")
    count = torch.get_num_threads() if torch else 0
    yield
    for name, value in names.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    set_torch_threads(count)


def set_torch_threads(count: int) -> None:
    if count > 0 and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def resolve(work: str) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """The function that "package.module:function" names. Errors: ComposerError where it is not there."""
    module, _, name = work.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ComposerError(f"the work '{work}' cannot be imported: {error}", where=f"worker on {socket.gethostname()}",
                            fix="install the same composer on every machine of the cluster") from None


def call(work: str, spec: str, setup: Mapping[str, Any]) -> str:
    """Do one task in this process; the outcome as JSON, whatever happens short of the death of the process.

    work   "package.module:function"; spec: its argument, as JSON
    setup  threads, sys_path, log (a file that takes what the work prints), gpus (this task's share of a GPU)
    Returns {"answer": …} or {"stopped": why} or {"held": why}, with "facts" about the process.
    """
    begin = time.time()
    for place in reversed(setup.get("sys_path", ())):
        if place not in sys.path:
            sys.path.insert(0, place)
    given = json.loads(spec)
    with _printing_to(setup.get("log")):
        try:
            set_threads(setup.get("threads", 0))
            share_gpu(setup.get("gpus", 0.0))
            if os.path.exists(given.get("stop_file", "")):
                raise Stopped("stopped before it began")
            if given.get("progress_file"):
                tell(given["progress_file"], stage="starting")
            outcome: dict[str, Any] = {"answer": dict(resolve(work)(given))}
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001  whatever the work raises is its answer
            outcome = _outcome(error)
            if setup.get("log"):
                traceback.print_exc()
        outcome["facts"] = _facts(begin, setup)
        try:
            return json.dumps(outcome)
        except (TypeError, ValueError) as error:
            return json.dumps({"answer": failed(f"the answer of {work} is not JSON: {error}"), "facts": outcome["facts"]})


def _outcome(error: BaseException) -> dict[str, Any]:
    if isinstance(error, Held):
        return {"held": error.what}
    if isinstance(error, (Stopped, KeyboardInterrupt)):
        return {"stopped": str(error) or "interrupted", "exit_code": getattr(error, "exit_code", 130)}
    code = getattr(error, "exit_code", None)
    if code is None:
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    why = str(error) if isinstance(error, ComposerError) else f"{type(error).__name__}: {error}".rstrip(": ")
    more = {} if isinstance(error, ComposerError) else {"traceback": "".join(traceback.format_exception(error))}
    return {"answer": failed(why, diverged=code == 3, exit_code=code, **more)}


def _facts(begin: float, setup: Mapping[str, Any]) -> dict[str, Any]:
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else setup.get("threads", 0)
    return {"host": socket.gethostname(), "pid": os.getpid(), "threads": threads, "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "began": round(begin, 3), "seconds": round(time.time() - begin, 3)}


def share_gpu(share: float) -> None:
    """Ray shows several tasks one GPU and leaves its memory to them; each gets no more than its share."""
    if not 0 < share < 1:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


@contextlib.contextmanager
def _printing_to(log: str | None) -> Iterator[None]:
    """What this process and its libraries print goes to a file: a worker's own streams end where nobody looks."""
    if not log:
        yield
        return
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(file, 1), os.dup2(file, 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)
        empty = os.fstat(file).st_size == 0
        os.close(file)
        if empty:
            Path(log).unlink(missing_ok=True)


# -- files of a task -----------------------------------------------------------------------------------------------------------------


def file_of(task: Task) -> str:
    """A file name for the task's id, whatever is in it."""
    plain = re.sub(r"[^\w.=+-]+", "_", task.id)[:80]
    return plain if plain == task.id else f"{plain}-{hashlib.sha256(task.id.encode()).hexdigest()[:8]}"


def spec_of(task: Task, folder: Path, stop: Stop) -> str:
    """The task's spec as JSON, with the two files."""
    return json.dumps({**task.spec, "stop_file": str(stop.file), "progress_file": str(progress_file(folder, task))})


def progress_file(folder: Path, task: Task) -> Path:
    return folder / "progress" / f"{file_of(task)}.json"


# -- all tasks, here -----------------------------------------------------------------------------------------------------------------


def run_here(forest: Forest, work: str, folder: Path, setup: Mapping[str, Any], stop: Stop, report: Report) -> None:
    """Depth first, one after the other. A task that another process holds is waited for. Ends early once `stop.reason` is there."""
    while forest.ready and not stop.reason:
        task = forest.take()
        report.started(task, 1)
        with _threads_kept():
            got = json.loads(call(work, spec_of(task, folder, stop), setup))
        if "answer" in got:
            settle(forest, task, got, folder, report)
        elif "stopped" in got:
            stop.ask("Ctrl-C" if got.get("exit_code") == 130 else "SIGTERM")
        else:
            report.waiting(task, got["held"])
            forest.put_back(task)
            _pause(stop)


def settle(forest: Forest, task: Task, got: Mapping[str, Any], folder: Path, report: Report) -> None:
    """Put an answer into the forest and tell it, with those that fail along."""
    answer = got["answer"]
    lost = forest.finish(task, answer)
    report.done(task, answer, got.get("facts", {}))
    for each in lost:
        report.done(each, forest.answers[each.id], {})
    progress_file(folder, task).unlink(missing_ok=True)


def _pause(stop: Stop) -> None:
    end = time.monotonic() + WAIT_FOR_OTHERS
    while time.monotonic() < end and not stop.reason:
        time.sleep(0.1)
