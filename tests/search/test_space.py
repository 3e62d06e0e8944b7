"""The space: what Optuna draws from, what a grid holds, and what is not searched."""

from __future__ import annotations

import math

import pytest

from composer.errors import ComposerError
from composer.recipe.load import load
from composer.search.space import axis, check_space, decode, distributions, encode, grid, space_of


def test_ranges_become_distributions_of_their_type():
    pytest.importorskip("optuna")
    found = distributions({"a": {"low": 1.0, "high": 100.0, "log": True}, "b": {"low": 1, "high": 8}, "c": {"low": 1.345, "high": 9.345, "step": 1.0},
                           "d": {"choices": ["ce", 0.5, [1, 2]]}})
    assert type(found["a"]).__name__ == "FloatDistribution" and found["a"].log and (found["a"].low, found["a"].high) == (1.0, 100.0)
    assert type(found["b"]).__name__ == "IntDistribution" and not found["b"].log
    assert found["c"].step == 1.0 and found["c"].high == pytest.approx(9.345)
    assert found["d"].choices == ('"ce"', "0.5", "[1, 2]")


def test_a_step_that_does_not_meet_the_end_stops_before_it():
    assert axis({"low": 0.1, "high": 0.65, "step": 0.2}, 3) == [0.1, 0.3, 0.5]
    pytest.importorskip("optuna")
    assert distributions({"a": {"low": 0.1, "high": 0.65, "step": 0.2}})["a"].high == pytest.approx(0.5)


def test_choices_survive_the_way_through_text():
    space = {"a": {"choices": [[1, 2], "x", True, 0.1]}, "b": {"low": 0.0, "high": 1.0}}
    for value in space["a"]["choices"]:
        assert decode(space, encode(space, {"a": value, "b": 0.3})) == {"a": value, "b": 0.3}


@pytest.mark.parametrize(("one", "expected"), [
    ({"choices": ["a", "b"]}, ["a", "b"]), ({"low": 1, "high": 5, "step": 2}, [1, 3, 5]), ({"low": 0.0, "high": 1.0}, [0.0, 0.5, 1.0]),
    ({"low": 0.001, "high": 0.1, "log": True}, [0.001, 0.01, 0.1]), ({"low": 1, "high": 2}, [1, 2])])
def test_axes_of_a_grid(one, expected):
    found = axis(one, 3)
    assert [type(v) for v in found] == [type(v) for v in expected]
    assert all(a == b or math.isclose(a, b, rel_tol=1e-9) for a, b in zip(found, expected, strict=True))


def test_a_grid_is_every_combination_the_last_fastest():
    points = grid({"a": {"choices": [1, 2]}, "b": {"low": 0, "high": 2, "step": 1}}, 3)
    assert points == [{"a": a, "b": b} for a in (1, 2) for b in (0, 1, 2)]


def test_what_the_command_line_or_a_toggle_has_set_is_not_searched(tiny):
    space, left = space_of(load(tiny, sets=["train.lr=0.1"]))
    assert "train.lr" not in space and "command line" in left["train.lr"] and set(space) == {"train.batch_size", "optim.weight_decay"}
    full, cell = load("mart_ours"), load("mart_ours").without("ema")
    assert "parts.ema.decay" in space_of(full)[0]
    space, left = space_of(cell)
    assert "parts.ema.decay" not in space and left["parts.ema.decay"].startswith("toggle.ema") and "terms.align.weight" in space
    assert "terms.align.weight" not in space_of(load("mart_ours").without("align"))[0], "what is dropped has nothing to draw"


def test_nothing_to_search_says_why(tiny):
    recipe = load(tiny, sets=["train.lr=0.1", "train.batch_size=64", "optim.weight_decay=0.0"])
    with pytest.raises(ComposerError, match="nothing to search") as caught:
        check_space(*space_of(recipe), recipe)
    assert "command line" in caught.value.why
