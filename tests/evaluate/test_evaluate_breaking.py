"""The smallest breaking radius: exact on linear models, finer with every halving, monotone in the attack."""

from __future__ import annotations

import pytest
import torch

from composer.evaluate.protocol import evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat


def measured(model, x, y, threat, batch_size=250, seed=0, **options):
    return evaluate(model, x, y, [MeasureSpec("b", "breaking_eps", options)], threat=threat, seed=seed, batch_size=batch_size)


@pytest.mark.parametrize(("norm", "dual", "eps"), [("linf", 1.0, 0.02), ("l2", 2.0, 0.1)])
def test_on_a_linear_model_it_is_the_distance(two_classes, norm, dual, eps):
    """0 where wrong, else min(|z| / ||w||_*, largest): the images lie so that no pixel is clamped."""
    x, y = two_classes.images()
    threat = Threat(Ref("ball", norm), eps, eps / 4, 5, Ref("start", "zero"))
    found = measured(two_classes, x, y, threat, halvings=12)
    want = two_classes.radius(x, y, dual).clamp(0, 2 * eps)
    torch.testing.assert_close(found.flags["b"].double(), want, rtol=2e-3, atol=1e-5)
    unbroken = int((two_classes.radius(x, y, dual) > 2 * eps).sum())
    assert found.details["b"]["unbroken"] == unbroken > 10 and found.details["b"]["unbroken_share"] == unbroken / len(y)
    assert found.metrics["b"] == pytest.approx(float(want.mean()), rel=1e-3) and found.units == {"b": "pixels"} and found.n == {"b": len(y)}


def test_without_halvings_it_is_the_rung(two_classes, threat):
    x, y = two_classes.images()
    found = measured(two_classes, x, y, threat, halvings=0, rungs=10, largest=0.2, start="zero").flags["b"].double()
    radius = two_classes.radius(x, y, 1.0)
    rung = torch.where(radius <= 0, 0.0, (radius / 0.02).ceil().clamp_max(10) * 0.02)
    sure = ((radius / 0.02) - (radius / 0.02).round()).abs() > 1e-3
    torch.testing.assert_close(found[sure], rung[sure].double(), rtol=0, atol=1e-6)
    assert int(sure.sum()) > 280


def test_it_agrees_with_the_flags_of_pgd_and_grows_tighter_with_more_steps(trained, digits, threat):
    x, y = digits["test"]
    few, many = (measured(trained, x, y, threat, steps=steps, rungs=rungs) for steps, rungs in ((1, 4), (6, 20)))
    assert many.metrics["b"] < few.metrics["b"]
    values = many.flags["b"]
    assert ((values >= 0) & (values <= 0.3 + 1e-7)).all() and (values == 0).equal(~(trained(x).argmax(1) == y))
    for eps in (0.08, 0.15, 0.25):
        held = evaluate(trained, x, y, [MeasureSpec("p", "pgd", {"eps": eps, "step": "eps/5", "steps": 20})], threat=threat, seed=0).flags["p"]
        assert int(((values > eps) ^ held).sum()) <= 8, eps
    assert (values > 0.08).float().mean() > (values > 0.25).float().mean()


def test_the_found_radius_breaks_the_image(trained, digits, threat):
    """At twice the mean of a rung's slack the attack of that radius breaks what was said to break: values are upper bounds."""
    x, y = digits["test"]
    values = measured(trained, x, y, threat).flags["b"]
    broken = (values > 0) & (values < 0.3)
    held = evaluate(trained, x[broken], y[broken], [MeasureSpec("p", "pgd", {"eps": 0.3, "step": 0.03, "steps": 40})], threat=threat, seed=0).flags["p"]
    assert not held.any() and int(broken.sum()) > 50


def test_neither_batch_size_nor_n_changes_an_image(trained, digits, threat):
    x, y = digits["test"]
    whole = measured(trained, x, y, threat, batch_size=200).flags["b"]
    torch.testing.assert_close(measured(trained, x, y, threat, batch_size=13).flags["b"], whole, rtol=0, atol=2e-3)
    first = evaluate(trained, x, y, [MeasureSpec("b", "breaking_eps", {}, n=50)], threat=threat, seed=0, batch_size=200).flags["b"]
    torch.testing.assert_close(first, whole[:50], rtol=0, atol=2e-3)
