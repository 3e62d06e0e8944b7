"""What is read and compiled once and shared by cells is what reading and compiling each afresh gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from composer.plan.compile import compile_method
from composer.plan.whole import plans_of, scheduled
from composer.recipe.load import load
from composer.recipe.recipe import Recipe
from composer.registry import REGISTRY


def variants(name: str) -> list[Recipe]:
    recipe = load(name)
    edits = [{"train.lr.value": 0.01}, {"train.epochs": 40}, {"threat.eps": 0.1}, {"optim.momentum": 0.5}, {"select.held_out": 200}]
    return [recipe, *(recipe.without(toggle) for toggle in recipe.toggle), *(recipe.edit(set=edit) for edit in edits)]


@pytest.mark.parametrize("name", ["mart_ours", "mwpb_mart", "piat_gairat", "elsayed_fab_soft", "dyart", "mwpb_awp"])
def test_a_recipe_read_from_memory_is_the_recipe(name: str) -> None:
    warm = [(r.full, r.method, r.threat, r.optim, r.evaluate, r.search, r.experiment_id, plans_of(r)) for r in (*variants(name), *variants(name))]
    cold = []
    for recipe in variants(name):
        REGISTRY.memory.clear()
        again = recipe.edit()
        cold.append((again.full, again.method, again.threat, again.optim, again.evaluate, again.search, again.experiment_id, plans_of(again)))
    for one, other in zip(warm, [*cold, *cold], strict=True):
        assert one[:-1] == other[:-1]
        assert [(s.first, s.last, plan) for s, plan in one[-1]] == [(s.first, s.last, plan) for s, plan in other[-1]]


@pytest.mark.parametrize("name", ["mart_ours", "mwpb_mart", "piat_gairat", "elsayed_fab_soft", "dyart", "mwpb_awp", "emr_trades", "awp_trades"])
def test_plans_are_the_compilers(name: str) -> None:
    """Weights and dials that are put in after compiling stand where the compiler puts them."""
    for recipe in variants(name):
        segments = plans_of(recipe)
        points = tuple(dict.fromkeys([*(i.id for s, _ in segments for i in s.recipe.method.inner), *recipe.stack.tables.get("inner", {})]))
        for segment, plan in segments:
            values = {k: v for k, v in scheduled(segment.recipe).items() if hasattr(v, "use")}
            assert replace(plan, parts=()) == replace(compile_method(segment.recipe.method, train=values, elsewhere=points), parts=())


def test_cells_that_differ_elsewhere_share_a_plan() -> None:
    recipe = load("mart_ours")
    one, two = (plans_of(recipe.edit(set={"optim.momentum": momentum}))[0][1] for momentum in (0.1, 0.2))
    assert one is two
    other = plans_of(recipe.edit(set={"terms.kl.weight": 1.0}))[0][1]
    assert other != one and other.outer.steps is one.outer.steps and {s.id: s.weight for s in other.outer.terms}["kl"] == 1.0


def test_an_edit_changes_no_other_recipe() -> None:
    recipe = load("mart_ours")
    before = (repr(recipe.tables), repr(recipe.full), repr(recipe.stack.tables))
    recipe.without("margin").edit(set={"terms.kl.weight": 1.0, "evaluate.pgd-20.steps": 3}, drop=["terms.align"]).filled()
    assert (repr(recipe.tables), repr(recipe.full), repr(recipe.stack.tables)) == before
