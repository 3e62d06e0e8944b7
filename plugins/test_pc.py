from __future__ import annotations

import math

import pytest
import torch

from composer.testing import contracts, plugin

module = plugin(__file__)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return 3 * torch.randn(12, 5, generator=g, dtype=torch.float64), torch.randint(5, (12,), generator=g)


def test_contracts():
    contracts("loss", module.pc)
    contracts("loss", module.logit_constraint)


@pytest.mark.parametrize("margin", [0.0, 0.8, 0.995])
def test_pc_is_the_authors_mean_less_the_labels_constant(margin):
    """Their code: (mean over the batch of the sum over all classes of the hinge, minus the margin) / (K - 1)."""
    z, y = batch()
    probs = z.softmax(1)
    total = 0.0
    for row, label in zip(probs.tolist(), y.tolist()):
        total += sum(max(0.0, margin + p - row[label]) for p in row) - margin
    assert abs(module.pc(probs, y, margin=margin).mean().item() - total / len(y) / 4) < 1e-9


def test_pc_on_two_rows_worked_out():
    probs = torch.tensor([[0.9, 0.06, 0.04], [0.2, 0.5, 0.3]], dtype=torch.float64)
    out = module.pc(probs, torch.tensor([0, 0]), margin=0.85)
    torch.testing.assert_close(out, torch.tensor([(0.01 + 0.0) / 2, (1.15 + 0.95) / 2], dtype=torch.float64))


def test_logit_constraint_by_hand():
    z, y = batch()
    for i in range(len(y)):
        row, own = z[i].tolist(), int(y[i])
        wrong = [k for k in range(5) if k != own]
        mass = sum(math.exp(row[k]) for k in wrong)
        expected = sum(math.exp(row[k]) / mass * max(0.0, row[own] - row[k]) for k in wrong)
        assert abs(module.logit_constraint(z, y)[i].item() - expected) < 1e-9


def test_gradients_by_differences():
    z, y = batch()
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: module.logit_constraint(z, y), z, atol=1e-8)
    assert torch.autograd.gradcheck(lambda z: module.pc(z.softmax(1), y, margin=0.8), z, atol=1e-8)
