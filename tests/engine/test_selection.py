"""Validation during training: what it says of its own noise, and what it selects by where nothing is said."""

from __future__ import annotations

import json
import math

import pytest

from composer.engine.judge import standard_error
from composer.recipe.load import load
from composer.report.table import plain_table


def test_the_standard_error_is_binomial():
    assert standard_error(0.612, 1024) == pytest.approx(math.sqrt(0.612 * 0.388 / 1024)) == pytest.approx(0.01523, abs=1e-5)
    assert standard_error(0.0, 10) == standard_error(1.0, 10) == 0


def test_it_stands_in_the_record_and_in_the_epochs_line(go, tmp_path, capfd):
    result = go("at", tmp_path, settings={"quiet": False})
    rows = [json.loads(line) for file in tmp_path.glob("nodes/*/metrics.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        p = row["val/pgd"]
        assert row["val-se/pgd"] == pytest.approx(math.sqrt(p * (1 - p) / 16))
    best, kept = max(rows, key=lambda row: row["val/pgd"]), result["selection"]
    assert (kept["epoch"], kept["score"], kept["se"], kept["n"], kept["attack"]) == (best["epoch"], best["val/pgd"], best["val-se/pgd"], 16, "pgd")
    assert f"epoch {best['epoch']} selected by pgd {100 * best['val/pgd']:.2f} ± {100 * best['val-se/pgd']:.2f} % on 16 held-out images" in plain_table(result)
    said = capfd.readouterr().err
    assert f"pgd {100 * rows[0]['val/pgd']:.2f} ± {100 * rows[0]['val-se/pgd']:.2f} % (n = 16)" in said


def test_images_attacked_count_not_those_held_out(go, tmp_path):
    go("at", tmp_path, **{"select.n": 8, "train.epochs": 1, "train.lr": 0.05})
    (row,) = [json.loads(line) for file in tmp_path.glob("nodes/*/metrics.jsonl") for line in file.read_text().splitlines()]
    assert row["val-se/pgd"] == pytest.approx(standard_error(row["val/pgd"], 8))


def test_without_an_attack_pgd_10_on_the_margin_selects_where_something_is_selected(go, tiny, tmp_path):
    attack = load("at", setting=tiny, drops=["select.attack"]).select.attack
    assert (attack.use, attack.options["steps"], attack.options["loss"].use, attack.options["keep"]) == ("pgd", 10, "cw", "any")
    assert load("at", setting=tiny, sets=["select.report=last"], drops=["select.attack"]).select.attack is None
    assert load("at", setting=tiny).select.attack.options["steps"] == 2
    result = go("at", tmp_path, drops=["select.attack"])
    assert result["selected"] == "best"


def test_apgd_ce_may_select(go, tmp_path):
    pytest.importorskip("pyautoattack")
    result = go("at", tmp_path, **{"select.attack": '{use="apgd_ce", steps=5}', "train.epochs": 1, "train.lr": 0.05})
    assert result["selected"] == "best"


@pytest.mark.parametrize(("sets", "where"), [
    ({"select.attack": '{use="pgd", steps=0}'}, "select.attack"), ({"select.attack": '{use="pgd", eps=0}'}, "select.attack"),
    ({"trace.every": 1, "trace.still": '{use="pgd", steps=0}'}, "trace.still"), ({"evaluate.still": '{use="pgd", steps=0}'}, "evaluate.still")])
def test_an_attack_that_moves_nothing_is_told_before_the_first_step(go, tmp_path, monkeypatch, sets, where):
    from composer.engine.walk import Walk
    from composer.errors import ComposerError

    monkeypatch.setattr(Walk, "step_done", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ComposerError, match="moves no image") as caught:
        go("at", tmp_path, **sets)
    assert where in caught.value.where


def test_a_recipe_without_a_threat_selects_by_clean_accuracy(go, tmp_path):
    """Its attack takes the threat's steps, and there are none."""
    result = go("standard", tmp_path, drops=["evaluate.pgd-3"], **{"threat.steps": 0, "select.attack": '{use="pgd", start="zero"}', "train.epochs": 1, "train.lr": 0.05})
    (row,) = [json.loads(line) for file in tmp_path.glob("nodes/*/metrics.jsonl") for line in file.read_text().splitlines()]
    assert row["val/pgd"] == row["val/clean"] and list(result["metrics"]) == ["clean"]
