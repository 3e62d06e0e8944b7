"""The two modes of AutoAttack against a direct call of the library: flags, forward passes, time. `pytest -m slow -s tests/evaluate/test_evaluate_speed.py`"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from composer.evaluate.autoattack import run_autoattack
from composer.evaluate.draws import Draws
from composer.evaluate.guard import undisturbed
from composer.evaluate.store import Slot
from composer.options import Ref

CHECKS = 7          # forward passes of the library's own checks on the model


class Counted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def train(net, x, y, eps, epochs, steps=5):
    """Adversarial training by pgd."""
    optim = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).split(100):
            xb, yb = x[rows], y[rows]
            net.eval()
            point = (xb + eps * (2 * torch.rand(xb.shape, generator=generator) - 1)).clamp(0, 1)
            for _ in range(steps):
                point.requires_grad_()
                (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(point), yb), point)
                point = (xb + (point.detach() + 2 * eps / steps * grad.sign() - xb).clamp(-eps, eps)).clamp(0, 1)
            net.train()
            optim.zero_grad()
            nn.functional.cross_entropy(net(point), yb).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optim.step()
    optim.zero_grad()
    return net.eval()


def small_cnn(shape):
    from composer.models.build import build_model
    from composer.recipe.types import ModelSpec

    return build_model(ModelSpec("small_cnn", {}, Ref("head", "linear", {})), shape, 10, 0)


@pytest.fixture(scope="module", params=["digits", "cifar10-tiny", "example"])
def subject(request, digits, shared, tmp_path_factory):
    """(name, model, x, y, eps)."""
    if request.param == "digits":
        return "digits", train(small_cnn((1, 8, 8)), *digits["train"], 0.2, 8), *digits["test"], 0.2
    import numpy

    sys.path.insert(0, str(shared / "data"))
    try:
        import cifar_pack
    except ImportError:
        pytest.skip("needs shared/data/cifar_pack.py")
    folder = tmp_path_factory.mktemp("cifar")
    cifar_pack.unpack(str(shared / "data" / "packed"), str(folder))
    x, y = _cifar(folder, "test_batch", numpy)
    if request.param == "example":
        from pathlib import Path

        import pyautoattack
        from pyautoattack.examples.resnet import ResNet18

        net = ResNet18()
        net.load_state_dict(torch.load(Path(pyautoattack.__file__).parent / "examples" / "model_test.pt", weights_only=True, map_location="cpu"))
        return "example", net.eval(), x[:12], y[:12], 8 / 255           # twelve of the 200 images: 100 iterations of a ResNet-18 each
    images, labels = _cifar(folder, "data_batch_1", numpy)
    return "cifar10-tiny", train(small_cnn((3, 32, 32)), images[:2000], labels[:2000], 8 / 255, 4), x[:200], y[:200], 8 / 255


def _cifar(folder, name, numpy):
    import pickle

    with open(next(folder.rglob(name)), "rb") as file:
        raw = pickle.load(file, encoding="bytes")                       # checked against the official digest by the unpacker
    return torch.from_numpy(raw[b"data"]).view(-1, 3, 32, 32).float() / 255, torch.tensor(raw[b"labels"])


def library(model, x, y, eps, attacks):
    """A direct call: (flags, forwards less its checks)."""
    from pyautoattack import AutoAttack

    from composer.evaluate.library import quiet_library

    counted, tracer = Counted(model), sys.gettrace()
    with torch.random.fork_rng(), quiet_library():
        suite = AutoAttack(counted, eps=eps, norm="Linf", seed=0)
        suite.attacks_to_run = [name for name in suite.attacks_to_run if name in attacks]
        suite.square.n_queries = QUERIES
        _, answer = suite.run_standard_evaluation(x, y, batch_size=250)
    sys.settrace(tracer)
    model.zero_grad()
    return answer == y, counted.calls - CHECKS


def ours(model, x, y, eps, attacks, mode):
    counted = Counted(model)
    robust = None
    with undisturbed(counted) as judge:
        found = run_autoattack(judge, x, y, Draws(0, "evaluate/aa"), 250, lambda *_: None, Slot(None, ""), version="standard", eps=eps,
                               norm=Ref("ball", "linf"), mode=mode, n_queries=QUERIES) if len(attacks) > 1 else None
        robust = found or run_autoattack(judge, x, y, Draws(0, "evaluate/aa"), 250, lambda *_: None, Slot(None, ""), version="standard", eps=eps,
                                         norm=Ref("ball", "linf"), mode=mode, only=attacks[0])
    return robust.values, counted.calls - 1


QUERIES = 1000


@pytest.mark.slow
def test_exact_equals_the_library_and_fast_is_faster(subject):
    """One call asks the classes; otherwise the forward passes are the library's own. Square asks 1,000 queries."""
    from composer.bench.timer import interleave

    name, model, x, y, eps = subject
    attacks = ["apgd-ce"] if name == "example" else ["apgd-ce", "apgd-t", "fab-t", "square"]
    flags, forwards = library(model, x, y, eps, attacks)
    exact, mine = ours(model, x, y, eps, attacks, "exact")
    fast, _ = ours(model, x, y, eps, attacks, "fast")
    assert torch.equal(exact, flags) and mine == forwards, (name, mine, forwards)
    assert int((fast != flags).sum()) <= 1, (name, int(fast.sum()), int(flags.sum()))
    timing = interleave({"library": lambda: library(model, x, y, eps, attacks), "exact": lambda: ours(model, x, y, eps, attacks, "exact"),
                         "fast": lambda: ours(model, x, y, eps, attacks, "fast")}, rounds=3 if name == "digits" else 1, base="library", warmup=0,
                        again=False)
    print(f"\n{name}: {int(flags.sum())} of {len(y)} stand, fast differs in {int((fast != flags).sum())}\n{timing.text()}")
    assert timing.over("exact", "library", processor=True) <= 1.05
    assert 1 / timing.over("fast", "library", processor=True) >= 1.2
