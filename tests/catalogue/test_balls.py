"""Balls and starts: projections are idempotent and inside, draws inside, the steepest direction maximises the inner product."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from composer.inner.balls import l2, linf, per_image
from composer.inner.starts import gaussian, uniform, zero

N, SHAPE = 16, (16, 3, 5, 5)
BALLS = [linf, l2]
RADII = {"number": 0.3, "dial": torch.tensor(0.3), "per example": torch.linspace(0.05, 0.6, N)}


def rand(seed, *shape):
    return torch.rand(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


def size(kind, change):
    flat = change.flatten(1)
    return flat.abs().amax(1) if kind is linf else flat.norm(dim=1)


@pytest.fixture(params=RADII, ids=str)
def eps(request):
    return RADII[request.param]


@pytest.mark.parametrize("kind", BALLS)
def test_projection_is_inside_idempotent_and_leaves_the_inside_alone(kind, eps):
    x = rand(0)
    ball = kind(x, eps)
    far = x + 3 * (rand(1) - 0.5)
    point = ball.project(far)
    assert (size(kind, point - x) <= torch.as_tensor(eps) + 1e-6).all()
    assert point.min() >= 0 and point.max() <= 1
    torch.testing.assert_close(ball.project(point), point, rtol=0, atol=1e-6)
    within = (x + per_image(torch.as_tensor(eps)) * 0.01 * (rand(2) - 0.5)).clamp(0, 1)
    torch.testing.assert_close(ball.project(within), within, rtol=0, atol=1e-7)
    assert torch.equal(ball.project(x), x)


def test_linf_projection_is_box_then_pixel_range(eps):
    x, far = rand(0), rand(0) + 3 * (rand(1) - 0.5)
    e = per_image(eps)
    assert torch.equal(linf(x, eps).project(far), torch.min(torch.max(far, x - e), x + e).clamp(0, 1))


def test_l2_projection_is_the_nearest_point_where_the_pixel_range_is_far(eps):
    x = 0.5 + 0.0 * rand(0)
    far = x + 0.8 * (rand(1) - 0.5)
    change = (far - x).flatten(1)
    want = x + (change * (torch.as_tensor(eps) / change.norm(dim=1)).clamp_max(1).unsqueeze(1)).view(SHAPE)
    torch.testing.assert_close(l2(x, eps).project(far), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", BALLS)
def test_draws_and_the_uniform_start_are_inside(kind, eps):
    x, noise = rand(3), rand(4)
    ball = kind(x, eps)
    assert (size(kind, ball.draw(noise) - x) <= torch.as_tensor(eps) + 1e-6).all()
    point = uniform(x, ball, noise)
    assert (size(kind, point - x) <= torch.as_tensor(eps) + 1e-6).all() and point.min() >= 0 and point.max() <= 1
    assert torch.equal(uniform(x, ball, noise, clamp=False), ball.draw(noise))


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("value", [0.0, 0.5, 1 - 2**-24])
def test_the_ends_of_the_noise_are_finite(kind, value):
    x = rand(3)
    assert kind(x, 0.3).draw(torch.full(SHAPE, value)).isfinite().all()


def test_linf_draw_is_uniform_over_the_box():
    x, noise = torch.full((200, 1, 5, 5), 0.5), rand(5, 200, 1, 5, 5)
    u = ((linf(x, 0.2).draw(noise) - x) / 0.4 + 0.5).flatten().numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3


def test_l2_draw_is_uniform_in_direction_and_in_length():
    shape = (4000, 1, 2, 2)
    change = (l2(torch.zeros(shape), 0.2).draw(rand(6, *shape))).flatten(1)
    length = change.norm(dim=1)
    assert stats.kstest((length / 0.2).numpy(), "uniform").pvalue > 1e-3
    first = change[:, 0] / length                                      # on the sphere in R^4: Beta(3/2, 3/2) on [-1, 1]
    assert stats.kstest(((first + 1) / 2).numpy(), stats.beta(1.5, 1.5).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(first.abs().numpy(), length.numpy()).statistic) < 0.06


@pytest.mark.parametrize("kind", BALLS)
def test_steepest_maximises_the_inner_product(kind):
    grad = rand(7) - 0.5
    best = (kind(rand(8), 1.0).steepest(grad) * grad).flatten(1).sum(1)
    dual = grad.flatten(1).abs().sum(1) if kind is linf else grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(best, dual, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(size(kind, kind(rand(8), 1.0).steepest(grad)), torch.ones(N), rtol=1e-5, atol=0)
    for seed in range(20):
        other = rand(seed + 20) - 0.5
        other = other / per_image(size(kind, other))
        assert ((other * grad).flatten(1).sum(1) <= best + 1e-6).all()


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("scale", [0.0, 1e-36, 1e-25, 1e30])
def test_steepest_bears_any_size_of_gradient(kind, scale):
    grad = scale * (rand(7) - 0.5)
    direction = kind(rand(8), 1.0).steepest(grad)
    assert direction.isfinite().all()
    torch.testing.assert_close(size(kind, direction), torch.full((N,), float(scale > 0)), rtol=1e-4, atol=0)


def test_per_image():
    v = torch.arange(3.0)
    assert per_image(v).shape == (3, 1, 1, 1) and per_image(v).flatten().tolist() == [0, 1, 2]
    assert per_image(0.5) == 0.5 and per_image(torch.tensor(0.5)).shape == ()


def test_zero_and_gaussian_starts():
    x, noise = rand(9), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    ball = linf(x, 0.03)
    assert torch.equal(zero(x, ball), x) and torch.equal(zero(x, ball, None), x)
    edge = torch.zeros(SHAPE)
    assert torch.equal(gaussian(edge, linf(edge, 0.03), noise), 0.001 * noise)         # may leave [0,1], as the original does
    cut = gaussian(edge, linf(edge, 0.03), noise, sigma=torch.tensor(0.1), clamp=True)
    assert torch.equal(cut, (0.1 * noise).clamp(0, 0.03))
