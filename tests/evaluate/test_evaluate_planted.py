"""Planted defects are told, and an honest model is left in peace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from composer.evaluate.protocol import evaluate
from composer.evaluate.trust_probe import Probe, probe
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

SPECS = [MeasureSpec("clean", "clean", {}), MeasureSpec("pgd", "pgd", {"steps": 10}), MeasureSpec("pgd-3", "pgd", {"steps": 3, "restarts": 2}), MeasureSpec("cw", "cw", {"steps": 10})]


def flags(model, digits, threat, specs=SPECS) -> list[str]:
    with torch.random.fork_rng():
        found = evaluate(model, *digits["test"], specs, threat=threat, seed=0)
    assert found.trust["ok"] == (not found.trust["flags"])
    return found.trust["flags"]


class Wrapped(nn.Module):
    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class TrainMode(nn.Module):
    """Batch norm by the batch's statistics, whatever mode is asked for."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.net(x)


class Counting(nn.Module):
    """Its answers drift with the number of images it has seen, also in eval mode."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return self.net(x) + 0.01 * self.seen * x.flatten(1)[:, :10]


def normalise(x):
    return (x - 0.3) / 0.37


@pytest.mark.parametrize(("plant", "words"), [
    (lambda net: Wrapped(net, before=lambda x: (x * 15).round() / 15), "exactly zero"),
    (lambda net: Wrapped(net, before=lambda x: (x * 15).round() / 15), "lead nowhere"),
    (lambda net: Wrapped(net, after=lambda z: 1000 * z), "hides gradients"),
    (lambda net: Wrapped(net, after=lambda z: 1000 * z), "exactly zero"),
    (lambda net: Wrapped(net, before=lambda x: x + 0.1 * torch.randn_like(x)), "differently twice"),
    (lambda net: Wrapped(net, after=lambda z: z.softmax(1)), "look like probabilities"),
    (lambda net: TrainMode(net), "images beside it"),
    (lambda net: Counting(net), "differently twice"),
], ids=["quantised", "quantised-far", "saturated", "saturated-zero", "random", "probabilities", "train-mode", "counting"])
def test_a_planted_defect_is_told(trained, digits, threat, plant, words):
    import copy

    told = flags(plant(copy.deepcopy(trained)), digits, threat)
    assert any(words in one for one in told), told


@pytest.mark.parametrize("plant", [TrainMode, Counting])
def test_its_memory_is_as_before(trained, digits, threat, plant):
    import copy

    net = plant(copy.deepcopy(trained))
    before, held = {k: v.clone() for k, v in net.state_dict().items()}, dict(net.named_buffers())
    flags(net, digits, threat, SPECS[:2])
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(held[k] is v for k, v in net.named_buffers())


def test_a_batch_size_of_one_does_not_blind_the_checks(trained, digits, threat):
    import copy

    with torch.random.fork_rng():
        found = evaluate(TrainMode(copy.deepcopy(trained)), *(part[:120] for part in digits["test"]), SPECS[:1], threat=threat, seed=0, batch_size=2)
    assert any("images beside it" in one for one in found.trust["flags"])


@pytest.fixture(scope="session")
def normalising(digits):
    """A plainly trained net that wants normalised images."""
    x, y = digits["train"]
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in (net[1], net[3]):
            layer.reset_parameters()
        optim = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for _ in range(6):
            for rows in torch.randperm(len(y)).split(100):
                optim.zero_grad()
                nn.functional.cross_entropy(net(normalise(x[rows])), y[rows]).backward()
                optim.step()
    return net.eval()


@pytest.mark.parametrize(("before", "words"), [(lambda x: normalise(normalise(x)), "normalised twice"), (lambda x: x, ""), (normalise, "")],
                         ids=["twice", "never", "once"])
def test_normalisation(normalising, digits, before, words):
    """Twice is told; a model that does as well without its normalisation is not accused of lacking it."""
    found = probe_of(Wrapped(normalising, before=before), digits)
    told = said(found)
    assert any(words in one for one in told) if words else not told, (told, found)


def test_a_model_that_was_trained_so_is_not_accused(normalising, digits):
    """A composer run sees its images as in training, whatever else its weights would answer better."""
    from composer.evaluate.trust import judge_trust

    found = probe_of(Wrapped(normalising, before=lambda x: normalise(normalise(x))), digits)
    assert judge_trust([], found)["flags"] and judge_trust([], found, as_trained=True) == {"ok": True, "flags": []}


def test_a_missing_normalisation_that_costs_accuracy_is_told(normalising, digits):
    dim = Wrapped(normalising, before=lambda x: x - 1.0)                   # as given, the model is off by one; normalised, off by far less
    found = probe_of(dim, digits)
    assert found.missing[0] > found.missing[1] and any("not normalised" in one for one in said(found)), found


def probe_of(model, digits) -> Probe:
    from composer.evaluate.guard import undisturbed

    with undisturbed(model) as judge:
        return probe(judge, *digits["test"])


def said(found: Probe) -> list[str]:
    from composer.evaluate.trust import judge_trust

    return judge_trust([], found)["flags"]


@pytest.fixture(scope="session")
def honest(digits):
    """The digits network of the bench after five epochs of adversarial training at the digits' radius."""
    from composer.models.build import build_model
    from composer.recipe.types import ModelSpec

    net = build_model(ModelSpec("small_cnn", {}, Ref("head", "linear", {})), (1, 8, 8), 10, 0)
    x, y = digits["train"]
    optim = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        for rows in torch.randperm(len(y), generator=generator).split(100):
            xb, yb = x[rows], y[rows]
            net.eval()
            point = (xb + 0.2 * (2 * torch.rand(xb.shape, generator=generator) - 1)).clamp(0, 1)
            for _ in range(5):
                point.requires_grad_()
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point), yb), point)
                point = (xb + (point.detach() + 0.08 * grad.sign() - xb).clamp(-0.2, 0.2)).clamp(0, 1)
            net.train()
            optim.zero_grad()
            nn.functional.cross_entropy(net(point), yb).backward()
            optim.step()
    optim.zero_grad()
    return net.eval()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_false_alarm_on_an_honest_model(honest, digits, norm):
    eps = {"linf": 0.2, "l2": 0.8}[norm]
    threat = Threat(Ref("ball", norm), eps, eps / 4, 10, Ref("start", "uniform"))
    specs = [*SPECS, MeasureSpec("fgsm", "fgsm", {}), MeasureSpec("pgd-20", "pgd", {"steps": 20}), MeasureSpec("apgd-ce", "apgd_ce", {"mode": "fast"}),
             MeasureSpec("apgd-t", "apgd_t", {"mode": "fast", "steps": 20}), MeasureSpec("square", "square", {"mode": "fast", "queries": 300})]
    with torch.random.fork_rng():
        found = evaluate(honest, *digits["test"], specs, threat=threat, seed=0)
    assert found.trust == {"ok": True, "flags": []}
    assert found.metrics["clean"] > 0.8 and 0.2 < found.metrics["apgd-t"] <= found.metrics["pgd"] < found.metrics["clean"]
    assert found.seen["large"][0] <= 1 and found.seen["twice"] is not None
