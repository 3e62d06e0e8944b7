from __future__ import annotations

import pytest
import torch

from composer.registry import REGISTRY
from composer.testing import contracts, plugin, tensors

fat = plugin(__file__).fat
EPS, STEPS = 0.02, 8


class Seen:
    def __init__(self, grads, logits):
        self.grads, self.tensors = {"point": grads}, {"logits": logits}


def climb_of(model, y):
    def climb(*, point):
        leaf = point.detach().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y, reduction="sum"), leaf)
        return Seen(gradient, logits.detach())
    return climb


def one_by_one(model, x, y, start, noise, tau, omega):
    """The published procedure on lists: each image alone, until it is handed out."""
    points, counts = [], []
    for i in range(len(x)):
        point, left, kappa = start[i:i + 1], tau, 0
        for t in range(STEPS):
            leaf = point.detach().requires_grad_()
            logits = model(leaf)
            right = int(logits.argmax(1)) == int(y[i])
            if not right and left == 0:
                break
            kappa, left = kappa + right, left - (not right)
            (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, y[i:i + 1]), leaf)
            moved = point.detach() + EPS / 4 * gradient.sign() + omega * noise[t][i:i + 1]
            point = torch.minimum(torch.maximum(moved, x[i:i + 1] - EPS), x[i:i + 1] + EPS).clamp(0, 1)
        points.append(point)
        counts.append(kappa)
    return torch.cat(points), torch.tensor(counts, dtype=x.dtype)


@pytest.mark.parametrize("omega", [0.0, 0.001])
@pytest.mark.parametrize("tau", [0, 1, 2])
def test_it_is_the_published_procedure_with_rows_kept(tau, omega):
    t = tensors(24, 10, 0, torch.float64)
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(t["x"].shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(t["x"].shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    made = fat(t["x"], climb_of(t["model"], t["y"]), EPS, {"start": [uniform], "noise": noise}, t["y"], step=EPS / 4, steps=STEPS,
               start=REGISTRY.get("start", "uniform").fn, norm=REGISTRY.get("ball", "linf").fn, tau=float(tau), omega=omega)
    start = (t["x"] + EPS * (2 * uniform - 1)).clamp(0, 1)
    points, counts = one_by_one(t["model"], t["x"], t["y"], start, noise, tau, omega)
    torch.testing.assert_close(made["point"], points, rtol=1e-12, atol=1e-12)
    assert torch.equal(made["kappa"], counts) and len(set(counts.tolist())) > 2
    stopped = (made["point"] == start).flatten(1).all(1)
    assert bool(stopped.any()) == (tau == 0), "images wrong from the start stop there at tau 0, and only there"


def test_tau_is_a_number_or_a_dial_and_is_rounded():
    t = tensors(8, 10, 1, torch.float64)
    noise = [torch.zeros_like(t["x"])] * STEPS
    options = {"step": EPS / 4, "steps": STEPS, "start": REGISTRY.get("start", "zero").fn, "norm": REGISTRY.get("ball", "linf").fn, "omega": 0.0}
    run = lambda tau: fat(t["x"], climb_of(t["model"], t["y"]), EPS, {"noise": noise}, t["y"], tau=tau, **options)["point"]
    assert torch.equal(run(1.0), run(torch.tensor(1.2))) and not torch.equal(run(1.0), run(torch.tensor(1.8)))


def test_contracts():
    contracts("inner", fat)
