"""Passes: what the plan promises on paper is what PyTorch is asked to do, for every shipped recipe and each of its stretches of epochs."""

from __future__ import annotations

import pytest
import torch

from composer.bench import pruned
from composer.bench.counter import count
from composer.bench.nets import batch
from composer.bench.pruned.mart_ours import zero_average
from composer.bench.subject import Subject
from composer.models.build import build_model
from composer.plan.cost import plan_cost
from composer.recipe.load import load
from composer.shipped import recipes_dir

N = 4
UNITS = {"standard": 3, "at": 23, "trades": 27, "mart": 26, "at_rice": 24, "mart_ours": 26, "mwpb_trades": 27, "at_ours": 26, "lma_at": 26,
         "trades_ours": 26, "alp": 26}                                       # of the last stretch, with ten attack steps
LOOPS = {"standard": "standard", "at": "at", "trades": "trades", "mart": "mart", "at_rice": "rice_at", "mart_ours": "mart_ours"}


def shipped_recipes() -> list[str]:
    return sorted(p.stem for p in recipes_dir().glob("*.toml") if p.stem not in ("papers", "protocols"))


def subject(name: str, segment: int) -> Subject:
    recipe = load(name, setting="digits")
    x, y = batch("cnn8", N)
    return Subject(recipe, build_model(recipe.model, (1, 8, 8), 10, seed=0), x, y, segment=segment)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_step_makes_the_passes_of_its_plan(name):
    for segment in range(len(load(name, setting="digits").segments())):
        made = subject(name, segment)
        cost = plan_cost(made.plan).at(10)
        counted = count(made.model, made, batch=N)
        assert (counted.forward, counted.dgrad, counted.wgrad) == (cost.forward, cost.dgrad, cost.wgrad), f"{name}, stretch {segment}"
        assert counted.units == cost.units


@pytest.mark.parametrize("name", UNITS)
def test_units_of_a_step(name):
    made = subject(name, -1)
    assert plan_cost(made.plan).units == count(made.model, made, batch=N).units == UNITS[name]


def test_what_an_idea_adds():
    """The margin-weighted radius costs nothing on TRADES; the regulariser of averaged logits costs AT its clean pass."""
    assert UNITS["mwpb_trades"] - UNITS["trades"] == 0 and UNITS["at_ours"] - UNITS["at"] == 3


@pytest.mark.parametrize("name", LOOPS)
def test_passes_are_those_of_the_loop_pruned_by_hand(name):
    """Each kind of pass alike, not only their sum."""
    made = subject(name, -1)
    x, y = made.batch.x, made.batch.y
    model = build_model(load(name, setting="digits").model, (1, 8, 8), 10, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"average": zero_average(N, 10)} if name == "mart_ours" else {}
    noise = (torch.rand if pruned.START[LOOPS[name]] == "uniform" else torch.randn)(x.shape, generator=torch.Generator().manual_seed(0))
    by_hand = count(model, lambda: pruned.STEPS[LOOPS[name]](model, optimizer, x, y, noise, **options))
    ours = count(made.model, made)
    assert (ours.forward, ours.dgrad, ours.wgrad) == (by_hand.forward, by_hand.dgrad, by_hand.wgrad)


@pytest.mark.parametrize(("name", "writes"), [("standard", 1), ("at", 1), ("trades", 3), ("mart", 2), ("at_rice", 13), ("mart_ours", 2), ("alp", 1)])
def test_writes_of_running_statistics(name, writes):
    """As often as the authors' programs write them, whatever was not run twice: TRADES nat, adv, nat; Rice's ten steps, two ends and the log."""
    made = subject(name, -1)
    assert count(made.model, made).bn_writes == writes
    assert int(made.session.net.stats.count[0]) == writes


MARGINS = [(name, ("views.m.grad", "views.m.classes"), pair) for name in ("elsayed", "elsayed_burnin", "elsayed_exp")
           for pair in (("numerator", "top1"), ("numerator", "all"), ("full", "top1"), ("full", "all"))]
MARGINS += [(name, ("views.m.grad",), (grad,)) for name in ("elsayed_fab", "elsayed_fab_soft", "dyart") for grad in ("none", "numerator", "closed_form")]


@pytest.mark.parametrize(("name", "paths", "values"), MARGINS)
def test_every_gradient_of_a_margin_costs_what_its_plan_says(name, paths, values):
    recipe = load(name, setting="digits", sets=[f'{path}="{value}"' for path, value in zip(paths, values, strict=True)])
    x, y = batch("cnn8", N)
    made = Subject(recipe, build_model(recipe.model, (1, 8, 8), 10, seed=0), x, y)
    cost, counted = plan_cost(made.plan).at(10), count(made.model, made, batch=N)
    assert (counted.forward, counted.dgrad, counted.wgrad) == (cost.forward, cost.dgrad, cost.wgrad)


def test_a_gain_that_is_constant_adds_a_forward_alone():
    """Whether an image is classified correctly in eval mode: a pass without a backward."""
    plain = load("standard", setting="digits")
    recipe = plain.edit(put={"terms.ce.gain": {"use": "correct", "bn": "eval"}})
    x, y = batch("cnn8", N)
    costs = []
    for each in (plain, recipe):
        made = Subject(each, build_model(each.model, (1, 8, 8), 10, seed=0), x, y)
        cost, counted = plan_cost(made.plan), count(made.model, made, batch=N)
        assert (counted.forward, counted.dgrad, counted.wgrad) == (cost.forward, cost.dgrad, cost.wgrad)
        costs.append(cost)
    assert (costs[1].forward - costs[0].forward, costs[1].units - costs[0].units) == (1, 1)


def test_the_second_step_costs_what_the_first_does():
    made = subject("mart_ours", -1)
    assert count(made.model, made) == count(made.model, made)


def test_a_toggle_that_drops_a_term_drops_its_pass():
    recipe = load("mart_ours", setting="digits").without("align").edit(drop=["terms.kl"])
    x, y = batch("cnn8", N)
    made = Subject(recipe, build_model(recipe.model, (1, 8, 8), 10, seed=0), x, y)
    assert count(made.model, made).units == 23
