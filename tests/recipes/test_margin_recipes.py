"""Elsayed's family, DyART and MMA: values typed from the papers, what their toggles leave, what their terms count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from composer.plan.cost import plan_cost
from composer.plan.types import Pass
from composer.plan.whole import plans_of
from composer.recipe.load import examine, load
from composer.recipe.paths import get, split
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
VGG = "components/cifar10-vgg16"
NAMES = ("elsayed", "elsayed_burnin", "elsayed_exp", "elsayed_fab", "elsayed_fab_soft", "dyart", "mma")
BURNT = ("elsayed_burnin", "elsayed_exp", "dyart")
GAMMA = 16 / 255

# (recipe, setting, path) -> value: table 1 of the components paper, the MMA and DyART codes.
VALUES: dict[tuple[str, str, str], Any] = {
    ("elsayed", VGG, "terms.margin_hinge.weight"): 25.0, ("elsayed", VGG, "terms.margin_hinge.gamma"): GAMMA,
    ("elsayed", VGG, "views.m.norm"): "linf", ("elsayed", VGG, "views.m.classes"): "top1", ("elsayed", VGG, "views.m.grad"): "numerator",
    ("elsayed", VGG, "views.m.bn"): "eval",
    ("elsayed_burnin", VGG, "terms.margin_hinge.weight"): 25.0,
    ("elsayed_exp", VGG, "terms.margin_exp.weight"): 25.0, ("elsayed_exp", VGG, "terms.margin_exp.alpha"): 3.0,
    ("elsayed_exp", VGG, "terms.margin_exp.gamma"): GAMMA, ("elsayed_exp", VGG, "terms.margin_exp.gain"): {"use": "correct", "normalise": True},
    ("elsayed_fab", VGG, "terms.margin_hinge.weight"): 25.0, ("elsayed_fab", VGG, "inner.x_bd.surface"): {"use": "margin_logit"},
    ("elsayed_fab", VGG, "views.m.grad"): "numerator", ("elsayed_fab", VGG, "inner.x_bd.steps"): 20,
    ("elsayed_fab_soft", VGG, "inner.x_bd.surface"): {"use": "margin_soft", "beta": 5.0},
    ("elsayed_fab_soft", VGG, "views.phi"): {"use": "margin_soft", "beta": 5.0, "at": "clean", "bn": "eval"},
    ("dyart", VGG, "terms.margin_exp.weight"): 1000.0, ("dyart", VGG, "terms.margin_exp.alpha"): 3.0, ("dyart", VGG, "terms.margin_exp.gamma"): GAMMA,
    ("dyart", VGG, "terms.margin_exp.gain"): "bd_keep", ("dyart", VGG, "inner.x_bd.surface"): {"use": "margin_soft", "beta": 5.0},
    ("dyart", VGG, "views.phi"): {"use": "margin_soft", "beta": 5.0, "at": "bd"}, ("dyart", VGG, "views.m.grad"): "closed_form",
    ("dyart", VGG, "inner.x_bd.eta"): 1.05, ("dyart", VGG, "inner.x_bd.back"): 0.9, ("dyart", VGG, "inner.x_bd.alpha_max"): 0.1,
    ("dyart", VGG, "inner.x_bd.steps"): 20, ("dyart", VGG, "inner.x_bd.filter"): True, ("dyart", VGG, "optim.clip"): 0.1,
    ("dyart", "tinyimagenet-resnet18", "terms.margin_exp.gamma"): 32 / 255, ("dyart", "tinyimagenet-resnet18", "terms.margin_exp.alpha"): 5.0,
    ("dyart", "tinyimagenet-resnet18", "terms.margin_exp.weight"): 500.0, ("dyart", "tinyimagenet-resnet18", "optim.clip"): 1.0,
    ("dyart", "digits", "terms.margin_exp.gamma"): 0.4, ("dyart", "digits", "optim.clip"): 1.0, ("elsayed", "digits", "terms.margin_hinge.gamma"): 0.4,
    ("mma", "mwpb/cifar10-resnet18", "inner.x_bd.eps"): 12 / 255, ("mma", "lma_at/cifar10-wrn-34-10", "inner.x_bd.eps"): 12 / 255,
    ("mma", "mwpb/cifar10-resnet18", "inner.x_bd.reach"): 1.05, ("mma", "mwpb/cifar10-resnet18", "inner.x_bd.steps"): 10,
    ("mma", "mwpb/cifar10-resnet18", "parts.memory.floor"): 0.005, ("mma", "mwpb/cifar10-resnet18", "threat.steps"): 10,
    ("mma", "mwpb/cifar10-resnet18", "inner.x_adv.start"): "uniform", ("mma", "mwpb/cifar10-resnet18", "inner.x_adv.step"): "eps/4",
    ("mma", "mwpb/cifar10-resnet18", "terms.ce.weight"): 1 / 3, ("mma", "mwpb/cifar10-resnet18", "terms.mma.weight"): 2 / 3,
}
# One step by hand. Elsayed: clean pass 3, eval pass 3, one input gradient. FAB from the image: 20 x (forward, gradient, forward) and a last
# gradient; phi a pass more. DyART: one forward more, for who is correct at a start elsewhere. MMA: PGD 20, bisection 11, two passes 6.
UNITS = {"elsayed": 7, "elsayed_burnin": 7, "elsayed_exp": 7, "elsayed_fab": 62 + 6, "elsayed_fab_soft": 62 + 6, "dyart": 63 + 6, "mma": 37}


def on(recipe: str, setting: str = "digits", **more: Any) -> Any:
    return load(ROOT / f"{recipe}.toml", setting=setting, **more)


def last(recipe: Any) -> Any:
    return plans_of(recipe)[-1][1]


def last_stretch(recipe: str) -> Any:
    return on(recipe, VGG).segments()[-1].recipe


def plain(found: Any) -> Any:
    """As a number where a path holds pixels in words."""
    if isinstance(found, str) and "/" in found and found[0].isdigit():
        return float(found.split("/")[0]) / float(found.split("/")[1])
    return found


@pytest.mark.parametrize(("recipe", "setting", "path"), VALUES)
def test_value(recipe: str, setting: str, path: str) -> None:
    made, expected = on(recipe, setting), VALUES[recipe, setting, path]
    if path.endswith("gamma"):
        _, term, key = path.split(".")
        found = next(t for t in made.method.terms if t.id == term).options[key]
    elif path == "inner.x_bd.eps":
        found = next(i for i in made.method.inner if i.id == "x_bd").eps
    else:
        found = plain(get(made.full, split(path)))
    if isinstance(expected, dict):
        found = {key: found[key] for key in expected}
    elif path.endswith("start") and isinstance(found, dict):
        found = found["use"]
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("recipe", NAMES)
def test_cost_of_a_step(recipe: str) -> None:
    assert plan_cost(last(on(recipe))).units == UNITS[recipe]


@pytest.mark.parametrize(("recipe", "setting"), [*((n, VGG) for n in NAMES), ("mma", "mwpb/cifar10-wrn-34-10"), ("mma", "lma_at/cifar100-resnet18"),
                                                 ("mma", "emr/mnist-mlp"), ("dyart", "tinyimagenet-resnet18")])
def test_it_checks_with_every_toggle(recipe: str, setting: str) -> None:
    made, errors = examine(ROOT / f"{recipe}.toml", setting=setting)
    assert not [e.text() for e in errors] and plans_of(made)


@pytest.mark.parametrize("recipe", NAMES)
def test_burn_in_comes_before_the_run_and_starts_it_afresh(recipe: str) -> None:
    stretches = on(recipe, VGG).segments()
    if recipe not in BURNT:
        assert [(s.first, s.last) for s in stretches] == [(1, on(recipe, VGG).train.epochs)]
        return
    clean, main = stretches
    assert (clean.first, clean.last, main.first, main.last, main.fresh, main.clock) == (1, 25, 26, 225, True, 25)
    assert [t.id for t in clean.recipe.method.terms] == ["clean_ce"] and not clean.recipe.method.inner


def test_rows_of_one_table_share_their_burn_in() -> None:
    """Of one learning rate and batch the clean epochs are one training for all rows that have them."""
    first = [plans_of(on(name, VGG))[0] for name in BURNT]
    assert all((s.recipe.optim, s.recipe.train, plan) == (first[0][0].recipe.optim, first[0][0].recipe.train, first[0][1]) for s, plan in first)
    assert (first[0][0].recipe.optim.clip, last_stretch("dyart").optim.clip) == (None, 0.1)


@pytest.mark.parametrize(("recipe", "toggle"), [("elsayed", "margin"), ("elsayed_fab", "margin"), ("elsayed_exp", "exp"), ("dyart", "margin")])
def test_without_the_margin_it_is_standard_training(recipe: str, toggle: str) -> None:
    assert last(on(recipe).without(toggle)).outer.terms[0].id == "ce"
    assert plan_cost(last(on(recipe).without(toggle))) == plan_cost(last(on("standard")))


def test_the_recipes_differ_by_what_their_names_say() -> None:
    assert last(on("elsayed_burnin")) == last(on("elsayed")) and last(on("elsayed_burnin").without("burn_in")) == last(on("elsayed"))
    one, two = on("elsayed_fab"), on("elsayed_fab_soft").without("soft")
    assert last(one) == last(two)


def test_dyarts_boundary_points_meet_batch_norm_alone_and_first() -> None:
    plan = last(on("dyart"))
    assert plan.updates == ("bd_logits", "clean_logits")
    masks = {p.points[0]: p.rows for p in plan.outer.steps if isinstance(p, Pass)}
    assert masks == {"x": None, "x_bd": "bd_keep"}
    assert {p.rows for p in last(on("dyart").without("rows")).outer.passes} == {None}


def test_mma_trains_each_image_at_the_radius_it_remembers() -> None:
    plan = last(on("mma"))
    attack, search = plan.inner
    assert (attack.eps.name, attack.use, search.use, plan.updates) == ("memory_eps", "pgd", "bisect", ("clean_logits", "bd_logits"))
    assert [a.slot for a in search.args] == ["x_adv", "memory_eps"]
    assert [(m.part, m.when, [a.slot for a in m.args]) for m in plan.moments] == [("memory", "after_step", ["i", "bd_eps"])]
    assert [(t.id, t.gain) for t in plan.outer.terms] == [("mma", "bd_in"), ("ce", None)]


def test_primitives_are_registered_where_they_belong() -> None:
    on("mma")
    assert {REGISTRY.get(kind, name).origin.split("/")[-2] for kind, name in (("loss", "slm"), ("inner", "bisect"), ("part", "eps_memory"))} == {"plugins"}
    assert REGISTRY.get("inner", "fab").flags["surface"] and REGISTRY.get("view", "margin_taylor").needs[2].leaf
