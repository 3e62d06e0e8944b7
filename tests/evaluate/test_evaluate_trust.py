from __future__ import annotations

import pytest
import torch

from composer.evaluate.protocol import evaluate
from composer.evaluate.results import Measured
from composer.evaluate.trust import Probe, Verdict, chance_limit, excess, judge_trust
from composer.options import Ref
from composer.recipe.types import MeasureSpec

SOUND = Probe(10, False, True, False)
LINF = {"norm": Ref("ball", "linf"), "eps": 0.1}


def flags(n: int, standing: int) -> torch.Tensor:
    return torch.arange(n) < standing


def verdict(use: str, standing: int, n: int = 200, name: str = "", clean: int = 190, zero: int = 0, details=None, **options) -> Verdict:
    extra = {} if use == "clean" else {"clean": flags(n, clean), "zero_grad": flags(n, zero)}
    return Verdict(name or use, use, {**LINF, **options}, Measured(flags(n, standing), extra, details or {}), {"attack": use != "clean"})


def said(*verdicts: Verdict, seen: Probe = SOUND) -> list[str]:
    found = judge_trust(list(verdicts), seen)
    assert found["ok"] == (not found["flags"])
    return found["flags"]


def test_a_sound_evaluation_has_no_flags():
    assert said(verdict("clean", 190), verdict("pgd", 110, steps=20), verdict("pgd", 108, name="pgd-100", steps=100), verdict("aa", 100)) == []


@pytest.mark.parametrize(("aa", "flagged"), [(100, False), (104, False), (105, True), (140, True)])
def test_autoattack_weaker_than_another_attack(aa, flagged):
    found = said(verdict("pgd", 100, steps=20), verdict("aa", aa))
    assert any("aa is weaker than pgd" in text for text in found) == flagged


def test_only_common_images_and_one_threat_are_compared():
    assert said(verdict("pgd", 100, steps=20), verdict("aa", 98, n=100)) == []             # on the first 100 images pgd leaves all 100
    assert said(verdict("pgd", 20, steps=20, eps=0.3), verdict("aa", 100)) == []           # another radius says nothing


def test_masked_gradients():
    assert any("masked" in text for text in said(verdict("pgd", 140, steps=20), verdict("aa", 100)))
    inside = verdict("aa", 100, details={"robust_after": {"apgd-ce": 150, "apgd-t": 100, "fab-t": 100, "square": 100}})
    assert any("apgd-ce alone leaves 150" in text for text in said(inside))
    square = verdict("aa", 100, details={"robust_after": {"apgd-ce": 112, "apgd-t": 110, "fab-t": 110, "square": 100}})
    assert any("Square" in text for text in said(square))
    assert said(verdict("aa", 100, details={"robust_after": {"apgd-ce": 110, "apgd-t": 102, "fab-t": 102, "square": 100}})) == []


def test_chance():
    assert chance_limit(10, 10_000) == pytest.approx(0.109)
    assert any("at chance" in text for text in said(verdict("clean", 30), verdict("pgd", 0, clean=30)))
    assert said(verdict("clean", 40)) == []


def test_zero_gradients_more_steps_weaker_and_robust_but_wrong():
    assert any("exactly zero on 10.0%" in text for text in said(verdict("pgd", 100, clean=190, zero=19, steps=20)))
    assert said(verdict("pgd", 100, zero=1, steps=20)) == []
    weaker = said(verdict("pgd", 100, steps=20, name="pgd-20"), verdict("pgd", 110, steps=100, name="pgd-100"))
    assert weaker == ["pgd-100 is weaker than pgd-20 despite more steps: 10 images stand only under it, 0 only under the other"]
    assert said(verdict("pgd", 100, steps=20, name="a"), verdict("pgd", 110, steps=100, name="b", step=0.01)) == []
    assert any("attacked above clean" in text for text in said(verdict("clean", 90), verdict("pgd", 100, steps=20, clean=90)))


def test_excess_is_mcnemars_count():
    strong, weak = torch.tensor([1, 1, 1, 0, 1], dtype=torch.bool), torch.tensor([0, 0, 1, 1], dtype=torch.bool)
    assert excess(strong, weak) == (2, 1, False)
    assert excess(flags(50, 30), flags(50, 24)) == (6, 0, True)


@pytest.mark.parametrize(("model", "word"), [
    (lambda x: torch.randn(len(x), 10), "differently twice"),
    (lambda x: (40 * x.flatten(1)[:, :10]).softmax(1), "probabilities"),
    (lambda x: x.flatten(1)[:, :10].log() - torch.inf, "not finite"),
    (lambda x: torch.zeros(len(x), 10), "at chance"),
    (lambda x: (x.flatten(1)[:, 10:20] * 8).round(), "exactly zero"),
])
def test_models_that_ask_for_doubt(digits, threat, model, word):
    x, y = digits["test"]
    if word == "exactly zero":
        y = model(x).argmax(1)
    specs = [MeasureSpec("clean", "clean", {}), MeasureSpec("p", "pgd", {"steps": 2})]
    with torch.random.fork_rng():
        found = evaluate(model, x, y, specs, threat=threat, seed=0).trust
    assert not found["ok"]
    assert any(word in text for text in found["flags"]), found


def test_a_trained_model_is_trusted(trained, digits, threat):
    specs = [MeasureSpec("clean", "clean", {}), MeasureSpec("fgsm", "fgsm", {}), MeasureSpec("pgd-8", "pgd", {}), MeasureSpec("pgd-16", "pgd", {"steps": 16}),
             MeasureSpec("cw", "cw", {})]
    found = evaluate(trained, *digits["test"], specs, threat=threat, seed=0)
    assert found.trust == {"ok": True, "flags": []}
    assert found.metrics["pgd-8"] <= found.metrics["fgsm"] < found.metrics["clean"]
