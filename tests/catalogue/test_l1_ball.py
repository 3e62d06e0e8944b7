"""The l1 ball: projections against a solver, draws against their distribution, the steepest direction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from composer.inner.l1 import l1


def rand(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("eps", [0.05, 0.4, 1.5, 50.0])
def test_the_projection_is_the_nearest_point_of_ball_and_pixel_range(eps):
    """Against scipy's quadratic programme over d = p - n, sum(p + n) <= eps, 0 <= x + d <= 1."""
    x, far = rand(0, 4, 1, 2, 3), rand(0, 4, 1, 2, 3) + 2 * (rand(1, 4, 1, 2, 3) - 0.5)
    found = l1(x, eps).project(far)
    for i in range(4):
        centre, target = x[i].flatten().numpy(), far[i].flatten().numpy()
        cuts = [{"type": "ineq", "fun": lambda d: eps - d.sum(), "jac": lambda d: -np.ones(12)}]
        box = [(0, 1 - c) for c in centre] + [(0, c) for c in centre]
        solved = optimize.minimize(lambda d, c=centre, t=target: ((c + d[:6] - d[6:] - t) ** 2).sum(), np.zeros(12), bounds=box, constraints=cuts, method="SLSQP",
                                   options={"ftol": 1e-14, "maxiter": 500})
        want = ((centre + solved.x[:6] - solved.x[6:] - target) ** 2).sum()
        got = ((found[i].flatten().numpy() - target) ** 2).sum()
        assert got == pytest.approx(want, abs=1e-7)
    assert ((found - x).flatten(1).abs().sum(1) <= eps + 1e-12).all() and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("eps", [0.3, torch.tensor(0.3), torch.linspace(0.05, 3.0, 8)], ids=["number", "dial", "per example"])
def test_projection_in_float32_is_inside_idempotent_and_leaves_the_inside_alone(eps):
    x = rand(2, 8, 3, 8, 8).float()
    ball = l1(x, eps)
    point = ball.project(x + 3 * (rand(3, 8, 3, 8, 8).float() - 0.5))
    assert ((point - x).flatten(1).abs().sum(1) <= torch.as_tensor(eps) * (1 + 1e-4)).all()
    torch.testing.assert_close(ball.project(point), point, rtol=0, atol=1e-5)
    assert torch.equal(ball.project(x), x)
    within = (x + 1e-4 * (rand(4, 8, 3, 8, 8).float() - 0.5)).clamp(0, 1)
    torch.testing.assert_close(ball.project(within), within, rtol=0, atol=1e-7)


def test_draws_are_uniform_in_direction_and_in_length():
    x = torch.zeros(4000, 1, 2, 2, dtype=torch.float64)
    change = l1(x, 0.2).draw(rand(6, 4000, 1, 2, 2)).flatten(1)
    length = change.abs().sum(1)
    assert stats.kstest((length / 0.2).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest((change[:, 0].abs() / length).numpy(), stats.beta(1, 3).cdf).pvalue > 1e-3       # Dirichlet(1,1,1,1)
    assert abs(float(change.sign().mean())) < 0.05


def test_the_steepest_direction():
    grad = rand(7, 5, 3, 8, 8) - 0.5
    x = rand(8, 5, 3, 8, 8)
    best = (l1(x, 1.0).steepest(grad) * grad).flatten(1).sum(1)
    torch.testing.assert_close(best, grad.flatten(1).abs().amax(1))                                      # the dual norm
    some = l1(x, 1.0, share=0.1).steepest(grad).flatten(1)
    torch.testing.assert_close(some.abs().sum(1), torch.ones(5, dtype=torch.float64))
    assert ((some != 0).sum(1) == 19).all() and (l1(x, 1.0, share=0.1).steepest(torch.zeros_like(x)) == 0).all()
    kept = grad.flatten(1).abs().masked_fill(some == 0, 1.0).amin(1)
    assert (kept >= grad.flatten(1).abs().masked_fill(some != 0, 0.0).amax(1)).all()
