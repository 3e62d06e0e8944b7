from __future__ import annotations

import math

import torch

from composer.testing import contracts, plugin

module = plugin(__file__)


def made(features: int = 6, classes: int = 4, scale: float = 15.0) -> torch.nn.Module:
    torch.manual_seed(0)
    head = module.hypersphere(features, classes, scale=scale).double()
    head.project()                   # in float64
    return head


def test_contracts():
    contracts("head", module.hypersphere)
    contracts("view", module.angular)


def test_logits_are_scaled_cosines_whatever_the_lengths():
    head, h = made(), torch.randn(5, 6, dtype=torch.float64)
    for i in range(5):
        for k in range(4):
            a, b = h[i].tolist(), head.weight[k].tolist()
            cos = sum(p * q for p, q in zip(a, b)) / math.sqrt(sum(p * p for p in a)) / math.sqrt(sum(q * q for q in b))
            assert abs(head(h)[i, k].item() - 15 * cos) < 1e-9
    torch.testing.assert_close(head(7.0 * h), head(h), rtol=0, atol=1e-9)
    assert head(h).abs().max() <= 15 + 1e-9 and not hasattr(head, "bias")


def test_rows_have_length_one_when_drawn_and_after_project():
    head = made()
    lengths = lambda: torch.linalg.vector_norm(head.weight, dim=1)
    torch.testing.assert_close(lengths(), torch.ones(4, dtype=torch.float64))
    before = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.5], [2.0], [3.0], [1.0]], dtype=torch.float64))
    head.project()
    torch.testing.assert_close(head.weight.detach(), before)
    assert head.weight.requires_grad and head.weight.is_leaf, "a projection is no operation of the graph"


def test_gradient_by_differences():
    head, h = made(), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: head(h), h, atol=1e-8)
    assert torch.isfinite(torch.autograd.grad(head(torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)).sum(), head.weight)[0]).all()


def test_the_margin_is_taken_off_the_labels_cosine_alone():
    head, h, y = made(scale=20.0), torch.randn(5, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 1])
    out = module.angular(head(h), y, torch.tensor(20.0, dtype=torch.float64), margin=0.3)
    for i in range(5):
        for k in range(4):
            cos = head(h)[i, k].item() / 20
            assert abs(out[i, k].item() - 20 * (cos - 0.3 * (k == y[i].item()))) < 1e-9
    assert torch.equal(module.angular(head(h), y, 20.0, margin=0.0), head(h))
