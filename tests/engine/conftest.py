"""A bench small enough to train every recipe in a fraction of a second: 80 handwritten digits, a narrow network, an attack of two steps."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__).parent
SETTING = """
[data]
use   = "npz"
file  = "{file}"
scale = 16
[model]
use      = "small_cnn"
channels = [4, 8, 8]
[threat]
norm  = "linf"
eps   = 0.2
step  = "eps/4"
steps = 2
start = "uniform"
[optim]
use          = "sgd"
momentum     = 0.9
weight_decay = 5e-4
clip         = 1.0
[train]
epochs     = 3
batch_size = 24
lr         = {{ use = "multistep", value = 0.05, at = ["2/3"], factor = 0.1 }}
[select]
held_out = 16
attack   = {{ use = "pgd", steps = 2 }}
report   = "best"
[evaluate]
clean = {{}}
pgd-3 = {{ use = "pgd", steps = 3 }}
"""


def digits(path: Path, train: int = 80, test: int = 24, **more: np.ndarray) -> Path:
    """An npz file of the first digits of scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = bunch.images.astype(np.uint8)[..., None], bunch.target.astype(np.int64)
    np.savez(path, x=x[:train], y=y[:train], x_test=x[train:train + test], y_test=y[train:train + test], **more)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The path of the bench's setting."""
    folder = tmp_path_factory.mktemp("tiny")
    setting = folder / "tiny.toml"
    setting.write_text(SETTING.format(file=digits(folder / "digits.npz").as_posix()))
    return str(setting)


@pytest.fixture
def go(tiny):
    """go("mart_ours", out, **{"train.epochs": 2}) trains in this process; the result, with what the store holds of it."""
    from composer.engine.run import run
    from composer.engine.session import Settings
    from composer.recipe.load import load

    def call(recipe, out, *, seed=0, setting=tiny, drops=(), settings=None, **sets):
        made = load(recipe, setting=setting, sets=[f"{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in sets.items()], drops=drops)
        return run(made, seed=seed, settings=Settings(**{"out": Path(out), "track": False, "quiet": True, "device": "cpu"} | (settings or {})))

    return call


@pytest.fixture
def stop_after(monkeypatch):
    """Ask every run of this process to stop as soon as it has done that many steps; None: let it run."""
    from composer.engine.walk import Walk

    plain = Walk.step_done

    def set_(step):
        def step_done(self, epoch, batch, steps):
            plain(self, epoch, batch, steps)
            self.steps_here = getattr(self, "steps_here", 0) + 1
            if step is not None and self.steps_here >= step:
                self.wish.stop = "SIGTERM"

        monkeypatch.setattr(Walk, "step_done", step_done)

    return set_


def record(out: Path, run: str) -> SimpleNamespace:
    """What a store holds of a run: its nodes' folders and their epochs' records."""
    facts = json.loads((Path(out) / "experiments" / run / "record.json").read_text())
    folders = [Path(out) / "nodes" / node["key"] for node in facts["nodes"]]
    rows = [json.loads(line) for folder in folders if (folder / "metrics.jsonl").exists() for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/"))} for row in rows]
    return SimpleNamespace(facts=facts, folders=folders, rows=timeless, keys=[node["key"] for node in facts["nodes"]])


@pytest.fixture(name="record")
def record_fixture():
    return record


class Away:
    """A command running in another process: wait for what it writes, signal it, read what it said."""

    def __init__(self, server, folder: Path, out: Path, arguments: list[str], **job):
        self.out, self.stdout_path, self.stderr_path = Path(out), folder / f"{time.monotonic_ns()}.out", folder / f"{time.monotonic_ns()}.err"
        job = {"arguments": arguments, "output": str(self.stdout_path), "errors": str(self.stderr_path), "environment": {}, "file_limit": None,
               "track": False, "absent": [], "path": [], "tell": False} | job
        self.process = server.Process(target=runpy.run_path, args=(str(HERE / "away.py"),), kwargs={"init_globals": {"JOB": job}, "run_name": "__main__"})
        self.process.start()

    def until(self, holds, seconds: float = 60.0) -> None:
        """Wait until holds() or the process ends."""
        limit = time.monotonic() + seconds
        while not holds() and self.process.is_alive():
            assert time.monotonic() < limit, f"waited in vain; stderr: {self.stderr}"
            time.sleep(0.005)

    def until_epoch(self, epochs: int) -> None:
        """Wait until so many epochs were recorded in the store, over all nodes."""
        self.until(lambda: sum(len(f.read_text().splitlines()) for f in self.out.glob("nodes/*/metrics.jsonl")) >= epochs)

    def send(self, number: int) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def code(self) -> int:
        """Its exit code; the negative number of the signal it died of."""
        self.process.join(60)
        assert not self.process.is_alive(), f"it hangs; stderr: {self.stderr}"
        return self.process.exitcode

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text()

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text()


@pytest.fixture(scope="session")
def server():
    """Forks processes that have torch and composer imported, and have used neither."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer.cli", "composer.engine.run", "composer.evaluate.protocol", "composer.report.plots", "sklearn.datasets", "torch._dynamo"])
    return context


@pytest.fixture
def away(server, tiny, tmp_path):
    """away("at", out, "--quiet", "train.epochs=40", …): `composer run` in another process; words with "=" are --set, unless they are flags."""
    started = []

    def call(recipe, out, *words, **job):
        flags = [w for w in words if w.startswith("--")]
        sets = [f"--set={w}" for w in words if not w.startswith("--")]
        started.append(Away(server, tmp_path, out, ["run", recipe, "--setting", tiny, "--out", str(out), "--device", "cpu", *flags, *sets], **job))
        return started[-1]

    yield call
    for each in started:
        each.process.kill()
        each.process.join()


@pytest.fixture
def cli(tiny):
    """cli("run", "at", "--out", …) on the bench, by a fresh interpreter with everything at its default."""

    def call(*arguments, env=None):
        command = [sys.executable, "-m", "composer.cli", *map(str, arguments), "--setting", tiny]
        return subprocess.run(command, check=False, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """A run sets torch's global switches: each test finds them as they were. Nobody looks at the pictures of these runs."""
    import torch

    from composer.report import plots

    monkeypatch.setattr(plots, "curves", lambda *_, **__: None)

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
