"""The mode `fast`: the same algorithms, every image with its own random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate import autoattack, fold, luck, quick
from composer.evaluate.autopgd import dlr, dlr_targeted, window
from composer.evaluate.draws import Draws
from composer.evaluate.fold import folded
from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.store import Slot
from composer.options import Ref

EPS = {"linf": 0.15, "l2": 0.5, "l1": 1.5}


def attack(model, x, y, mode, norm="linf", batch_size=250, eps=None, seed=0, version="standard", **more):
    with undisturbed(model) as judge:
        return autoattack.run_autoattack(judge, x, y, Draws(seed, "evaluate/aa"), batch_size, lambda *_: None, Slot(None, ""), version=version,
                                         eps=eps or EPS[norm], norm=Ref("ball", norm), mode=mode, **more)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t", "square"])
def test_with_the_librarys_random_numbers_the_same_images_fall(trained, digits, name, norm):
    """In l1 APGD's step follows how many pixels of its best point are exactly still, which rounding decides: there a few images go either way."""
    x, y = digits["test"]
    right = trained(x).argmax(1) == y
    x, y = x[right], y[right]
    settings = {"n_queries": 150} if name == "square" else {"n_iter": 20, "n_restarts": 2 if norm == "l2" else 1}
    for seed in (0, 1):
        exact, fast = (attack(trained, x, y, mode, norm, version="custom", attacks=(name,), seed=seed, **settings) for mode in ("exact", "fast"))
        assert int((exact.values != fast.values).sum()) <= (3 if norm == "l1" else 1), (name, norm, seed)
        assert 5 < int(fast.values.sum()) < len(y) - 5


def test_whole_autoattack_leaves_the_librarys_images_standing(trained, digits):
    x, y = digits["test"][0][:100], digits["test"][1][:100]
    for seed in (0, 1, 2):
        exact, fast = (attack(trained, x, y, mode, seed=seed, n_iter=25, n_queries=150) for mode in ("exact", "fast"))
        assert int((exact.values != fast.values).sum()) <= 1
        assert list(fast.details["robust_after"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["fab-t", "fab"])
def test_fab_has_no_randomness_and_agrees_image_by_image(trained, digits, norm, name):
    x, y = digits["test"][0][:80], digits["test"][1][:80]
    settings = {"n_iter": 12, **({"n_restarts": 1} if name == "fab" else {})}
    exact, fast = (attack(trained, x, y, mode, norm, only=name, **settings) for mode in ("exact", "fast"))
    assert int((exact.values != fast.values).sum()) <= 1
    assert 0 < int(fast.values.sum()) < int(fast.extra["clean"].sum())
    assert fast.details["wrong_answers"] == 0


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "square"])
def test_neither_batch_size_nor_images_of_later_groups_change_an_answer(trained, digits, monkeypatch, norm, name):
    monkeypatch.setattr(luck, "GROUP", 20)
    monkeypatch.setattr(autoattack, "GROUP", 20)
    x, y = digits["test"][0][:40], digits["test"][1][:40]
    settings = {"n_queries": 60} if name == "square" else {"n_iter": 10}
    whole = attack(trained, x, y, "fast", norm, only=name, **settings)
    assert whole.details["wrong_answers"] == 0 and int(whole.values.sum()) < int(whole.extra["clean"].sum())
    assert torch.equal(whole.values, attack(trained, x, y, "fast", norm, batch_size=7, only=name, **settings).values)
    assert torch.equal(whole.values, attack(trained, x, y, "fast", norm, batch_size=33, only=name, **settings).values)
    standing = whole.extra["clean"].nonzero().flatten()                       # groups are of images under attack
    first = int(standing[19]) + 1
    assert torch.equal(whole.values[:first], attack(trained, x[:first], y[:first], "fast", norm, only=name, **settings).values)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0), ("l1", float("inf"))])
@pytest.mark.parametrize("name", ["apgd-ce", "fab-t"])
def test_a_linear_model_falls_exactly_within_its_radius(two_classes, norm, dual, name):
    x, y = two_classes.images(120)
    radius = two_classes.radius(x, y, dual)
    eps = float(radius[radius > 0].quantile(0.1 if norm == "l1" else 0.4).clamp_max(0.19))
    found = attack(two_classes, x, y, "fast", norm, eps=eps, only=name, n_iter=40).values
    sure = ((radius - eps).abs() > 0.02 * eps) | (radius < 0)
    assert torch.equal(found[sure], (radius > eps)[sure]) and int(((radius > 0) & (radius < 0.98 * eps)).sum()) > 3


def test_square_comes_within_a_twentieth_of_the_best_point(two_classes):
    x, y = two_classes.images(60)
    radius = two_classes.radius(x, y, 1.0)
    eps = float(radius[radius > 0].median().clamp_max(0.19))
    found = attack(two_classes, x, y, "fast", eps=eps, only="square", n_queries=1500).values
    assert found[radius > eps * 1.001].all() and not found[(radius <= eps * 0.95)].any()


@pytest.mark.parametrize("classes", [2, 3, 4, 8, 100])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_any_number_of_classes_in_a_batch_of_one(classes, mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, classes))
    x = torch.rand(6, 2, 4, 4)
    y = net(x).argmax(1)
    names = tuple(name for name in ("apgd-ce", "apgd-dlr", "apgd-t") if classes > {"apgd-t": 3, "apgd-dlr": 2}.get(name, 1))
    for name in (*names, "fab", "fab-t", "square"):
        found = attack(net, x, y, mode, batch_size=1, eps=0.02, only=name, **({"n_queries": 20} if name == "square" else {"n_iter": 3}))
        assert found.values.shape == (6,) and found.details["wrong_answers"] == 0
    if classes < 4:
        with pytest.raises(ComposerError, match="apgd-t on"):
            attack(net, x, y, mode, eps=0.02, only="apgd-t")


def test_versions(trained, digits):
    x, y = digits["test"][0][:12], digits["test"][1][:12]
    small = {"n_iter": 3, "n_queries": 5}
    plus = attack(trained, x, y, "fast", version="plus", **small)
    assert plus.details["attacks"] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    rand = attack(trained, x, y, "fast", version="rand", **small)
    assert rand.details["attacks"] == ["apgd-ce", "apgd-dlr"] and rand.details["mode"] == "exact"
    custom = attack(trained, x, y, "exact", version="custom", attacks=("square", "apgd-dlr"), **small)
    assert list(custom.details["robust_after"]) == ["square", "apgd-dlr"]
    for wrong in ({"version": "custom"}, {"version": "standard", "attacks": ("square",)}, {"version": "custom", "attacks": ("pgd",)}):
        with pytest.raises(ComposerError):
            attack(trained, x, y, "exact", **wrong)


def test_losses_and_checkpoints_are_the_librarys(trained, digits):
    from pyautoattack import AutoAttack

    suite = AutoAttack(trained, eps=0.1, seed=0)
    z, y = torch.randn(50, 10), torch.randint(0, 10, (50,))
    assert torch.allclose(dlr(z, y, y), suite.apgd.dlr_loss(z, y))
    target = (y + 3) % 10
    suite.apgd_targeted.y_target = target
    assert torch.allclose(dlr_targeted(z, y, target), suite.apgd_targeted.dlr_loss_targeted(z, y))
    assert [i + 1 for i, k in enumerate(window(100)) if k] == [22, 41, 57, 70, 80, 87, 93, 99]


def test_folding_keeps_the_answers_and_gives_up_politely(digits):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    x = digits["test"][0][:20]
    with undisturbed(net.eval()) as judge:
        other, note = folded(judge, x)
        assert "1 of 1 batch norms folded" in note and torch.allclose(other(x), judge(x), atol=1e-4)
        assert other.calls == judge.calls
        fused, note = fold._fused(judge, x)                 # where the packed calls are missing
        assert note == "1 of 1 batch norms folded" and torch.allclose(fused(x), judge(x), atol=1e-4)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.module.modules()) and isinstance(net[1], nn.BatchNorm2d)
    assert folded(Judge(lambda x: net(x)), x)[1].startswith("plain")

    class Branching(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10] if x.sum() > 0 else x.flatten(1)[:, 1:11]

    assert folded(Judge(Branching()), x)[1].startswith("plain")


def test_what_only_the_folded_network_gets_wrong_stays_robust(trained, digits, monkeypatch):
    """The search is misled by another network; the plain one has the last word."""
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).requires_grad_(False)
    monkeypatch.setattr(quick, "folded", lambda judge, x: (Judge(other, judge.meter), "another"))
    x, y = digits["test"][0][:50], digits["test"][1][:50]
    found = attack(trained, x, y, "fast", eps=0.01, only="apgd-ce", n_iter=5)
    assert found.details["wrong_answers"] > 20 and int(found.values.sum()) >= int(found.extra["clean"].sum()) - 2


def test_a_killed_fast_run_goes_on(trained, digits, threat, tmp_path, monkeypatch):
    from composer.evaluate.protocol import evaluate
    from composer.recipe.types import MeasureSpec

    monkeypatch.setattr(autoattack, "GROUP", 20)
    x, y = digits["test"][0][:50], digits["test"][1][:50]
    spec = [MeasureSpec("a", "apgd_ce", {"steps": 8, "mode": "fast"})]
    whole = evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=10).flags["a"]

    def stop(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=10, store=tmp_path, progress=stop)
    rest: list[int] = []
    again = evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=10, store=tmp_path, progress=lambda name, done, total: rest.append(done))
    assert rest == [2, 3] and torch.equal(again.flags["a"], whole)


@pytest.mark.parametrize("far", [0.01, 1.0, 10.0, 1e4])
def test_the_projection_is_the_linear_programs_and_the_librarys(far):
    """min r with |d| <= r, w·(t + d) = b and t + d in [0,1], by scipy; beyond the box's reach, as far as it goes. Images at the edge, weights of zero."""
    from pyautoattack.fab_projections import projection_linf
    from scipy.optimize import linprog

    from composer.evaluate.boundary import onto_linf

    generator = torch.Generator().manual_seed(3)
    t, w = torch.rand((30, 40), generator=generator, dtype=torch.float64), torch.randn((30, 40), generator=generator, dtype=torch.float64) ** 3
    t[:, :4], t[:, 4:8], w[:, 6:10], w[0] = 0, 1, 0, 0
    b = (w * t).sum(1) + far * torch.randn(30, generator=generator, dtype=torch.float64)
    found = onto_linf(t, w, b)
    torch.testing.assert_close(found[1:], projection_linf(t, w, b)[1:], rtol=0, atol=1e-12)
    assert (t + found).min() >= -1e-12 and (t + found).max() <= 1 + 1e-12 and not found[w == 0].any()
    one = np.ones((40, 1))
    for i in range(1, 30):
        bounds = [*zip(-t[i].numpy(), 1 - t[i].numpy(), strict=True), (0, None)]
        sides = np.block([[np.eye(40), -one], [-np.eye(40), -one]])
        best = linprog([0] * 40 + [1], sides, np.zeros(80), [[*w[i].tolist(), 0]], [float(b[i] - w[i] @ t[i])], bounds)
        short = float((w[i] * (t[i] + found[i])).sum() - b[i])
        assert (best.status == 0) == (abs(short) < 1e-9), (i, best.message, short)
        if best.status == 0:
            assert abs(best.fun - float(found[i].abs().max())) < 1e-9
    assert not onto_linf(t, torch.full_like(w, torch.nan), b).any(), "along an undefined slope nothing moves, and the search ends"
