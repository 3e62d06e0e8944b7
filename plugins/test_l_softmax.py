from __future__ import annotations

import math

import pytest
import torch

from composer.testing import contracts, plugin

l_softmax = plugin(__file__).l_softmax


def psi(theta: float, m: int) -> float:
    k = min(int(m * theta / math.pi), m - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


def by_hand(h: torch.Tensor, w: torch.Tensor, y: int, m: int, lam: float) -> float:
    """The paper's formula with scalars and arc cosines."""
    z = [sum(a * b for a, b in zip(h.tolist(), row.tolist())) for row in w]
    size = math.hypot(*h.tolist()) * math.hypot(*w[y].tolist())
    z[y] = (lam * z[y] + size * psi(math.acos(max(-1.0, min(1.0, z[y] / size))), m)) / (1 + lam)
    return math.log(sum(math.exp(v) for v in z)) - z[y]


def batch(n: int = 24, d: int = 3, k: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(k, d, generator=g, dtype=torch.float64),
            torch.randint(k, (n,), generator=g))


def test_contracts():
    contracts("loss", l_softmax)
    contracts("loss", l_softmax, options={"m": 1, "lam": 5.0})


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("lam", [0.0, 3.0, 1000.0])
def test_formula(m, lam):
    h, w, y = batch()
    expected = torch.tensor([by_hand(h[i], w, int(y[i]), m, lam) for i in range(len(h))], dtype=torch.float64)
    torch.testing.assert_close(l_softmax(h, w, y, m=m, lam=lam), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("m", [2, 4])
def test_gradient_by_differences(m):
    h, w, y = batch(8)
    h.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, w: l_softmax(h, w, y, m=m, lam=0.5), (h, w), atol=1e-8)


def test_m_one_is_plain_softmax_without_bias():
    h, w, y = batch()
    plain = torch.nn.functional.cross_entropy(h @ w.T, y, reduction="none")
    for lam in (0.0, 7.0):
        torch.testing.assert_close(l_softmax(h, w, y, m=1, lam=lam), plain)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_angles_reward_falls_from_one_to_its_least_without_a_jump(m):
    """A feature that turns from its class to the opposite: psi falls from 1 to 1 - 2m all the way, ends included."""
    theta = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    h = torch.stack([theta.cos(), theta.sin()], 1)
    h[-1] = torch.tensor([-1.0, 0.0])
    w = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)                       # the other logit is zero
    loss = l_softmax(h, w, torch.zeros(len(h), dtype=torch.int64), m=m)
    target = -torch.expm1(loss).log()                                                       # loss = log(1 + e^-target)
    assert abs(target[0] - 1) < 1e-9 and abs(target[-1] - (1 - 2 * m)) < 1e-9
    assert (target.diff() <= 1e-12).all() and target.diff().abs().max() < 0.01


def test_aligned_opposite_and_zero_features_have_finite_gradients():
    w = torch.eye(3)
    h = torch.stack([5 * w[0], -5 * w[0], torch.zeros(3), 1e4 * w[0]]).requires_grad_()
    out = l_softmax(h, w.requires_grad_(), torch.zeros(4, dtype=torch.int64), m=4)
    assert torch.isfinite(out).all() and all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), (h, w)))
