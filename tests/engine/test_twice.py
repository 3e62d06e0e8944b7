"""A pass that is differentiated twice: its convolutions and folded batch norms against PyTorch's own, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.nets import net
from composer.engine.net import Net
from composer.engine.twice import convolution, pairs, pays


def layer(**options: object) -> nn.Conv2d:
    torch.manual_seed(1)
    return nn.Conv2d(4, 6, 3, **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2}, {"bias": False}])
def test_first_and_second_derivatives_are_those_of_pytorch(options: dict[str, object]) -> None:
    own = layer(**options)
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64, requires_grad=True)
    assert torch.equal(convolution(own, x), own(x)) or torch.allclose(convolution(own, x), own(x), rtol=0, atol=1e-14)
    found = []
    for run in (own, lambda x: convolution(own, x)):
        (g,) = torch.autograd.grad(run(x).tanh().sum(), x, create_graph=True)
        own.zero_grad()
        (g.square().sum() + run(x).square().mean()).backward(inputs=[x, *own.parameters()])
        found.append([x.grad.clone(), *(p.grad.clone() for p in own.parameters())])  # type: ignore[union-attr]
        x.grad = None
    for mine, theirs in zip(*found):
        assert torch.allclose(mine, theirs, rtol=1e-11, atol=1e-12)


def test_the_second_derivative_is_a_finite_difference() -> None:
    own = layer(padding=1)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def slope() -> Tensor:
        (g,) = torch.autograd.grad(convolution(own, x).tanh().sum(), x, create_graph=True)
        return g.square().sum()

    (by_weight,) = torch.autograd.grad(slope(), own.weight)
    with torch.no_grad():
        step = torch.randn_like(own.weight)
        own.weight += 1e-6 * step
    up = slope().item()
    with torch.no_grad():
        own.weight -= 2e-6 * step
    assert (up - slope().item()) / 2e-6 == pytest.approx((by_weight * step).sum().item(), rel=1e-6)


def test_the_weights_gradient_is_not_differentiated_further() -> None:
    own = layer()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(convolution(own, x).square().sum(), own.weight, create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()


@pytest.mark.parametrize("name", ["small_cnn", "preact", "wide", "plain"])
def test_a_net_has_the_same_second_order_gradient_either_way(name: str) -> None:
    """Conv before batch norm (folded), batch norm before conv (not), channels in plenty (folding does not pay), none at all."""
    torch.manual_seed(0)
    model = {"small_cnn": lambda: net("small_cnn"),
             "preact": lambda: nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)),
             "wide": lambda: nn.Sequential(nn.Conv2d(1, 64, 3, stride=4), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64, affine=False),
                                           nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
             "plain": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))}[name]().double()
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
                m.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    scoped = Net(model, torch.device("cpu"))
    x, y = torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)
    found = []
    for twice in (False, True):
        leaf = x.clone().requires_grad_(True)
        logits = scoped(leaf, batch=False, twice=twice)[0]
        (g,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf, create_graph=True)
        scoped.model.zero_grad()
        (g.square().sum() + F.cross_entropy(logits, y)).backward()
        found.append([logits.detach()] + [p.grad.clone() for p in scoped.model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 2
    for plain, fast in zip(*found):
        assert torch.allclose(plain, fast, rtol=1e-9, atol=1e-12)


def test_pairs_are_those_whose_convolution_feeds_nothing_else() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.other, self.late = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.late(self.other(self.norm(y))) + y

    model = Two()
    assert pairs(model) == [(model.other, model.late)]

    class Branches(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    assert pairs(Branches()) == []


def test_folding_pays_where_there_are_more_pixels_than_weights() -> None:
    assert pays(nn.Conv2d(3, 8, 3, padding=1), torch.empty(4, 3, 8, 8)) and not pays(nn.Conv2d(64, 64, 3, stride=2), torch.empty(1, 64, 4, 4))
