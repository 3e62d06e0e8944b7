"""Where a paper's text and public code differ, or a formula means more than it says: each resolution against its own arithmetic, in float64."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from composer import gains, losses, views
from composer.parts.logit_ema import logit_ema
from composer.schedules import piat, seat
from composer.testing import plugin

N, K, EPS = 12, 7, 8 / 255


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(5)
    z, t = (2 * torch.randn(N, K, generator=g, dtype=torch.float64) for _ in range(2))
    y = torch.randint(0, K, (N,), generator=g)
    y[:5] = z[:5].argmax(1)
    return z, t, y


def test_kl_is_a_sum_over_classes_and_a_mean_over_the_batch(pair):
    """torch's `mean` divides by the classes too; TRADES and MART mean the sum over the batch size."""
    z, t, _ = pair
    ours = losses.kl(z.log_softmax(1), t.log_softmax(1)).mean()
    torch.testing.assert_close(ours, F.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean"), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours, K * F.kl_div(z.log_softmax(1), t.softmax(1), reduction="none").mean(), rtol=1e-12, atol=0)


def test_confidence_fifty_is_the_plain_margin_until_it_is_inactive(pair):
    """CW's kappa of 50: value but for the constant, and gradient, are the margin's wherever the label trails by less than 50."""
    z, _, y = pair
    far = torch.cat([z, torch.tensor([[-60.0, *[0.0] * (K - 1)]], dtype=torch.float64)]).requires_grad_()
    labels = torch.cat([y, torch.tensor([0])])
    value = losses.cw(far, labels)
    margin = views.margin_logit(far, labels)
    torch.testing.assert_close(value[:-1], -margin[:-1] - 50, rtol=1e-12, atol=1e-12)
    (a,), (b,) = torch.autograd.grad(value[:-1].sum(), far, retain_graph=True), torch.autograd.grad(-margin[:-1].sum(), far)
    assert torch.equal(a, b) and value[-1] == 0 and not torch.autograd.grad(value[-1], far)[0].any()


def test_mmas_correct_is_stricter_than_the_largest_logit():
    """slm < 0 asks more than an arg max: the wrong classes count together."""
    slm = plugin(Path(__file__).parents[2] / "plugins" / "mma.py").slm
    z = torch.tensor([[1.0, 0.9, 0.9], [3.0, 0.0, 0.0], [0.9, 1.0, -5.0]], dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    assert (z.argmax(1) == y).tolist() == [True, True, False] and (slm(z, y) < 0).tolist() == [False, True, False]


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.58, 0.0176, 0.0560), (0.42, 0.0206, 0.0477), (0.55, 0.0181, 0.0544)])
def test_radii_from_probabilities_explain_the_reported_ranges(alpha, low, high):
    """Margins of probabilities lie in [-1, 1]; of MWPB's three ranges only MART's reported end, 0.0554, is beyond its alpha."""
    z = torch.tensor([[0.0, 200.0], [200.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    radii = gains.mwpb(z, torch.zeros(3, dtype=torch.int64), EPS, alpha=alpha)
    torch.testing.assert_close(radii, EPS * torch.tensor([math.exp(-alpha), math.exp(alpha), 1.0], dtype=torch.float64), rtol=1e-9, atol=0)
    assert (round(float(radii[0]), 4), round(float(radii[1]), 4)) == (low, high)
    assert alpha != 0.55 or float(radii[1]) < 0.0554 < EPS * math.exp(0.57)


def test_piats_weight_is_seats_decay_counted_in_epochs():
    assert [piat(n) for n in (1, 2, 9)] == [2 / 11, 3 / 12, 10 / 19] == [seat(n) for n in (1, 2, 9)] and seat(0) == 0.1


@pytest.fixture
def averaged():
    """LMA-AT's averages of two points over five steps: the differences that the regulariser reads, their gradients, and the logits."""
    def make(**options):
        part = logit_ema(**options)
        part.start(SimpleNamespace(batch_size=N, classes=K, train_size=100, device=torch.device("cpu"), points=("adv", "clean")))
        part._memory = {point: held.double() for point, held in part._memory.items()}
        g, i, y, seen = torch.Generator().manual_seed(9), torch.arange(N), torch.zeros(N, dtype=torch.int64), []
        for _ in range(5):
            z = {point: torch.randn(N, K, generator=g, dtype=torch.float64).requires_grad_() for point in ("adv", "clean")}
            a, b = (part.read(z[point], i, y, point=point)["logits"] for point in ("adv", "clean"))
            gradient = torch.autograd.grad(losses.modified_huber(a, b, alpha=5.345).sum(), z["adv"])[0]
            seen.append(((a - b).detach(), gradient, (z["adv"] - z["clean"]).detach()))
            for point, logits in z.items():
                part.after_step(logits.detach(), i, y, point=point)
        return seen
    return make


def slope(d):
    """Of the modified Huber loss, mean over classes."""
    return torch.where(d.abs() <= 5.345 * math.pi / 2, 5.345 * (d / 5.345).sin(), 5.345 * d.sign()) / K


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.9])
def test_the_averages_differ_by_an_average_of_differences(averaged, decay):
    """d_t = tau d_{t-1} + (1 - tau)(z' - z): one recursion; the gradient is the loss's slope there times 1 - tau, and times 1 if compensated."""
    for compensate in (False, True):
        d = torch.zeros(N, K, dtype=torch.float64)
        for difference, gradient, now in averaged(decay=decay, compensate=compensate):
            d = decay * d + (1 - decay) * now
            torch.testing.assert_close(difference, d, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(gradient, (1.0 if compensate else 1 - decay) * slope(d), rtol=1e-8, atol=1e-12)


def test_a_large_decay_shrinks_the_term_unseen(averaged):
    """Decay 0.9 is an eighth of 0.2 at the first step, values being equal to first order: what `ema_matched` and `compensate` are for."""
    small, large = averaged(decay=0.2)[0], averaged(decay=0.9)[0]
    torch.testing.assert_close(large[0], small[0] / 8, rtol=1e-9, atol=1e-12)
    ratio = 0.1 * slope(0.1 * large[2]) / (0.8 * slope(0.8 * small[2]))
    torch.testing.assert_close(large[1] / small[1], ratio, rtol=1e-8, atol=1e-12)


def test_the_published_margin_loss_is_ten_times_torchs(pair):
    """Equation 12 sums over the wrong classes; the library loss its sentence describes divides by all of them."""
    z, _, y = pair
    torch.testing.assert_close(losses.margin(z, y, delta=0.9).mean(), K * F.multi_margin_loss(z, y, p=2, margin=0.9), rtol=1e-12, atol=0)
