from __future__ import annotations

from math import log

import pytest
import torch

from composer.registry import REGISTRY
from composer.testing import contracts, plugin, tensors

module = plugin(__file__)
EPS, STEPS = 0.06, 5


@pytest.mark.parametrize(("kind", "name"), [("loss", "symmetric_kl"), ("view", "least_sure"), ("view", "most_sure"), ("inner", "squeeze")])
def test_contracts(kind, name):
    contracts(kind, getattr(module, name))


def logits(seed, n=6, k=4):
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_symmetric_kl_by_sums():
    a, b = logits(0), logits(1)
    for i, value in enumerate(module.symmetric_kl(a, b).tolist()):
        p, q = [float(v) for v in a[i].softmax(0)], [float(v) for v in b[i].softmax(0)]
        assert value == pytest.approx((sum(x * log(x / y) for x, y in zip(p, q)) + sum(y * log(y / x) for x, y in zip(p, q))) / 2, abs=1e-12)
    assert torch.allclose(module.symmetric_kl(a, b), module.symmetric_kl(b, a), atol=1e-14)


def test_gradient_of_symmetric_kl_with_constant_targets():
    """d/da KL(q || softmax a)/2 = (softmax a - q)/2; attached, the other divergence adds its own."""
    a, b = logits(0).requires_grad_(), logits(1)
    (found,) = torch.autograd.grad(module.symmetric_kl(a, b).sum(), a)
    p, q = a.detach().softmax(1), b.softmax(1)
    torch.testing.assert_close(found, (p - q) / 2, rtol=1e-9, atol=1e-9)
    (attached,) = torch.autograd.grad(module.symmetric_kl(a, b, targets="attached").sum(), a)
    ratio = (p / q).log()
    torch.testing.assert_close(attached, ((p - q) + p * (ratio - (p * ratio).sum(1, keepdim=True))) / 2, rtol=1e-9, atol=1e-9)


def test_the_sure_and_the_unsure():
    """Row by row the point with the least (most) probability of the label; among equals the clean one."""
    clean, col, adv = logits(0), logits(1), logits(2)
    col[0], adv[0] = clean[0], clean[0]
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    rows = [[z[i].softmax(0)[y[i]].item() for z in (clean, col, adv)] for i in range(6)]
    low, high = module.least_sure(clean, col, adv, y), module.most_sure(clean, col, adv, y)
    for i, row in enumerate(rows):
        assert torch.equal(low[i], (clean, col, adv)[row.index(min(row))][i]) and torch.equal(high[i], (clean, col, adv)[row.index(max(row))][i])
    assert len({row.index(min(row)) for row in rows}) > 1


class Seen:
    def __init__(self, grads, tensors):
        self.grads, self.tensors = grads, tensors


def climb_of(model, y):
    """What the plan climbs: the symmetric KL of the least and the most sure, at all three points."""
    def climb(*, point, x_col, x):
        leaves = {"point": point.detach().requires_grad_(), "x_col": x_col.detach().requires_grad_(), "x": x.detach().requires_grad_()}
        z = {k: model(v) for k, v in leaves.items()}
        pair = [f(z["x"], z["x_col"], z["point"], y) for f in (module.least_sure, module.most_sure)]
        grads = torch.autograd.grad(module.symmetric_kl(*pair).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return Seen(dict(zip(leaves, grads)), {"logits": z["point"].detach(), "col_logits": z["x_col"].detach(), "clean_logits": z["x"].detach()})
    return climb


def by_hand(model, x, y, adv, col):
    """The published procedure, image by image (the model has no batch norm)."""
    for _ in range(STEPS):
        points = [x, col, adv]
        sure = [float(model(p).detach().softmax(1)[0, y]) for p in points]
        u, v = (points[sure.index(f(sure))].detach().clone().requires_grad_() for f in (min, max))
        p, q = model(u).log_softmax(1), model(v).log_softmax(1)
        loss = ((q.detach().exp() * (q.detach() - p)).sum() + (p.detach().exp() * (p.detach() - q)).sum()) / 2
        steps = torch.autograd.grad(loss, (u, v))
        adv, col = (torch.minimum(torch.maximum(w.detach() + EPS / 4 * g.sign(), x - EPS), x + EPS).clamp(0, 1) for w, g in zip((u, v), steps))
    return adv, col


def test_it_is_the_published_procedure():
    t = tensors(10, 10, 0, torch.float64)
    generator = torch.Generator().manual_seed(4)
    noise = [torch.randn(t["x"].shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    made = module.squeeze(t["x"], climb_of(t["model"], t["y"]), EPS, {"noise": noise}, t["y"], step=EPS / 4, steps=STEPS,
                          norm=REGISTRY.get("ball", "linf").fn, sigma=0.001)
    for i in range(10):
        x, y = t["x"][i:i + 1], int(t["y"][i])
        adv, col = by_hand(t["model"], x, y, x + 0.001 * noise[0][i:i + 1], x + 0.001 * noise[1][i:i + 1])
        torch.testing.assert_close(made["point"][i:i + 1], adv, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(made["x_col"][i:i + 1], col, rtol=1e-12, atol=1e-12)
    own = lambda z: t["model"](z).softmax(1).gather(1, t["y"][:, None])[::2, 0]             # images that are classified correctly
    assert (own(made["x_col"]) > own(t["x"])).all() and (own(made["point"]) < own(t["x"])).all()
