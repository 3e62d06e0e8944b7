"""The engine's bench for grids: 80 handwritten digits, a narrow network, a few milliseconds a step. Nothing here acts on a test that does not ask."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

SCALED = ("seconds", "train_seconds", "out", "mlflow_run_id", "peak_memory_bytes")
RECIPE = """
extends = "at.toml"
drop    = ["toggle.attack"]

[augment]
flip = {}
[terms]
mae = { weight = 0.5, begin = 3 }
[parts]
mean = { use = "weight_ema", decay = 0.5 }
[train]
epochs = 4
[select]
from   = 4
report = "both"
[evaluate]
weights = "mean"

[toggle]
late    = { drop = ["terms.mae"] }
heavy   = { set = { "terms.mae.weight" = 1.0 } }
mean    = { set = { "evaluate.weights" = "live" }, drop = ["parts.mean"] }
slow    = { set = { "parts.mean.decay" = 0.9 } }
start   = { set = { "inner.x_adv.start" = "zero" } }
strong  = { set = { "evaluate.pgd-3.steps" = 4 } }
wild    = { set = { "train.lr" = 1e30, "optim.clip" = 1e30 } }
"""


def engine_bench() -> ModuleType:
    """tests/engine/conftest.py as a module: its bench is ours."""
    place = Path(__file__).resolve().parents[1] / "engine" / "conftest.py"
    spec = importlib.util.spec_from_file_location("engine_bench", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCH = engine_bench()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the bench's setting."""
    folder = tmp_path_factory.mktemp("tiny")
    setting = folder / "tiny.toml"
    setting.write_text(BENCH.SETTING.format(file=BENCH.digits(folder / "digits.npz").as_posix()))
    return str(setting)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose toggles part in the last of four epochs (late, heavy, mean), never (slow, while nothing is judged at it), or at once."""
    file = tmp_path_factory.mktemp("recipe") / "late.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def as_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process leave torch's switches as they found them, and draw no pictures."""
    import torch

    from composer.report import effects, plots

    monkeypatch.setattr(plots, "curves", lambda *_, **__: None)
    monkeypatch.setattr(effects, "draw_all", lambda *_, **__: [])
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def grid(recipe: Path, tiny: str) -> Callable[..., Any]:
    """grid("late", "mean", seeds=2): a grid of the bench's recipe."""
    from composer.ablate.door import grid_for

    def make(*toggles: str, target: Any = None, seeds: Any = 1, sets: Sequence[str] = (), **more: Any) -> Any:
        return grid_for(target or recipe, toggles, seeds=seeds, setting=tiny, sets=sets, **more)

    return make


@pytest.fixture
def drive(as_found: None) -> Callable[..., Any]:
    """drive(grid, out, …) -> the Drive, untracked and in this process."""
    from composer.ablate.drive import Drive, Options
    from composer.engine.session import Settings

    def make(of: Any, out: Path, *, settings: dict[str, Any] | None = None, **options: Any) -> Any:
        chosen = Settings(**{"out": Path(out), "track": False, "quiet": True, "device": "cpu"} | (settings or {}))
        return Drive(of, Options(**{"settings": chosen, "jobs": 0, "threads": 1, "quiet": True} | options))

    return make


@pytest.fixture(scope="session")
def store_of_two(recipe: Path, tiny: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A store in which late × mean has run with two seeds, made once; what it took."""
    import torch

    from composer.ablate.door import grid_for
    from composer.ablate.drive import Drive, Options
    from composer.engine.session import Settings
    from composer.engine.walk import Walk
    from composer.report import effects, plots

    out, seen, plain = tmp_path_factory.mktemp("two") / "runs", [], Walk.step_done
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "curves", lambda *_, **__: None)
        patch.setattr(effects, "draw_all", lambda *_, **__: [])
        patch.setattr(Walk, "step_done", lambda self, *args: (seen.append((self.recipe.experiment_id, self.session.seed, args[0])), plain(self, *args))[1])
        threads = torch.get_num_threads()
        it = Drive(grid_for(recipe, ("late", "mean"), seeds=2, setting=tiny),
                   Options(settings=Settings(out=out, track=False, quiet=True, device="cpu"), jobs=0, threads=1, quiet=True))
        summary = it.run()
        torch.set_num_threads(threads)
    return SimpleNamespace(out=out, drive=it, summary=summary, steps=tuple(seen))


@pytest.fixture
def two(store_of_two: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A copy of that store, at tmp_path/runs."""
    import shutil

    shutil.copytree(store_of_two.out, tmp_path / "runs")
    return SimpleNamespace(**{**vars(store_of_two), "out": tmp_path / "runs"})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every training step that this process takes: recipe's id, seed, epoch."""
    from composer.engine.walk import Walk

    seen: list[tuple[str, int, int]] = []
    plain = Walk.step_done

    def step_done(self: Any, epoch: int, batch: int, of: int) -> None:
        seen.append((self.recipe.experiment_id, self.session.seed, epoch))
        plain(self, epoch, batch, of)

    monkeypatch.setattr(Walk, "step_done", step_done)
    return seen


STEPS = 3                    # of an epoch on the bench


def epochs_of(steps: Sequence[Any]) -> int:
    assert len(steps) % STEPS == 0
    return len(steps) // STEPS


def by_seed(steps: Sequence[Any]) -> Counter[int]:
    return Counter(seed for _, seed, _ in steps)


def timeless(value: Any) -> Any:
    """A result, or a table, without what the clock and the place decide."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in SCALED and not k.startswith("mlflow")}
    return [timeless(v) for v in value] if isinstance(value, (list, tuple)) else value


def results(out: Path, study: str) -> dict[str, Any]:
    """A study's results.json without times."""
    return timeless(json.loads((Path(out) / "studies" / study / "results.json").read_text()))


def digests(out: Path) -> dict[str, tuple[str, str]]:
    """Run -> (key, digest of its weights), of every result in a store. A run that shared nothing goes by the name of the one that did."""
    found = [json.loads(path.read_text()) for path in sorted(Path(out).glob("experiments/*/result.json"))]
    return {r["run"].removesuffix("-fp32-alone"): (r["prefix_key"], r["weights_sha256"]) for r in found}


@pytest.fixture(scope="session")
def helpers() -> SimpleNamespace:
    return SimpleNamespace(STEPS=STEPS, epochs_of=epochs_of, by_seed=by_seed, timeless=timeless, results=results, digests=digests, bench=BENCH)


@pytest.fixture(scope="session")
def server() -> Any:
    """Forks processes that have torch and composer imported, and have used neither."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer.cli", "composer.ablate.drive", "composer.engine.run", "composer.evaluate.protocol", "sklearn.datasets", "torch._dynamo",
                                    "composer.report.ablation.write", "scipy.stats"])
    return context


@pytest.fixture
def away(server: Any, tiny: str, recipe: Path, tmp_path: Path) -> Any:
    """away(out, "--toggle", "late,mean", …): `composer ablate` on the bench in another process."""
    started = []

    def call(out: Path, *words: str, target: str = "", **job: Any) -> Any:
        arguments = ["ablate", target or str(recipe), "--setting", tiny, "--out", str(out), "--device", "cpu", "--threads", "1", *map(str, words)]
        job = {"environment": {"OMP_NUM_THREADS": "1"}} | job
        started.append(BENCH.Away(server, tmp_path, out, arguments, **job))
        return started[-1]

    yield call
    for each in started:
        each.process.kill()
        each.process.join()


@pytest.fixture
def cli(tiny: str) -> Callable[..., Any]:
    """cli("ablate", …) by a fresh interpreter."""
    import subprocess
    import sys

    def call(*words: Any, env: dict[str, str] | None = None, on: bool = True) -> Any:
        command = [sys.executable, "-m", "composer.cli", *map(str, words), *(("--setting", tiny) if on else ())]
        return subprocess.run(command, check=False, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=300)

    return call
