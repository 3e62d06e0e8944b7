"""Tuning a cell before it is compared: what is searched, with which seed, and that it is the same for all."""

from __future__ import annotations

import pytest

from composer.recipe.load import load
from composer.search.tune import shortened, tune, tuning_space, unguarded


def test_learning_rate_and_decay_are_searched_around_their_values():
    space = tuning_space(load("mart_ours"))
    assert space["train.lr.value"] == {"low": 0.01, "high": 0.25, "log": True}
    assert space["optim.weight_decay"]["low"] == pytest.approx(5e-5) and space["optim.weight_decay"]["high"] == pytest.approx(5e-3)
    assert "terms.align.weight" in space


def test_cells_differ_only_by_what_they_lack():
    full = tuning_space(load("mart_ours"))
    off = tuning_space(load("mart_ours").without("align"))
    assert off == {path: one for path, one in full.items() if not path.startswith(("terms.align", "parts.ema"))} and len(off) < len(full)


def test_the_command_line_has_decided(tiny):
    recipe = load(tiny, sets=["train.lr=0.07", "optim.weight_decay=0.0", "train.epochs=4"])
    assert set(tuning_space(recipe)) == {"train.batch_size"}
    assert shortened(recipe, 1).train.epochs == 1 and unguarded(recipe, {"train.lr": 0.5}, "tune").train.lr == 0.5


def test_no_decay_is_searched_from_zero(tiny):
    tiny.write_text(tiny.read_text().replace("[select]", "[optim]\nweight_decay = 0.0\n[select]").replace('"optim.weight_decay" = { low = 0.0, high = 0.002 }', ""))
    assert tuning_space(load(tiny))["optim.weight_decay"] == {"low": 0.0, "high": 1e-3}


def test_a_cell_is_tuned_with_a_seed_of_its_own(recipe, options):
    pytest.importorskip("optuna")
    done = tune(recipe, options(trials=2), seeds=(0, 1, 7), epochs=1)
    assert done.seed == 1007 and done.trials == 2 and done.epochs == 1 and done.result["seed"] == 1007 and done.result["rungs"] == []
    assert all(t["status"] == "done" and t["epochs"] == 1 for t in done.result["trials"])
    assert done.recipe.train.epochs == 2 and done.recipe.train.lr == done.values["train.lr"] and done.recipe.experiment_id != recipe.experiment_id
    assert done.score == max(t["metrics"]["pgd"] for t in done.result["trials"])
