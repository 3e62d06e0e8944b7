"""Recipes of AWP, GAIRAT, WAT, FAT, ST-AT, fast AT, SEAT, LBGAT and of the mwpb, piat and margin families: their values against tables typed by
hand from the papers' protocols, and their plans against numbers known beforehand."""

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
from composer.recipe.load import catalogue, load
from composer.recipe.recipe import Recipe, realise
from composer.registry import REGISTRY

ROOT = Path(__file__).parents[2] / "recipes"
RN18, WRN = ("cifar10-resnet18", "cifar100-resnet18", "svhn-resnet18"), ("cifar10-wrn-32-10", "cifar100-wrn-32-10")


@cache
def on(recipe: str, setting: str = "digits") -> Recipe:
    catalogue()
    errors: list[ComposerError] = []
    made, found = realise(assemble(ROOT / f"{recipe}.toml", setting=setting, sets=(), drops=(), root=ROOT, known=known, errors=errors))
    assert made is not None and not errors + found, [e.text() for e in errors + found]
    return made


def number(value: Any, epoch: int, epochs: int, step: int = 0) -> float:
    if not isinstance(value, Ref):
        return value
    primitive = REGISTRY.get("schedule", value.use)
    clock = {"epoch": epoch, "epochs": epochs, "step": step, "progress": (epoch - 1) / epochs}
    return primitive.fn(*(clock[n.name] for n in primitive.needs), **value.options)


def term(recipe: Recipe, id: str) -> Any:
    return next(t for t in recipe.method.terms if t.id == id)


def inner(recipe: Recipe, id: str = "x_adv") -> Any:
    return next(i for i in recipe.method.inner if i.id == id)


# Ten attack steps. AT 20 + 3; TRADES' attack one forward more; a radius one forward where the attack has no clean pass; a two-pass loss 6; AWP's
# ascent the loss once more (AT-AWP and Rice: + 1 for the clean pass after the update); ST-AT three points in attack and loss; fast AT one step.
STEP = {"awp_trades": 33, "awp_at": 27, "mwpb_at": 24, "mwpb_mart": 27, "mwpb_awp": 27, "gairat": 23, "wat": 23, "fat": 23, "st_at": 69, "fast_at": 5,
        "at_nmse": 26, "piat": 23, "piat_trades": 27, "piat_mart": 26, "piat_gairat": 23, "at_margin": 23, "trades_margin": 26, "mart_margin": 26,
        "seat": 23, "trades_ema": 27, "lbgat": 27}


@pytest.mark.parametrize("recipe", STEP)
def test_what_a_step_costs(recipe: str) -> None:
    assert plan_cost(plans_of(on(recipe))[-1][1]).units == STEP[recipe]


def test_whose_passes_write_the_running_statistics() -> None:
    clean, adv = "clean_logits", "adv_logits"
    writes = {name: plans_of(on(name))[-1][1].updates for name in (*STEP, "emr_lbgat")}
    assert writes["awp_trades"] == (adv, clean, clean) and writes["awp_at"] == (adv,) and writes["lbgat"] == (adv, clean)
    assert writes["st_at"] == (clean, adv), "the collaborative pass runs frozen"
    for name in ("gairat", "wat", "fat", "fast_at", "mwpb_at", "mwpb_awp", "piat", "piat_gairat", "at_margin", "seat", "emr_lbgat"):
        assert writes[name] == (adv,), name
    for name in ("at_nmse", "piat_mart", "mwpb_mart", "mart_margin"):
        assert writes[name] == (clean, adv), name
    for name in ("piat_trades", "trades_margin", "trades_ema"):
        assert writes[name] == (clean, adv, clean), name
    attacks = {name: [i.writes for i in plans_of(on(name))[-1][1].inner] for name in STEP}
    assert {name for name, each in attacks.items() if any(each)} == {"wat", "fast_at", "awp_at"} and attacks["awp_at"] == [True, True]
    assert plans_of(on("awp_at"))[-1][1].after == ("x",) and plans_of(on("mwpb_awp"))[-1][1].after == ()


def test_awp() -> None:
    trades, at = on("awp_trades", "lma_at/cifar10-wrn-34-10"), on("awp_at")
    assert [inner(r, "weights").options["gamma"] for r in (trades, at)] == [0.005, 0.01]
    assert trades.optim.decay_at == at.optim.decay_at == "perturbed"
    long = load(ROOT / "awp_trades.toml", sets=["train.epochs=200"])
    assert [(s.first, s.last, len(s.recipe.method.inner)) for s in long.segments()] == [(1, 9, 1), (10, 200, 2)]
    assert len(at.segments()) == 1 and inner(at).bn == "train"


@pytest.mark.parametrize("setting", ["mwpb/cifar10-resnet18", "mwpb/cifar10-wrn-34-10"])
def test_the_baseline_of_mwpb_awp_differs_from_it_in_radius_and_phase_alone(setting: str) -> None:
    weighted, plain = on("mwpb_awp", setting), on("awp_at", setting)
    bare = weighted.without("weighting", "half")
    assert plans_of(bare)[-1][1].outer == plans_of(plain)[-1][1].outer
    assert (inner(bare).bn, inner(bare).options["start"], inner(bare).eps) == (inner(plain).bn, inner(plain).options["start"], inner(plain).eps)
    assert inner(bare, "weights") == inner(plain, "weights") and inner(plain, "weights").bn == "train_frozen"


@pytest.mark.parametrize(("recipe", "setting", "alpha"), [
    ("mwpb_at", "digits", 0.58), ("mwpb_at", "mwpb/cifar10-resnet18", 0.58), ("mwpb_at", "mwpb/cifar10-wrn-34-10", 0.58),
    ("mwpb_at", "mwpb/tinyimagenet-resnet18", 0.55), ("mwpb_at", "mwpb/svhn-resnet18", 0.50),
    ("mwpb_mart", "mwpb/cifar10-resnet18", 0.55), ("mwpb_mart", "mwpb/cifar10-wrn-34-10", 0.55),
    ("mwpb_mart", "mwpb/tinyimagenet-resnet18", 0.70), ("mwpb_mart", "mwpb/svhn-resnet18", 0.60), ("mwpb_awp", "mwpb/cifar10-resnet18", 0.58)])
def test_mwpb(recipe: str, setting: str, alpha: float) -> None:
    r = on(recipe, setting)
    first, second = r.segments()
    if setting != "digits":
        assert (first.last, second.first, second.last) == (80, 81, 110) and r.select.from_ == "last_phase"
        assert inner(first.recipe).eps == pytest.approx(4 / 255)
    attack = inner(second.recipe)
    assert (attack.eps.use, attack.eps.options["alpha"], attack.options["step"]) == ("mwpb", alpha, "eps/4")
    assert attack.options["start"].use == "gaussian" and attack.bn == "eval"
    if recipe == "mwpb_mart":
        assert term(r, "kl").weight == (6.0 if "wrn" in setting else 5.0)


@pytest.mark.parametrize(("setting", "last"), [
    ("mwpb/cifar10-resnet18", 55), ("mwpb/tinyimagenet-resnet18", 55), ("lma_at/cifar10-resnet18", 59), ("lma_at/cifar10-wrn-34-10", 59),
    ("piat/cifar10-resnet18", 59), ("piat/svhn-resnet18", 59), ("piat/cifar10-wrn-32-10", 59), ("piat/cifar100-wrn-32-10", 59)])
def test_gairat_begins_with_epoch_60_or_half_of_the_run(setting: str, last: int) -> None:
    r = on("gairat", setting)
    stretches = r.segments()
    assert stretches[-1].first == last + 1 and term(stretches[-2].recipe, "ce").gain is None
    gain = term(stretches[-1].recipe, "ce").gain
    assert (gain.use, gain.normalise, gain.options) == ("gairat", True, {"lam": -1.0, "assign": "tanh", "steps": 10})
    assert len(stretches) == (3 if setting.startswith("piat") else 2), "PIAT's protocol adds ten clean epochs to every method"


def test_the_counts_steps_are_the_attacks() -> None:
    """The gain and the attack take the same number from the threat."""
    r = load(ROOT / "gairat.toml", sets=["threat.steps=7", "terms.ce.gain.begin=1"])
    assert inner(r).options["steps"] == term(r, "ce").gain.options["steps"] == 7


def test_wat_fat_and_fast_at() -> None:
    wat, fat, fast = on("wat"), on("fat", "piat/cifar10-resnet18"), on("fast_at", "cifar10-resnet18")
    assert term(wat, "ce").gain.options == inner(wat).terms[0].gain.options == {"alpha": 0.5}
    assert not term(wat, "ce").gain.normalise and term(wat, "ce").detach == () and inner(wat).bn == "train"
    assert [number(inner(fat).options["tau"], e, 120) for e in (1, 50, 51, 90, 91, 120)] == [0, 0, 1, 1, 2, 2]
    assert inner(fat).options["omega"] == 0.001 and inner(fat).options["start"].use == "uniform" and inner(fat).bn == "eval"
    assert (inner(fast).use, inner(fast).options["step"], inner(fast).options["start"].use, inner(fast).bn) == ("fgsm", "1.25*eps", "uniform", "train")
    assert fast.train.lr.options == {"value": 0.2, "peak": 0.4, "start": 0.0, "end": 0.0}


@pytest.mark.parametrize("setting", ["digits", "mwpb/cifar10-resnet18", "lma_at/cifar10-resnet18"])
def test_st_at(setting: str) -> None:
    r = on("st_at", setting)
    assert term(r, "symmetric_kl").weight == 6.0 and term(r, "symmetric_kl").options == {"targets": "constant"}
    assert (inner(r).bn, inner(r).options["sigma"], inner(r).terms[0].use) == ("train_frozen", 0.001, "symmetric_kl")


@pytest.mark.parametrize(("bench", "epochs"), [*((b, 120) for b in RN18), *((b, 180) for b in WRN)])
def test_piats_family(bench: str, epochs: int) -> None:
    """Ten clean epochs, interpolation after every epoch, and each method's own loss; wide nets: MART 6, GAIRAT from epoch 60 of 180."""
    for name in ("piat", "piat_trades", "piat_mart", "piat_gairat", "piat_nmse"):
        r = on(name, f"piat/{bench}")
        first, *rest = r.segments()
        assert (first.first, first.last, [t.id for t in first.recipe.method.terms], first.recipe.method.inner) == (1, 10, ["clean_ce"], ()), name
        assert plans_of(r)[0][1].updates == ("clean_logits",), name
        assert r.train.epochs == epochs and rest[-1].last == epochs
        part = r.method.parts[0]
        assert (part.use, part.options["buffers"], number(part.options["lam"], 1, epochs)) == ("interpolate", "interpolate", pytest.approx(2 / 11))
    assert {t.use for t in on("piat", f"piat/{bench}").method.terms} == {"ce"}
    assert term(on("piat_trades", f"piat/{bench}"), "kl").weight == 6.0
    assert term(on("piat_mart", f"piat/{bench}"), "kl").weight == (6.0 if bench in WRN else 5.0)
    assert on("piat_gairat", f"piat/{bench}").segments()[-1].first == 60
    starts = {name: inner(on(name, f"piat/{bench}")).options["start"].use for name in ("piat", "piat_trades", "piat_mart", "piat_gairat")}
    assert starts == {"piat": "uniform", "piat_trades": "gaussian", "piat_mart": "gaussian", "piat_gairat": "uniform"}


def test_methods_share_piats_clean_epochs() -> None:
    """Their burn-in is one plan, so their first ten epochs can be one training."""
    plans = [plans_of(on(name, "piat/cifar10-resnet18"))[0][1] for name in ("piat", "piat_trades", "piat_mart", "piat_gairat", "piat_nmse")]
    assert all(plan == plans[0] for plan in plans)


def test_what_is_left_without_the_component() -> None:
    plan = lambda r: plans_of(r)[-1][1]
    assert plan(on("piat_nmse").without("nmse")) == plan(on("piat"))
    assert plan(on("wat").without("weights", "attack_bn")) == plan(on("at"))
    assert plan(on("at_nmse").without("nmse")) == plan(on("at"))
    assert plan(on("fat").without("friendly")) == plan(on("at"))
    assert plan(on("awp_at").without("awp")) == plan(on("at_rice"))
    assert plan(on("mwpb_awp").without("awp")) == plan(on("mwpb_at"))
    assert plan(on("at_ours").without("align")) == plan(on("at_margin"))
    assert plan(on("mart_ours").without("align")) == plan(on("mart_margin"))
    assert plan(on("trades_ours").without("align")) == plan(on("trades_margin"))
    assert plan(on("gairat").without("reweight")).outer == plan(on("at")).outer
    assert plan_cost(plan(on("st_at").without("squeeze"))) == plan_cost(plan(on("standard")))
    bare = plan(on("trades_ema").without("avg", "smooth"))
    assert sorted(map(repr, bare.outer.steps)) == sorted(map(repr, plan(on("trades")).outer.steps)), "the order of terms apart"
    assert (bare.inner, bare.updates, bare.moments) == (plan(on("trades")).inner, plan(on("trades")).updates, ())


@pytest.mark.parametrize(("recipe", "setting", "weight"), [
    ("trades_margin", "lma_at/cifar10-resnet18", 6.0), ("mart_margin", "lma_at/cifar10-resnet18", 5.0),
    ("mart_margin", "lma_at/cifar10-wrn-34-10", 5.0), ("mart_margin", "cifar10-wrn-34-10", 5.0), ("awp_trades", "mwpb/cifar10-resnet18", 6.0)])
def test_weights_of_the_kl(recipe: str, setting: str, weight: float) -> None:
    assert term(on(recipe, setting), "kl").weight == weight


@pytest.mark.parametrize("name", ["at_margin", "trades_margin", "mart_margin"])
def test_margins_without_alignment(name: str) -> None:
    r = on(name, "lma_at/cifar10-resnet18")
    assert {t.use for t in inner(r).terms} == {"ce", "margin"} and not r.method.parts
    assert term(r, "margin").options["delta"] == inner(r).terms[1].options["delta"] == 0.9
    assert inner(r).options["start"] == Ref("start", "gaussian", {"sigma": 0.001, "clamp": False})


def test_averages_are_what_is_judged() -> None:
    seat, ema = on("seat"), on("trades_ema", "cifar10-wrn-28-10")
    for r in (seat, ema):
        assert r.select.weights == r.evaluate.weights == "avg"
    decay = seat.method.parts[0].options["decay"]
    assert [number(decay, 1, 20, step) for step in (0, 1, 10**6)] == pytest.approx([0.1, 2 / 11, 0.999])
    assert number(ema.method.parts[0].options["decay"], 1, 20, 10**6) == 0.995
    assert [(a.use, a.options) for a in ema.augment if a.use == "smooth"] == [("smooth", {"amount": 0.1})]
    assert (ema.model.use, ema.model.options["depth"], ema.model.options["width"], ema.model.options["activation"]) == ("wrn", 28, 10, "silu")
    assert {t.use for t in ema.method.terms} == {"soft_ce", "kl"}


def test_lbgat_on_emrs_protocol() -> None:
    """beta 0, teacher ResNet-18, 100 epochs, 0.02 in the first, 0.1 then, after 75 and 90 a tenth; decay 2e-4; 0.031, 0.003. EMR 0.5, t 1."""
    plain, emr = (on(name, "emr/cifar10-wrn-34-10") for name in ("lbgat", "emr_lbgat"))
    for r in (plain, emr):
        assert {t.use for t in r.method.terms} - {"approx_emr"} == {"mse", "ce"}
        assert (r.train.epochs, r.optim.options["weight_decay"], r.threat.eps, r.threat.step) == (100, 2e-4, 0.031, 0.003)
        assert [number(r.train.lr, e, 100) for e in (1, 2, 75, 76, 90, 91)] == pytest.approx([0.02, 0.1, 0.1, 0.01, 0.01, 0.001])
        teacher = r.method.parts[0].options
        assert (teacher["model"].use, teacher["train"], teacher["bn"], teacher["checkpoint"]) == ("resnet18", True, "train", None)
        assert inner(r).options["start"].use == "gaussian" and {t.use for t in inner(r).terms} == {"kl"}
    weight = term(emr, "emr").weight
    assert [number(weight, e, 100) for e in (1, 75, 76, 91)] == pytest.approx([0.5, 0.5, 0.05, 0.005]) and term(emr, "emr").options["t"] == 1.0
    assert term(on("lbgat", "cifar10-resnet18"), "kl").weight == 6.0


def test_show_prefers_the_recipe_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """`fat` is a recipe and an inner maximum; `inner/fat` is the latter alone."""
    from composer.cli_run import show

    quiet: dict[str, Any] = {"why": None, "setting": None, "set_": None, "drop": None, "plugin": None, "as_json": False, "without": None}
    show("fat", **quiet)
    assert capsys.readouterr().out.startswith("fat on digits")
    show("inner/fat", **quiet)
    assert capsys.readouterr().out.startswith("inner/fat: ")


def test_smoothed_labels_are_smoothed_in_the_clean_epochs_too() -> None:
    """PIAT's protocol puts a burn-in before every method; under soft labels it reads those."""
    first = on("trades_ema", "piat/cifar10-resnet18").segments()[0]
    assert [(t.id, t.use) for t in first.recipe.method.terms] == [("clean_ce", "soft_ce")]
