from __future__ import annotations

import pytest
import torch

from composer.testing import contracts, plugin, tensors

input_gradient = plugin(__file__).input_gradient


def test_contracts():
    contracts("loss", input_gradient)


def given(n: int = 6):
    t = tensors(n=n, dtype=torch.float64)
    x = t["x"].clone().requires_grad_()
    return t, t["model"](x), x


def test_on_a_linear_network_it_is_the_error_times_the_weights():
    t, z, x = given()
    error = z.detach().softmax(1) - torch.nn.functional.one_hot(t["y"], 10)
    torch.testing.assert_close(input_gradient(z, t["y"], x).detach(), (error @ t["head_weight"]).square().sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [3, 6])
def test_tf_is_half_the_square_of_the_gradient_of_the_mean_loss(n):
    """As the authors' program has it: the L2 loss of the gradient of one scalar. `mean` is 2 N times that."""
    t, z, x = given(n)
    (g,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, t["y"]), x, retain_graph=True)
    half = 0.5 * g.square().sum()
    torch.testing.assert_close(input_gradient(z, t["y"], x, scale="tf").mean().detach(), half, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(input_gradient(z, t["y"], x).mean().detach(), 2 * n * half, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_parameter_gradients_equal_finite_differences(train):
    """The error carries its gradient, through batch norm in either mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5, momentum=0.0), torch.nn.Tanh(),
                                    torch.nn.Linear(5, 3)).double().train(train)
    model[2].running_var.fill_(0.3)
    x, y = torch.rand(6, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])

    def value(*parameters):
        named = dict(zip([name for name, _ in model.named_parameters()], parameters))
        at = x.clone().requires_grad_()
        return input_gradient(torch.func.functional_call(model, named, (at,)), y, at).mean()

    assert torch.autograd.gradcheck(value, [p.detach().clone().requires_grad_() for p in model.parameters()], eps=1e-6, atol=1e-8, rtol=1e-6)
