"""SPSA: its estimate against the slope, its ascent against the best point in closed form, its noise and its memory."""

from __future__ import annotations

import math

import pytest
import torch

from composer.evaluate import blackbox
from composer.evaluate.draws import Draws
from composer.evaluate.guard import undisturbed
from composer.evaluate.protocol import evaluate
from composer.evaluate.store import Slot
from composer.options import Ref
from composer.recipe.types import MeasureSpec
from composer.registry import REGISTRY

PAPERS = [{"samples": 100, "steps": 20}, {"samples": 256, "steps": 100}]      # LMA-AT's, MWPB's; delta 0.001 and lr 0.01 in both


class Surface:
    """Two logits (0, J(x)) of images [N,1,4,4], label 1: the margin loss is -J, and nothing is ever broken (J > 0)."""

    device = None

    def __init__(self, j):
        self.j, self.asked, self.largest = j, [], 0

    def __call__(self, x):
        self.largest = max(self.largest, len(x))
        z = 100 + self.j(x)
        return torch.stack((torch.zeros_like(z), z), 1)

    def verdict(self, x):
        self.asked.append(x.clone())
        return torch.tensor([[0.0, 1.0]], dtype=x.dtype).expand(len(x), 2)


def climbed(surface, x, norm, eps, **settings):
    y = torch.ones(len(x), dtype=torch.int64)
    options = {"delta": 0.001, "lr": 0.01, "samples": 100, "steps": 20} | settings
    blackbox._batch(surface, x, y, torch.arange(len(x)), Draws(0, "t"), 64, eps, Ref("ball", norm), **options)
    return surface.asked


@pytest.mark.parametrize("settings", PAPERS, ids=["lma_at", "mwpb"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_linear_surface_is_climbed_to_its_best_point(settings, norm):
    """max of -w.x over the ball: eps ||w||_1 for linf, eps ||w||_2 for l2, eps max |w| for l1 where no pixel meets the edge of [0,1]. In float64: the paper's delta loses four digits of float32."""
    w = torch.randn(16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = w.sign() * (0.3 + w.abs())
    x = 0.3 + 0.4 * torch.rand((5, 1, 4, 4), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    eps = {"linf": 0.1, "l2": 0.25, "l1": 0.25}[norm]
    surface = Surface(lambda p: p.flatten(1) @ w)
    points = climbed(surface, x, norm, eps, **settings, lr=0.05 if norm == "l1" else 0.01)          # an l1 ball's corner is far for so small steps
    gain = -((points[-1] - x).flatten(1) @ w)
    best = eps * w.norm(p={"linf": 1, "l2": 2, "l1": torch.inf}[norm])
    assert (gain >= 0.95 * best).all() and (gain <= best + 1e-9).all()
    for point in points:
        size = (point - x).flatten(1)
        assert (size.norm(dim=1, p={"linf": torch.inf, "l2": 2, "l1": 1}[norm]) <= eps + 1e-12).all() and point.min() >= 0 and point.max() <= 1
    assert len(points) == settings["steps"] and surface.largest <= 64


def test_a_quadratic_surface_is_climbed_to_its_inner_optimum():
    """-J = -||x - c||^2 has its best point inside the ball: the image ends there."""
    x = torch.full((4, 1, 4, 4), 0.5, dtype=torch.float64)
    c = x + 0.08 * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1)
    points = climbed(Surface(lambda p: (p - c.repeat(len(p) // 4, 1, 1, 1)).square().flatten(1).sum(1)), x, "linf", 0.1, **PAPERS[1])
    start, end = ((p - c).square().flatten(1).sum(1) for p in (x, points[-1]))
    assert (end <= 0.05 * start).all()


def test_the_estimate_is_the_formula_and_unbiased():
    generator = torch.Generator().manual_seed(5)
    point, w = torch.rand((3, 2, 3, 3), generator=generator, dtype=torch.float64), torch.randn(18, generator=generator, dtype=torch.float64)
    bits, samples, delta = Draws(1, "t").bits("d", torch.arange(3), 7), 7, 0.01

    def objective(points):
        return (points.flatten(1) @ w).sin()

    signs = blackbox.unpack(bits.view(3, 7, 1), 18)
    want = torch.zeros(3, 18, dtype=torch.float64)
    for i in range(3):
        for s in range(samples):
            v, flat = signs[i, s].double(), point[i].flatten()
            up, down = (math.sin(float((flat + sign * delta * v) @ w)) for sign in (1, -1))
            want[i] += (up - down) / (2 * delta) * v / samples
    for limit in (1, 12, 10_000):
        torch.testing.assert_close(blackbox.estimate(objective, point, bits, delta, samples, limit).flatten(1), want, rtol=0, atol=1e-10)
    bits = Draws(1, "t").bits("d", torch.arange(3), 20_000)
    slope = (point.flatten(1) @ w).cos()[:, None] * w
    mean = blackbox.estimate(objective, point, bits, 1e-4, 20_000, 60_000).flatten(1)
    assert (mean - slope).norm() < 0.05 * slope.norm()


def test_signs_are_fair_independent_and_each_images_own():
    draws, rows = Draws(3, "evaluate/spsa"), torch.tensor([0, 5, 63, 64, 199])
    bits = draws.bits("directions/1", torch.arange(200), 40)
    assert torch.equal(bits[rows], draws.bits("directions/1", rows, 40))
    signs = blackbox.unpack(bits.view(200, 4, 10), 320).double()
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and signs.shape == (200, 4, 320)
    assert abs(float(signs.mean())) < 4 / math.sqrt(signs.numel())
    assert abs(float((signs[:, 0] * signs[:, 1]).mean())) < 4 / math.sqrt(200 * 320) and abs(float((signs[0] * signs[1]).mean())) < 4 / math.sqrt(1280)
    assert not torch.equal(bits, draws.bits("directions/2", torch.arange(200), 40))
    assert not torch.equal(blackbox.unpack(bits.view(200, 4, 10), 320)[..., 31], torch.ones(200, 4)), "the sign bit is a coin too"


def test_neither_batch_size_nor_n_changes_an_image(trained, digits, threat):
    x, y = digits["test"]
    options = {"samples": 12, "steps": 6, "lr": 0.05}
    whole = evaluate(trained, x, y, [MeasureSpec("s", "spsa", options)], threat=threat, seed=0, batch_size=200)
    small = evaluate(trained, x, y, [MeasureSpec("s", "spsa", options)], threat=threat, seed=0, batch_size=9)
    assert int((whole.flags["s"] ^ small.flags["s"]).sum()) <= 1, "sums of another order differ in the last digit, images do not"
    first = evaluate(trained, x, y, [MeasureSpec("s", "spsa", options, n=70)], threat=threat, seed=0, batch_size=200)
    assert torch.equal(whole.flags["s"][:70], first.flags["s"]) and first.n["s"] == 70
    assert 0.1 < whole.metrics["s"] < 0.95 and whole.details["s"]["queries"] > 25 * 6


@pytest.mark.parametrize(("norm", "served"), [("linf", True), ("l2", False), ("l1", False)])
@pytest.mark.parametrize("where", ["spsa", "inside"])
def test_numbers_stored_under_the_old_formula_are_served_in_linf_alone(trained, digits, threat, tmp_path, monkeypatch, norm, served, where):
    """A store from before holds slots whose key says nothing of the formula; outside linf that was another one."""
    x, y = (part[:20] for part in digits["test"])
    radius, settings, spsa = {"eps": 0.5, "norm": Ref("ball", norm)}, {"samples": 2, "steps": 1}, REGISTRY.get("measure", "spsa")
    spec = {"spsa": MeasureSpec("s", "spsa", radius | settings), "inside": MeasureSpec("s", "per_class", {"attack": Ref("measure", "spsa", settings), **radius})}[where]
    with monkeypatch.context() as before:
        before.delitem(spsa.flags, "key")
        evaluate(trained, x, y, [spec], threat=threat, seed=0, store=tmp_path)
    asked, plain = [], blackbox.estimate
    monkeypatch.setattr(blackbox, "estimate", lambda *args: (asked.append(1), plain(*args))[1])
    evaluate(trained, x, y, [spec], threat=threat, seed=0, store=tmp_path)
    assert bool(asked) != served
    asked.clear()
    evaluate(trained, x, y, [spec], threat=threat, seed=0, store=tmp_path)
    assert not asked


def test_a_stronger_setting_breaks_more_and_pgd_breaks_most(trained, digits, threat):
    x, y = (part[:80] for part in digits["test"])
    specs = [MeasureSpec("weak", "spsa", {"samples": 4, "steps": 4}), MeasureSpec("spsa", "spsa", {"samples": 100, "steps": 20}), MeasureSpec("pgd", "pgd", {"steps": 20})]
    found = evaluate(trained, x, y, specs, threat=threat, seed=0)
    assert found.metrics["weak"] > found.metrics["spsa"] >= found.metrics["pgd"] and found.trust["ok"], found.trust


def test_a_killed_one_goes_on_where_it_was(trained, digits, threat, tmp_path):
    x, y = (part[:60] for part in digits["test"])
    settings = {"delta": 0.001, "lr": 0.03, "samples": 8, "steps": 4, "eps": 0.15, "norm": Ref("ball", "linf")}

    class Killed(Exception):
        pass

    def kill(done, total):
        if done >= 20:
            raise Killed

    with undisturbed(trained) as judge:
        whole = blackbox.run_spsa(judge, x, y, Draws(0, "s"), 20, lambda *_: None, Slot(None, ""), **settings)
        with pytest.raises(Killed):
            blackbox.run_spsa(judge, x, y, Draws(0, "s"), 20, kill, Slot(tmp_path, "s"), **settings)
        asked = []
        again = blackbox.run_spsa(judge, x, y, Draws(0, "s"), 20, lambda done, total: asked.append(done), Slot(tmp_path, "s"), **settings)
    assert torch.equal(again.values, whole.values) and again.details == whole.details and asked[0] > 20
