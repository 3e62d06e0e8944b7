"""The margin methods' real steps against plain PyTorch in float64: a network in the authors' way, with rows cut out by an index, two copies where
two modes are needed, gradients taken by hand. Boundary points are the engine's own (tests/catalogue tries the search)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.counter import count
from composer.bench.nets import batch, net
from composer.bench.subject import Subject
from composer.engine.scope import install
from composer.errors import Stopped
from composer.plan.cost import plan_cost
from composer.recipe.load import load

N = 12


class Step:
    """One step of a recipe, and a plain copy of the network as it was before."""

    def __init__(self, recipe: str, sets: tuple[str, ...] = ()):
        self.x, _ = batch("cnn8", N)
        self.x = self.x.double()
        model = warmed(net("cnn8").double(), self.x)
        with torch.no_grad():
            z = copy.deepcopy(model).eval()(self.x)
        self.y = (z.argmax(1) + (torch.arange(N) % 3 == 0)) % 10         # a third is misclassified
        self.plain = copy.deepcopy(model)
        self.subject = Subject(load(recipe, setting="digits", sets=list(sets)), model, self.x, self.y)
        part = self.subject.parts.get("memory")
        if part:
            part._eps = part._eps.double()

    def run(self) -> dict[str, Any]:
        executor = self.subject.trainer.executor
        self.total, _, env = executor.forward({**self.subject.batch.roots(), "model": self.subject.model}, 0)
        self.total.backward()
        executor.write_statistics(env)
        executor.moments("after_step", env)
        return env

    def agrees(self, loss: Tensor, stats: nn.Module, tolerance: float = 1e-9) -> None:
        """Loss, gradients and running statistics."""
        torch.testing.assert_close(self.total, loss, rtol=tolerance, atol=tolerance)
        named = dict(self.plain.named_parameters())
        wanted = torch.autograd.grad(loss, list(named.values()))
        for (name, p), want in zip(self.subject.model.named_parameters(), wanted, strict=True):
            torch.testing.assert_close(p.grad, want, rtol=1e-8, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
        for (name, ours), want in zip(self.subject.model.named_buffers(), stats.buffers(), strict=True):
            torch.testing.assert_close(ours, want, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def warmed(model: nn.Module, x: Tensor) -> nn.Module:
    """Running statistics that know the data a little, so that eval mode is not another network."""
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x)
        model[-1].weight.mul_(40)           # margins large enough that a soft one can be positive
    return model


def frozen(model: nn.Module) -> nn.Module:
    """The same weights (shared) in eval mode, with running statistics of its own."""
    twin = copy.deepcopy(model).eval()
    _share(model, twin)
    return twin


def _share(model: nn.Module, twin: nn.Module) -> None:
    for (_, a), (_, b) in zip(model.named_modules(), twin.named_modules(), strict=True):
        for key in a._parameters:
            b._parameters[key] = a._parameters[key]


def soft_margin(z: Tensor, y: Tensor, beta: float) -> Tensor:
    rest = torch.stack([torch.cat([row[:k], row[k + 1:]]) for row, k in zip(z, y.tolist())])
    return z.gather(1, y[:, None])[:, 0] - torch.logsumexp(beta * rest, 1) / beta


def exact_margin(z: Tensor, y: Tensor) -> Tensor:
    rest = torch.stack([torch.cat([row[:k], row[k + 1:]]) for row, k in zip(z, y.tolist())])
    return z.gather(1, y[:, None])[:, 0] - rest.amax(1)


def test_dyart():
    """Boundary points alone first, in train mode, cut out by an index; then the clean batch; weights as constants."""
    step = Step("dyart", ("terms.margin_exp.gamma=5.0",))
    env = step.run()
    keep, point = env["bd_keep"].bool(), env["x_bd"]
    assert 2 <= keep.sum() < N
    evaluated = frozen(step.plain)
    at = point.clone().requires_grad_()
    slope = torch.autograd.grad(soft_margin(evaluated(at), step.y, 5.0).sum(), at)[0].abs().sum((1, 2, 3))
    radius = (point - step.x).abs().amax((1, 2, 3))
    weight = (torch.exp(-3.0 * radius) / slope)[keep].detach()

    step.plain.train()
    phi = soft_margin(step.plain(point[keep]), step.y[keep], 5.0)          # moves the running statistics by these rows
    ce = F.cross_entropy(step.plain(step.x), step.y)
    value = (torch.exp(-3.0 * radius) / 3.0)[keep].sum() / N               # DyART's loss has no value of its own; h(R) has
    surrogate = (weight * -phi).sum() / N
    step.agrees(ce + 1000.0 * (value + surrogate - surrogate.detach()), step.plain, 1e-8)


def test_elsayed():
    step = Step("elsayed", ("terms.margin_hinge.gamma=1.0",))
    step.run()
    evaluated = frozen(step.plain)
    x = step.x.clone().requires_grad_()
    gap = exact_margin(evaluated(x), step.y)
    size = torch.autograd.grad(gap.sum(), x, retain_graph=True)[0].abs().sum((1, 2, 3))
    hinge = torch.clamp(1.0 - gap / (size.detach() + 1e-8), min=0).mean()
    assert hinge > 0.1
    step.plain.train()
    step.agrees(F.cross_entropy(step.plain(step.x), step.y) + 25.0 * hinge, step.plain)


def test_elsayed_exponential_is_the_mean_over_the_correct():
    step = Step("elsayed_exp", ("terms.margin_exp.gamma=5.0",))
    step.run()
    evaluated = frozen(step.plain)
    x = step.x.clone().requires_grad_()
    z = evaluated(x)
    right = z.argmax(1) == step.y
    assert 0 < right.sum() < N
    gap = exact_margin(z, step.y)
    size = torch.autograd.grad(gap.sum(), x, retain_graph=True)[0].abs().sum((1, 2, 3))
    loss = (torch.exp(-3.0 * gap / (size.detach() + 1e-8)) / 3.0)[right].mean()
    step.plain.train()
    step.agrees(F.cross_entropy(step.plain(step.x), step.y) + 25.0 * loss, step.plain)


@pytest.mark.parametrize(("recipe", "margin"), [("elsayed_fab", exact_margin), ("elsayed_fab_soft", lambda z, y: soft_margin(z, y, 5.0))])
def test_elsayed_with_fab(recipe, margin):
    """The hinge's slope is that of the margin at the image over phi / R; images without a distance count nothing."""
    step = Step(recipe, ("terms.margin_hinge.gamma=5.0",))
    env = step.run()
    found, radius = env["bd_found"].bool(), (env["x_bd"] - step.x).abs().amax((1, 2, 3))
    assert 0 < found.sum() < N
    phi = margin(frozen(step.plain)(step.x), step.y)[found]
    r = radius[found]
    distance = r + (phi - phi.detach()) * (r / phi.detach())
    step.plain.train()
    step.agrees(F.cross_entropy(step.plain(step.x), step.y) + 25.0 * (5.0 - distance).sum() / N, step.plain)


def test_mma():
    """As the authors' batch: correct images overwritten by x + eps u, wrong ones as they are; those with eps < d_max and the wrong ones count."""
    step = Step("mma")
    env = step.run()
    evaluated = frozen(step.plain)
    with torch.no_grad():
        right = soft_margin(evaluated(step.x), step.y, 1.0) > 0
        eps = bisection(evaluated, step.x, (env["x_adv"] - step.x) / (0.005 + 1e-12), step.y, torch.full((N,), 0.005, dtype=torch.float64), 1.05 * 0.3)
        eps = torch.where(right, eps, torch.zeros_like(eps))
        unit = (env["x_adv"] - step.x) / (0.005 + 1e-12)
        point = torch.where(right[:, None, None, None], (step.x + eps[:, None, None, None] * unit).clamp(0, 1), step.x)
    torch.testing.assert_close(env["bd_eps"], eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(env["x_bd"], point, rtol=1e-9, atol=1e-12)
    assert 0 < right.sum() < N
    counts = ~right | (eps < 0.3)
    step.plain.train()
    clean = F.cross_entropy(step.plain(step.x), step.y)
    each = F.cross_entropy(step.plain(point), step.y, reduction="none")
    step.agrees(2 / 3 * each[counts].sum() / N + clean / 3, step.plain)
    memory = step.subject.parts["memory"]
    torch.testing.assert_close(memory.read(step.subject.batch.i)["eps"], eps.clamp_min(0.005), rtol=1e-12, atol=1e-12)


def bisection(model: nn.Module, x: Tensor, unit: Tensor, y: Tensor, eps: Tensor, top: float, steps: int = 10) -> Tensor:
    """Image by image, with Python's own comparisons."""
    found = []
    for n in range(len(x)):
        low, high, r = 0.0, top, float(eps[n])
        for _ in range(steps):
            inside = soft_margin(model((x[n] + r * unit[n]).clamp(0, 1)[None]), y[n:n + 1], 1.0).item() > 0
            low, high = (max(low, r), high) if inside else (low, min(high, r))
            r = (low + high) / 2
        found.append(r)
    return torch.tensor(found, dtype=x.dtype)


# -- batch norm over some rows -----------------------------------------------------------------------------------------------------

def masked(layers: nn.Module, x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The engine's pass over the rows of a mask, and what it hands out."""
    scope, stats = install(layers, torch.device("cpu"))
    scope.batch, scope.rows, scope.scratch = True, keep.to(x.dtype), stats.scratch()
    out = layers(x)
    handed, scope.scratch = scope.scratch, None
    stats.write(handed)
    return out, handed


@pytest.mark.parametrize("rows", [(0, 3, 4), (2,), tuple(range(6))])
def test_masked_batch_norm_is_batch_norm_of_the_subset(rows):
    """Values, gradients to images and weights, and running statistics; whatever the other rows hold."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).double()
    plain = copy.deepcopy(layers).train()
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    x[[k for k in range(6) if k not in rows]] *= 1e3
    keep = torch.zeros(6, dtype=torch.bool).index_fill_(0, torch.tensor(rows), True)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, _ = masked(layers, ours, keep)
    want = plain(theirs[keep])
    torch.testing.assert_close(out[keep], want, rtol=1e-10, atol=1e-11)
    mix = torch.randn_like(want)
    got = torch.autograd.grad((out[keep] * mix).sum(), [ours, *layers.parameters()])
    expected = torch.autograd.grad((want * mix).sum(), [theirs, *plain.parameters()])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    for a, b in zip(layers.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_no_row_leaves_the_running_statistics_and_no_nan():
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).double()
    layers[1].running_mean.add_(0.5)
    before = [b.clone() for b in layers.buffers()]
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    out, handed = masked(layers, x, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(list(layers.buffers())[:2], before[:2])
    assert out.isfinite().all() and handed.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad((out * 0).sum(), [x, *layers.parameters()]))


# -- cost --------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("recipe", "sets"), [
    ("elsayed", ()), ("elsayed", ("views.m.classes=all",)), ("elsayed", ("views.m.grad=full",)), ("elsayed", ("views.m.classes=all", "views.m.grad=full")),
    ("elsayed_exp", ()), ("elsayed_fab", ("inner.x_bd.steps=3",)), ("elsayed_fab", ("inner.x_bd.steps=3", "inner.x_bd.start=uniform")),
    ("dyart", ("inner.x_bd.steps=4",)), ("mma", ("inner.x_bd.steps=6",))])
def test_a_step_makes_the_passes_of_its_plan(recipe, sets):
    x, y = batch("cnn8", 4)
    made = Subject(load(recipe, setting="digits", sets=list(sets)), net("cnn8"), x, y)
    cost, counted = plan_cost(made.plan).at(10), count(made.model, made, batch=4)
    assert (counted.forward, counted.dgrad, counted.wgrad) == (cost.forward, cost.dgrad, cost.wgrad)


def test_a_gain_of_zeros_has_no_mean_to_divide_by():
    """No correct image in the batch: the term is silent, not undefined."""
    step = Step("elsayed_exp")
    with torch.no_grad():
        z = frozen(step.plain)(step.x)
    step.subject.batch.y.copy_((z.argmax(1) + 1) % 10)
    env = step.run()
    assert step.total.isfinite() and (env["terms.margin_exp.gain"] == 0).all()


# -- runs --------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("recipe", ["elsayed_burnin", "elsayed_exp", "elsayed_fab_soft", "dyart", "mma"])
def test_it_trains(recipe, go, record, tmp_path):
    result = go(recipe, tmp_path)
    burn_in = 0 if recipe in ("elsayed_fab_soft", "mma") else 1
    rows = record(tmp_path, result["run"]).rows
    assert [row["epoch"] for row in rows] == list(range(1, 4 + burn_in))
    terms = {k for k in rows[-1] if k.startswith("train/terms.")}
    assert len(terms) == 2 and all(torch.tensor(row[k]).isfinite() for row in rows[burn_in:] for k in terms)


def test_mma_stopped_and_resumed_is_the_run_that_went_on(go, stop_after, tmp_path):
    """The remembered distances are in the checkpoint."""
    whole = go("mma", tmp_path / "whole")
    stop_after(4)
    with pytest.raises(Stopped):
        go("mma", tmp_path / "parts")
    stop_after(None)
    assert go("mma", tmp_path / "parts")["weights_sha256"] == whole["weights_sha256"]
