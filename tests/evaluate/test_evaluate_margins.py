"""What an attack keeps of every image beside its verdict: margin and distance at the point that decides."""

from __future__ import annotations

import pytest
import torch

from composer.evaluate import attack as attacks
from composer.evaluate.attack import lead, length
from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

SPECS = [("pgd", {}), ("pgd", {"keep": "any", "restarts": 2}), ("fgsm", {}), ("mim", {"steps": 4}), ("cw", {}), ("spsa", {"samples": 16, "steps": 8, "lr": 0.04}),
         ("apgd_ce", {"steps": 10}), ("apgd_ce", {"steps": 10, "mode": "fast"}), ("square", {"queries": 60})]


@pytest.mark.parametrize(("use", "options"), SPECS)
def test_margin_and_norm_agree_with_the_verdict(trained, digits, threat, use, options):
    x, y = digits["test"][0][:80], digits["test"][1][:80]
    found = evaluate(trained, x, y, [MeasureSpec("a", use, options)], threat=threat, seed=0)
    held, margin, norm = found.flags["a"], found.extra["a"]["margin"], found.extra["a"]["norm"]
    broken = found.extra["a"]["clean"] & ~held
    assert int(broken.sum()) > 3 and (margin[broken] <= 0).all()
    assert (norm[broken] <= threat.eps + 1e-6).all() and (norm[broken] > 0).all()
    assert margin[~found.extra["a"]["clean"]].isnan().all()                       # not attacked
    if use not in ("apgd_ce", "square"):
        assert (margin[held] > 0).all()
    else:
        assert margin[held].isnan().all()                                         # the library shows no point that failed


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
def test_on_a_linear_model_the_margin_is_the_closed_form(two_classes, norm, dual):
    x, y = two_classes.images(50)
    eps = 0.02
    found = evaluate(two_classes, x, y, [MeasureSpec("a", "pgd", {"start": "zero", "steps": 3, "step": "eps"})],
                     threat=Threat(Ref("ball", norm), eps, eps, 3, Ref("start", "zero")), seed=0).extra["a"]
    z = two_classes(x)[:, 1].double()
    want = torch.where(y == 1, z, -z) - eps * two_classes.w.detach().double().norm(dual)
    right = found["clean"]
    assert torch.allclose(found["margin"][right].double(), want.detach()[right], atol=1e-5)
    assert torch.allclose(found["norm"][right], torch.tensor(eps), atol=1e-6)


def test_lead_and_length():
    z = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, torch.nan]])
    assert lead(z, torch.tensor([1, 0])).tolist() == [1.0, -torch.inf]
    delta = torch.tensor([[[[3.0, -4.0]]]])
    assert [float(length(delta, norm)) for norm in ("linf", "l2", "l1")] == [4.0, 5.0, 7.0]


def test_steps_of_fallen_images_are_spared_and_change_nothing(trained, digits, threat, monkeypatch):
    x, y = digits["test"]
    spec = [MeasureSpec("a", "pgd", {"keep": "any", "steps": 9, "restarts": 2})]
    answers, asked = [], []
    for stretch in (1, 2, 100):
        monkeypatch.setattr(attacks, "STRETCH", stretch)
        seen = []

        def counted(images, seen=seen):
            seen.append(len(images))
            return trained(images)

        answers.append(evaluate(counted, x, y, spec, threat=threat, seed=0))
        asked.append(sum(seen))
    assert asked[0] < asked[1] < asked[2] - 300
    for other in answers[:2]:
        assert torch.equal(other.flags["a"], answers[2].flags["a"])
    plain = evaluate(trained, x, y, [MeasureSpec("a", "pgd", {"steps": 9, "restarts": 2})], threat=threat, seed=0)
    assert not (answers[0].flags["a"] & ~plain.flags["a"]).any()


def test_they_are_exported(trained, digits, threat):
    from composer.subject.record import per_image

    x, y = digits["test"][0][:20], digits["test"][1][:20]
    found = evaluate(trained, x, y, [MeasureSpec("pgd-3", "pgd", {"steps": 3})], threat=threat, seed=0)
    columns = per_image(found, trained(x).detach(), y, None)
    assert {"pgd-3/margin", "pgd-3/norm"} <= set(columns) and columns["pgd-3/norm"].is_floating_point()
