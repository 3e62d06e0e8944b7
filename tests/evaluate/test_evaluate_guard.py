from __future__ import annotations

import random
import sys

import numpy
import pytest
import torch
from torch import nn

from composer.evaluate.guard import Judge, undisturbed
from composer.evaluate.protocol import evaluate
from composer.recipe.types import MeasureSpec


def test_judging_leaves_no_trace(trained, digits, threat, quick_autoattack):
    quick_autoattack()
    x, y = digits["test"][0][:20], digits["test"][1][:20]
    trained.train()
    trained[2].eval()
    trained[1].weight.requires_grad_(False)
    trained[4].weight.grad = held = torch.ones_like(trained[4].weight)
    modes, before = [m.training for m in trained.modules()], {k: v.clone() for k, v in trained.state_dict().items()}
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), numpy.random.rand(), torch.rand(1))
    random.seed(1)
    numpy.random.seed(1)
    torch.manual_seed(1)

    def tracer(*_):
        return None

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        evaluate(trained, x, y, [MeasureSpec("aa", "aa", {}), MeasureSpec("p", "pgd", {})], threat=threat, seed=0)
        kept = sys.gettrace()
    finally:
        sys.settrace(outer)
    try:
        assert kept is tracer
        assert (random.random(), numpy.random.rand(), torch.rand(1)) == expected
        assert [m.training for m in trained.modules()] == modes
        assert trained[4].weight.grad is held
        assert torch.equal(held, torch.ones_like(held))
        assert [p.requires_grad for p in trained.parameters()] == [False, True, True, True, True, True]
        assert all(p.grad is None for p in trained.parameters() if p is not trained[4].weight)
        assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    finally:
        trained[1].weight.requires_grad_(True)
        trained.zero_grad()
        trained.eval()


def test_what_is_changed_is_put_back_after_an_error(trained):
    trained.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(trained):
        assert not trained.training
        torch.rand(3)
        sys.settrace(None)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.training
    assert all(p.requires_grad for p in trained.parameters())
    trained.eval()


def test_a_bare_function_keeps_its_parameters_gradients(trained, digits, threat, quick_autoattack):
    quick_autoattack()
    x, y = digits["test"][0][:20], digits["test"][1][:20]
    module = evaluate(trained, x, y, [MeasureSpec("aa", "aa", {})], threat=threat, seed=0)
    function = evaluate(lambda images: trained(images), x, y, [MeasureSpec("aa", "aa", {})], threat=threat, seed=0)
    assert all(p.grad is None for p in trained.parameters())
    assert torch.equal(module.flags["aa"], function.flags["aa"])


def test_the_wall_passes_the_input_gradient(trained, digits):
    x = digits["test"][0][:6].clone().requires_grad_()
    with torch.enable_grad():
        (expected,) = torch.autograd.grad(trained(x).square().sum(), x)
    found = Judge(lambda images: trained(images))(x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert torch.allclose(gradient, expected, rtol=1e-6, atol=0)


def test_channels_last_and_half_precision_models_are_judged(digits, threat, quick_autoattack):
    quick_autoattack()
    x, y = digits["test"][0][:16], digits["test"][1][:16]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 10))
    y = net(x).argmax(1)                      # so that there is something to attack
    for model in (net.to(memory_format=torch.channels_last), net.bfloat16()):
        found = evaluate(model, x, y, [MeasureSpec("aa", "aa", {})], threat=threat, seed=0)
        assert found.metrics["aa"] < 1
        assert found.details["aa"]["wrong_answers"] == 0


def test_the_eager_module_behind_a_compiled_one_is_judged(trained):
    class Compiled(nn.Module):
        _orig_mod = trained

    assert Judge(Compiled()).model is trained


def test_inference_mode_around_is_no_hindrance(trained, digits, threat):
    with torch.inference_mode():
        x, y = digits["test"][0][:20] * 1, digits["test"][1][:20] * 1
        inside = evaluate(trained, x, y, [MeasureSpec("p", "pgd", {})], threat=threat, seed=0)
    outside = evaluate(trained, digits["test"][0][:20], digits["test"][1][:20], [MeasureSpec("p", "pgd", {})], threat=threat, seed=0)
    assert torch.equal(inside.flags["p"], outside.flags["p"])


def test_logits_that_are_not_finite_answer_nothing():
    def broken(x):
        return torch.stack((x.flatten(1).mean(1) * torch.inf, torch.zeros(len(x))), 1)

    assert not Judge(broken).correct(torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)).any()
