"""Made-up outcomes of ablations: numbers of the size that digits and CIFAR-10 give, noise from a seeded generator."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from composer.ablate.types import Cell, Failure, Grid, Outcome

N = {"clean": 360, "aa": 200}                                # any other measure: 360
LEVEL = {"clean": 0.95, "fgsm": 0.8, "aa": 0.65}           # any other attack: 0.72


def made_up(cell: Cell, seed: int, *, lift: float = 0.0, run: str = "", measures: tuple[str, ...] = (), other: bool = True, **more: Any) -> dict[str, Any]:
    """The result of one run. Seeds move all cells alike (they are paired), and each run a little by itself."""
    noise, common = random.Random(f"{cell.name} {seed}"), random.Random(seed).gauss(0, 0.01)
    names = measures or tuple(m.name for m in cell.recipe.evaluate.measures)

    def value(name: str, shift: float) -> float:
        n = N.get(name, 360)
        return min(n, max(0, round(n * (LEVEL.get(name, 0.72) + lift + shift + common + noise.gauss(0, 0.006))))) / n

    return {"run": run or f"{cell.name.strip('-') or 'full'}-s{seed}", "recipe": cell.recipe.name, "setting": cell.recipe.setting, "seed": seed,
            "epochs": 30, "steps": 600, "seconds": 12.5 + seed, "passes": {"forward": 13200, "dgrad": 12000, "wgrad": 1200},
            "protocol": cell.recipe.evaluate.protocol, "n": {name: N.get(name, 360) for name in names}, "classes": 10, "selected": "best",
            "selected_epoch": 20 + seed, "metrics": {name: value(name, 0.0) for name in names},
            "metrics_other": {name: value(name, -0.01) for name in names if name != "aa"} if other else {}, "trust": {"ok": True, "flags": []}} | more


@pytest.fixture(scope="session")
def recipe() -> Any:
    import composer

    return composer.load("mart_ours")


@pytest.fixture(scope="session")
def made() -> Callable[..., dict[str, Any]]:
    return made_up


@pytest.fixture(scope="session")
def square(recipe: Any) -> Callable[..., tuple[Grid, Outcome]]:
    """The 2x2 grid of ema and margin."""

    def build(seeds: int = 3, *, failed: tuple[Failure, ...] = (), **more: Any) -> tuple[Grid, Outcome]:
        cells = [Cell("full", recipe), *(Cell(" ".join(f"-{t}" for t in off), recipe.without(*off), off=off)
                                         for off in (("ema",), ("margin",), ("ema", "margin")))]
        grid = Grid("mart_ours-ema-margin", "full", ("ema", "margin"), tuple(range(seeds)), tuple(cells), "full", {"primary": "aa", "equivalence": 0.003})
        lost = {(f.cell, f.seed) for f in failed}
        lift = {"full": 0.0, "-ema": -0.01, "-margin": -0.08, "-ema -margin": -0.1}
        results = {(c.name, s): made_up(c, s, lift=lift[c.name], **more) for c in cells for s in grid.seeds if (c.name, s) not in lost}
        return grid, Outcome(results, failed, epochs_trained=300, epochs_unshared=360, epochs_common={c.name: 5 for c in cells}, fork_epochs=(5,), seconds=9.0)

    return build


@pytest.fixture(scope="session")
def study() -> Callable[..., tuple[Grid, Outcome]]:
    """A shipped study with a result for every cell."""

    def build(name: str, seeds: int = 3, **more: Any) -> tuple[Grid, Outcome]:
        from composer.ablate.studygrid import grid_of_study
        from composer.recipe.studies import load_study

        grid = grid_of_study(load_study(name), seeds=seeds)
        results = {(c.name, s): made_up(c, s, lift=-0.01 * (at % 5), **more) for at, c in enumerate(grid.distinct) for s in grid.seeds}
        return grid, Outcome(results, epochs_trained=100, epochs_unshared=100)

    return build


@pytest.fixture
def curves() -> Callable[[Path, dict[str, Any]], None]:
    """Write the epochs' record of a run."""

    def write(out: Path, result: dict[str, Any], last: float = 0.7, **more: float) -> None:
        folder = out / "experiments" / result["run"]
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"epoch": e, "val/clean": 0.3 + 0.6 * e / 30, "val/pgd": last * e / 30, **more} for e in range(1, 31)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write
