from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from composer._testing.inners import climb_of
from composer.errors import ComposerError
from composer.testing import contracts, linear_model, plugin, tensors
from composer.views import margin_soft

mma = plugin(__file__)


def test_contracts():
    contracts("loss", mma.slm)
    contracts("inner", mma.bisect)
    contracts("part", mma.eps_memory)


def test_soft_logit_margin_by_hand_and_as_minus_the_soft_margin():
    z = torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    want = [math.log(math.exp(1.0) + math.exp(-1.0)) - 2.0, math.log(2.0) - 3.0]
    y = torch.tensor([1, 0])
    torch.testing.assert_close(mma.slm(z, y), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    t = tensors(n=16, dtype=torch.float64)
    torch.testing.assert_close(mma.slm(t["logits"], t["y"]), -margin_soft(t["logits"], t["y"], beta=1.0), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: mma.slm(v, t["y"]), t["logits"].clone().requires_grad_(), eps=1e-6, atol=1e-8)


def scene(cap, radius=0.005, steps=10):
    """A linear model of two classes, where the soft margin is the exact one, attacked along the best direction."""
    t = tensors(n=8, classes=2, dtype=torch.float64)
    model, x, y = t["model"], t["x"], t["y"]
    w = model.head.weight.detach()
    unit = -(w[y] - w[1 - y]).sign().view_as(x)
    rows = torch.full((8,), radius, dtype=torch.float64)
    climb = climb_of(model, y, lambda z, l: margin_soft(z, l, beta=1.0))
    made = mma.bisect(x, climb, cap, {}, x + radius * unit, rows, steps=steps)
    return model.margin(x, y), made, x


def test_bisection_lands_on_the_boundary_within_its_tolerance():
    for steps in (10, 16):
        exact, made, x = scene(0.08, steps=steps)
        right = exact > 0
        assert right.any() and (exact[right] < 0.08).all()
        tolerance = 1.05 * 0.08 / 2**(steps - 1)            # the first look, at the old radius, need not halve the bracket
        assert ((made["eps"] - exact)[right].abs() <= tolerance).all()
        torch.testing.assert_close((made["point"] - x).abs().amax((1, 2, 3)), made["eps"], rtol=1e-9, atol=1e-9)
        assert (made["in"] == 1).all()


def test_wrong_images_stay_where_they_are_and_count():
    exact, made, x = scene(0.08)
    wrong = exact <= 0
    assert wrong.any() and torch.equal(made["point"][wrong], x[wrong])
    assert (made["eps"][wrong] == 0).all() and (made["in"][wrong] == 1).all()


def test_beyond_the_cap_an_image_does_not_count():
    exact, made, _ = scene(0.02)
    far = exact > 1.05 * 0.02
    near = (exact > 0) & (exact < 0.019)
    assert far.any() and near.any()
    assert (made["in"][far] == 0).all() and (made["in"][near] == 1).all()
    assert (made["eps"][far] <= 1.05 * 0.02).all() and (made["eps"][far] > 0.02).all()


def test_a_direction_that_never_leaves_the_class_ends_at_the_end_of_the_bracket():
    model = linear_model(2, (1, 2, 2), dtype=torch.float64)
    x = torch.full((2, 1, 2, 2), 0.3, dtype=torch.float64)          # at 0.5 both logits are 0 but for rounding, which processors do in different ways
    y = model(x).argmax(1)
    assert (model.margin(x, y) > 0.01).all()
    made = mma.bisect(x, climb_of(model, y, lambda z, l: margin_soft(z, l, beta=1.0)), 0.1, {}, x, torch.full((2,), 0.01).double())
    assert (made["in"] == 0).all() and (made["eps"] > 0.1).all() and torch.equal(made["point"], x)


def test_forwards_are_those_declared():
    from composer.registry import REGISTRY

    t = tensors(n=4, classes=2, dtype=torch.float64)
    seen = []
    plain = climb_of(t["model"], t["y"], lambda z, l: margin_soft(z, l, beta=1.0))

    def climb(*, point, grad=True):
        seen.append(grad)
        return plain(point=point, grad=grad)

    mma.bisect(t["x"], climb, 0.1, {}, t["x_adv"], torch.full((4,), 0.01).double(), steps=7)
    assert (seen.count(True), seen.count(False)) == REGISTRY.get("inner", "bisect").flags["cost"]({"steps": 7})


def test_memory():
    part = mma.eps_memory(floor=0.005)
    part.start(SimpleNamespace(train_size=6, device=torch.device("cpu")))
    i = torch.tensor([4, 1])
    torch.testing.assert_close(part.read(i)["eps"], torch.tensor([0.005, 0.005]))
    part.after_step(i, torch.tensor([0.03, 0.0]))
    torch.testing.assert_close(part.read(torch.tensor([1, 4, 0]))["eps"], torch.tensor([0.005, 0.03, 0.005]))
    with pytest.raises(ComposerError, match="eps_memory"):
        part.load_state_dict({"eps": torch.zeros(3)})
