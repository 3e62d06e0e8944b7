"""HE, L-Softmax, PC, PMHR-AT, MIMAE-AT: their values by setting, what their toggles leave, and soft augmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.plan.cost import plan_cost
from composer.plan.whole import plans_of
from composer.recipe.load import examine, load
from composer.recipe.paths import get, split
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
NAMES = ("he_at", "he_trades", "lsoftmax_standard", "lsoftmax_at", "pc_at", "pmhr_at", "mimae_at")
UNITS = {"he_at": 23, "he_trades": 27, "lsoftmax_standard": 3, "lsoftmax_at": 23, "pc_at": 23, "pmhr_at": 26, "mimae_at": 26}
EMR_WRN, EMR_CNN, EMR_MLP = "emr/cifar10-wrn-34-10", "emr/cifar10-cnn4", "emr/mnist-mlp"
GAUSS = {"use": "gaussian", "sigma": 0.001}

# (recipe, setting, path) -> value, typed from the papers and their code.
VALUES: dict[tuple[str, str, str], Any] = {
    ("he_at", "digits", "model.head"): {"use": "hypersphere", "scale": 15.0},
    ("he_at", "digits", "views.angular.margin"): 0.2,
    ("he_at", "digits", "inner.x_adv.start"): GAUSS,
    ("he_at", EMR_WRN, "train.epochs"): 77, ("he_trades", EMR_WRN, "train.epochs"): 77,
    ("he_at", EMR_WRN, "train.batch_size"): 128,
    ("he_at", EMR_WRN, "optim.weight_decay"): 2e-4, ("he_trades", EMR_WRN, "optim.weight_decay"): 2e-4,
    ("he_at", EMR_WRN, "threat.eps"): 0.031, ("he_trades", EMR_WRN, "threat.step"): 0.007,
    ("he_trades", EMR_WRN, "terms.kl.weight"): 6.0, ("he_trades", "digits", "terms.kl.weight"): 6.0,
    ("he_trades", EMR_WRN, "inner.x_adv.start"): GAUSS,
    ("he_trades", EMR_WRN, "model.head"): {"use": "hypersphere", "scale": 15.0}, ("he_trades", EMR_WRN, "views.angular.margin"): 0.2,
    ("lsoftmax_standard", EMR_MLP, "terms.l_softmax.m"): 4, ("lsoftmax_at", EMR_MLP, "terms.l_softmax.m"): 4,
    ("lsoftmax_standard", EMR_CNN, "terms.l_softmax.m"): 1, ("lsoftmax_at", EMR_CNN, "terms.l_softmax.m"): 1,
    ("lsoftmax_standard", "cifar10-cnn4", "terms.l_softmax.m"): 2, ("lsoftmax_at", "cifar10-resnet18", "terms.l_softmax.m"): 2,
    ("lsoftmax_standard", EMR_MLP, "terms.l_softmax.lam"): {"use": "l_softmax", "base": 1000.0, "gamma": 2.5e-5, "power": 35.0},
    ("lsoftmax_at", "cifar10-resnet18", "terms.l_softmax.lam"): {"use": "l_softmax", "base": 1000.0, "gamma": 2e-5, "power": 45.0},
    ("pc_at", "digits", "terms.pc.margin"): 0.995, ("pc_at", "digits", "terms.logit_constraint.weight"): 0.05,
    ("pmhr_at", "digits", "terms.align.alpha"): 5.345, ("pmhr_at", "lma_at/cifar10-resnet18", "optim.weight_decay"): 3.5e-3,
}


def on(recipe: str, setting: str = "digits", **more: Any) -> Any:
    return load(ROOT / f"{recipe}.toml", setting=setting, **more)


@pytest.mark.parametrize(("recipe", "setting", "path"), VALUES)
def test_value(recipe: str, setting: str, path: str) -> None:
    found = get(on(recipe, setting).full, split(path))
    expected = VALUES[recipe, setting, path]
    if isinstance(expected, dict):
        found = {key: found[key] for key in expected}
    assert found == expected


@pytest.mark.parametrize("recipe", NAMES)
def test_cost_of_a_step(recipe: str) -> None:
    assert plan_cost(plans_of(on(recipe))[-1][1]).units == UNITS[recipe]


@pytest.mark.parametrize("setting", ["lma_at/cifar10-resnet18", "mwpb/cifar10-wrn-34-10", "piat/cifar10-resnet18"])
@pytest.mark.parametrize("recipe", ["he_at", "pc_at", "pmhr_at", "mimae_at"])
def test_it_checks_on_the_papers_settings(recipe: str, setting: str) -> None:
    made, errors = examine(ROOT / f"{recipe}.toml", setting=setting)
    assert not errors and plans_of(made)


def test_what_stays_without_the_component_is_the_method_below() -> None:
    plan = lambda recipe: plans_of(recipe)[-1][1]
    bare = on("he_at").without("hypersphere")
    assert (bare.model.head.use, plan(bare).outer) == ("linear", plan(on("at")).outer)
    assert plan(on("he_trades").without("hypersphere")) == plan(on("trades"))
    assert plan(on("lsoftmax_at").without("margin")) == plan(on("at"))
    assert plan(on("lsoftmax_standard").without("margin")) == plan(on("standard"))
    assert on("lsoftmax_at").without("margin").model.head.options == {"bias": False}
    assert plan(on("mimae_at").without("attack")) == plan(on("standard"))
    assert plan(on("pmhr_at").without("align", "boost")).outer.terms == plan(on("at")).outer.terms
    assert on("pmhr_at").without("penalty").optim.options["weight_decay"] == 0.0
    assert len(on("pc_at").segments()) == 2 and len(on("pc_at").without("pretrain").segments()) == 1


def test_the_attack_never_sees_the_margin() -> None:
    """Neither HE's angle nor L-Softmax's: the attack climbs the loss of the classifier that will be used."""
    for name in ("he_at", "he_trades", "lsoftmax_at"):
        taken = {call.use for call in plans_of(on(name))[-1][1].inner[0].body.steps if hasattr(call, "use")}
        assert taken <= {"ce", "kl", "logp"}, name


def test_the_pretraining_is_as_long_as_the_run_and_starts_afresh_behind() -> None:
    first, second = on("pc_at", "lma_at/cifar10-resnet18").segments()
    assert (first.first, first.last, second.first, second.last, second.fresh) == (1, 130, 131, 260, True)
    assert on("pc_at", "lma_at/cifar10-resnet18").select.from_ == "last_phase"


def test_the_annealing_counts_steps() -> None:
    schedule = REGISTRY.get("schedule", "l_softmax")
    assert [n.name for n in schedule.needs] == ["step"]
    assert schedule.fn(0) == 1000.0 and schedule.fn(20000) == pytest.approx(1000 * 1.5**-35)
    assert schedule.fn(20000, gamma=2e-5, power=45.0) == pytest.approx(1000 * 1.4**-45)
    assert schedule.fn(20000, floor=3.0) == 3.0
    steps = 20 * 20                                            # epochs × batches of the digits
    assert on("lsoftmax_standard").train.epochs == 20 and schedule.fn(steps, gamma=1.25e-3) < 1e-3
    assert schedule.fn(50, gamma=1.25e-3) > 100


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix", "smooth"])
def test_soft_labels_want_a_soft_loss(tmp_path: Path, augmentation: str) -> None:
    """A term that reads y under a soft augmentation is an error that names it; soft_ce is the way out."""
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(f'setting = "digits"\n[augment]\n{augmentation} = {{}}\n[terms]\nhard = {{ use = "ce", at = "clean" }}\n')
    with pytest.raises(ComposerError) as caught:
        load(recipe)
    assert "'hard' needs the labels y" in str(caught.value) and f"augment.{augmentation}" in str(caught.value) and "soft_ce" in str(caught.value)
    recipe.write_text(recipe.read_text().replace('use = "ce"', 'use = "soft_ce"'))
    (_, plan), = plans_of(load(recipe))
    assert plan.soft and "y_soft" in plan.takes
    recipe.write_text(f'extends = "at.toml"\ndrop = ["terms.ce"]\n[augment]\n{augmentation} = {{}}\n[terms]\nsoft_ce = {{}}\n')
    with pytest.raises(ComposerError) as caught:
        load(recipe)
    assert "inner.x_adv.terms.ce" in str(caught.value), "the attack's terms are looked at too"
    recipe.write_text(recipe.read_text().replace('["terms.ce"]', '["terms.ce", "inner.x_adv.terms.ce"]') + "[inner.x_adv]\nterms = { soft_ce = {} }\n")
    assert plans_of(load(recipe))
