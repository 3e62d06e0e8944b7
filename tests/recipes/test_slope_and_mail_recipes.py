"""EMR, IGR and MAIL on the papers' settings, against a table typed from the EMR paper's appendix and MAIL's description by hand."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from composer.engine.dials import Clock, evaluate
from composer.plan.cost import plan_cost
from composer.plan.types import Call
from composer.plan.whole import plans_of
from composer.recipe.load import load
from composer.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2] / "recipes"
MLP, CNN, RN18, WRN = "emr/mnist-mlp", "emr/cifar10-cnn4", "emr/cifar10-resnet18", "emr/cifar10-wrn-34-10"
FAMILY = ("emr_standard", "emr_at", "approx_emr_standard", "approx_emr_at", "emr_trades", "emr_trades_clean", "emr_mart", "mail_at", "mail_trades",
          "mail_mart", "emr_mail_at", "emr_mail_trades", "igr_at", "igr_trades")


@cache
def on(name: str, setting: str = "digits") -> Recipe:
    return load(ROOT / f"{name}.toml", setting=setting)


def term(recipe: Recipe, id: str) -> Any:
    return next(t for t in recipe.method.terms if t.id == id)


def at(recipe: Recipe, value: Any, epoch: int) -> float:
    return evaluate(value, Clock(epoch, (epoch - 1) * 10, 10, recipe.train.epochs), {"train.lr": recipe.train.lr}.__getitem__)


# recipe, setting: epochs, weight decay, lambda, t (None: exact), the point, borders of the learning rate and of lambda
EMR = [
    ("emr_standard", MLP, 50, 1e-3, 0.1, None, "clean", (30,)),
    ("emr_at", MLP, 50, 1e-3, 3e-4, None, "adv", (30,)),
    ("approx_emr_standard", MLP, 50, 1e-3, 1.0, 1.0, "clean", (30,)),
    ("approx_emr_at", MLP, 50, 1e-3, 3e-4, 1.0, "adv", (30,)),
    ("emr_standard", CNN, 100, 5e-4, 0.01, None, "clean", (75, 90)),
    ("emr_at", CNN, 100, 5e-4, 0.001, None, "adv", (75, 90)),
    ("approx_emr_standard", CNN, 100, 5e-4, 30.0, 1.0, "clean", (75, 90)),
    ("approx_emr_at", CNN, 100, 5e-4, 3e-4, 1.0, "adv", (75, 90)),
    ("approx_emr_at", RN18, 100, 5e-4, 0.1, 40.0, "adv", (60, 90)),
    ("emr_trades", RN18, 130, 5e-4, 0.3, 0.1, "adv", (60, 120)),
    ("emr_trades_clean", RN18, 130, 5e-4, 0.3, 0.1, "clean", (60, 120)),
    ("approx_emr_at", WRN, 100, 5e-4, 1.0, 40.0, "adv", (60, 90)),
    ("emr_trades", WRN, 130, 5e-4, 0.3, 1.0, "adv", (60, 120)),
    ("emr_mart", WRN, 90, 7e-4, 1.0, 1.0, "adv", (74, 89)),
    ("emr_mail_at", WRN, 100, 2e-4, 1.0, 1.0, "adv", (75, 90)),
    ("emr_mail_trades", WRN, 100, 2e-4, 3.0, 1.0, "adv", (75, 90)),
]


@pytest.mark.parametrize(("name", "setting", "epochs", "decay", "lam", "t", "point", "borders"), EMR)
def test_emr_as_printed(name: str, setting: str, epochs: int, decay: float, lam: float, t: float | None, point: str, borders: tuple[int, ...]) -> None:
    r = on(name, setting)
    emr = term(r, "emr")
    assert (r.train.epochs, r.optim.options["weight_decay"], emr.at, emr.bn) == (epochs, decay, point, "eval")
    assert (emr.use, emr.options) == (("emr", {}) if t is None else ("approx_emr", {"t": t, "scale": "code"}))
    for k, border in enumerate((0, *borders)):
        assert at(r, emr.weight, border + 1) == pytest.approx(lam * 0.1**k), "lambda falls with the learning rate"
        assert at(r, r.train.lr, border + 1) == pytest.approx(at(r, r.train.lr, 1) * 0.1**k)
    last = borders[-1]
    assert at(r, emr.weight, last) == pytest.approx(lam * 0.1 ** (len(borders) - 1))


def test_the_codes_lambda_falls_one_epoch_earlier() -> None:
    r = load(ROOT / "approx_emr_at.toml", setting=RN18, sets=["terms.emr.weight.early=1"])
    weight = term(r, "emr").weight
    assert [at(r, weight, e) for e in (59, 60, 89, 90)] == pytest.approx([0.1, 0.01, 0.01, 0.001])
    assert [at(r, r.train.lr, e) for e in (60, 61)] == pytest.approx([0.1, 0.01])


@pytest.mark.parametrize(("setting", "base", "name", "decay"), [(RN18, "at", "igr_at", 1e-3), (RN18, "trades", "igr_trades", 5e-4),
                                                               (WRN, "at", "igr_at", 1e-3), (WRN, "trades", "igr_trades", 5e-4)])
def test_igr_is_its_baseline_and_one_term(setting: str, base: str, name: str, decay: float) -> None:
    r, b = on(name, setting), on(base, setting)
    igr = term(r, "igr")
    assert (igr.use, igr.weight, igr.at, igr.bn, igr.options) == ("input_gradient", 1.0, "clean", "eval", {"scale": "mean"})
    assert (r.train, r.optim, r.select, r.method.inner) == (b.train, b.optim, b.select, b.method.inner) and r.optim.options["weight_decay"] == decay
    assert [t for t in r.method.terms if t.id != "igr"] == list(b.method.terms)
    if base == "trades":
        assert term(r, "kl").weight == 12.0 and r.method.inner[0].options["start"].use == "uniform"


@pytest.mark.parametrize(("name", "weighed", "slope", "bias"), [("mail_at", "ce", 10.0, -0.5), ("mail_trades", "kl", 2.0, 0.0), ("mail_mart", "boosted_ce", 2.0, 0.0)])
def test_mail_as_its_authors_run_it(name: str, weighed: str, slope: float, bias: float) -> None:
    """Their 120 epochs: 76 plain, then weights that carry no gradient and are not brought to mean 1."""
    r = load(ROOT / f"{name}.toml", setting="cifar10-resnet18", sets=["train.epochs=120"])
    plain, mail = r.segments()
    assert (plain.first, plain.last, mail.last) == (1, 76, 120)
    assert [t.gain for t in plain.recipe.method.terms if t.id == weighed] == [None]
    t = term(mail.recipe, weighed)
    assert (t.gain.use, t.gain.options, t.gain.normalise, t.detach) == ("mail", {"slope": slope, "bias": bias}, False, ("gain",))
    assert [t.id for t in mail.recipe.method.terms if getattr(t.gain, "use", "") == "mail"] == [weighed], "nothing else is weighed by it"
    start = r.method.inner[0].options["start"]
    assert (start.use, start.options["sigma"], r.method.inner[0].bn) == ("gaussian", 0.001, "eval")
    if name != "mail_at":
        assert term(r, "kl").weight == 5.0
    call = next(s for s in plans_of(r)[-1][1].outer.steps if isinstance(s, Call) and s.use == "mail")
    assert call.args[0].slot == "adv_probs" and not call.grad


@pytest.mark.parametrize(("name", "weighed", "slope", "bias"), [("mail_at", "ce", 30.0, 0.07), ("emr_mail_at", "ce", 30.0, 0.07),
                                                               ("mail_trades", "kl", 5.0, 0.05), ("emr_mail_trades", "kl", 5.0, 0.05)])
def test_mail_as_emr_runs_it(name: str, weighed: str, slope: float, bias: float) -> None:
    """Epochs 1-74 are plain adversarial training on cross entropy at 0.0314, for the TRADES form too; then MAIL at 0.031. All images, last epoch."""
    r = on(name, WRN)
    assert (r.train.epochs, r.optim.options["weight_decay"], r.select.held_out, r.select.report) == (100, 2e-4, 0, "last")
    plain, mail = r.segments()
    assert (plain.first, plain.last, mail.first, mail.last) == (1, 74, 75, 100)
    ids = [t.id for t in plain.recipe.method.terms if t.id != "emr"]
    assert (ids, term(plain.recipe, "ce").gain) == (["ce"], None) and term(plain.recipe, "ce").at in (None, "adv")
    first, second = plain.recipe.method.inner[0], mail.recipe.method.inner[0]
    assert [t.use for t in first.terms] == ["ce"] and [t.use for t in second.terms] == ["ce" if weighed == "ce" else "kl"]
    assert [(i.eps, i.options["step"], i.options["start"].use, i.bn) for i in (first, second)] == [(0.0314, 0.00784, "uniform", "eval"),
                                                                                                   (0.031, 0.007, "gaussian", "eval")]
    assert term(mail.recipe, weighed).gain.options == {"slope": slope, "bias": bias}
    if weighed == "kl":
        assert term(mail.recipe, "kl").weight == 5.0 and term(mail.recipe, "ce").at == "clean"
    if name.startswith("emr"):
        assert term(plain.recipe, "emr") == term(mail.recipe, "emr")


def test_the_two_forms_of_mail_share_their_plain_epochs() -> None:
    """Without EMR: the same plan, so the 74 epochs are trained once."""
    a, b = (plans_of(on(name, WRN))[0] for name in ("mail_at", "mail_trades"))
    assert a[1] == b[1] and (a[0].first, a[0].last) == (b[0].first, b[0].last)
    plain = plans_of(load(ROOT / "mail_at.toml", drops=["phase.warm_up", "terms.ce.gain", "terms.ce.detach"]))
    assert plain[0][1] == plans_of(on("mail_at"))[0][1], "a gain that is not there is not cut off either"


# Units by hand: ten attack steps 20 (TRADES 21); an outer pass with its backward 3; a slope in a forward of its own 6: forward, input gradient, the
# double backward's forward and weight gradient, and the pass's own backward, an input and a weight gradient. Exact EMR: 3 and 3 a class.
STEP = {"emr_standard": 3 + 3, "emr_at": 20 + 3 + 3, "approx_emr_standard": 3 + 6, "approx_emr_at": 23 + 6, "emr_trades": 27 + 6, "emr_trades_clean": 27 + 6,
        "emr_mart": 26 + 6, "mail_at": 23, "mail_trades": 27, "mail_mart": 26, "emr_mail_at": 23 + 6, "emr_mail_trades": 27 + 6, "igr_at": 23 + 6,
        "igr_trades": 27 + 6}


@pytest.mark.parametrize("name", FAMILY)
def test_what_a_step_costs(name: str) -> None:
    cost = plan_cost(plans_of(on(name))[-1][1])
    exact = name in ("emr_standard", "emr_at")
    assert (cost.units, sum(cost.each[:3])) == (STEP[name], 3 if exact else 0)
    assert cost.at(10).units == STEP[name] + (30 if exact else 0) and cost.at(10).double == (10 if exact else 0 if name.startswith("mail") else 1)


def test_a_slope_taken_in_the_train_pass_saves_its_forward_and_backward() -> None:
    shared = load(ROOT / "igr_trades.toml", sets=["terms.igr.bn=train"])
    assert plan_cost(plans_of(shared)[-1][1]).units == STEP["igr_trades"] - 3


@pytest.mark.parametrize("name", [n for n in FAMILY if n.startswith(("approx", "emr_t", "emr_m"))])
def test_the_codes_scale_says_that_it_couples_the_batch(name: str) -> None:
    assert plans_of(on(name))[-1][1].coupled == ("terms.emr",)
    assert plans_of(load(ROOT / f"{name}.toml", sets=["terms.emr.scale=paper"]))[-1][1].coupled == ()


@pytest.mark.parametrize(("name", "toggle", "same"), [("emr_standard", "emr", "standard"), ("approx_emr_standard", "emr", "standard"), ("emr_at", "emr", "at"),
                                                      ("approx_emr_at", "emr", "at"), ("emr_trades", "emr", "trades"), ("emr_mart", "emr", "mart"),
                                                      ("igr_at", "igr", "at"), ("igr_trades", "igr", "trades"), ("emr_mail_at", "emr", "mail_at"),
                                                      ("emr_mail_trades", "emr", "mail_trades"), ("approx_emr_at", "attack", "approx_emr_standard")])
def test_a_toggle_off_leaves_the_base_method(name: str, toggle: str, same: str) -> None:
    off = plans_of(on(name).without(toggle))
    base = plans_of(on(same) if toggle != "attack" else load(ROOT / f"{same}.toml", sets=["terms.emr.t=40.0", "terms.emr.weight.value=0.1"]))
    assert [p for _, p in off] == [p for _, p in base]
