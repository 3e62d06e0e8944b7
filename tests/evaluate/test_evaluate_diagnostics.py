"""Diagnostics carry a unit: what they say of linear models, what may be made of them, and what they ask of a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate.protocol import attack_accuracy, evaluate
from composer.evaluate.results import Measured
from composer.evaluate.trust import Verdict, _blind_flags
from composer.recipe.types import MeasureSpec
from composer.registry import REGISTRY, Primitive

MARGIN = MeasureSpec("margin", "effective_margin", {})


class Ran:
    """A run as measures see it."""

    key = "k"

    def __init__(self, x=None, y=None, radii=(), seconds=()):
        self.x, self.y, self._radii, self._seconds, self.asked = x, y, radii, seconds, []

    def images(self, split, n=None):
        self.asked.append((split, n))
        return self.x[:n], self.y[:n]

    def radii(self, point=""):
        return torch.tensor(self._radii)

    def step_seconds(self):
        return torch.tensor(self._seconds, dtype=torch.float64)


class Rows(nn.Module):
    """z = W x + b in float32, five classes."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.w, self.b = nn.Parameter(torch.randn((5, 9), generator=generator)), nn.Parameter(torch.randn(5, generator=generator))

    def forward(self, x):
        return x.flatten(1) @ self.w.T + self.b

    def margins(self, x, y):
        """[N] float64: the nearest of the four boundaries, in l2."""
        z, w = x.double().flatten(1) @ self.w.detach().double().T + self.b.detach().double(), self.w.detach().double()
        return torch.tensor([min(float(z[i, k] - z[i, j]) / float((w[k] - w[j]).norm()) for j in range(5) if j != k) for i, k in enumerate(y.tolist())],
                            dtype=torch.float64)


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(8)
    return Rows().eval(), torch.rand((40, 1, 3, 3), generator=generator), torch.randint(5, (40,), generator=generator)


def test_effective_margin_of_a_linear_model_is_its_distance_to_the_nearest_boundary(rows, threat):
    model, x, y = rows
    want = model.margins(x, y)
    y[want.argsort(descending=True)[20:]] = model(x).argmax(1)[want.argsort(descending=True)[20:]]       # half of them are right
    want = model.margins(x, y)
    every = evaluate(model, x, y, [MeasureSpec("m", "effective_margin", {"over": "all"})], threat=threat, seed=0, batch_size=7)
    torch.testing.assert_close(every.flags["m"].double(), want, rtol=1e-4, atol=1e-5)
    correct = evaluate(model, x, y, [MARGIN], threat=threat, seed=0)
    right = want[want > 0]
    assert 10 < len(right) < 40 and correct.n == {"margin": len(right)} and len(correct.flags["margin"]) == 40
    assert correct.metrics["margin"] == pytest.approx(float(right.mean()), rel=1e-4)
    assert correct.details["margin"]["std"] == pytest.approx(float(right.std()), rel=1e-3) and correct.units == {"margin": "pixels"}
    assert every.metrics["m"] == pytest.approx(float(want.mean()), rel=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_at_the_attacked_images_the_margin_is_smaller_by_the_attack(two_classes, threat):
    """A step of eps against the sign of w takes eps ||w||_1 / ||w||_2 off the margin."""
    x, y = two_classes.images()
    options = {"over": "all", "start": "zero", "eps": 0.01, "step": 0.01, "steps": 1}
    found = evaluate(two_classes, x, y, [MeasureSpec("c", "effective_margin", options), MeasureSpec("a", "effective_margin", options | {"at": "adv"})],
                     threat=threat, seed=0).flags
    w = two_classes.w.detach().double()
    torch.testing.assert_close((found["c"] - found["a"]).double(), torch.full((len(y),), float(0.01 * w.abs().sum() / w.norm()), dtype=torch.float64), rtol=1e-3,
                               atol=1e-5)


def test_a_split_of_the_run_is_judged_instead(rows, threat, tmp_path):
    model, x, y = rows
    run = Ran(x[20:], model(x).argmax(1)[20:])
    specs = [MeasureSpec("clean", "clean", {}), MeasureSpec("train", "clean", {"split": "train"}, n=12), MeasureSpec("m", "effective_margin", {"split": "val"})]
    found = evaluate(model, x, y, specs, threat=threat, seed=0, run=run, store=tmp_path)
    assert found.n["train"] == 12 and found.metrics["train"] == 1.0 and found.n["m"] == 20 and run.asked == [("train", 12), ("val", None)]
    assert found.metrics["m"] == pytest.approx(float(model.margins(*run.images("val")).mean()), rel=1e-4)
    again = evaluate(model, x, y, specs, threat=threat, seed=0, run=run, store=tmp_path)
    assert again.metrics == found.metrics and again.details == found.details
    with pytest.raises(ComposerError, match="asks for the train images of the run"):
        evaluate(model, x, y, specs[1:], threat=threat, seed=0)


def test_clean_accuracy_on_other_images_is_no_reason_to_doubt_an_attack(trained, digits, threat):
    x, y = digits["test"]
    run = Ran(x[:50], 9 - y[:50])
    specs = [MeasureSpec("pgd", "pgd", {}), MeasureSpec("clean_val", "clean", {"split": "val"})]
    found = evaluate(trained, x, y, specs, threat=threat, seed=0, run=run)
    assert found.metrics["clean_val"] < 0.1 and found.trust["ok"], found.trust


def test_radii_and_times_come_from_the_run(rows, threat, tmp_path):
    model, x, y = rows
    specs = [MeasureSpec("mean_radius", "mean_radius", {}), MeasureSpec("seconds_per_step", "seconds_per_step", {})]
    found = evaluate(model, x, y, specs, threat=threat, seed=0, run=Ran(radii=[0.1, 0.2, 0.6], seconds=[9.0, 0.5, math.nan, 0.7]), store=tmp_path)
    assert found.metrics == {"mean_radius": pytest.approx(0.3), "seconds_per_step": pytest.approx(0.6)} and found.n == {"mean_radius": 3, "seconds_per_step": 2}
    assert found.units == {"mean_radius": "pixels", "seconds_per_step": "s"} and found.details["mean_radius"]["max"] == pytest.approx(0.6)
    later = evaluate(model, x, y, specs, threat=threat, seed=0, run=Ran(radii=[9.0], seconds=[2.0]), store=tmp_path)
    assert later.metrics == {"mean_radius": found.metrics["mean_radius"], "seconds_per_step": 2.0}, "radii are stored by the run's key, times never"
    with pytest.raises(ComposerError, match="asks for the run that trained the model"):
        evaluate(model, x, y, specs, threat=threat, seed=0)


def test_a_diagnostic_selects_nothing(rows, threat):
    model, x, y = rows
    with pytest.raises(ComposerError, match="its value is in pixels and no accuracy"):
        attack_accuracy(model, x, y, MARGIN, threat, 0, 1)


def test_values_are_verdicts_or_have_a_unit(rows, threat, monkeypatch):
    model, x, y = rows

    def answers(values, **flags):
        def measure(y):
            return Measured(values)

        monkeypatch.setitem(REGISTRY._of["measure"], "odd", Primitive("measure", "odd", measure, flags))
        return evaluate(model, x, y, [MeasureSpec("odd", "odd", {})], threat=threat, seed=0)

    assert answers(torch.rand(3), unit="s").units == {"odd": "s"}
    with pytest.raises(ComposerError, match="it names no unit"):
        answers(torch.rand(40))
    with pytest.raises(ComposerError, match="a float diagnostic"):
        answers(torch.ones(40, dtype=torch.bool), unit="pixels")
    with pytest.raises(ComposerError, match="one value for each of the 40"):
        answers(torch.ones(39, dtype=torch.bool))


def test_an_attack_without_gradients_that_wins_is_told(threat):
    def verdict(name, standing, steps=None, blind=False):
        return Verdict(name, name, {"norm": "linf", "eps": 0.1, **({"steps": steps} if steps else {})}, Measured(torch.arange(100) < standing),
                       {"attack": True, "blind": blind})

    square, pgd = verdict("square", 40, blind=True), verdict("pgd", 60, steps=20)
    assert "square, which sees no gradient, is stronger than pgd: 20 images stand only under pgd" in _blind_flags(pgd, square)[0]
    assert not _blind_flags(verdict("pgd", 40, steps=20), verdict("square", 60, blind=True)) and not _blind_flags(square, square)
    assert not _blind_flags(verdict("fgsm", 60), square), "one step is no match for thousands of queries"
