from __future__ import annotations

import pytest
import torch
from torch import nn

from composer.options import Ref
from composer.plugins import load_catalogue
from composer.recipe.types import Threat

load_catalogue()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """Handwritten digits in [0,1], 200 of them for judging."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).div(16).unsqueeze(1)
    y = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return {"train": (x[:1400], y[:1400]), "test": (x[1400:1600].contiguous(), y[1400:1600])}


def make_net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture(scope="session")
def trained(digits):
    """A small net trained on images of a two-step attack: about 95 % clean, half of it robust at eps 0.15."""
    x, y = digits["train"]
    net = make_net()
    optim = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        for rows in torch.randperm(len(y), generator=generator).split(100):
            xb, yb = x[rows], y[rows]
            net.eval()
            point = (xb + 0.1 * (2 * torch.rand(xb.shape, generator=generator) - 1)).clamp(0, 1)
            for _ in range(2):
                point.requires_grad_()
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point), yb), point)
                point = (xb + (point.detach() + 0.07 * grad.sign() - xb).clamp(-0.1, 0.1)).clamp(0, 1)
            net.train()
            optim.zero_grad()
            nn.functional.cross_entropy(net(point), yb).backward()
            optim.step()
    optim.zero_grad()
    return net.eval()


@pytest.fixture
def threat():
    return Threat(Ref("ball", "linf"), 0.15, 0.04, 8, Ref("start", "uniform"))


@pytest.fixture
def quick_autoattack(monkeypatch):
    """Cuts AutoAttack short, for tests that look at the ledger and not at the strength of the attacks."""
    from composer.evaluate import autoattack

    make = autoattack.make_attack

    def cut(**settings: int) -> None:
        short = {"n_queries": 30, "n_iter": 5, **settings}
        monkeypatch.setattr(autoattack, "make_attack", lambda *args, **more: make(*args, **{**short, **more}))

    return cut


class TwoClasses(nn.Module):
    """Logits (0, w·x + b): the exact robust radius is |w·x + b| over the dual norm of w."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(2 * 16, generator=generator))
        self.b = nn.Parameter(-0.5 * self.w.detach().sum())

    def forward(self, x):
        z = x.flatten(1) @ self.w + self.b
        return torch.stack((torch.zeros_like(z), z), 1)

    def images(self, n: int = 300):
        """Images away from 0 and 1 by 0.2, so that no clamp acts, with the model's own answer as label except for every tenth."""
        x = 0.2 + 0.6 * torch.rand((n, 2, 4, 4), generator=torch.Generator().manual_seed(4))
        y = self(x).argmax(1)
        y[::10] = 1 - y[::10]
        return x, y

    def radius(self, x, y, dual: float):
        """[N] float64, negative where wrong: distance to the boundary in the norm whose dual is `dual`."""
        z = x.double().flatten(1) @ self.w.detach().double() + self.b.detach().double()
        return torch.where(y == 1, z, -z) / self.w.detach().double().norm(dual)


@pytest.fixture
def two_classes():
    return TwoClasses().eval()
