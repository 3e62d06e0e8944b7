from __future__ import annotations

import math

import torch

from composer.testing import contracts, plugin

wat = plugin(__file__).wat


def test_contracts():
    contracts("gain", wat)


def test_formula_by_hand():
    probs = torch.tensor([[0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.5, 0.5, 0.0]], dtype=torch.float64)
    expected = [math.exp(-2 * (0.2 - 0.7)), math.exp(-2 * (0.9 - 0.05)), 1.0]
    torch.testing.assert_close(wat(probs, torch.tensor([0, 2, 1]), alpha=2.0), torch.tensor(expected, dtype=torch.float64))


def test_gradient_of_the_weighted_loss_goes_through_the_weight():
    """d(w ce)/dz = w d ce/dz + ce dw/dz, dw/dz = -alpha w dm/dz: by hand, against autograd on the product."""
    z = torch.tensor([[0.3, 1.1, -0.4]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0])
    p = z.softmax(1)
    (found,) = torch.autograd.grad((wat(p, y, alpha=0.5) * -p[:, 0].log()).sum(), z)
    q = p.detach()[0]
    ce, w = -q[0].log(), math.exp(-0.5 * float(q[0] - q[1]))
    jacobian = torch.diag(q) - q[:, None] * q[None]
    expected = w * (q - torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)) + ce * (-0.5 * w) * (jacobian[0] - jacobian[1])
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)
