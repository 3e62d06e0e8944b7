"""What a dry run expects judging to take: passes as they are counted on a network, and how they add up."""

from __future__ import annotations

import pytest
import torch

from composer.engine.beforehand import image_passes, protocol_passes, validation_passes
from composer.evaluate import pace
from composer.evaluate.pace import STANDS
from composer.options import Ref
from composer.recipe.load import load
from composer.recipe.types import MeasureSpec, Threat


class Counted(torch.nn.Module):
    """A network that nothing breaks; counts images forward and backward."""

    def __init__(self):
        super().__init__()
        self.line, self.seen, self.back = torch.nn.Linear(16, 3), 0, 0

    def forward(self, x):
        self.seen += len(x)
        logits = self.line(x.flatten(1)) * 1e-6 + torch.tensor([1.0, 0.0, 0.0])
        if logits.requires_grad:
            logits.register_hook(lambda grad: setattr(self, "back", self.back + len(grad)))
        return logits


def measured(spec, recipe, model, n) -> None:
    """The measure on n images, all of class 0."""
    from composer.evaluate.draws import Draws
    from composer.evaluate.guard import undisturbed
    from composer.evaluate.options import resolve_options
    from composer.evaluate.protocol import run_measure
    from composer.evaluate.store import Slot

    with undisturbed(model) as judge:
        run_measure(spec, resolve_options(spec, recipe.threat), judge, torch.rand(n, 1, 4, 4), torch.zeros(n, dtype=torch.long), Draws(0, "x"), n, lambda *_: None,
                    Slot(None, ""))


@pytest.mark.parametrize(("use", "options"), [("clean", {}), ("fgsm", {}), ("pgd", {"steps": 6}), ("pgd", {"steps": 4, "restarts": 3}), ("cw", {"steps": 5}),
                                              ("mim", {"steps": 5}), ("breaking_eps", {"rungs": 4, "steps": 5})])
def test_passes_of_an_image_are_those_that_a_network_sees(use, options) -> None:
    recipe = load("at")
    spec = next(m for m in recipe.edit(put={"evaluate.it": {"use": use, **options}}).evaluate.measures if m.name == "it")
    model, n = Counted(), 8
    measured(spec, recipe, model, n)
    expected = image_passes(spec, recipe) * n
    expected = 2 * (expected - n * spec.options["halvings"]) if use == "breaking_eps" else expected           # it is taken to break halfway
    assert expected == pytest.approx(model.seen + model.back, abs=2.1 * n), (use, expected, model.seen, model.back)


def test_autoattack_meets_all_images_once_and_those_that_stand_after_it() -> None:
    recipe = load("at")
    aa = next(m for m in recipe.evaluate.measures if m.use == "aa")
    assert image_passes(aa, recipe) == 200 + STANDS * (1800 + 2700 + 5000)
    priced = {version: image_passes(MeasureSpec("a", "aa", {"version": version}), recipe) for version in ("standard", "plus", "rand")}
    assert priced == {"standard": 4950, "plus": 200 * 3 + 200 * 2.5 + 1100 * 2.5 + STANDS * (5000 + 1800 + 2700), "rand": 20 * 300}
    assert image_passes(MeasureSpec("a", "aa", {"norm": Ref("ball", "l1")}), recipe) == 200 * 3 + STANDS * (1000 + 2700 + 5000)
    assert isinstance(recipe.threat, Threat) and image_passes(MeasureSpec("x", "corruptions", {"folder": "nowhere", "only": ()}), recipe) is None


@pytest.mark.parametrize("options", [{"version": "rand"}, {"version": "custom", "attacks": ("apgd-dlr", "apgd-ce")}])
def test_autoattacks_restarts_and_averages_are_in_its_passes(options, monkeypatch) -> None:
    """Counted on a network on which every image stands."""
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(pace, "STANDS", 1.0)
    recipe, model, n = load("at"), Counted(), 2
    measured(MeasureSpec("a", "aa", options), recipe, model, n)
    assert image_passes(MeasureSpec("a", "aa", options), recipe) * n == pytest.approx(model.seen + model.back, rel=0.03)


def test_a_protocol_is_the_sum_over_its_images() -> None:
    recipe = load("at")
    clean, pgd, aa = (image_passes(m, recipe) for m in recipe.evaluate.measures)
    assert protocol_passes(recipe, 360) == (360 * (clean + pgd) + 200 * aa, ())
    both = recipe.edit(set={"select.report": "both"})
    assert protocol_passes(both, 360)[0] == 2 * 360 * (clean + pgd) + 200 * aa, "the other checkpoint is spared what is costly"
    more = recipe.edit(put={"evaluate.calibration": {}})
    assert protocol_passes(more, 360) == (protocol_passes(recipe, 360)[0], ("calibration",))
    assert validation_passes(recipe) == 157 * (1 + 21) and validation_passes(recipe.edit(set={"select.held_out": 0, "select.report": "last"})) == 0
