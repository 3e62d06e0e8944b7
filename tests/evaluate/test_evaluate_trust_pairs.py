"""Checks between two attacks, and the time that is left."""

from __future__ import annotations

import pytest
import torch

from composer.evaluate.pace import seconds_left, told
from composer.evaluate.results import Measured
from composer.evaluate.trust import Probe, Verdict, judge_trust
from composer.options import Ref

SOUND = Probe(10, False, True, False)


def verdict(use, standing, name="", flags=None, n=200, **options):
    values = torch.arange(n) < standing
    settled = {"norm": Ref("ball", "linf"), "eps": 0.1, **options}
    return Verdict(name or use, use, settled, Measured(values, {"clean": torch.arange(n) < 190}, {}), {"attack": True, **(flags or {})})


def said(*verdicts, seen=SOUND):
    return judge_trust(list(verdicts), seen)["flags"]


@pytest.mark.parametrize(("one", "other", "words"), [
    (verdict("apgd_ce", 121, steps=100), verdict("apgd_t", 100, steps=100), "cross entropy does not find the way"),
    (verdict("apgd_ce", 119, steps=100), verdict("apgd_t", 100, steps=100), ""),
    (verdict("apgd_ce", 121, steps=100), verdict("aa", 100), "points above aa"),
    (verdict("apgd_ce", 119, steps=100), verdict("aa", 100), ""),
    (verdict("pgd", 121, steps=20), verdict("cw", 100, steps=20), "overstates robustness"),
    (verdict("pgd", 119, steps=20), verdict("cw", 100, steps=20), ""),
    (verdict("pgd", 121, steps=3), verdict("cw", 100, steps=20), ""),                     # fewer steps are weaker anyway
    (verdict("pgd", 121, steps=20, loss=Ref("loss", "ce")), verdict("pgd", 100, "cw", steps=20, loss=Ref("loss", "margin")), "cw is 10.5 points below pgd"),
    (verdict("pgd", 100, steps=20, loss=Ref("loss", "ce")), verdict("pgd", 121, "cw", steps=20, loss=Ref("loss", "margin")), ""),
    (verdict("pgd", 121, "a", steps=20, loss=Ref("loss", "dlr")), verdict("pgd", 100, "b", steps=20, loss=Ref("loss", "cw")), ""),
    (verdict("fgsm", 150), verdict("aa", 100), ""),
    (verdict("pgd", 100, steps=20), verdict("aa", 150), "aa is weaker than pgd"),
    (verdict("pgd", 100, "a", steps=20, restarts=1), verdict("pgd", 110, "b", steps=20, restarts=5), "b is weaker than a despite more restarts"),
    (verdict("pgd", 110, "a", steps=20, restarts=1), verdict("pgd", 100, "b", steps=20, restarts=5), ""),
    (verdict("square", 110, "b", {"blind": True}, queries=5000), verdict("square", 100, "a", {"blind": True}, queries=500), "despite more queries"),
    (verdict("pgd", 120, steps=20), verdict("other", 100, "moved", {"transfer": True}), "made on another model, is stronger than pgd"),
    (verdict("pgd", 100, steps=20), verdict("other", 120, "moved", {"transfer": True}), ""),
    (verdict("apgd_ce", 120, steps=100), verdict("square", 100, "s", {"blind": True}), "sees no gradient, is stronger than apgd_ce"),
    (verdict("fab", 120, steps=100), verdict("square", 100, "s", {"blind": True}), ""),
])
def test_pairs(one, other, words):
    for found in (said(one, other), said(other, one)):
        assert any(words in flag for flag in found) if words else found == [], found


@pytest.mark.parametrize(("seen", "words"), [
    ({"company": True}, "images beside it"), ({"large": (3, 16)}, "lead nowhere"), ({"large": (1, 16)}, ""), ({"rescaled": (9, 1), "lead": 400.0}, "rescaled"),
    ({"rescaled": (2, 1), "lead": 400.0}, ""), ({"twice": (30, 2), "images": 200}, "normalised twice"), ({"twice": (9, 0), "images": 200}, ""),
    ({"missing": (30, 2), "images": 200}, "not normalised"), ({"spread": 4.1}, "normalised twice"), ({"spread": 1.0}, ""), ({"spread": 63.0}, "")])
def test_what_was_seen_of_the_model(seen, words):
    found = said(seen=Probe(10, False, True, False, **seen))
    assert any(words in flag for flag in found) if words else found == []


def test_an_attack_without_a_scale_answers_the_doubt_of_the_scale():
    """Cosine heads and unsure networks have small logits: cross entropy climbs badly there, differences of logits do not."""
    seen = Probe(10, False, True, False, rescaled=(9, 1), lead=0.2)
    ce, margin = Ref("loss", "ce"), Ref("loss", "margin")
    for other in (verdict("aa", 100), verdict("apgd_t", 100), verdict("cw", 100, steps=20), verdict("pgd", 100, "m", steps=20, loss=margin)):
        assert said(verdict("pgd", 101, "p", steps=20, loss=ce), other, seen=seen) == [], other.use
    for other in (verdict("aa", 100, version="custom"), verdict("pgd", 100, "q", steps=20, loss=ce), verdict("square", 102, blind=True)):
        assert any("rescaled" in flag for flag in said(verdict("pgd", 101, "p", steps=20, loss=ce), other, seen=seen)), other.use
    saturated = Probe(10, False, True, False, rescaled=(9, 1), lead=400.0)
    assert any("rescaled" in flag for flag in said(verdict("aa", 100), seen=saturated))


@pytest.mark.parametrize(("one", "other", "words"), [
    (verdict("pgd", 150, steps=20), verdict("cw", 100, steps=30), "cw is 25.0 points below pgd"),                   # more steps are no excuse there
    (verdict("mim", 150, steps=20), verdict("cw", 100, steps=20), "cw is 25.0 points below mim"),
    (verdict("fgsm", 150), verdict("apgd_t", 100, steps=100), "apgd_t is 25.0 points below fgsm"),
    (verdict("pgd", 150, steps=5), verdict("aa", 100), "overstates robustness"),
    (verdict("pgd", 150, steps=20), verdict("cw", 100, steps=20, norm=Ref("ball", "l2")), "logits' scale"),          # another ball
    (verdict("pgd", 150, steps=20), verdict("cw", 100, steps=20, eps=0.2), "logits' scale"),                        # another radius
    (verdict("pgd", 150, steps=20), verdict("cw", 180, steps=1), "logits' scale"),                                  # too weak to show anything
    (verdict("pgd", 150, steps=20), verdict("aa", 8, n=10), "logits' scale"),                                       # too few images
    (verdict("pgd", 105, steps=20), verdict("cw", 100, steps=30), ""),
    (verdict("pgd", 105, steps=20), verdict("aa", 47, n=50), ""),
    (verdict("pgd", 105, steps=20), verdict("mim", 100, steps=20, loss=Ref("loss", "margin")), ""),
])
def test_small_logits_leave_no_attack_that_knows_their_scale_unchecked(one, other, words):
    seen = Probe(10, False, True, False, rescaled=(20, 0), lead=0.1)
    for found in (said(one, other, seen=seen), said(other, one, seen=seen)):
        assert any(words in flag for flag in found) if words else found == [], found


def test_time_left():
    names = ["apgd-ce", "apgd-t"]
    assert seconds_left({"apgd-ce": 2.0}, {"apgd-ce": 10}, names, "apgd-ce", 5, 8) == pytest.approx(5 * 0.2 + 8 * 0.2 * 9)
    assert seconds_left({"apgd-ce": 2.0, "apgd-t": 4.0}, {"apgd-ce": 10, "apgd-t": 8}, names, "apgd-t", 0, 8) == 0
    assert seconds_left({}, {}, names, "apgd-ce", 5, 8) == 0
    assert [told(s) for s in (7.6, 200, 7500)] == ["8 s", "3 min 20 s", "2 h 5 min"]


def test_the_time_left_reaches_the_callers_progress(trained, digits, threat):
    from composer.evaluate.protocol import evaluate
    from composer.recipe.types import MeasureSpec

    class Progress:
        def __init__(self):
            self.seconds, self.calls = [], 0

        def left(self, seconds):
            self.seconds.append(seconds)

        def __call__(self, name, done, total):
            self.calls += 1

    progress = Progress()
    options = {"version": "custom", "attacks": ("apgd-ce", "square")}
    spec = MeasureSpec("aa", "aa", {**options, "mode": "fast"})
    evaluate(trained, digits["test"][0][:6], digits["test"][1][:6], [spec], threat=threat, seed=0, progress=progress)
    assert len(progress.seconds) == progress.calls >= 2 and progress.seconds[0] > 0 and progress.seconds[-1] == 0
