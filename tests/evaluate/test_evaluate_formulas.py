"""pgd, fgsm, cw and mim against loops in float64 written from the papers, step by step; the caller's model and state stay as they are."""

from __future__ import annotations

import copy
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from composer.evaluate import protocol
from composer.evaluate.attack import Attack, Climb, attack_points
from composer.evaluate.draws import Draws
from composer.evaluate.guard import Judge, plainly, undisturbed
from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec

EPS, STEP, STEPS = {"linf": 0.15, "l2": 0.6}, {"linf": 0.04, "l2": 0.2}, 6


def ce(z, y):
    return -(z - z.logsumexp(1, keepdim=True)).gather(1, y[:, None])[:, 0]


def cw(z, y, confidence=50.0):
    others = z.masked_fill(nn.functional.one_hot(y, z.shape[1]).bool(), -torch.inf).amax(1)
    return (others - z.gather(1, y[:, None])[:, 0]).clamp_min(-confidence)


def project(x, point, norm, eps):
    away = point - x
    if norm == "linf":
        return (x + away.clamp(-eps, eps)).clamp(0, 1)
    size = away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return (x + away * (eps / size).clamp_max(1)).clamp(0, 1)


def steepest(grad, norm):
    return grad.sign() if norm == "linf" else grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def reference(net, x, y, start, norm, kind):
    """The iterates in float64. kind: pgd, cw, mim (momentum 1 of gradients of length 1 in l1), fgsm (one step of eps)."""
    net, x, point = copy.deepcopy(net).double(), x.double(), start.double()
    total, path = torch.zeros_like(x), []
    for _ in range(1 if kind == "fgsm" else STEPS):
        leaf = point.clone().requires_grad_()
        (grad,) = torch.autograd.grad((cw if kind == "cw" else ce)(net(leaf), y).sum(), leaf)
        if kind == "mim":
            total = total + grad / grad.flatten(1).abs().sum(1).view(-1, 1, 1, 1)
            grad = total
        point = project(x, point + (EPS if kind == "fgsm" else STEP)[norm] * steepest(grad, norm), norm, EPS[norm])
        path.append(point)
    return path


class Exact(Judge):
    """A judge whose logits stay in float64."""

    def raw(self, x):
        return self.model(x)


def iterates(judge, net, x, y, norm, kind):
    """(composer's iterate, the formula's) after each number of steps."""
    rows, draws = torch.arange(len(y)), Draws(3, "a")
    loss = Ref("loss", "cw", {"confidence": 50.0}) if kind == "cw" else Ref("loss", "ce", {})
    uniform = kind != "fgsm" and norm == "linf"
    start = project(x, x + EPS[norm] * (2 * draws.rows("uniform", "0", rows, x) - 1), norm, EPS[norm]) if uniform else x
    for steps, want in enumerate(reference(net, x, y, start, norm, kind), 1):
        options = {"step": EPS[norm]} if kind == "fgsm" else {"step": STEP[norm], "steps": steps, **({"mu": 1.0} if kind == "mim" else {})}
        attack = Attack({"cw": "pgd"}.get(kind, kind), loss, EPS[norm], Ref("ball", norm, {}), Ref("start", "uniform" if uniform else "zero", {}), options)
        yield attack_points(attack, judge, x, y, rows, draws, climb=Climb(judge, x, y, loss)), want


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["pgd", "cw", "mim", "fgsm"])
def test_every_iterate_is_that_of_the_paper(trained, digits, norm, kind):
    """The attacks as they run, but in float64: every pixel of every image."""
    net, x, y = copy.deepcopy(trained).double(), digits["test"][0][:60].double(), digits["test"][1][:60]
    with undisturbed(net) as plain:
        for got, want in iterates(Exact(plain.model), net, x, y, norm, kind):
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", ["pgd", "cw", "mim", "fgsm"])
def test_in_float32_they_are_the_same_but_where_a_sign_tips(trained, digits, norm, kind):
    x, y = digits["test"]
    unsure = nn.functional.cross_entropy(trained(x), y, reduction="none") > 0.05     # where p_y is near 1, float32 knows the direction to two digits only
    with undisturbed(trained) as judge:
        for got, want in iterates(judge, trained, x[unsure][:60], y[unsure][:60], norm, kind):
            close = (got.double() - want).abs().amax((1, 2, 3)) < 1e-4
            assert float(close.double().mean()) >= (0.95 if norm == "linf" else 1.0), (got - want).abs().amax((1, 2, 3)).topk(5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("use", ["pgd", "mim", "cw", "spsa", "fgsm"])
def test_points_stay_inside_the_ball(trained, digits, norm, use, monkeypatch):
    """Every point that is judged lies within eps of an image and in [0,1]."""
    x, y = (part[:12] for part in digits["test"])
    eps = {"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm]
    asked: list[torch.Tensor] = []
    real = Judge.correct

    def correct(self, points, labels):
        asked.append(points.detach().clone())
        return real(self, points, labels)

    monkeypatch.setattr(Judge, "correct", correct)
    monkeypatch.setattr(protocol, "_seen", lambda judge, x, *_: protocol.probe(judge, x))        # the trust checks ask about far points too
    from composer.recipe.types import Threat

    threat = Threat(Ref("ball", norm), eps, eps / 2, 4, Ref("start", "uniform" if norm == "linf" else "zero"))
    options = {"samples": 8, "steps": 3, "lr": 0.1} if use == "spsa" else {}
    evaluate(trained, x, y, [MeasureSpec("a", use, options)], threat=threat, seed=0)
    sizes = {"linf": lambda d: d.abs().amax(1), "l2": lambda d: d.norm(dim=1), "l1": lambda d: d.abs().sum(1)}[norm]
    for points in asked:
        assert points.min() >= 0 and points.max() <= 1
        nearest = torch.stack([sizes((points - one).double().flatten(1)) for one in x]).amin(0)
        assert (nearest <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("change", ["bf16", "channels_last", "compiled", "inner", "autocast"])
def test_other_precisions_and_layouts_are_judged_on_a_plain_copy(digits, threat, change):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    net.train()
    plain = copy.deepcopy(net)
    if change == "bf16":
        net, plain = net.bfloat16(), copy.deepcopy(net.bfloat16()).float()
    elif change == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    elif change == "compiled":
        net.compile(backend="eager")
    elif change == "inner":
        net[0] = torch.compile(net[0], backend="eager")
    x, y = (part[:20] for part in digits["test"])
    y = plain.eval()(x).argmax(1)
    specs = [MeasureSpec("p", "pgd", {"steps": 3}), MeasureSpec("a", "apgd_t", {"steps": 4})]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    tracer = sys.gettrace()
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        found = evaluate(net, x, y, specs, threat=threat, seed=0)
        assert torch.is_autocast_enabled("cpu") == (change == "autocast")
    want = evaluate(plain, x, y, specs, threat=threat, seed=0)
    assert all(torch.equal(found.flags[name], want.flags[name]) for name in ("p", "a"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2] and torch.equal(torch.get_rng_state(), states[2]) and sys.gettrace() is tracer
    assert net.training and all(m.training for m in net.modules()) and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.requires_grad and torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())


def test_a_plain_model_is_judged_itself():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert plainly(net) is net
    assert plainly(torch.compile(net, backend="eager")) is net
    copied = plainly(copy.deepcopy(net).half())
    assert copied[0].weight.dtype == torch.float32 and copied[1].running_mean.dtype == torch.float32
