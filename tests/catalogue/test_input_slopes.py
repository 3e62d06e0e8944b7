"""EMR and the effective margin: in closed form on a linear network, by Jacobians on others, double backwards against finite differences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from composer.losses import approx_emr, emr
from composer.testing import linear_model, tensors
from composer.views import effective_margin

N, K = 5, 4


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def network(smooth: bool = False) -> nn.Sequential:
    """Convolution, batch norm with statistics far from (0, 1), an activation, a linear layer; eval mode, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Softplus() if smooth else nn.ReLU(), nn.Flatten(), nn.Linear(12, K)).double().eval()
    norm = model[1]
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.3]))
        norm.weight.copy_(torch.tensor([1.5, 0.7, -1.1]))
        norm.bias.copy_(torch.tensor([0.1, 0.4, -0.3]))
    return model


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(9)
    return torch.rand(N, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(K, (N,), generator=g)


def slopes(model: nn.Module, x: Tensor) -> Tensor:
    """[N,K,D]: each logit's gradient, image by image."""
    return torch.stack([torch.autograd.functional.jacobian(lambda one: model(one)[0], image[None]).flatten(1) for image in x])


def leaf(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    return model(x), x


# -- values ----------------------------------------------------------------------------------------------------------------------------------------


def test_on_a_linear_network_emr_is_weight_decay() -> None:
    t = tensors(n=N, dtype=torch.float64)
    weight = t["model"].head.weight
    close(emr(*leaf(t["model"], t["x"])).detach(), weight.square().sum().expand(N).detach())
    (gradient,) = torch.autograd.grad(emr(*leaf(t["model"], t["x"])).mean(), weight)
    close(gradient, 2 * weight.detach())


@pytest.mark.parametrize("t", [0.1, 1.0, 40.0])
def test_on_a_linear_network_approximate_emr_is_a_mean_of_rows(t: float) -> None:
    given = tensors(n=N, dtype=torch.float64)
    p = torch.exp(given["clean_logits"] / t)
    rows = (p / p.sum(1, keepdim=True)) @ given["head_weight"]
    close(approx_emr(*leaf(given["model"], given["x"]), t=t).detach(), rows.square().sum(1))


def test_a_small_temperature_leaves_the_winner_and_a_large_one_the_mean() -> None:
    given = tensors(n=N, dtype=torch.float64)
    weight = given["head_weight"]
    close(approx_emr(*leaf(given["model"], given["x"]), t=1e-4).detach(), weight[given["clean_logits"].argmax(1)].square().sum(1))
    close(approx_emr(*leaf(given["model"], given["x"]), t=1e9).detach(), weight.mean(0).square().sum().expand(N), 1e-6)
    assert weight.mean(0).square().sum() < weight.square().sum() / len(weight), "the limit is the mean row squared, not the mean of squares"


@pytest.mark.parametrize("smooth", [False, True])
def test_values_equal_jacobians(images: tuple[Tensor, Tensor], smooth: bool) -> None:
    model, (x, y) = network(smooth), images
    rows, z = slopes(model, x), model(x).detach()
    close(emr(*leaf(model, x)).detach(), rows.square().sum((1, 2)))
    p = (z / 0.7).softmax(1)
    paper = (p[:, :, None] * rows).sum(1).square().sum(1)
    close(approx_emr(*leaf(model, x), t=0.7).detach(), paper)
    close(approx_emr(*leaf(model, x), t=0.7, scale="code").detach(), paper / N)
    z_leaf, x_leaf = leaf(model, x)
    want = [min((z[i, y[i]] - z[i, j]) / (rows[i, y[i]] - rows[i, j]).norm() for j in range(K) if j != y[i]) for i in range(N)]
    for grad in ("full", "numerator"):
        close(effective_margin(z_leaf, y, x_leaf, grad=grad).detach(), torch.stack(want))
    assert any(w < 0 for w in want) and any(w > 0 for w in want)


@pytest.mark.parametrize("n", [3, 8])
def test_the_codes_scale_is_the_square_of_the_gradient_of_the_batch_mean(images: tuple[Tensor, Tensor], n: int) -> None:
    """Written as the released program computes it: one scalar for the batch, its gradient, the sum of squares."""
    model, x = network(), images[0].repeat(2, 1, 1, 1)[:n]
    at = x.clone().requires_grad_()
    z = model(at)
    (g,) = torch.autograd.grad(((z / 2.0).softmax(1).detach() * z).sum(1).mean(), at)
    close(approx_emr(*leaf(model, x), t=2.0, scale="code").mean().detach(), g.square().sum())
    close(approx_emr(*leaf(model, x), t=2.0).mean().detach(), n * g.square().sum())


def test_the_effective_margin_of_a_linear_network_is_the_distance() -> None:
    """Known in closed form, the minimum over all classes: where the runner-up is not the nearest boundary it is smaller than the runner-up's."""
    model, t = linear_model(dtype=torch.float64), tensors(n=32, dtype=torch.float64)
    z, x = leaf(model, t["x"])
    got = effective_margin(z, t["y"], x).detach()
    close(got, model.margin(t["x"], t["y"], "l2"))
    y, gap = t["y"], z.detach().gather(1, t["y"][:, None]) - z.detach()
    runner = z.detach().scatter(1, y[:, None], float("-inf")).argmax(1)
    alone = gap.gather(1, runner[:, None])[:, 0] / (model.head.weight[y] - model.head.weight[runner]).detach().norm(dim=1)
    assert (got <= alone + 1e-12).all() and (got < alone - 1e-6).any()
    right = z.argmax(1) == y
    assert torch.equal(got > 0, right)


def test_a_step_of_the_effective_margin_reaches_the_boundary() -> None:
    model, t = linear_model(dtype=torch.float64), tensors(n=8, dtype=torch.float64)
    z, x = leaf(model, t["x"])
    m = effective_margin(z, t["y"], x)
    (away,) = torch.autograd.grad(m.sum(), x)
    stepped = t["x"] - m.detach().view(-1, 1, 1, 1) * away          # |d m / dx| = 1
    z, x = leaf(model, stepped)
    right = m.detach() > 0
    close(effective_margin(z, t["y"], x).detach()[right], torch.zeros(4, dtype=torch.float64))
    assert right.sum() == 4


# -- gradients -------------------------------------------------------------------------------------------------------------------------------------

TERMS = {
    "emr": lambda z, y, x: emr(z, x),
    "approx_emr, t constant": lambda z, y, x: approx_emr(z, x, t=0.7),
    "approx_emr, code": lambda z, y, x: approx_emr(z, x, t=0.7, scale="code"),
    "effective_margin": effective_margin,
}


def central(f: partial, p: Tensor, k: int, h: float) -> float:
    """Derivative of f along entry k of a parameter, fourth order in h."""
    flat, held = p.data.view(-1), float(p.data.view(-1)[k])
    values = []
    for step in (-2, -1, 1, 2):
        flat[k] = held + step * h
        values.append(float(f().detach()))
    flat[k] = held
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", TERMS)
def test_parameter_gradients_equal_finite_differences(images: tuple[Tensor, Tensor], name: str, train: bool) -> None:
    """Through batch norm in either mode. The softmax of approximate EMR is a constant, so the differences hold it where it is."""
    model, (x, y) = network(smooth=True).train(train), images
    norm = model[1]
    norm.momentum = 0.0                                     # in train mode the running statistics stay
    constant = model(x).detach() / 0.7

    def value(attached: bool = False) -> Tensor:
        z, at = leaf(model, x)
        if attached or not name.startswith("approx"):
            return TERMS[name](z, y, at).mean()
        (g,) = torch.autograd.grad((constant.softmax(1) * z).sum(), at)
        return g.square().flatten(1).sum(1).mean() / (N if "code" in name else 1)

    got = torch.autograd.grad(value(attached=True), list(model.parameters()), allow_unused=True)
    for p, gradient in zip(model.parameters(), got):
        for k in (0, p.numel() // 2, p.numel() - 1):
            want = central(partial(value), p, k, 1e-3)
            have = 0.0 if gradient is None else float(gradient.reshape(-1)[k])
            assert have == pytest.approx(want, abs=1e-8, rel=1e-8), (name, tuple(p.shape), k)


def test_a_numerators_gradient_holds_the_slope(images: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = network(smooth=True), images
    z, at = leaf(model, x)
    m = effective_margin(z, y, at, grad="numerator")
    rows = slopes(model, x)
    gap = z.gather(1, y[:, None]) - z
    size = (rows.gather(1, y[:, None, None].expand(-1, 1, rows.shape[2])) - rows).norm(dim=2).scatter(1, y[:, None], 1.0)
    nearest = (gap / size).detach().scatter(1, y[:, None], float("inf")).argmin(1)
    want = (gap.gather(1, nearest[:, None]) / size.gather(1, nearest[:, None])).sum()
    for a, b in zip(torch.autograd.grad(m.sum(), list(model.parameters()), retain_graph=True), torch.autograd.grad(want, list(model.parameters()))):
        close(a, b)


def test_as_a_diagnostic_it_builds_no_tape(images: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = network(), images
    z, at = leaf(model, x)
    with torch.no_grad():
        quiet = effective_margin(z, y, at), emr(z, at), approx_emr(z, at)
    assert not any(v.requires_grad for v in quiet)
    for a, b in zip(quiet, (effective_margin(z, y, at), emr(z, at), approx_emr(z, at))):
        close(a, b.detach())


def test_a_network_without_slope_gives_finite_numbers() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, K)).double()
    nn.init.zeros_(model[1].weight)
    x, y = torch.rand(3, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2])
    z, at = leaf(model, x)
    total = effective_margin(z, y, at).sum() + emr(z, at).sum() + approx_emr(z, at).sum()
    assert total.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(total, list(model.parameters())))
