"""What pyautoattack does that composer works around. A test that fails here says that upstream changed: look whether the workaround may go."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pyautoattack = pytest.importorskip("pyautoattack")


class Toy(nn.Module):
    def __init__(self, classes: int = 10):
        super().__init__()
        self.layer = nn.Linear(32, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(classes, 32, generator=torch.Generator().manual_seed(0)))
            self.layer.bias.zero_()

    def forward(self, x):
        return self.layer(x.reshape(len(x), -1) - 0.5)


def images(model: nn.Module, n: int = 8):
    x = torch.rand((n, 2, 4, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


def suite(model, version: str = "standard", eps: float = 0.05, **more):
    made = pyautoattack.AutoAttack(model, eps=eps, norm="Linf", version=version, seed=0, **more)
    for attack in (made.apgd, made.apgd_targeted, made.fab):
        attack.n_iter = 3
    made.square.n_queries = 10
    return made


@pytest.fixture(autouse=True)
def unmoved():
    """These tests provoke what composer prevents; the rest of the run shall not notice."""
    tracer = sys.gettrace()
    from pyautoattack import checks

    counters = dict(checks.funcs)
    with torch.random.fork_rng():
        yield
    sys.settrace(tracer)
    checks.funcs.update(counters)


def test_the_interface_that_is_called():
    ctor = inspect.signature(pyautoattack.AutoAttack).parameters
    assert {name: p.default for name, p in ctor.items() if name != "model"} == {
        "attacks": None, "device": "cpu", "eps": 0.3, "norm": "Linf", "seed": None, "version": "standard"}
    made = pyautoattack.AutoAttack(Toy(), eps=0.1, seed=0)
    assert made.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for attack in (made.apgd, made.apgd_targeted, made.fab, made.square):
        assert callable(attack.perturb)
        assert {"seed", "device"} <= set(vars(attack))


def test_standard_settings():
    made = pyautoattack.AutoAttack(Toy(), eps=0.1, seed=0)
    assert (made.apgd.n_iter, made.apgd.n_restarts, made.apgd_targeted.n_iter, made.apgd_targeted.n_restarts) == (100, 1, 100, 1)
    assert (made.fab.n_iter, made.fab.n_restarts, made.square.n_queries, made.square.p_init) == (100, 1, 5000, 0.8)
    assert (made.apgd_targeted.n_target_classes, made.fab.n_target_classes) == (9, 9)


def test_custom_keeps_five_restarts():
    made = pyautoattack.AutoAttack(Toy(), eps=0.1, seed=0, version="custom", attacks=["apgd-ce"])
    assert (made.apgd.n_restarts, made.fab.n_restarts) == (5, 5)


def test_its_own_resume_does_not_work(tmp_path: Path):
    model = Toy()
    x, y = images(model)
    state = tmp_path / "state.json"
    suite(model).run_standard_evaluation(x, y, state_path=state)
    with pytest.raises(ValueError, match="different set of attacks"):
        suite(model).run_standard_evaluation(x, y, state_path=state)


@pytest.mark.parametrize(("attack", "classes"), [("apgd_targeted", 4), ("apgd_targeted", 8), ("fab", 8)])
def test_fewer_than_ten_classes_need_fewer_targets(attack, classes):
    model = Toy(classes)
    x, y = images(model, 24)
    made = suite(model, eps=1e-4)
    made.fab.targeted = True
    with pytest.raises(IndexError):
        getattr(made, attack).perturb(x, y)
    getattr(made, attack).n_target_classes = classes - 1
    with torch.no_grad():
        getattr(made, attack).perturb(x, y)


def test_the_targeted_dlr_needs_four_classes_and_dlr_three():
    for classes, loss in ((3, "dlr-targeted"), (2, "dlr-targeted"), (2, "dlr")):
        model = Toy(classes)
        x, y = images(model, 24)
        made = suite(model)
        made.apgd_targeted.n_target_classes = classes - 1
        attack = made.apgd if loss == "dlr" else made.apgd_targeted
        attack.loss = loss
        with pytest.raises(IndexError):
            attack.perturb(x, y)


def test_fab_fills_parameter_gradients_unless_frozen():
    model = Toy()
    x, y = images(model)
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        made = suite(model)
        made.fab.targeted = True
        made.fab.perturb(x, y)
        assert (model.layer.weight.grad is None) == frozen


def test_an_attack_seeds_the_global_generator():
    model = Toy()
    x, y = images(model)
    made = suite(model)
    after = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made.apgd.perturb(x, y)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_the_perturbation_depends_on_the_cut_into_batches():
    model = Toy()
    x, y = images(model, 16)
    made = suite(model, eps=0.3)
    whole = made.square.perturb(x, y)
    halves = torch.cat([made.square.perturb(x[:8], y[:8]), made.square.perturb(x[8:], y[8:])])
    assert not torch.equal(whole, halves)


def test_the_check_for_dynamic_defences_takes_the_tracer_away():
    from pyautoattack import checks

    def tracer(*_):
        return None

    sys.settrace(tracer)
    checks.check_dynamic(Toy(), torch.rand(2, 2, 4, 4))
    left = sys.gettrace()
    sys.settrace(None)
    assert left is None


def test_square_needs_float32_logits_and_writes_into_them():
    model = Toy().bfloat16()
    x, y = images(Toy())
    half = suite(lambda images: model(images.bfloat16()))
    with pytest.raises(RuntimeError):
        half.square.perturb(x, y)
    kept = []

    def remembering(images):
        with torch.no_grad():
            kept.append(Toy()(images))
        return kept[-1]

    suite(remembering).square.perturb(x, y)
    assert any(torch.isinf(logits).any() for logits in kept)


def test_gradients_must_be_contiguous():
    from pyautoattack.checks import check_zero_gradients

    with pytest.raises(RuntimeError, match="view"):
        check_zero_gradients(torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))


def test_it_fails_under_inference_mode():
    model = Toy()
    x, y = images(model)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        suite(model).apgd.perturb(x, y)


def test_images_outside_the_range_are_clamped_without_a_word():
    model = Toy()
    x, _ = images(model)
    x = 2 * x - 1
    with torch.no_grad():
        y = model(x).argmax(1)
    found, _ = suite(model, eps=1e-6).run_standard_evaluation(x, y)
    assert float((found - x).abs().max()) > 0.1
