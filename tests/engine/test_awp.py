"""Adversarial weight perturbation: the engine's whole step against the authors' loops and the hand-pruned ones, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from composer.bench import pruned, reference
from composer.bench.counter import count
from composer.bench.nets import batch, net
from composer.bench.subject import DECAY, EPS, MOMENTUM, STEP, Subject, load_like_plain
from composer.recipe.load import load

N, LR = 8, 0.01
LOOPS = {"awp_at": "at_awp", "awp_trades": "trades_awp"}


def engine(recipe: str, *, steps: int = 3, sets: tuple[str, ...] = (), drops: tuple[str, ...] = ()) -> Subject:
    x, y = batch("cnn8", N)
    made = load_like_plain(recipe, steps=steps, lr=LR, sets=sets)
    return Subject(made.edit(drop=list(drops)) if drops else made, net("cnn8").double(), x.double(), y)


def plain(library: Any, recipe: str, subject: Subject, updates: int, **options: Any) -> nn.Module:
    """The same updates by a plain loop, on the engine's noise."""
    loop, (x, y) = LOOPS[recipe], batch("cnn8", N)
    model = net("cnn8").double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    if library is reference:
        options["proxy"] = copy.deepcopy(model)
    for k in range(updates):
        noise = subject.session.streams.draw(library.START[loop], "inner.x_adv.start", k, x.double()).double()
        library.STEPS[loop](model, optimizer, x.double(), y, noise, eps=EPS, step_size=STEP, steps=3, **options)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("library", [pruned, reference], ids=["pruned", "reference"])
@pytest.mark.parametrize("recipe", LOOPS)
def test_whole_steps_equal_the_authors_and_the_pruned_loop(recipe, library, updates):
    """Weights after the update, momentum and decay at the perturbed weights, and every running statistic."""
    subject = engine(recipe)
    for _ in range(updates):
        subject()
    ours, theirs = state(subject.model), state(plain(library, recipe, subject, updates))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("recipe", "sets", "drops"), [
    ("awp_trades", ("optim.decay_at=live",), ()), ("awp_trades", ("inner.weights.gamma=0.006",), ()), ("awp_trades", (), ("inner.weights",)),
    ("awp_at", ("inner.weights.bn=train_frozen",), ()), ("awp_at", ("optim.decay_at=live",), ())])
def test_what_makes_it_awp_is_seen(recipe, sets, drops):
    """The comparison can fail: each of these leaves the authors' numbers by ten tolerances at least."""
    subject, other = engine(recipe), engine(recipe, sets=sets, drops=drops)
    for each in (subject, other):
        each()
    a, b = state(subject.model), state(other.model)
    assert max(float((a[k].double() - b[k].double()).abs().max()) for k in a) > 1e-8


@pytest.mark.parametrize("recipe", LOOPS)
def test_live_weights_are_never_touched(recipe):
    """At every forward of the step and after the backward the parameters hold the very bits they held before it."""
    subject = engine(recipe)
    parameters = dict(subject.model.named_parameters())
    before = {k: p.detach().clone() for k, p in parameters.items()}
    versions = {k: p._version for k, p in parameters.items()}
    total, _, env = subject.trainer.executor.forward({**subject.batch.roots(), "model": subject.model}, 0)
    total.backward()
    assert all(torch.equal(p, before[k]) and p._version == versions[k] for k, p in parameters.items())
    assert any(not torch.equal(env["weights"][k], p) for k, p in parameters.items()), "nothing was perturbed"
    assert all(p.grad is not None for p in parameters.values())


def test_gradient_at_the_live_weights_is_the_one_at_the_perturbed():
    """d loss(w + v)/d w with v constant, by plain PyTorch at weights that are really moved."""
    subject = engine("awp_trades")
    total, _, env = subject.trainer.executor.forward({**subject.batch.roots(), "model": subject.model}, 0)
    total.backward()
    moved = net("cnn8").double().train()
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p.copy_(env["weights"][name])
    clean, adv = moved(env["x"].contiguous()), moved(env["x_adv"].contiguous())
    p, q = clean.log_softmax(1), adv.log_softmax(1)
    loss = torch.nn.functional.cross_entropy(clean, env["y"]) + 6 * (p.exp() * (p - q)).sum(1).mean()
    loss.backward()
    for name, parameter in moved.named_parameters():
        torch.testing.assert_close(subject.model.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("recipe", "units"), [("awp_trades", 33), ("awp_at", 27)])
def test_units(recipe, units):
    """TRADES 27 and 6 for the ascent; AT's 20, an ascent and a loss of 3 each, and the clean pass for its statistics."""
    subject = engine(recipe, steps=10)
    assert count(subject.model, subject, batch=N).units == units


def test_before_it_begins_the_step_is_trades():
    x, y = batch("cnn8", N)
    early = Subject(load_like_plain("awp_trades", steps=3, lr=LR, sets=("train.epochs=200",)), net("cnn8").double(), x.double(), y, segment=0)
    trades = engine("trades", sets=("outer.updates=['x_adv', 'x', 'x']",))
    assert (early.session.nodes[0].segment.last, early.session.nodes[1].segment.first) == (9, 10)
    for each in (early, trades):
        each()
    a, b = state(early.model), state(trades.model)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_decay_is_not_clipped_with_the_gradient():
    """Where a setting clips, the clipped gradient still meets the whole decay of the perturbed weights."""
    x, y = batch("cnn8", N)
    recipe = load("awp_trades", setting="digits", sets=["threat.steps=1", f"train.lr={LR}", f"optim.weight_decay={DECAY}", "optim.clip=1e-6"])
    subject = Subject(recipe, net("cnn8").double(), x.double(), y)
    before = state(subject.model)
    made = {}
    forward = subject.trainer.executor.forward
    subject.trainer.executor.forward = lambda *a: made.setdefault("out", forward(*a))
    subject()
    after, overlay = state(subject.model), made["out"][2]["weights"]
    for name in dict(subject.model.named_parameters()):
        moved = (before[name] - after[name]) / LR
        torch.testing.assert_close(moved, DECAY * overlay[name].detach(), rtol=0, atol=2e-6)
