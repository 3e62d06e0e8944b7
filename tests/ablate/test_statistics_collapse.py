"""Collapses: what counts as one, the two columns, rates with exact intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from composer.ablate.statistics import Input, Settings, Training, analyse
from composer.ablate.statistics.collapse import chance_level, reason
from composer.errors import ComposerError

CELLS = {"full": {}, "-ema": {}, "-margin": {}}
LIMIT = {"chance": 0.15, "overfit_gap": 0.25, "overfit_drop": 0.5}


def made(seeds: int = 6, seed: int = 0) -> dict[str, dict[int, float]]:
    rng = np.random.default_rng(seed)
    return {cell: {s: float(0.5 + 0.01 * i + rng.normal(0, 0.004)) for s in range(seeds)} for i, cell in enumerate(CELLS)}


def clean(seeds: int = 6) -> dict[str, dict[int, float]]:
    return {cell: dict.fromkeys(range(seeds), 0.85) for cell in CELLS}


def test_chance_level_is_three_standard_errors_above_guessing():
    assert chance_level(10, 10_000) == pytest.approx(0.109) and chance_level(10, 360) == pytest.approx(0.1 + 3 * np.sqrt(0.09 / 360))
    draws = np.random.default_rng(0).binomial(360, 0.1, 200_000) / 360
    assert np.mean(draws > chance_level(10, 360)) < 0.003


@pytest.mark.parametrize(("accuracy", "run", "word"), [
    (0.85, Training(), ""), (0.15, Training(), "chance"), (0.151, Training(), ""), (None, Training(), ""),
    (0.85, Training(diverged=True), "diverged"),
    (0.85, Training(single_step=0.80, pgd10=0.54), "single-step"), (0.85, Training(single_step=0.80, pgd10=0.56), ""),
    (0.85, Training(history=(0.40, 0.45, 0.22)), "at epoch 3"), (0.85, Training(history=(0.40, 0.45, 0.23)), ""),
    (0.85, Training(history=(0.40, 0.19), epochs=(10, 20)), "at epoch 20"),
    (0.85, Training(history=(0.40, 0.19, 0.30)), "at epoch 2, and is back at 0.300 in the end"),     # a dip counts, and is told as one
    (0.85, Training(history=(0.10, 0.01, 0.30)), "")])                                          # below the floor a fall means nothing
def test_what_counts_as_a_collapse(accuracy, run, word):
    found = reason(accuracy, run, LIMIT, 0.15)
    assert word in found and bool(found) == bool(word)


def test_two_columns_and_a_seed_leaves_every_cell():
    values, accuracies = made(), clean()
    values["-ema"][2], accuracies["-ema"][2] = 0.1, 0.1
    result = analyse(Input({"aa": values, "clean": accuracies}, CELLS, "full", classes=10, images={"clean": 10_000}))
    row = next(r for r in result.collapse if r.cell == "-ema")
    low, high = row.ci95
    assert (row.collapsed, row.n, list(row.reasons)) == (1, 6, [2]) and low == pytest.approx(stats.beta.ppf(0.025, 1, 6))
    assert high == pytest.approx(stats.beta.ppf(0.975, 2, 5))
    every, trained = result.all_runs.deltas["-margin"]["aa"], result.if_trained.deltas["-margin"]["aa"]
    assert every.n == 6 and list(trained.values) == [0, 1, 3, 4, 5] and result.if_trained.dropped_seeds == (2,)
    assert result.all_runs.cells["-ema"]["aa"].values[2] == 0.1                                  # the collapse stays in the primary column
    assert every.p_holm is not None and trained.p_holm is None                                   # and only that column is tested
    assert result.banners[-1].startswith("1 of 18 runs collapsed") and any("leaves seed 2 out of every cell" in note for note in result.notes)


def test_a_divergence_is_an_outcome_and_a_crash_is_missing():
    values, accuracies = made(), clean()
    del values["-ema"][1], accuracies["-ema"][1]
    flags = {c: {s: np.arange(1000) < round(1000 * v) for s, v in runs.items()} for c, runs in values.items()}
    values = {c: {s: float(f.mean()) for s, f in runs.items()} for c, runs in flags.items()}
    crash = analyse(Input({"aa": values, "clean": accuracies}, CELLS, "full", flags={"aa": flags}, classes=10, images={"clean": 1000}))
    assert crash.all_runs.cells["-ema"]["aa"].n == 5 and crash.if_trained is None
    runs = {"-ema": {1: Training(diverged=True)}}
    lost = analyse(Input({"aa": values, "clean": accuracies}, CELLS, "full", flags={"aa": flags}, runs=runs, classes=10, images={"clean": 1000}))
    cell = lost.all_runs.cells["-ema"]["aa"]
    assert cell.n == 6 and cell.values[1] == pytest.approx(0.1) and lost.if_trained.dropped_seeds == (1,)
    assert lost.all_runs.deltas["-ema"]["aa"].ci_both is not None                                # its images count 1/K each
    assert next(r for r in lost.collapse if r.cell == "-ema").reasons == {1: "diverged"}


def test_graded_metrics_get_no_accuracy_of_a_diverged_run():
    values = made(4)
    del values["-ema"][1]
    result = analyse(Input({"breaking": values}, CELLS, "full", runs={"-ema": {1: Training(diverged=True)}}, classes=10, graded=("breaking",)))
    assert result.all_runs.cells["-ema"]["breaking"].n == 3


def test_no_seed_left_is_said():
    values, accuracies = made(2), clean(2)
    accuracies["full"], accuracies["-ema"] = {0: 0.1, 1: 0.85}, {0: 0.85, 1: 0.1}
    result = analyse(Input({"aa": values, "clean": accuracies}, CELLS, "full", classes=10, images={"clean": 10_000}))
    assert result.if_trained is None and any("no seed trained in every cell" in note for note in result.notes)


def test_declared_thresholds_rule():
    values, accuracies = made(), clean()
    accuracies["-ema"][0] = 0.3
    plain = Input({"aa": values, "clean": accuracies}, CELLS, "full", classes=10, images={"clean": 10_000})
    assert analyse(plain).if_trained is None
    strict = Input({"aa": values, "clean": accuracies}, CELLS, "full", settings=Settings(thresholds={"chance": 0.35}))
    assert analyse(strict).if_trained.dropped_seeds == (0,)
    with pytest.raises(ComposerError, match="chanse"):
        analyse(Input({"aa": values}, CELLS, settings=Settings(thresholds={"chanse": 0.3})))
    assert any("not judged" in note for note in analyse(Input({"aa": values}, CELLS, "full")).notes)
