"""The momentum method against its formula in float64, and as a measure."""

from __future__ import annotations

import pytest
import torch

from composer.evaluate.protocol import evaluate
from composer.inner.ascent import Ascent
from composer.inner.balls import l2, linf
from composer.inner.mim import mim
from composer.inner.pgd import pgd
from composer.inner.starts import zero
from composer.recipe.types import MeasureSpec

EPS, STEP, MU = 0.2, 0.05, 0.8


@pytest.fixture
def scene():
    """A smooth net in float64 with images, labels and the cross entropy's climb."""
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand((6, 1, 3, 3), generator=generator, dtype=torch.float64)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 12), (12, 4)))
    y = torch.arange(6) % 4

    def loss(points):
        z = torch.tanh(points.flatten(1) @ first) @ second
        return torch.logsumexp(z, 1) - z.gather(1, y[:, None])[:, 0]

    def climb(*, point, grad=True, **_):
        leaf = point.detach().requires_grad_()
        value = loss(leaf)
        return Ascent(value.detach(), {"point": torch.autograd.grad(value.sum(), leaf)[0]}, {})

    return x, climb


@pytest.mark.parametrize("norm", [linf, l2])
def test_every_step_is_the_papers(scene, norm):
    x, climb = scene
    eps, step = (EPS, STEP) if norm is linf else (1.0, 0.25)
    for steps in range(1, 8):
        made = mim(x, climb, eps, {"start": [None]}, step=step, steps=steps, start=zero, norm=norm, mu=MU)["point"]
        g, point = torch.zeros_like(x), x
        for _ in range(steps):
            grad = climb(point=point).grads["point"]
            for i in range(len(x)):
                g[i] = MU * g[i] + grad[i] / grad[i].abs().sum()
            if norm is linf:
                point = torch.minimum(torch.maximum(point + step * g.sign(), x - eps), x + eps).clamp(0, 1)
            else:
                point = point + step * g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                change = point - x
                point = (x + change * (eps / change.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)).clamp(0, 1)
        torch.testing.assert_close(made, point, rtol=0, atol=1e-12)


def test_without_memory_it_is_pgd_and_with_it_is_not(scene):
    x, climb = scene
    options = {"step": STEP, "steps": 9, "start": zero, "norm": linf}
    plain = pgd(x, climb, EPS, {"start": [None]}, **options)["point"]
    assert torch.equal(mim(x, climb, EPS, {"start": [None]}, mu=0.0, **options)["point"], plain)
    assert not torch.equal(mim(x, climb, EPS, {"start": [None]}, mu=1.0, **options)["point"], plain)


@pytest.mark.parametrize("size", [1e-40, 1e30, 0.0])
def test_gradients_of_any_size_are_borne(size):
    x = torch.full((3, 1, 4, 4), 0.5)
    slope = size * (torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) - 0.5)
    made = mim(x, lambda **_: Ascent(x[:, 0, 0, 0], {"point": slope}, {}), 0.1, {"start": [None]}, step=0.1, steps=3, start=zero, norm=linf)["point"]
    torch.testing.assert_close(made, x + 0.1 * slope.sign(), rtol=0, atol=1e-7)


def test_as_a_measure_it_attacks_like_pgd(trained, digits, threat):
    x, y = digits["test"]
    found = evaluate(trained, x, y, [MeasureSpec("clean", "clean", {}), MeasureSpec("mim", "mim", {"steps": 10, "step": 0.03}),
                                     MeasureSpec("still", "mim", {"mu": 0.0}), MeasureSpec("pgd", "pgd", {})], threat=threat, seed=2).flags
    assert not (found["mim"] & ~found["clean"]).any() and 10 < int(found["mim"].sum()) < int(found["clean"].sum()) - 20
    assert abs(int(found["mim"].sum()) - int(found["pgd"].sum())) < 20
    assert int((found["still"] ^ found["pgd"]).sum()) <= 12, "both are pgd, from other noise"
