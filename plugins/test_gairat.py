from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from composer.errors import ComposerError
from composer.registry import REGISTRY
from composer.testing import contracts, plugin, tensors

module = plugin(__file__)
gairat, ga_pgd = module.gairat, module.ga_pgd


def test_contracts():
    contracts("gain", gairat)
    contracts("inner", ga_pgd)


@pytest.mark.parametrize("steps", [10, 7, 1])
@pytest.mark.parametrize("lam", [-1.0, 0.0, 2.5])
def test_weights_by_hand(steps, lam):
    """Scalars only; h is half the steps, rounded down (and one, where that would be none)."""
    kappa = [k for k in (0, 1, 3, 5, 7, 10) if k <= steps]
    half = max(1, int(steps / 2))
    slope = [lam + 5 * (half - k) / half for k in kappa]
    expected = {"tanh": [(math.tanh(s) + 1) / 2 for s in slope], "sigmoid": [1 / (1 + math.exp(-s)) for s in slope],
                "discrete": [(steps + 1 - k) / (steps + 1) for k in kappa]}
    for assign, values in expected.items():
        made = gairat(torch.tensor(kappa, dtype=torch.float64), lam=lam, assign=assign, steps=steps)
        torch.testing.assert_close(made, torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        assert made.diff().le(0).all(), "what withstands more steps weighs less"


def climb_of(model, y, looks):
    """Cross entropy of a linear model; every point it is asked about is remembered."""
    def climb(*, point, grad=True):
        looks.append(point.detach().clone())
        leaf = point.detach().requires_grad_()
        logits = model(leaf)
        value = torch.nn.functional.cross_entropy(logits, y, reduction="none")
        return SimpleNamespace(objective=value.detach(), grads={"point": torch.autograd.grad(value.sum(), leaf)[0]}, tensors={"logits": logits.detach()})
    return climb


def given(n=24, steps=6, eps=0.016):
    t = tensors(n, 10, 0, torch.float64)
    noise = torch.rand(t["x"].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    options = {"step": eps / 4, "steps": steps, "start": REGISTRY.get("start", "uniform").fn, "norm": REGISTRY.get("ball", "linf").fn}
    return t, {"start": [noise]}, eps, options


def test_points_are_those_of_pgd_and_kappa_counts_the_iterates_before_the_end():
    t, draws, eps, options = given()
    looks: list = []
    made = ga_pgd(t["x"], climb_of(t["model"], t["y"], looks), eps, draws, t["y"], **options)
    plain = REGISTRY.get("inner", "pgd").fn(t["x"], climb_of(t["model"], t["y"], []), eps, draws, **options)
    assert torch.equal(made["point"], plain["point"]) and len(looks) == 6
    by_hand = sum((t["model"](point).argmax(1) == t["y"]).double() for point in looks)
    assert torch.equal(made["kappa"], by_hand)
    assert 0 < float(by_hand.max()) and float(by_hand.min()) == 0 and len(set(by_hand.tolist())) > 2


def test_no_steps():
    t, draws, eps, options = given(steps=0)
    made = ga_pgd(t["x"], climb_of(t["model"], t["y"], []), eps, draws, t["y"], **options)
    assert (made["kappa"] == 0).all() and float((made["point"] - t["x"]).abs().max()) <= eps


def test_an_objective_without_logits_is_told():
    t, draws, eps, options = given(steps=1)
    blind = lambda *, point: SimpleNamespace(grads={"point": torch.zeros_like(point)}, tensors={})
    with pytest.raises(ComposerError, match="counts how often"):
        ga_pgd(t["x"], blind, eps, draws, t["y"], **options)
