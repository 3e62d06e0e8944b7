"""Views, gains and radii against formulas written out in float64 numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from composer import gains, views
from composer.registry import REGISTRY

N, K = 10, 6
EPS = 8 / 255


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(11)
    z = 3 * torch.randn(N, K, generator=g, dtype=torch.float64)
    y = torch.randint(0, K, (N,), generator=g)
    y[:4] = z[:4].argmax(1)
    return z, y


def others(row, y):
    return np.delete(row, y)


FORMULAS = {
    "margin_prob": (lambda z, y: views.margin_prob(z.softmax(1), y), lambda z, y: softmax(z)[y] - max(others(softmax(z), y))),
    "margin_logit": (views.margin_logit, lambda z, y: z[y] - max(others(z, y))),
    "margin_soft": (views.margin_soft, lambda z, y: z[y] - logsumexp(5 * others(z, y)) / 5),
    "margin_soft 1": (lambda z, y: views.margin_soft(z, y, beta=1.0), lambda z, y: z[y] - logsumexp(others(z, y))),
    "clean_miss": (lambda z, y: views.clean_miss(z.softmax(1), y), lambda z, y: 1.0000001 - softmax(z)[y]),
    "clean_miss exact": (lambda z, y: views.clean_miss(z.softmax(1), y, constants="exact"), lambda z, y: 1 - softmax(z)[y]),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_value_and_gradient(name, batch):
    (z, y), (fn, formula) = batch, FORMULAS[name]
    want = [formula(z[i].numpy(), int(y[i])) for i in range(N)]
    np.testing.assert_allclose(fn(z, y).numpy(), want, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda v: fn(v, y), z.clone().requires_grad_(), eps=1e-6, atol=1e-8, rtol=1e-7)


def test_probs_and_logp(batch):
    z, _ = batch
    np.testing.assert_allclose(views.probs(z).numpy(), softmax(z.numpy(), 1), rtol=1e-12)
    np.testing.assert_allclose(views.logp(z).numpy(), z.numpy() - logsumexp(z.numpy(), 1, keepdims=True), rtol=1e-12, atol=1e-12)


def test_margins_are_positive_where_correct_and_the_soft_one_is_smaller(batch):
    z, y = batch
    right = z.argmax(1) == y
    assert 0 < right.sum() < N
    for m in (views.margin_logit(z, y), views.margin_prob(z.softmax(1), y)):
        assert torch.equal(m > 0, right)
    assert (views.margin_soft(z, y) < views.margin_logit(z, y)).all()
    sharp = views.margin_soft(z, y, beta=torch.tensor(1e3, dtype=torch.float64))
    torch.testing.assert_close(sharp, views.margin_logit(z, y), rtol=0, atol=2e-3)


def test_correct(batch):
    z, y = batch
    want = [float(np.argmax(z[i].numpy()) == int(y[i])) for i in range(N)]
    assert gains.correct(z, y).tolist() == want
    assert gains.correct(z.float(), y).dtype == torch.float32
    assert not gains.correct(z.clone().requires_grad_(), y).requires_grad


def test_finite_in_float32_at_logits_of_ten_thousand():
    rows = torch.tensor([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [0, 0, 0]])
    z, y = rows.repeat(3, 1).requires_grad_(), torch.arange(3).repeat_interleave(4)
    for fn, _ in FORMULAS.values():
        value = fn(z, y)
        assert value.isfinite().all() and torch.autograd.grad(value.sum(), z)[0].isfinite().all()
    for margin in ("prob", "logit"):
        assert gains.mwpb(z, y, EPS, margin=margin).isfinite().all()


@pytest.mark.parametrize("alpha", [0.58, 0.42, 0.0])
def test_mwpb_widens_the_radius_of_confident_images(alpha, batch):
    z, y = batch
    m = np.array([softmax(z[i].numpy())[y[i]] - max(others(softmax(z[i].numpy()), int(y[i]))) for i in range(N)])
    got = gains.mwpb(z, y, EPS, alpha=alpha)
    np.testing.assert_allclose(got.numpy(), EPS * np.exp(alpha * m), rtol=1e-9)
    right = z.argmax(1) == y
    if alpha:
        assert (got[right] > EPS).all() and (got[~right] < EPS).all()


def test_mwpb_stays_in_the_papers_range():
    """At margins -1 and 1, alpha 0.58 spans the 0.018 to 0.055 the paper reports."""
    z = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    low, high = gains.mwpb(z, torch.tensor([1, 1]), EPS).tolist()
    assert (low, high) == (pytest.approx(EPS * math.exp(-0.58), rel=1e-6), pytest.approx(EPS * math.exp(0.58), rel=1e-6))
    assert 0.017 < low < 0.018 and 0.055 < high < 0.057


def test_mwpb_from_logits_is_cut(batch):
    z, y = batch
    m = np.array([z[i, y[i]].item() - max(others(z[i].numpy(), int(y[i]))) for i in range(N)])
    assert (abs(m) > 2).any() and (abs(m) < 2).any()
    got = gains.mwpb(z, y, EPS, alpha=0.3, margin="logit", clip=2.0)
    np.testing.assert_allclose(got.numpy(), EPS * np.exp(0.3 * np.clip(m, -2, 2)), rtol=1e-9)


def test_mwpb_takes_dials_and_gives_no_gradient(batch):
    z, y = batch
    dial = {"alpha": torch.tensor(0.4, dtype=torch.float64), "clip": torch.tensor(0.5, dtype=torch.float64)}
    got = gains.mwpb(z.clone().requires_grad_(), y, torch.tensor(EPS, dtype=torch.float64), **dial)
    assert not got.requires_grad and got.shape == (N,)
    torch.testing.assert_close(got, gains.mwpb(z, y, EPS, alpha=0.4, clip=0.5), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind, name", [("view", "margin_logit"), ("view", "margin_soft"), ("gain", "correct")])
def test_permuting_the_batch_permutes_the_result(kind, name, batch):
    z, y = batch
    fn, order = REGISTRY.get(kind, name).fn, torch.arange(N).flip(0)
    assert torch.equal(fn(z[order], y[order]), fn(z, y)[order])
    assert torch.equal(gains.mwpb(z[order], y[order], EPS), gains.mwpb(z, y, EPS)[order])
