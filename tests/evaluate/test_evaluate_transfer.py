"""Adversarial images made on another network."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec


def stranger():
    """An untrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()


def store(net):
    return SimpleNamespace(key="", reference=lambda text: net, reference_digest=lambda text: text)


def measure(**options):
    return MeasureSpec("t", "transfer", {"source": "other", **options})


@pytest.mark.parametrize("attack", [Ref("measure", "pgd", {"steps": 5}), Ref("measure", "fgsm", {}), Ref("measure", "mim", {"steps": 3})])
def test_from_itself_it_is_the_attack(trained, digits, threat, attack):
    x, y = digits["test"]
    own = MeasureSpec("own", attack.use, {**attack.options, "start": "zero"})
    found = evaluate(trained, x, y, [own, measure(attack=attack, start="zero")], threat=threat, seed=0, run=store(trained))
    assert torch.equal(found.flags["own"], found.flags["t"]) and 0 < found.metrics["t"] < found.metrics["own"] + 1
    assert found.details["t"]["source"] == "other"


@pytest.mark.parametrize(("use", "options"), [("apgd_ce", {"steps": 5}), ("apgd_ce", {"steps": 5, "mode": "fast"}), ("square", {"queries": 40}),
                                              ("spsa", {"samples": 4, "steps": 3})])
def test_any_attack_is_judged_by_the_network_that_is_judged(trained, digits, threat, use, options):
    """On a source that is wrong everywhere nothing moves; an attack on a linear stranger moves images a little way."""
    x, y = digits["test"][0][:60], digits["test"][1][:60]
    other = stranger()
    found = evaluate(trained, x, y, [MeasureSpec("clean", "clean", {}), measure(attack=Ref("measure", use, options))], threat=threat, seed=0, run=store(other))
    assert torch.equal(found.extra["t"]["clean"], found.flags["clean"])
    assert found.metrics["t"] > 0.6 * found.metrics["clean"]
    assert not (found.flags["t"] & ~found.flags["clean"]).any()


def test_masked_gradients_show(trained, digits, threat):
    class Rounded(nn.Module):
        def forward(self, x):
            return trained((x * 16).round() / 16)

    x, y = digits["test"]
    specs = [MeasureSpec("pgd", "pgd", {"steps": 10}), measure(attack=Ref("measure", "pgd", {"steps": 10}))]
    found = evaluate(Rounded().eval(), x, y, specs, threat=threat, seed=0, run=store(trained))
    assert found.metrics["t"] < found.metrics["pgd"] - 0.2
    assert any("made on another model, is stronger than pgd" in flag for flag in found.trust["flags"])


def test_a_stored_answer_belongs_to_its_source(trained, digits, threat, tmp_path):
    x, y = digits["test"][0][:40], digits["test"][1][:40]
    first = evaluate(trained, x, y, [measure()], threat=threat, seed=0, store=tmp_path, run=store(trained))
    again = evaluate(trained, x, y, [measure()], threat=threat, seed=0, store=tmp_path, run=store(None))        # nothing is attacked
    assert torch.equal(first.flags["t"], again.flags["t"])
    other = SimpleNamespace(key="", reference=lambda text: stranger(), reference_digest=lambda text: "weights of another")
    assert evaluate(trained, x, y, [measure()], threat=threat, seed=0, store=tmp_path, run=other).metrics["t"] > first.metrics["t"]


def test_what_cannot_be_is_said(trained, digits, threat):
    from composer.evaluate.transfer import refuses

    x, y = digits["test"][0][:4], digits["test"][1][:4]
    with pytest.raises(ComposerError, match="cannot be looked up"):
        evaluate(trained, x, y, [measure()], threat=threat, seed=0)
    with pytest.raises(ComposerError, match="3 classes, the judged network with 10"):
        evaluate(trained, x, y, [measure()], threat=threat, seed=0, run=store(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))
    assert refuses({"attack": Ref("measure", "pgd", {"keep": "any"})})[0] == "attack"
    assert refuses({"attack": Ref("measure", "clean", {})})[0] == "attack" and refuses({"attack": "pgd"}) is None
