from __future__ import annotations

import math

import torch

from composer.testing import contracts, plugin

mutual_information = plugin(__file__).mutual_information


def logits(n: int = 20, k: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    a = 2 * torch.randn(n, k, generator=g, dtype=torch.float64)
    return a, a + 0.5 * torch.randn(n, k, generator=g, dtype=torch.float64)


def information(a: torch.Tensor, b: torch.Tensor) -> float:
    """I of the averaged joint table, with scalars: H(j) + H(k) - H(j, k)."""
    n, k = a.shape
    p, q = a.softmax(1).tolist(), b.softmax(1).tolist()
    joint = [[sum(p[i][c] * q[i][d] for i in range(n)) / n for d in range(k)] for c in range(k)]
    entropy = lambda masses: -sum(m * math.log(m) for m in masses if m > 0)
    return entropy(map(sum, joint)) + entropy(map(sum, zip(*joint))) - entropy(m for row in joint for m in row)


def test_contracts():
    contracts("loss", mutual_information)


def test_its_mean_is_minus_the_information():
    a, b = logits()
    assert abs(mutual_information(a, b).mean().item() + information(a, b)) < 1e-9


def test_its_extremes():
    """All classes, sure and agreeing: log K. Sure of one class, or unsure: nothing."""
    sure = 200 * torch.eye(4, dtype=torch.float64).repeat(5, 1)
    assert abs(mutual_information(sure, sure).mean().item() + math.log(4)) < 1e-9
    assert mutual_information(sure[:1].expand(9, 4), sure[:1].expand(9, 4)).abs().max() < 1e-9
    assert mutual_information(torch.zeros(9, 4, dtype=torch.float64), sure[:9]).mean().abs() < 1e-9


def test_gradient_of_the_mean_by_differences():
    a, b = (t.requires_grad_() for t in logits(6))
    assert torch.autograd.gradcheck(lambda a, b: mutual_information(a, b).mean(), (a, b), atol=1e-8)
