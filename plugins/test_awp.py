from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from composer.testing import contracts, linear_model, plugin

awp = plugin(__file__).awp


def climb_with(gradients):
    return lambda *, point: SimpleNamespace(grads={"point": gradients})


def test_contracts():
    contracts("inner", awp)


def test_each_tensor_moves_by_a_share_of_its_own_length():
    """||v||_F = gamma ||w||_F along the gradient, tensor by tensor; biases, gains of norms and tensors not called weight stay."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "norm.weight": (4,), "fc.weight": (2, 4), "scale": (2, 2)}
    live = {k: torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for k, s in shapes.items()}
    gradients = {k: torch.randn(s, generator=generator, dtype=torch.float64) for k, s in shapes.items()}
    made = awp(live, climb_with(gradients), None, {}, gamma=0.3)["point"]
    for name in ("conv.weight", "fc.weight"):
        length = sum(float(v) ** 2 for v in live[name].detach().flatten()) ** 0.5
        slope = sum(float(v) ** 2 for v in gradients[name].flatten()) ** 0.5
        torch.testing.assert_close(made[name] - live[name], 0.3 * length / slope * gradients[name], rtol=1e-12, atol=1e-12)
    assert all(made[name] is live[name] for name in ("conv.bias", "norm.weight", "scale"))


def test_a_weight_without_gradient_stays():
    live = {"fc.weight": torch.ones(2, 2, dtype=torch.float64)}
    made = awp(live, climb_with({"fc.weight": torch.zeros(2, 2, dtype=torch.float64)}), None, {}, gamma=0.3)["point"]
    assert torch.equal(made["fc.weight"], live["fc.weight"])


def test_to_first_order_the_loss_rises_by_gamma_times_the_lengths():
    """L(w + v) - L(w) = gamma sum_l ||w_l|| ||g_l|| + O(gamma^2), by finite difference on a linear model."""
    model = linear_model(3, dtype=torch.float64)
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    live = dict(model.named_parameters())

    def loss(point):
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, point, (x,)), y)

    gradients = dict(zip(live, torch.autograd.grad(loss(live), list(live.values()))))
    gamma = 1e-6
    made = awp(live, climb_with(gradients), None, {}, gamma=gamma)["point"]
    expected = gamma * live["head.weight"].norm() * gradients["head.weight"].norm()
    assert float((loss(made) - loss(live)).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
