from __future__ import annotations

import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.protocol import attack_accuracy, evaluate
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1.0), ("l2", 2.0)])
@pytest.mark.parametrize(("use", "options"), [("fgsm", {}), *((use, {"step": "eps/2", "steps": 6}) for use in ("pgd", "cw", "mim"))])
def test_a_linear_model_falls_exactly_within_its_radius(two_classes, norm, dual, use, options):
    x, y = two_classes.images()
    eps = float(two_classes.radius(x, y, dual).abs().median().clamp_max(0.15))
    threat = Threat(Ref("ball", norm), eps, eps / 4, 5, Ref("start", "zero"))
    found = evaluate(two_classes, x, y, [MeasureSpec("a", use, options)], threat=threat, seed=0).flags["a"]
    radius = two_classes.radius(x, y, dual)
    sure = (radius - eps).abs() > 1e-4
    assert 20 < int(found.sum()) < len(y) - 20
    assert torch.equal(found[sure], (radius > eps)[sure])
    assert int(sure.sum()) > len(y) - 5


def test_pgd_is_the_loop_of_the_paper(trained, digits, threat):
    x, y = digits["test"]
    found = evaluate(trained, x, y, [MeasureSpec("pgd-8", "pgd", {})], threat=threat, seed=5, batch_size=200).flags["pgd-8"]
    clean = trained(x).argmax(1) == y
    rows = clean.nonzero().flatten()
    noise = Draws(5, "evaluate/pgd").rows("uniform", "0", rows, x)
    xs, ys = x[rows], y[rows]
    point = (xs + 0.15 * (2 * noise - 1)).clamp(0, 1)
    for _ in range(8):
        point.requires_grad_()
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(trained(point), ys, reduction="sum"), point)
        point = torch.minimum(torch.maximum(point.detach() + 0.04 * grad.sign(), xs - 0.15), xs + 0.15).clamp(0, 1)
    expected = torch.zeros_like(clean)
    expected[rows] = trained(point).argmax(1) == ys
    assert torch.equal(found, expected)
    assert 0.1 < found.float().mean() < clean.float().mean()


def test_neither_batch_size_nor_n_changes_an_image(trained, digits, threat):
    x, y = digits["test"]
    spec = [MeasureSpec("p", "pgd", {"restarts": 2})]
    whole = evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=200).flags["p"]
    assert torch.equal(whole, evaluate(trained, x, y, spec, threat=threat, seed=0, batch_size=7).flags["p"])
    first = [MeasureSpec("p", "pgd", {"restarts": 2}, n=70)]
    assert torch.equal(whole[:70], evaluate(trained, x, y, first, threat=threat, seed=0, batch_size=50).flags["p"])


def test_noise_belongs_to_the_image(digits):
    x = digits["test"][0]
    draws = Draws(1, "evaluate/pgd")
    whole = draws.rows("uniform", "0", torch.arange(200), x)
    rows = torch.tensor([0, 63, 64, 65, 199])
    assert torch.equal(whole[rows], draws.rows("uniform", "0", rows, x))
    assert not torch.equal(whole, draws.rows("uniform", "1", torch.arange(200), x))
    assert not torch.equal(whole[:64], whole[64:128])
    assert 0.45 < whole.mean() < 0.55


def test_more_restarts_and_any_visited_point_only_break_more(trained, digits, threat):
    x, y = digits["test"]
    specs = [MeasureSpec("one", "pgd", {}), MeasureSpec("five", "pgd", {"restarts": 5}), MeasureSpec("any", "pgd", {"keep": "any"})]
    flags = evaluate(trained, x, y, specs, threat=threat, seed=0).flags
    assert not (flags["five"] & ~flags["one"]).any()
    assert not (flags["any"] & ~flags["one"]).any()


def test_any_visited_point_counts_where_the_last_one_is_right():
    """A model wrong only in a thin shell: the ascent passes it, the end lies behind it."""
    def shell(x):
        z = x.flatten(1).mean(1)
        wrong = ((z > 0.54) & (z < 0.56)).float() * 10
        return torch.stack((1 - z, z - 1 + wrong), 1)

    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    threat = Threat(Ref("ball", "linf"), 0.1, 0.05, 2, Ref("start", "zero"))
    specs = [MeasureSpec("last", "pgd", {}), MeasureSpec("any", "pgd", {"keep": "any"})]
    found = evaluate(shell, x, y, specs, threat=threat, seed=0)
    assert found.metrics == {"last": 1.0, "any": 0.0}


def test_a_two_sided_loss_is_climbed_against_the_clean_answer(trained, digits):
    x, y = digits["test"]
    threat = Threat(Ref("ball", "linf"), 0.15, 0.04, 8, Ref("start", "gaussian", {"sigma": 0.001}))
    specs = [MeasureSpec("clean", "clean", {}), MeasureSpec("kl", "pgd", {"loss": Ref("loss", "kl", {})})]
    found = evaluate(trained, x, y, specs, threat=threat, seed=0).metrics
    assert found["kl"] < found["clean"] - 0.1


def test_a_loss_that_an_evaluation_cannot_feed_is_named(trained, digits, threat):
    x, y = digits["test"]
    with pytest.raises(ComposerError, match="y_soft"):
        evaluate(trained, x, y, [MeasureSpec("p", "pgd", {"loss": Ref("loss", "soft_ce", {})})], threat=threat, seed=0)


def test_validation_attack_draws_by_epoch(trained, digits, threat):
    x, y = digits["test"]
    spec = MeasureSpec("pgd", "pgd", {"steps": 1})
    clean, robust = attack_accuracy(trained, x, y, spec, threat, 0, 1)
    assert clean == pytest.approx(float((trained(x).argmax(1) == y).double().mean()))
    assert 0 < robust < clean
    assert (clean, robust) == attack_accuracy(trained, x, y, spec, threat, 0, 1, batch_size=33)
    assert len({attack_accuracy(trained, x, y, spec, threat, 0, epoch)[1] for epoch in range(1, 7)}) > 1


@pytest.mark.parametrize(("change", "said"), [
    (lambda x, y: (x * 2 - 1, y), r"lie in \[-1"), (lambda x, y: (x[0], y), "N,C,H,W"), (lambda x, y: (x, y[:-1]), "as many labels"),
    (lambda x, y: (x[:0], y[:0]), "at least one"), (lambda x, y: ((x * 255).byte(), y), "float images"),
    (lambda x, y: (x.where(x < 0.5, torch.nan), y), "lie in"),
])
def test_images_that_are_none_are_refused(trained, digits, threat, change, said):
    with pytest.raises(ComposerError, match=said):
        evaluate(trained, *change(*digits["test"]), [MeasureSpec("clean", "clean", {})], threat=threat, seed=0)


def test_two_measures_of_one_name_are_refused(trained, digits, threat):
    with pytest.raises(ComposerError, match="two measures are named 'p'"):
        evaluate(trained, *digits["test"], [MeasureSpec("p", "pgd", {}), MeasureSpec("p", "clean", {})], threat=threat, seed=0)


@pytest.mark.parametrize("use", ["pgd", "mim", "cw"])
def test_l1_on_a_linear_model(two_classes, use):
    """One pixel is moved at a time; the images lie 0.2 from 0 and 1, so a radius below that is all spent on the largest weight."""
    x, y = two_classes.images()
    radius = two_classes.radius(x, y, float("inf"))
    eps = float(radius[radius > 0].quantile(0.05).clamp_max(0.19))
    found = evaluate(two_classes, x, y, [MeasureSpec("a", use, {"norm": Ref("ball", "l1"), "eps": eps, "step": "eps/2", "steps": 4, "start": "zero"})],
                     threat=Threat(Ref("ball", "linf"), 0.1, 0.1, 5, Ref("start", "zero")), seed=0).flags["a"]
    sure = (radius - eps).abs() > 1e-4
    assert torch.equal(found[sure], (radius > eps)[sure]) and 5 < int((radius > 0).sum() - found.sum())
