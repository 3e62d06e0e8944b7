"""A bench small enough to train every recipe in a fraction of a second: 80 handwritten digits, a narrow network, an attack of two steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

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
    from composer.engine.run import Runner

    plain = Runner.step_done

    def set_(step):
        def step_done(self, epoch, batch, steps):
            plain(self, epoch, batch, steps)
            self.steps_here = getattr(self, "steps_here", 0) + 1
            if step is not None and self.steps_here >= step:
                self.stop = "SIGTERM"

        monkeypatch.setattr(Runner, "step_done", step_done)

    return set_


def record(out: Path, run: str) -> SimpleNamespace:
    """What a store holds of a run: its nodes' folders and their epochs' records."""
    facts = json.loads((Path(out) / "experiments" / run / "record.json").read_text())
    folders = [Path(out) / "nodes" / node["key"] for node in facts["nodes"]]
    rows = [json.loads(line) for folder in folders if (folder / "metrics.jsonl").exists() for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return SimpleNamespace(facts=facts, folders=folders, rows=timeless, keys=[node["key"] for node in facts["nodes"]])


@pytest.fixture(name="record")
def record_fixture():
    return record


@pytest.fixture
def cli(tiny):
    """cli("run", "at", "--out", …) in a process of its own, on the bench; `start=True` hands the running process out."""

    def call(*arguments, start=False, env=None, setting=True, python=()):
        command = [sys.executable, *python, "-m", "composer", *map(str, arguments), *(("--setting", tiny) if setting else ())]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "", **(env or {})}
        surroundings = {k: v for k, v in surroundings.items() if v != ""}
        if start:
            return subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.run(command, check=False, env=surroundings, capture_output=True, text=True, timeout=120)

    return call


@pytest.fixture(autouse=True)
def numerics_left_alone():
    """A run sets torch's global switches; each test finds them as they were."""
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
