"""On linear models the smallest radius that breaks an image is known in closed form; attacks with targets must find it among several classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


class Linear(nn.Module):
    """Six classes on images [N,1,6,6]; every class is somebody's."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        w = torch.randn((6, 36), generator=generator)
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(-0.5 * w.sum(1))

    def forward(self, x):
        return x.flatten(1) @ self.w.T + self.b

    def radius(self, x, y, dual: float):
        """[N] float64: min over the other classes of (z_y - z_k) / ||w_y - w_k|| in the dual norm."""
        z, w = self(x).detach().double(), self.w.detach().double()
        apart = (w[y][:, None] - w[None]).norm(dual, dim=2)
        return ((z.gather(1, y[:, None]) - z) / apart).masked_fill(nn.functional.one_hot(y, 6).bool(), torch.inf).amin(1)


@pytest.fixture(scope="module")
def linear():
    net = Linear().eval()
    x = 0.25 + 0.5 * torch.rand((120, 1, 6, 6), generator=torch.Generator().manual_seed(8))
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("use", ["apgd_t", "fab"])
def test_targeted_attacks_reach_the_nearest_of_several_boundaries(linear, use, norm, mode):
    net, x, y = linear
    radius = net.radius(x, y, DUAL[norm])
    eps = float(radius.median().clamp_max(0.24))                 # no pixel meets 0 or 1 within it
    threat = Threat(Ref("ball", norm), eps, eps / 4, 5, Ref("start", "zero"))
    result = evaluate(net, x, y, [MeasureSpec("a", use, {"steps": 40, "mode": mode})], threat=threat, seed=0)
    found, sure = result.flags["a"], (radius - eps).abs() > 0.01 * eps
    assert torch.equal(found[sure], (radius > eps)[sure]) and 40 < int(found.sum()) < 80 and result.details["a"]["wrong_answers"] == 0


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_in_l1_they_reach_it_too(linear, mode):
    """One pixel takes the whole radius: so small a one that it cannot leave [0,1]."""
    net, x, y = linear
    radius = net.radius(x, y, DUAL["l1"])
    eps = float(radius.quantile(0.2).clamp_max(0.24))
    threat = Threat(Ref("ball", "l1"), eps, eps / 4, 5, Ref("start", "zero"))
    specs = [MeasureSpec(use, use, {"steps": 50, "mode": mode}) for use in ("apgd_ce", "apgd_t", "fab")]
    result = evaluate(net, x, y, specs, threat=threat, seed=0)
    far, near = radius > eps * 1.01, radius < eps * 0.95
    assert 10 < int(near.sum()) and all(found[far].all() for found in result.flags.values())
    assert not (result.flags["fab"] & near).any() and not (result.flags["apgd_t"] & near).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "rand", "custom"])
def test_every_version_in_every_norm_breaks_what_is_surely_within_reach(linear, norm, version, quick_autoattack):
    quick_autoattack(n_iter=15, n_queries=30)
    net, x, y = (linear[0], linear[1][:24], linear[2][:24])
    radius = net.radius(x, y, DUAL[norm])
    eps = float(radius.quantile(0.6).clamp_max(0.24))
    options = {"version": version, **({"attacks": ("apgd-ce", "fab")} if version == "custom" else {})}
    threat = Threat(Ref("ball", norm), eps, eps / 4, 5, Ref("start", "zero"))
    result = evaluate(net, x, y, [MeasureSpec("aa", "aa", options)], threat=threat, seed=0)
    ran = {"standard": ["apgd-ce", "apgd-t", "fab-t", "square"], "rand": ["apgd-ce", "apgd-dlr"], "custom": ["apgd-ce", "fab"]}[version]
    assert result.details["aa"]["attacks"] == ran and result.details["aa"]["wrong_answers"] == 0
    assert result.flags["aa"][radius > eps * 1.01].all() and not result.flags["aa"][radius < 0.5 * eps].any()
