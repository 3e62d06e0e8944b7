"""The winner's file: it extends the original, and reading it gives the experiment that won, whatever layers lie above."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer.recipe.load import load
from composer.search.best import winners, write_best
from composer.search.store import Trial

VALUES = {"train.lr": 0.0123, "optim.weight_decay": 0.001}


def won(recipe, values, path):
    file = write_best(recipe, values, path / "sweeps" / "s" / "best.toml", ["won"])
    text = file.read_text()
    assert text.startswith("# won\n") and load(file).experiment_id == recipe.edit(set=values).experiment_id
    return text


def test_it_extends_the_original_by_its_way_from_there(recipe, tmp_path):
    text = won(recipe, VALUES, tmp_path)
    assert 'extends = "../../tiny.toml"' in text and "lr = 0.0123" in text and "batch_size" not in text


def test_a_shipped_recipe_is_named(tmp_path):
    text = won(load("mart_ours"), {"terms.align.weight": 7.0, "parts.ema.decay": 0.5}, tmp_path)
    assert 'extends = "mart_ours.toml"' in text and "modified_huber" not in text


def test_what_the_command_line_said_is_in_it(tiny, tmp_path):
    recipe = load(tiny, sets=["train.epochs=7", "train.batch_size=32"])
    text = won(recipe, VALUES, tmp_path)
    assert "epochs = 7" in text and "batch_size = 32" in text


def test_a_toggle_that_is_off_is_in_it(tmp_path):
    text = won(load("mart_ours").without("margin"), {"terms.align.weight": 7.0}, tmp_path)
    assert "terms.margin" not in text and "inner.x_adv" in text, "its own toggles would be void, so it is written out"


def test_another_setting_and_its_edits_do_not_win_over_it(tmp_path):
    recipe = load("mart_ours", setting="tinyimagenet-resnet18")
    text = won(recipe, {"terms.align.weight": 7.0}, tmp_path)
    assert 'setting = "tinyimagenet-resnet18"' in text and "[on." in text, "the recipe's own [on] sets this weight"


def test_where_a_setting_has_the_last_word_the_whole_recipe_is_written(tmp_path):
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "house.toml").write_text('extends = "digits.toml"\n[for.at]\nset = { "train.lr" = 0.2 }\n')
    (tmp_path / "mine.toml").write_text('extends = "at.toml"\nsetting = "house"\n')
    recipe = load(tmp_path / "mine.toml")
    assert recipe.train.lr == 0.2
    file = write_best(recipe, {"train.lr": 0.01}, tmp_path / "best.toml", [])
    assert load(file).train.lr == 0.01 and load(file).experiment_id == recipe.edit(set={"train.lr": 0.01}).experiment_id


def test_each_selector_has_its_winner_of_the_finished():
    trials = [Trial(0, {}, "done", metrics={"clean": 0.9, "pgd": 0.3}), Trial(1, {}, "done", metrics={"clean": 0.8, "pgd": 0.5}),
              Trial(2, {}, "pruned", metrics={"clean": 0.99, "pgd": 0.9}), Trial(3, {}, "done", metrics={"clean": 0.9, "pgd": 0.5})]
    found = winners(trials, ("clean", "pgd", "aa"), {"clean": "clean", "pgd": "pgd", "aa": "aa"})
    assert {s: w["trial"] for s, w in found.items()} == {"clean": 0, "pgd": 1}


@pytest.mark.parametrize("name", ["mart_ours", "mwpb_awp", "elsayed_burnin", "trades"])
def test_shipped_recipes_round_trip(name, tmp_path: Path):
    recipe = load(name)
    values = {path: one["choices"][0] if "choices" in one else one["low"] for path, one in recipe.search.items()} or {"train.batch_size": 32}
    won(recipe, values, tmp_path)
