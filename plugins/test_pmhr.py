from __future__ import annotations

import math

import torch

from composer.testing import contracts, plugin

dissimilarity = plugin(__file__).dissimilarity


def test_contracts():
    contracts("gain", dissimilarity)


def test_one_minus_the_cosine_by_hand():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, 4, generator=g, dtype=torch.float64).softmax(1) for _ in range(2))
    for i in range(6):
        a, b = p[i].tolist(), q[i].tolist()
        cos = sum(x * y for x, y in zip(a, b)) / math.hypot(*a) / math.hypot(*b)
        assert abs(dissimilarity(p, q)[i].item() - (1 - cos)) < 1e-9
    assert dissimilarity(p, p).abs().max() < 1e-12
    one = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(dissimilarity(one, one.roll(1, 0)), torch.ones(4, dtype=torch.float64))


def test_gradient_by_differences():
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: dissimilarity(a.softmax(1), b.softmax(1)), (a, b), atol=1e-8)
