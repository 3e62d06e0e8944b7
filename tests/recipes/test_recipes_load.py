"""Every shipped recipe on every shipped setting, read by the loader, and its plans against numbers known beforehand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from composer.errors import ComposerError
from composer.options import Ref
from composer.plan.cost import plan_cost
from composer.plan.whole import plans_of
from composer.recipe.keys import known
from composer.recipe.layers import assemble
from composer.recipe.load import catalogue, examine, load
from composer.recipe.recipe import Recipe, realise
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(p.stem for p in ROOT.glob("*.toml") if p.stem not in ("papers", "protocols"))
SETTINGS = sorted(p.relative_to(ROOT / "settings").with_suffix("").as_posix() for p in (ROOT / "settings").rglob("*.toml"))


@cache
def on(recipe: str, setting: str = "digits") -> Recipe:
    """The recipe as `load` gives it, without a look at what its toggles would do to it: that is done once, on its own setting."""
    catalogue()
    errors: list[ComposerError] = []
    stack = assemble(ROOT / f"{recipe}.toml", setting=setting, sets=(), drops=(), root=ROOT, known=known, errors=errors)
    made, found = realise(stack)
    assert made is not None and not errors + found, [e.text() for e in errors + found]
    assert made.segments()
    return made


def number(value: Any, epoch: int, epochs: int) -> float:
    """A schedule's value at an epoch."""
    if not isinstance(value, Ref):
        return value
    primitive = REGISTRY.get("schedule", value.use)
    clock = {"epoch": epoch, "epochs": epochs, "progress": (epoch - 1) / epochs}
    return primitive.fn(*(clock[n.name] for n in primitive.needs), **value.options)


def term(recipe: Recipe, id: str) -> Any:
    return next(t for t in recipe.method.terms if t.id == id)


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_reads_on_the_embedded_setting_with_every_toggle(recipe: str) -> None:
    assert not [e.text() for e in examine(ROOT / f"{recipe}.toml", setting="digits")[1]]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_carries_the_default_method(setting: str) -> None:
    r = on("mart_ours", setting)
    assert (r.setting, len(r.method.terms)) == (setting, 4) and r.evaluate.measures and r.select.attack


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_reads_on_every_setting_with_every_toggle(recipe: str) -> None:
    found = {setting: [e.text() for e in examine(ROOT / f"{recipe}.toml", setting=setting)[1]] for setting in SETTINGS}
    assert not {setting: errors for setting, errors in found.items() if errors}


@pytest.mark.parametrize("recipe", RECIPES)
def test_its_own_setting_is_the_embedded_one(recipe: str) -> None:
    own = load(ROOT / f"{recipe}.toml")
    assert (own.setting, own.data.use, own.model.use) == ("digits", "digits", "small_cnn")
    assert (own.threat.eps, own.threat.step, own.threat.steps) == (0.2, pytest.approx(0.05), 10)
    assert [m.name for m in own.evaluate.measures] == ["clean", "pgd-20", "aa"]
    assert own.evaluate.measures[-1].n is not None, "AutoAttack on a subset"


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_toggle_alone_compiles_and_changes_the_plan(recipe: str) -> None:
    trained = lambda r: [(s.first, s.last, s.recipe.optim, p) for s, p in plans_of(r)]       # the optimiser stands beside the plan
    base = trained(on(recipe))
    assert trained(on(recipe)) == base
    assert not [name for name in on(recipe).toggle if trained(on(recipe).without(name)) == base]


# Units: a forward, an input gradient, a weight gradient each cost one. Ten attack steps cost 20 (the KL's target one forward more); an outer
# pass with its backward 3; a pass without one 1. By hand: TRADES 1+20+6, Rice 20+3+1, two-pass methods 20+6.
STEP = {"standard": 3, "at": 23, "at_rice": 24, "trades": 27, "mart": 26, "alp": 26, "lma_at": 26, "at_ours": 26, "trades_ours": 26,
        "mart_ours": 26, "piat_nmse": 26, "mwpb_trades": 27}


@pytest.mark.parametrize("recipe", sorted(STEP))
def test_what_a_step_costs(recipe: str) -> None:
    assert plan_cost(plans_of(on(recipe))[-1][1]).units == STEP[recipe]


def test_whose_passes_write_the_running_statistics() -> None:
    writes = {name: plans_of(on(name))[-1][1].updates for name in STEP}
    clean, adv = "clean_logits", "adv_logits"
    assert writes["standard"] == (clean,) and writes["at"] == (adv,) and writes["at_rice"] == (adv, adv)
    assert plans_of(on("at_rice"))[0][1].after == ("x",)
    assert writes["trades"] == writes["mwpb_trades"] == writes["trades_ours"] == (clean, adv, clean)
    assert writes["alp"] == (clean,), "one joint pass"
    for name in ("mart", "mart_ours", "at_ours", "lma_at", "piat_nmse"):
        assert writes[name] == (clean, adv), name


@pytest.mark.parametrize(("recipe", "toggles", "climbs", "loss"), [
    ("lma_at", ("inner_margin", "boost"), {"ce"}, {"ce", "margin", "modified_huber"}),             # option A of the paper's table 12
    ("lma_at", ("inner_margin",), {"ce"}, {"boosted_ce", "margin", "modified_huber"}),             # A', which differs from C in one thing
    ("lma_at", ("outer_margin",), {"ce", "margin"}, {"boosted_ce", "modified_huber"}),             # B
    ("lma_at", (), {"ce", "margin"}, {"boosted_ce", "margin", "modified_huber"}),                  # C
    ("lma_at", ("align",), {"ce", "margin"}, {"boosted_ce", "margin"}),                            # D
    ("at_ours", (), {"ce", "margin"}, {"ce", "margin", "modified_huber"}),
    ("trades_ours", (), {"ce", "margin"}, {"ce", "kl", "margin", "modified_huber"}),
    ("mart_ours", (), {"ce", "margin"}, {"boosted_ce", "kl", "margin", "modified_huber"}),
    ("trades", (), {"kl"}, {"ce", "kl"}), ("mart", (), {"ce"}, {"boosted_ce", "kl"}), ("mwpb_trades", (), {"kl"}, {"ce", "kl"}),
])
def test_what_the_attack_climbs_and_the_weights_descend(recipe: str, toggles: tuple[str, ...], climbs: set[str], loss: set[str]) -> None:
    r = on(recipe).without(*toggles) if toggles else on(recipe)
    assert {t.use for t in r.method.inner[0].terms} == climbs
    assert {t.use for t in r.method.terms} == loss


def test_toggles_that_leave_another_recipe() -> None:
    """What remains of a method without its component is the method it was built on."""
    plan = lambda r: plans_of(r)[-1][1]
    assert plan(on("at").without("attack")) == plan(on("standard"))
    assert plan_cost(plan(on("at_rice").without("attack"))) == plan_cost(plan(on("trades").without("kl"))) == plan_cost(plan(on("standard")))
    boosted = on("lma_at").without("boost")
    assert [(t.use, t.options, t.weight) for t in sorted(boosted.method.terms, key=lambda t: t.use)] == [
        (t.use, t.options, t.weight) for t in sorted(on("at_ours").method.terms, key=lambda t: t.use)]


@pytest.mark.parametrize(("setting", "beta", "alpha"), [
    ("lma_at/cifar10-resnet18", 86.0, 5.345), ("lma_at/cifar100-resnet18", 86.0, 5.345), ("lma_at/tinyimagenet-resnet18", 96.0, 6.345),
    ("lma_at/cifar10-wrn-34-10", 86.0, 2.345), ("cifar10-wrn-34-10", 86.0, 2.345), ("digits", 86.0, 5.345)])
@pytest.mark.parametrize("recipe", ["lma_at", "at_ours", "trades_ours", "mart_ours"])
def test_lma_at_per_bench(recipe: str, setting: str, beta: float, alpha: float) -> None:
    r = on(recipe, setting)
    assert (term(r, "align").weight, term(r, "align").options["alpha"]) == (beta, alpha)
    assert r.method.parts[0].options["decay"] == 0.2
    assert r.method.inner[0].options["start"] == Ref("start", "gaussian", {"sigma": 0.001, "clamp": False})


@pytest.mark.parametrize(("recipe", "setting", "weight"), [
    ("mart", "digits", 5.0), ("mart", "cifar10-wrn-34-10", 6.0), ("mart", "mwpb/cifar10-wrn-34-10", 6.0), ("mart", "mwpb/cifar10-resnet18", 5.0),
    ("mart", "lma_at/cifar10-wrn-34-10", 5.0), ("mart_ours", "lma_at/cifar10-wrn-34-10", 5.0), ("mart_ours", "cifar10-wrn-34-10", 5.0),
    ("mart", "piat/cifar10-resnet18", 5.0), ("mart", "piat/cifar100-wrn-32-10", 6.0), ("mart", "emr/cifar10-wrn-34-10", 6.0),
    ("trades", "digits", 6.0), ("trades", "lma_at/cifar10-resnet18", 6.0), ("trades", "mwpb/svhn-resnet18", 6.0),
    ("trades", "emr/cifar10-resnet18", 12.0), ("trades", "emr/cifar10-wrn-34-10", 12.0), ("trades", "piat/svhn-resnet18", 6.0)])
def test_whose_word_wins_on_the_weight_of_the_kl(recipe: str, setting: str, weight: float) -> None:
    assert term(on(recipe, setting), "kl").weight == weight


def test_emr_trains_each_method_by_its_own_schedule() -> None:
    at, trades, mart = (on(r, "emr/cifar10-wrn-34-10") for r in ("at", "trades", "mart"))
    assert [(r.train.epochs, r.optim.options["weight_decay"]) for r in (at, trades, mart)] == [(100, 1e-3), (130, 5e-4), (90, 7e-4)]
    assert [r.threat.eps for r in (at, trades, mart)] == [0.0314, 0.0314, 0.031] and mart.threat.step == 0.007
    for r, borders in ((at, (60, 90)), (trades, (60, 120)), (mart, (74, 89))):
        around = [e for b in borders for e in (b, b + 1)]
        assert [number(r.train.lr, e, r.train.epochs) for e in around] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert trades.method.inner[0].options["start"].use == "uniform" and mart.method.inner[0].options["start"].use == "gaussian"
    assert (at.model.options["shortcut"], at.model.options["activation"]) == ("pool_pad", "leaky_relu")
    assert {m.options["eps"] for m in at.evaluate.measures if m.name != "clean"} == {0.031}


@pytest.mark.parametrize(("setting", "lr", "epochs"), [("piat/cifar10-resnet18", 0.01, 120), ("piat/cifar10-wrn-32-10", 0.1, 180)])
def test_piats_learning_rate_and_burn_in(setting: str, lr: float, epochs: int) -> None:
    half, three = epochs // 2, epochs * 3 // 4
    for name in ("piat_nmse", "at", "trades", "mart", "alp", "mwpb_trades"):
        r = on(name, setting)
        first = r.segments()[0]
        assert (first.first, first.last, [t.id for t in first.recipe.method.terms], first.recipe.method.inner) == (1, 10, ["clean_ce"], ()), name
    r = on("piat_nmse", setting)
    assert number(r.train.lr, 1, epochs) == number(r.train.lr, half + 1, epochs) == lr
    assert number(r.train.lr, three + 1, epochs) == pytest.approx(lr / 10)
    middle = number(r.train.lr, (half + three) // 2 + 1, epochs)
    done = (half + three) // 2
    assert middle == pytest.approx(lr - (lr - lr / 10) * (done - half) / (three - half)), "a straight line from half to three quarters"
    assert lr / 100 < number(r.train.lr, epochs, epochs) < 1.5 * lr / 100
    assert number(r.method.parts[0].options["lam"], 1, epochs) == pytest.approx(2 / 11)
    assert (r.select.held_out, r.select.report) == (0, "last")


@pytest.mark.parametrize(("setting", "alpha"), [("mwpb/cifar10-resnet18", 0.42), ("mwpb/cifar10-wrn-34-10", 0.42), ("mwpb/svhn-resnet18", 0.15),
                                                ("mwpb/tinyimagenet-resnet18", 0.40)])
def test_mwpb_halves_the_radius_first_and_weighs_it_then(setting: str, alpha: float) -> None:
    first, second = on("mwpb_trades", setting).segments()
    assert (first.last, second.first, second.last) == (80, 81, 110)
    assert first.recipe.method.inner[0].eps == pytest.approx(4 / 255)
    weighted = second.recipe.method.inner[0]
    assert (weighted.eps.use, weighted.eps.options["alpha"], weighted.options["step"]) == ("mwpb", alpha, "eps/4")
    assert [s.recipe.method.inner[0].eps for s in on("mwpb_trades", setting).without("weighting").segments()] == pytest.approx([4 / 255, 8 / 255])
    assert len(on("mwpb_trades", setting).without("half").segments()) == 1
    assert number(first.recipe.train.lr, 80, 110) == pytest.approx(10 * number(first.recipe.train.lr, 81, 110))


def test_short_runs_keep_their_proportions() -> None:
    """Fractions, so that eleven epochs are a tenth of a hundred and ten."""
    short = load(ROOT / "mwpb_trades.toml", setting="mwpb/cifar10-resnet18", sets=["train.epochs=11"])
    assert [(s.first, s.last) for s in short.segments()] == [(1, 8), (9, 11)]
    assert [number(short.train.lr, e, 11) for e in (8, 9, 10)] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize(("recipe", "setting", "sets"), [
    ("mwpb_trades", "mwpb/cifar10-resnet18", ['train.lr.at=["79/110", "89/110"]']),
    ("at", "emr/cifar10-resnet18", ["inner.x_adv.bn=train"]),
    ("mart_ours", "lma_at/cifar10-resnet18", ["select.held_out=0", "select.report=last"]),
    ("mart", "digits", ["terms.kl.constants=mart"]),
    ("lma_at", "digits", ["terms.boosted_ce.constants=exact"]),
])
def test_variants_the_headers_speak_of(recipe: str, setting: str, sets: list[str]) -> None:
    """The commands that files' comments offer read, and change what is meant."""
    assert load(ROOT / f"{recipe}.toml", setting=setting, sets=sets).experiment_id != on(recipe, setting).experiment_id


def test_a_wrong_number_is_told_at_its_line() -> None:
    with pytest.raises(ComposerError) as caught:
        load(ROOT / "mart_ours.toml", sets=["parts.ema.decay=2"])
    assert "--set #1" in str(caught.value) and "decay" in str(caught.value)
