"""What the command line of `composer sweep` and `ablate --tune` hands on."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest

from composer.cli import app, run_app


@pytest.fixture
def asked(monkeypatch):
    """The options that the search was given."""
    seen = []
    monkeypatch.setattr(importlib.import_module("composer.search.sweep"), "sweep", lambda recipe, options: seen.append(options) or {})
    monkeypatch.setattr(importlib.import_module("composer.search.report"), "text", lambda result: "")
    return seen


def test_a_sweep_takes_what_a_run_takes(asked, tiny, tmp_path) -> None:
    assert run_app(app, ["sweep", str(tiny), "--out", str(tmp_path), "--fresh", "--adopt", "--download", "--precision", "bf16"]) == 0
    settings = asked[0].settings
    assert (settings.fresh, settings.adopt, settings.download, settings.precision) == (True, True, True, "bf16")
    assert run_app(app, ["sweep", str(tiny), "--out", str(tmp_path)]) == 0
    settings = asked[1].settings
    assert (settings.fresh, settings.adopt, settings.download, settings.precision) == (False, False, False, "fp32")


def test_an_unknown_precision_is_refused(asked, tiny, tmp_path, capsys) -> None:
    assert run_app(app, ["sweep", str(tiny), "--out", str(tmp_path), "--precision", "fp8"]) == 2 and not asked
    assert "--precision fp8" in capsys.readouterr().err


def test_a_fresh_sweep_forgets_its_record(tiny, options) -> None:
    from dataclasses import replace

    from composer.recipe.load import load
    from composer.search.sweep import sweep

    recipe = load(tiny)
    made = options(grid=True, points=2, asha=False)
    space = {"train.lr": {"choices": [0.05]}}
    first = sweep(recipe, made, space=space)
    mark = made.settings.out / "sweeps" / first["sweep"] / "trial-000" / "mark"
    mark.write_text("")
    sweep(recipe, made, space=space)
    assert mark.exists()
    again = sweep(recipe, replace(made, settings=replace(made.settings, fresh=True)), space=space)
    assert not mark.exists() and again["winners"] == first["winners"]


def test_tuning_trains_as_many_epochs_as_are_asked_for(monkeypatch, tiny) -> None:
    from composer.ablate import tuned
    from composer.ablate.cells import grid_of
    from composer.ablate.drive import Options
    from composer.recipe.load import load

    seen = []

    def fake(recipe, options, *, seeds, epochs=None):
        seen.append(epochs)
        return SimpleNamespace(recipe=recipe, values={}, trials=3, epochs=epochs or 2, metric="pgd", seed=1000)

    monkeypatch.setattr(importlib.import_module("composer.search.tune"), "tune", fake)
    recipe = load(tiny)
    grid = grid_of(recipe, list(recipe.toggle)[:1], seeds=1)
    tuned.tuned_grid(grid, Options(), 3, 1)
    tuned.tuned_grid(grid, Options(), 3)
    assert set(seen[:len(grid.distinct)]) == {1} and set(seen[len(grid.distinct):]) == {None}


def test_epochs_of_tuning_need_tuning(tiny, capsys) -> None:
    assert run_app(app, ["ablate", str(tiny), "--toggle", "attack", "--tune-epochs", "2"]) == 2 and "--tune" in capsys.readouterr().err
