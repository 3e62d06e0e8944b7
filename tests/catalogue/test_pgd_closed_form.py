"""pgd and fgsm on a linear classifier whose worst point is known in closed form; what they ask of `climb` is counted."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from composer.errors import ComposerError
from composer.inner.ascent import Ascent, move
from composer.inner.balls import l2, linf, per_image
from composer.inner.fgsm import fgsm
from composer.inner.pgd import pgd
from composer.inner.starts import gaussian, uniform, zero

N, SHAPE = 6, (6, 2, 4, 4)
BALLS = {"linf": linf, "l2": l2}
RADII = {"number": 0.1, "dial": torch.tensor(0.1), "per example": torch.linspace(0.02, 0.25, N)}


class Count:
    """A climb that counts: `objective(x) -> [N]`, gradients by autograd."""

    def __init__(self, objective):
        self.objective, self.grads, self.points = objective, [], []

    def __call__(self, *, point, grad=True, **points):
        assert not point.requires_grad and not points
        self.grads.append(grad)
        self.points.append(point.clone())
        leaf = point.detach().requires_grad_(grad)
        value = self.objective(leaf)
        found = {"point": torch.autograd.grad(value.sum(), leaf)[0]} if grad else {}
        return Ascent(value.detach(), found, {"logits": value.detach().unsqueeze(1)})


def rand(seed, *shape):
    return torch.rand(shape or SHAPE, generator=torch.Generator().manual_seed(seed))


WEIGHT = rand(1) - 0.5


def logistic(x):
    """Cross entropy of a linear two-class model, its weights differing by example: it rises with <w, x>."""
    return torch.nn.functional.softplus(3 * (WEIGHT * x).flatten(1).sum(1))


def optimum(kind, x, eps):
    """The worst point, where the pixel range is out of reach for l2."""
    if kind == "linf":
        return (x + per_image(eps) * WEIGHT.sign()).clamp(0, 1)
    return x + per_image(eps) * WEIGHT / WEIGHT.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def attack(kind, climb, x, eps, *, step, start=zero, draws=None, steps=12, **options):
    return pgd(x, climb, eps, draws or {}, step=step, steps=steps, start=start, norm=BALLS[kind], **options)["point"]


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("eps", RADII.values(), ids=RADII)
@pytest.mark.parametrize("start", ["zero", "uniform", "gaussian"])
def test_reaches_the_closed_form_optimum(kind, eps, start):
    x = rand(0) if kind == "linf" else 0.3 + 0.4 * rand(0)
    noise = rand(2) if start == "uniform" else torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    begin = {"zero": zero, "uniform": uniform, "gaussian": gaussian}[start]
    climb, before = Count(logistic), x.clone()
    point = attack(kind, climb, x, eps, step=eps / 4, start=begin, draws={"start": [noise]}, steps=30 if kind == "l2" else 12)
    torch.testing.assert_close(point, optimum(kind, x, eps), rtol=0, atol=1e-6 if kind == "linf" else 2e-3)
    reached, best = logistic(point), logistic(optimum(kind, x, eps))
    torch.testing.assert_close(reached, best, rtol=1e-4, atol=0)
    assert torch.equal(x, before)


def test_l2_from_the_image_is_exact():
    x = 0.3 + 0.4 * rand(0)
    torch.testing.assert_close(attack("l2", Count(logistic), x, 0.1, step=0.025, steps=5), optimum("l2", x, 0.1), rtol=0, atol=1e-6)


def constrained_l2(x, eps):
    """Worst point within sphere and pixel range: clamp(x + t w) with t found by bisection on the norm, in float64."""
    x, w = x.double(), WEIGHT.double()
    low, high = torch.zeros(N, 1, 1, 1).double(), torch.full((N, 1, 1, 1), 1e6).double()
    for _ in range(200):
        t = (low + high) / 2
        short = ((x + t * w).clamp(0, 1) - x).flatten(1).norm(dim=1).view(-1, 1, 1, 1) < eps
        low, high = torch.where(short, t, low), torch.where(short, high, t)
    return (x + low * w).clamp(0, 1)


def test_l2_against_the_pixel_range_comes_close_and_never_beyond():
    x = rand(0)
    point = attack("l2", Count(logistic), x, 0.5, step=0.01, steps=150)
    best = constrained_l2(x, 0.5)
    assert (best - x).abs().gt(1e-3).logical_and((best == 0) | (best == 1)).any()        # the range does bind
    gain = ((point - x) * WEIGHT).flatten(1).sum(1) / ((best - x) * WEIGHT).flatten(1).sum(1)
    assert gain.min() > 0.98 and gain.max() < 1 + 1e-5


@pytest.mark.parametrize("steps", [1, 10])
def test_one_restart_costs_its_steps_and_nothing_else(steps):
    climb = Count(logistic)
    attack("linf", climb, rand(0), 0.1, step=0.02, steps=steps, start=uniform, draws={"start": [rand(2)]})
    assert climb.grads == [True] * steps


def test_restarts_cost_a_forward_each():
    climb = Count(logistic)
    attack("linf", climb, rand(0), 0.1, step=0.02, steps=3, start=uniform, draws={"start": [rand(s) for s in (2, 3, 4)]}, restarts=3)
    assert climb.grads == [True, True, True, False] * 3


def wavy(x):
    """Many local maxima, so that the start decides."""
    return (40 * (x * (1 + WEIGHT))).sin().flatten(1).sum(1)


@pytest.mark.parametrize("kind", BALLS)
def test_restarts_keep_the_worst_of_each_example(kind):
    x, noises = rand(0), [rand(s) for s in range(2, 7)]
    run = partial(attack, kind, Count(wavy), x, 0.2, step=0.01, steps=8, start=uniform)
    alone = torch.stack([wavy(run(draws={"start": [noise]})) for noise in noises])
    together = wavy(run(draws={"start": list(noises)}, restarts=5))
    torch.testing.assert_close(together, alone.max(0).values, rtol=1e-5, atol=1e-5)
    assert alone.argmax(0).unique().numel() > 1


def test_a_gaussian_start_is_not_clamped_before_the_first_gradient():
    x, noise = torch.zeros(SHAPE), torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    climb = Count(logistic)
    attack("linf", climb, x, 0.1, step=0.02, steps=2, start=gaussian, draws={"start": [noise]})
    assert torch.equal(climb.points[0], 0.001 * noise)
    assert climb.points[1].min() >= 0


def test_order_of_a_step_is_sign_box_range():
    x, climb, point = rand(0), Count(wavy), rand(0)
    got = attack("linf", climb, x, 0.03, step=0.02, steps=4)
    for _ in range(4):
        leaf = point.clone().requires_grad_()
        point = point + 0.02 * torch.autograd.grad(wavy(leaf).sum(), leaf)[0].sign()
        point = torch.min(torch.max(point, x - 0.03), x + 0.03).clamp(0, 1)
    assert torch.equal(got, point)


def test_steps_and_radii_per_example_act_on_their_own_row():
    x, eps, step = rand(0), torch.linspace(0.02, 0.25, N), torch.linspace(0.004, 0.05, N)
    together = attack("l2", Count(wavy), x, eps, step=step, steps=3)
    for i in range(N):
        alone = attack("l2", Count(lambda v, i=i: wavy(v.expand(SHAPE))[i : i + 1]), x[i : i + 1], eps[i].item(), step=step[i].item(), steps=3)
        torch.testing.assert_close(together[i], alone[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", BALLS)
def test_rows_without_a_gradient_stay_and_stay_finite(kind):
    def half(v):
        return logistic(v) * torch.tensor([0.0, 1, 0, 1, 0, 1])

    x = rand(0)
    point = attack(kind, Count(half), x, 0.1, step=0.03, steps=4)
    assert point.isfinite().all() and torch.equal(point[::2], x[::2])
    assert (point[1::2] - x[1::2]).abs().amax((1, 2, 3)).min() > 0.01


def test_no_steps_give_the_start_inside_the_pixel_range():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    climb = Count(logistic)
    point = attack("linf", climb, torch.zeros(SHAPE), 0.1, step=0.1, steps=0, start=gaussian, draws={"start": [noise]})
    assert torch.equal(point, (0.001 * noise).clamp(0, 1)) and climb.grads == []


@pytest.mark.parametrize("kind", BALLS)
@pytest.mark.parametrize("eps", RADII.values(), ids=RADII)
def test_fgsm_is_one_step_of_the_whole_radius(kind, eps):
    x = 0.3 + 0.4 * rand(0)
    climb = Count(logistic)
    point = fgsm(x, climb, eps, {}, norm=BALLS[kind])["point"]
    torch.testing.assert_close(point, optimum(kind, x, eps), rtol=0, atol=1e-6)
    assert climb.grads == [True] and torch.equal(climb.points[0], x)


def test_fgsm_with_a_start_and_a_step():
    x, noise = rand(0), rand(2)
    climb = Count(wavy)
    point = fgsm(x, climb, 0.1, {"start": [noise]}, norm=linf, start=uniform, step=0.125)["point"]
    begin = (x + 0.1 * (2 * noise - 1)).clamp(0, 1)
    torch.testing.assert_close(climb.points[0], begin, rtol=0, atol=1e-6)
    leaf = climb.points[0].clone().requires_grad_()
    sign = torch.autograd.grad(wavy(leaf).sum(), leaf)[0].sign()
    want = torch.min(torch.max(climb.points[0] + 0.125 * sign, x - 0.1), x + 0.1).clamp(0, 1)
    assert torch.equal(point, want)


def test_fgsm_called_by_hand_refuses_other_words():
    with pytest.raises(ComposerError, match="pass a number"):
        fgsm(rand(0), Count(logistic), 0.1, {}, norm=linf, step="2*eps")


def test_traces_without_a_break():
    def climb(*, point, grad=True):
        margin = (WEIGHT * point).flatten(1).sum(1)
        return Ascent(margin, {"point": WEIGHT * margin.sigmoid().view(-1, 1, 1, 1)}, {})

    x, noises = rand(0), [rand(2), rand(3)]
    for kind in BALLS:
        def run(x, noises, eps, step, kind=kind):
            return attack(kind, climb, x, eps, step=step, start=uniform, draws={"start": list(noises)}, restarts=2, steps=3)

        traced = torch.compile(run, backend="eager", fullgraph=True)
        for eps in (0.1, torch.full((N,), 0.1)):
            torch.testing.assert_close(traced(x, noises, eps, eps / 4), run(x, noises, eps, eps / 4), rtol=1e-6, atol=1e-6)


def test_move_is_the_same_for_numbers_and_tensors():
    point, direction = rand(0), (rand(1) - 0.5).sign()
    want = point + 0.02 * direction
    for step in (0.02, torch.tensor(0.02), per_image(torch.full((N,), 0.02))):
        assert torch.equal(move(point, direction, step), want)
