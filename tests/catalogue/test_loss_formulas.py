"""Every loss against a formula written out in float64 numpy, its gradient against finite differences, and the rules all losses keep."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from composer import losses
from composer.errors import ComposerError

K, N = 7, 12


@pytest.fixture
def batch():
    """Logits where some rows are right, some wrong; never a tie."""
    g = torch.Generator().manual_seed(3)
    z, t = (3 * torch.randn(N, K, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, K, (N,), generator=g)
    y[:4] = z[:4].argmax(1)
    return z, t, y


def rival(z: np.ndarray, y: int) -> int:
    """MART's rule: the second largest if the largest is y, else the largest."""
    order = np.argsort(z)
    return int(order[-2] if order[-1] == y else order[-1])


def bce_mart(z, y):
    p = softmax(z)
    return -math.log(p[y]) - math.log(1.0001 - p[rival(z, y)] + 1e-12)


def bce_exact(z, y):
    p = softmax(z)
    return -math.log(p[y]) - math.log(1 - p[rival(z, y)])


def hinges(z, y, delta, power):
    return sum(max(0.0, delta - (z[y] - z[j])) ** power for j in range(len(z)) if j != y)


def cw(z, y, kappa):
    return -max(0.0, z[y] - z[rival(z, y)] + kappa)


def dlr(z, y):
    s = np.sort(z)
    return -(z[y] - z[rival(z, y)]) / (s[-1] - s[-3] + 1e-12)


LABELLED = {
    "ce": (losses.ce, lambda z, y: logsumexp(z) - z[y]),
    "boosted_ce mart": (losses.boosted_ce, bce_mart),
    "boosted_ce exact": (partial(losses.boosted_ce, constants="exact"), bce_exact),
    "margin": (losses.margin, lambda z, y: hinges(z, y, 0.9, 2)),
    "margin linear": (partial(losses.margin, delta=0.5, hinge="linear"), lambda z, y: hinges(z, y, 0.5, 1)),
    "margin probs": (partial(losses.margin, space="probs"), lambda z, y: hinges(softmax(z), y, 0.9, 2)),
    "margin probs linear": (partial(losses.margin, space="probs", hinge="linear"), lambda z, y: hinges(softmax(z), y, 0.9, 1)),
    "margin mean": (partial(losses.margin, class_reduction="mean"), lambda z, y: hinges(z, y, 0.9, 2) / len(z)),
    "cw": (losses.cw, lambda z, y: cw(z, y, 50.0)),
    "cw 0": (partial(losses.cw, confidence=0.0), lambda z, y: cw(z, y, 0.0)),
    "dlr": (losses.dlr, dlr),
}


def kl_exact(z, t):
    q, p = softmax(t), softmax(z)
    return sum(q * (np.log(q) - np.log(p)))


def kl_mart(z, t):
    q, p = softmax(t), softmax(z)
    return sum(q * (np.log(q) - np.log(p + 1e-12)))


def huber(alpha, z, t):
    def h(d):
        u = abs(d) / alpha
        return alpha**2 * (1 - math.cos(u)) if u <= math.pi / 2 else alpha * abs(d) + (1 - math.pi / 2) * alpha**2
    return sum(h(d) for d in z - t) / len(z)


def logits_kl(z, t, **options):
    return losses.kl(z.log_softmax(1), t.log_softmax(1), **options)


PAIRED = {
    "kl": (logits_kl, kl_exact),
    "kl mart": (partial(logits_kl, constants="mart"), kl_mart),
    "soft_ce": (lambda z, t: losses.soft_ce(z, t.softmax(1)), lambda z, t: -sum(softmax(t) * (z - logsumexp(z)))),
    "mse": (losses.mse, lambda z, t: sum((z - t) ** 2) / len(z)),
    "mae": (losses.mae, lambda z, t: sum(abs(z - t)) / len(z)),
    "modified_huber": (losses.modified_huber, partial(huber, 5.345)),
    "modified_huber 0.7": (partial(losses.modified_huber, alpha=0.7), partial(huber, 0.7)),
    "nmse": (losses.nmse, lambda z, t: 2 - 2 * z @ t / math.sqrt((z @ z) * (t @ t))),
}
ALL = {**LABELLED, **PAIRED}


def call(name, batch):
    z, t, y = batch
    return ALL[name][0](z, y if name in LABELLED else t)


def differentiable(name, batch):
    """The loss as a function of its differentiable inputs, and those inputs."""
    z, t, y = batch
    if name in LABELLED:
        return (lambda a: ALL[name][0](a, y)), (z.clone().requires_grad_(),)
    return ALL[name][0], (z.clone().requires_grad_(), t.clone().requires_grad_())


@pytest.mark.parametrize("name", ALL)
def test_value_is_the_formula(name, batch):
    z, t, y = batch
    second = y if name in LABELLED else t
    want = [ALL[name][1](z[i].numpy(), second[i].numpy()) for i in range(N)]
    got = call(name, batch)
    assert got.shape == (N,)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_gradient_is_the_slope(name, batch):
    fn, inputs = differentiable(name, batch)
    assert torch.autograd.gradcheck(fn, inputs, eps=1e-6, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("name", ALL)
def test_permuting_the_batch_permutes_the_loss(name, batch):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(call(name, tuple(v[order] for v in batch)), call(name, batch)[order], rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_one_row_and_three_classes(name, batch):
    z, t, y = batch
    one = (z[:1, :3], t[:1, :3], y[:1] % 3)
    second = one[2] if name in LABELLED else one[1]
    want = ALL[name][1](one[0][0].numpy(), second[0].numpy())
    np.testing.assert_allclose(call(name, one).numpy(), [want], rtol=1e-9, atol=1e-9)


def extremes(dtype):
    """Rows of logits at ±1e4 and 0, every label right in one row and wrong in another; and targets that agree, disagree, tie."""
    rows = torch.tensor([[1e4, -1e4, -1e4, 0], [-1e4, 1e4, 0, 1e4], [1e4, 1e4, 1e4, 1e4], [0, 0, 0, 0], [-1e4, 1e4, 1e4, 1e4],
                         [1e4, 9.99e3, -1e4, -1e4]], dtype=dtype)
    z, t = rows.repeat_interleave(6, 0), rows.repeat(6, 1)
    return z.repeat(4, 1), t.repeat(4, 1), torch.arange(4).repeat_interleave(36)


@pytest.mark.parametrize("name", ALL)
def test_finite_in_float32_at_logits_of_ten_thousand(name):
    fn, inputs = differentiable(name, extremes(torch.float32))
    value = fn(*inputs)
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(value.sum(), inputs))


@pytest.mark.parametrize("name", [n for n in ALL if n != "dlr"])       # its scale vanishes where three logits tie
def test_float32_agrees_with_float64_at_logits_of_ten_thousand(name):
    narrow, wide = call(name, extremes(torch.float32)), call(name, extremes(torch.float64))
    torch.testing.assert_close(narrow.double(), wide, rtol=2e-3 if "mart" in name else 1e-5, atol=2e-6)


@pytest.mark.parametrize("name, option, value", [("margin", "delta", 0.4), ("cw", "confidence", 7.0), ("modified_huber", "alpha", 1.3)])
def test_a_number_may_arrive_as_a_tensor(name, option, value, batch):
    z, t, y = batch
    fn, second = getattr(losses, name), t if name == "modified_huber" else y
    dial = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(fn(z, second, **{option: dial}), fn(z, second, **{option: value}), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.filterwarnings("error")
def test_maps_over_packed_models(name, batch):
    """vmap over a leading axis of seeds, without falling back to a slow loop (which warns)."""
    z, t, y = (v.unflatten(0, (3, 4)) for v in batch)
    second = y if name in LABELLED else t
    packed = torch.func.vmap(ALL[name][0])(z, second)
    torch.testing.assert_close(packed.flatten(), call(name, batch), rtol=1e-12, atol=1e-12)


def test_kl_is_from_the_target_to_the_prediction(batch):
    z, t, _ = batch
    want = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=t), torch.distributions.Categorical(logits=z))
    torch.testing.assert_close(logits_kl(z, t), want, rtol=1e-12, atol=1e-12)
    assert (logits_kl(z, t) - logits_kl(t, z)).abs().min() > 1e-3


def test_kl_carries_gradient_to_both_sides_and_none_at_equality(batch):
    z, t, _ = batch
    a, b = z.clone().requires_grad_(), t.clone().requires_grad_()
    to_prediction, to_target = torch.autograd.grad(logits_kl(a, b).sum(), (a, b))
    torch.testing.assert_close(to_prediction, z.softmax(1) - t.softmax(1), rtol=1e-9, atol=1e-12)
    assert to_target.abs().max() > 1e-2
    same = torch.autograd.grad(logits_kl(a, z).sum(), a)[0]
    torch.testing.assert_close(same, torch.zeros_like(z), rtol=0, atol=1e-12)


def test_marts_constant_bounds_the_kl_where_the_exact_one_grows():
    z = torch.tensor([[0.0, 100.0]], dtype=torch.float64)
    t = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    assert logits_kl(z, t).item() == pytest.approx(100, abs=1e-9)
    assert logits_kl(z, t, constants="mart").item() == pytest.approx(12 * math.log(10), abs=1e-6)


def test_boosted_ce_at_certainty():
    """A sure wrong answer costs log 1e4 in MART's code and the logits' gap by the formula, in float32 too."""
    z, y = torch.tensor([[0.0, 40.0, -40.0]]), torch.tensor([0])
    assert losses.boosted_ce(z, y).item() == pytest.approx(40 + 4 * math.log(10), abs=2e-2)       # 1.0001 - 1 in float32: 1.0002e-4
    assert losses.boosted_ce(z, y, constants="exact").item() == pytest.approx(80, abs=1e-5)
    sure, right = torch.tensor([[40.0, 0.0, -40.0]]), torch.tensor([0])
    assert losses.boosted_ce(sure, right, constants="exact").item() == pytest.approx(2 * math.exp(-40), rel=1e-4)


def test_boosted_ce_with_two_classes():
    z, y = torch.tensor([[1.0, -2.0]], dtype=torch.float64), torch.tensor([1])
    p = softmax([1.0, -2.0])
    assert losses.boosted_ce(z, y, constants="exact").item() == pytest.approx(-math.log(p[1]) - math.log(1 - p[0]), rel=1e-12)


def test_margin_mean_is_torchs_multi_margin_loss(batch):
    z, _, y = batch
    for power, hinge in ((1, "linear"), (2, "squared")):
        want = torch.nn.functional.multi_margin_loss(z, y, p=power, margin=0.9, reduction="none")
        torch.testing.assert_close(losses.margin(z, y, hinge=hinge, class_reduction="mean"), want, rtol=1e-12, atol=1e-12)


def test_modified_huber_is_smooth_at_the_knot_and_a_parabola_for_large_alpha():
    alpha = 1.345
    knot = alpha * math.pi / 2
    d = torch.tensor([[knot - 1e-7], [knot + 1e-7]], dtype=torch.float64, requires_grad=True)
    value = losses.modified_huber(d, torch.zeros_like(d), alpha=alpha)
    slope = torch.autograd.grad(value.sum(), d)[0]
    assert value[0].item() == pytest.approx(alpha**2, abs=1e-6)
    assert value[1].item() == pytest.approx(alpha**2, abs=1e-6)
    torch.testing.assert_close(slope, torch.full_like(slope, alpha), rtol=0, atol=1e-7)
    far = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    assert losses.modified_huber(far, torch.zeros_like(far), alpha=1e5).item() == pytest.approx(0.5 * (0.09 + 4) / 2, rel=1e-9)


def test_batch_mean_of_a_distance_is_the_mean_over_all_elements(batch):
    z, t, _ = batch
    assert losses.mse(z, t).mean().item() == pytest.approx(torch.nn.functional.mse_loss(z, t).item(), rel=1e-12)
    assert losses.mae(z, t).mean().item() == pytest.approx(torch.nn.functional.l1_loss(z, t).item(), rel=1e-12)


@pytest.mark.parametrize("name", ["mse", "mae", "modified_huber", "nmse"])
def test_distances_are_symmetric(name, batch):
    z, t, _ = batch
    torch.testing.assert_close(getattr(losses, name)(z, t), getattr(losses, name)(t, z), rtol=1e-14, atol=0)


def test_nmse_sees_directions_only_and_bears_a_zero_vector():
    a = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([[30.0, 40.0], [1.0, 0.0]], dtype=torch.float64)
    value = losses.nmse(a, b)
    torch.testing.assert_close(value.detach(), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-11)
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()


def test_soft_ce_of_a_one_hot_label_is_ce(batch):
    z, _, y = batch
    hot = torch.nn.functional.one_hot(y, K).double()
    torch.testing.assert_close(losses.soft_ce(z, hot), losses.ce(z, y), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [600, 60])
def test_ce_of_many_rows_and_its_two_derivatives_are_the_formula(rows):
    """-z_y + log sum_k exp z_k, slope p - onehot, curvature diag(p) - p p^T; also of rows that no single precision bears."""
    g = torch.Generator().manual_seed(4)
    z = (3 * torch.randn(rows, K, generator=g, dtype=torch.float64)).requires_grad_()
    y, v = torch.randint(0, K, (rows,), generator=g), torch.randn(rows, K, generator=g, dtype=torch.float64)
    (slope,) = torch.autograd.grad(losses.ce(z, y).sum(), z, create_graph=True)
    (curved,) = torch.autograd.grad((slope * v).sum(), z)
    p = torch.tensor(softmax(z.detach().numpy(), axis=1))
    want = torch.tensor(logsumexp(z.detach().numpy(), axis=1)) - z.detach()[torch.arange(rows), y]
    torch.testing.assert_close(losses.ce(z, y).detach(), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope.detach(), p - torch.nn.functional.one_hot(y, K), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(curved, p * v - p * (p * v).sum(1, keepdim=True), rtol=1e-12, atol=1e-12)
    far = torch.tensor([[500.0, -500.0, 0.0]]).repeat(rows, 1)
    assert losses.ce(far, torch.ones(rows, dtype=torch.int64)).eq(1000).all()


def test_dlr_is_free_of_shift_and_scale_and_says_what_two_classes_lack(batch):
    z, _, y = batch
    torch.testing.assert_close(losses.dlr(5 * z + 2, y), losses.dlr(z, y), rtol=1e-9, atol=1e-9)
    with pytest.raises(ComposerError, match="2 classes"):
        losses.dlr(z[:, :2], y % 2)
