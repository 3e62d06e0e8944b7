from __future__ import annotations

import math

import torch

from composer.testing import contracts, plugin

mail = plugin(__file__).mail


def test_contracts():
    contracts("gain", mail)


def test_formula_by_hand():
    """Two rows worked out with scalars only: one wrong, one right."""
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.05, 0.05, 0.9]], dtype=torch.float64)
    wrong = 3 / (1 + math.exp(-10 * (0.7 - 0.2 - 0.5)))
    right = 3 / (1 + math.exp(-10 * (0.05 - 0.9 - 0.5)))
    torch.testing.assert_close(mail(probs, torch.tensor([0, 2])), torch.tensor([wrong, right], dtype=torch.float64))


def test_weight_falls_with_the_margin_and_carries_its_gradient():
    p = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    probs = torch.stack([p, 1 - p], 1).requires_grad_()
    weight = mail(probs, torch.zeros(25, dtype=torch.int64), slope=5.0, bias=0.05)
    assert (weight.diff() < 0).all()
    (gradient,) = torch.autograd.grad(weight.sum(), probs)
    assert (gradient[:, 0] < 0).all() and (gradient[:, 1] > 0).all()
