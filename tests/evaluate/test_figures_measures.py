"""The measures behind figures, against closed forms, a library, and numbers made by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from composer.errors import ComposerError
from composer.evaluate.draws import Draws
from composer.evaluate.figures_calibration import reliability
from composer.evaluate.figures_common import Placed
from composer.evaluate.figures_curve import settled
from composer.evaluate.figures_landscape import direction
from composer.evaluate.figures_rank import distribution, ranks
from composer.evaluate.protocol import evaluate
from composer.evaluate.results import wilson
from composer.options import Ref
from composer.recipe.types import MeasureSpec, Threat

LINF, ZERO = Ref("ball", "linf"), Ref("start", "zero")


@pytest.fixture
def still():
    return Threat(LINF, 0.02, 0.005, 8, ZERO)


def one(model: Any, x: Any, y: Any, threat: Threat, use: str, store: Path | None = None, run: Any = None, batch_size: int = 64, **options: Any) -> Any:
    return evaluate(model, x, y, [MeasureSpec("m", use, options)], threat=threat, seed=3, batch_size=batch_size, store=store, run=run)


# -- the curve ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("norm,dual,ladder", [("linf", 1.0, [0.005, 0.01, 0.02, 0.04]), ("l2", 2.0, [0.02, 0.05, 0.1, 0.2])])
def test_the_curve_of_a_linear_model_is_the_distribution_of_its_radii(two_classes, norm, dual, ladder, warm):
    x, y = two_classes.images()
    radius = two_classes.radius(x, y, dual)
    ladder = [e for e in ladder if float((radius - e).abs().min()) > 1e-6]
    assert len(ladder) >= 3
    threat = Threat(Ref("ball", norm), ladder[1], ladder[1] / 4, 6, ZERO)
    found = one(two_classes, x, y, threat, "curve", radii=tuple(ladder), warm=warm)
    details, n = found.details["m"], len(y)
    want = [int((radius > e).sum()) for e in [0.0, *ladder]]
    assert details["counts"] == want and details["radii"] == [0.0, *ladder] and want[0] > want[-1] > 0
    assert details["accuracy_at_eps"] == want[2] / n and details["ci95"][1] == list(wilson(want[1], n)) and details.get("rises", 0) == 0
    area = sum((b - a) * (want[k] + want[k + 1]) / 2 / n for k, (a, b) in enumerate(zip([0.0, *ladder], ladder)))
    assert found.metrics["m"] == pytest.approx(area, rel=1e-5) and found.units == {"m": "pixels"}
    for k, e in enumerate(ladder):
        assert torch.equal(found.extra["m"][f"at-{e:.6g}"], radius > e), k


def test_the_area_is_the_mean_radius_withstood(two_classes, still):
    """On a fine ladder beyond every radius, within half a rung."""
    x, y = two_classes.images(60)
    radius = two_classes.radius(x, y, 1.0).clamp_min(0)
    rung = float(radius.max()) / 39
    found = one(two_classes, x, y, replace(still, eps=rung, step=rung / 2, steps=4), "curve", attack=Ref("measure", "fgsm", {}),
                radii=tuple(rung * k for k in range(1, 41)))
    assert found.details["m"]["counts"][-1] == 0
    assert found.metrics["m"] == pytest.approx(float(radius.mean()), abs=rung / 2)


def test_a_step_keeps_its_share_of_the_radius(two_classes, still):
    """fgsm's step of the recipe is a word of eps that was settled at the threat's: at a larger radius it must have grown with it."""
    x, y = two_classes.images(100)
    radius = two_classes.radius(x, y, 1.0)
    named = one(two_classes, x, y, still, "curve", attack=Ref("measure", "fgsm", {"step": "eps"}), radii=(0.02, 0.08))
    assert named.details["m"]["counts"][1:] == [int((radius > 0.02).sum()), int((radius > 0.08).sum())]
    pgd = one(two_classes, x, y, replace(still, steps=4), "curve", radii=(0.02, 0.08))
    assert pgd.details["m"]["counts"] == named.details["m"]["counts"]


def test_a_warm_curve_attacks_only_who_stands_and_never_rises(trained, digits, threat):
    x, y = (t[:60] for t in digits["test"])
    cold, warm = (one(trained, x, y, threat, "curve", radii=(0.05, 0.1, 0.2), warm=w, attack=Ref("measure", "pgd", {"steps": 3})) for w in (False, True))
    counts = warm.details["m"]["counts"]
    assert counts == sorted(counts, reverse=True) and counts[0] == cold.details["m"]["counts"][0]
    assert all(torch.equal(warm.extra["m"][k], torch.stack([cold.extra["m"][j] for j in list(cold.extra["m"])[:i + 1]]).all(0))
               for i, k in enumerate(warm.extra["m"])), "an image's noise is its own, also in the subset that still stands"


def test_noise_follows_the_image_into_a_subset():
    whole, like = Draws(0, "p"), torch.zeros(1, 2, 2)
    places = torch.tensor([3, 70, 71, 130])
    every = whole.rows("uniform", "s", torch.arange(140), like[None])
    assert torch.equal(Placed(whole, places).rows("uniform", "s", torch.tensor([1, 3]), like[None]), every[[70, 130]])
    bits = whole.bits("s", torch.arange(140), 2)
    assert torch.equal(Placed(whole, places).bits("s", torch.tensor([0, 2]), 2), bits[[3, 71]])


def test_what_a_curve_finished_is_kept_by_radius(two_classes, still, tmp_path):
    x, y = two_classes.images(40)
    calls = []

    def counting(images):
        calls.append(len(images))
        return two_classes(images)

    options = {"radii": (0.01, 0.02, 0.04)}
    first = one(counting, x, y, still, "curve", tmp_path, **options)
    made = len(calls)
    for file in [*tmp_path.glob("curve-????????????????.json"), *tmp_path.glob("*-2.json")]:
        file.unlink()
    again = one(counting, x, y, still, "curve", tmp_path, **options)
    assert again.details["m"]["counts"] == first.details["m"]["counts"] and len(calls) - made < made * 2 / 3
    assert one(counting, x, y, still, "curve", tmp_path, **options).extra["m"].keys() == first.extra["m"].keys()


def test_the_curve_of_autoattack(trained, digits, threat, quick_autoattack):
    quick_autoattack()
    x, y = (t[:20] for t in digits["test"])
    found = one(trained, x, y, threat, "curve", attack=Ref("measure", "aa", {"version": "custom", "attacks": ("apgd-ce",)}), radii=("eps", "2*eps"))
    counts = found.details["m"]["counts"]
    assert 20 >= counts[0] >= counts[1] >= counts[2] and counts[0] > counts[2] and found.details["m"]["radii"] == [0.0, 0.15, 0.3]


def test_radii_grow_from_above_zero():
    assert settled(("eps/2", "8/255", 0.1), 0.04) == [0.02, pytest.approx(8 / 255), 0.1]
    for wrong in ((), (0.0, 0.1), (0.1, 0.1), (0.2, 0.1)):
        with pytest.raises(ComposerError, match="radii"):
            settled(wrong, 0.1)


# -- classes -----------------------------------------------------------------------------------------------------------------------


def test_accuracy_class_by_class(two_classes, still):
    x, y = two_classes.images()
    radius = two_classes.radius(x, y, 1.0)
    found = one(two_classes, x, y, still, "per_class")
    rows = {row["class"]: row for row in found.details["m"]["classes"]}
    for k in (0, 1):
        mine = y == k
        n, robust = int(mine.sum()), int((radius[mine] > 0.02).sum())
        assert rows[k]["n"] == n and rows[k]["robust"] == robust / n and rows[k]["clean"] == int((radius[mine] > 0).sum()) / n
        assert rows[k]["robust_ci95"] == list(wilson(robust, n))
    worst = min(rows.values(), key=lambda r: r["robust"])
    assert found.metrics["m"] == pytest.approx(worst["robust"]) and found.n["m"] == worst["n"] and found.details["m"]["worst"] == worst["class"]
    assert found.details["m"]["mean_robust"] == pytest.approx(float((radius > 0.02).double().mean()))


# -- margins -----------------------------------------------------------------------------------------------------------------------


class Rows(nn.Module):
    """z = W x + b, five classes of nine pixels."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(7)
        self.w, self.b = nn.Parameter(torch.randn((5, 9), generator=g)), nn.Parameter(torch.randn(5, generator=g))

    def forward(self, x):
        return x.flatten(1) @ self.w.T + self.b


@pytest.mark.parametrize("distance,dual", [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_the_taylor_margin_of_a_linear_model(still, distance, dual):
    model, x = Rows().eval(), torch.rand((40, 1, 3, 3), generator=torch.Generator().manual_seed(8))
    y = model(x).argmax(1)
    y[::4] = (y[::4] + 1) % 5
    z, w = (model(x).detach().double().numpy(), model.w.detach().double().numpy())
    want = [min((z[i, k] - z[i, j]) / np.linalg.norm(w[k] - w[j], dual) for j in range(5) if j != k) for i, k in enumerate(y.tolist())]
    every = one(model, x, y, still, "taylor_margin", distance=distance, classes="all", over="all", batch_size=7)
    np.testing.assert_allclose(every.flags["m"].double(), want, rtol=1e-4)
    right = one(model, x, y, still, "taylor_margin", distance=distance, classes="all")
    assert right.n["m"] == 30 and right.metrics["m"] == pytest.approx(np.mean([v for v in want if v > 0]), rel=1e-4)
    assert int(right.flags["m"].isnan().sum()) == 10


def test_at_the_attacked_images_the_margin_is_smaller_by_the_attack(two_classes, still):
    x, y = two_classes.images()
    options = {"over": "all", "eps": 0.01, "step": 0.01, "steps": 1}
    clean, adv = (one(two_classes, x, y, still, "taylor_margin", at=at, **options).flags["m"].double() for at in ("clean", "adv"))
    torch.testing.assert_close(clean - adv, torch.full_like(clean, 0.01), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(clean, two_classes.radius(x, y, 1.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance,dual", [("linf", 1.0), ("l2", 2.0)])
def test_fab_finds_the_boundary_of_a_linear_model(two_classes, still, distance, dual):
    """Its overshoot of 5 % stays, halved by every step back: never below the distance, at most a little above."""
    x, y = two_classes.images()
    radius = two_classes.radius(x, y, dual)
    found = one(two_classes, x, y, still, "fab_margin", distance=distance)
    values = found.flags["m"].double()
    assert torch.equal(values.isnan(), radius < 0) and found.details["m"]["unfound"] == 0 and found.details["m"]["correct"] == int((radius > 0).sum())
    ratio = values[radius > 0] / radius[radius > 0]
    assert float(ratio.min()) > 1 - 1e-3 and float(ratio.max()) < 1.06
    adv = one(two_classes, x, y, replace(still, eps=0.005, step=0.005, steps=1), "fab_margin", distance="linf", at="adv")
    if distance == "linf":
        kept = radius > 0.005 + 1e-5
        assert torch.equal(~adv.flags["m"].isnan(), kept)
        torch.testing.assert_close(adv.flags["m"].double()[kept], radius[kept] - 0.005, rtol=0.07, atol=1e-5)


def test_a_model_without_slope_has_no_margin_and_no_error(still):
    def flat(x):
        return torch.eye(3)[torch.zeros(len(x), dtype=torch.int64)]

    x, y = torch.rand(6, 1, 2, 2), torch.tensor([0, 0, 0, 1, 1, 0])
    assert one(flat, x, y, still, "taylor_margin").metrics["m"] > 1e6
    found = one(flat, x, y, still, "fab_margin")
    assert math.isnan(found.metrics["m"]) and found.details["m"]["unfound"] == 4 and found.n["m"] == 0


# -- calibration -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def answers():
    g = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn((500, 4), generator=g, dtype=torch.float64)
    return logits, torch.where(torch.rand(500, generator=g) < 0.6, logits.argmax(1), torch.randint(4, (500,), generator=g))


def test_calibration_is_the_librarys(answers):
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import brier_score_loss, log_loss

    logits, y = answers
    p = logits.softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == y.numpy()
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    counts = np.histogram(confidence, bins=15, range=(0, 1))[0]
    found = reliability(logits, y, 15)
    want = float((counts[counts > 0] / len(y) * np.abs(accuracy - mean)).sum())
    assert found.metric == pytest.approx(want, rel=1e-5) and found.details["largest_gap"] == pytest.approx(np.abs(accuracy - mean).max())
    rows = [row for row in found.details["bins"] if row["n"]]
    np.testing.assert_allclose([r["accuracy"] for r in rows], accuracy)
    np.testing.assert_allclose([r["confidence"] for r in rows], mean)
    assert [row["n"] for row in found.details["bins"]] == counts.tolist()
    assert found.details["brier"] == pytest.approx(sum(brier_score_loss(y.numpy() == k, p[:, k]) for k in range(4)))
    assert found.details["log_loss"] == pytest.approx(log_loss(y.numpy(), p)) and found.details["accuracy"] == right.mean()


def test_calibration_counts_finite_answers_alone(answers, still):
    logits, y = answers
    broken = logits.clone()
    broken[::5] = float("inf")
    found, kept = reliability(broken, y, 15), torch.arange(500) % 5 != 0
    assert found.metric == pytest.approx(reliability(logits[kept], y[kept], 15).metric, rel=1e-5) and len(found.counted) == 400
    sure = reliability(torch.tensor([[1e4, 0.0], [0.0, -1e4]], dtype=torch.float64), torch.tensor([0, 1]), 15)
    assert sure.metric == pytest.approx(0.5) and sure.details["bins"][-1]["n"] == 2 and sure.details["log_loss"] == pytest.approx(5000)


def test_calibration_at_the_attacked_images(trained, digits, threat):
    x, y = digits["test"]
    clean, adv = (one(trained, x, y, threat, "calibration", at=at) for at in ("clean", "adv"))
    assert adv.details["m"]["accuracy"] < clean.details["m"]["accuracy"] and adv.metrics["m"] > clean.metrics["m"] and clean.units == {"m": "share"}
    assert clean.details["m"]["accuracy"] == pytest.approx(float((trained(x).argmax(1) == y).double().mean()))


# -- ranks -------------------------------------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Logits by the brightness of the first pixel: below 0.5 the first row, else the second."""

    def __init__(self, dark: list[float], light: list[float]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor([dark, light]))

    def forward(self, x):
        share = ((x[:, 0, 0, 0] - 0.5) * 100).clamp(-0.5, 0.5) + 0.5
        return self.rows[0] * (1 - share[:, None]) + self.rows[1] * share[:, None]


class Beside:
    key = "run"

    def __init__(self, other: Any, digest: str = "a") -> None:
        self.other, self.digest = other, digest

    def reference(self, text):
        assert text == "standard"
        return self.other

    def reference_digest(self, text):
        return self.digest


def test_the_rank_of_the_class_an_attack_reaches(tmp_path):
    """The judged network takes bright images for class 2, which the reference has in third place when dark; so every broken image has rank 3."""
    judged, reference = Table([3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]), Table([4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0])
    x = torch.full((10, 1, 2, 2), 0.496)
    x[7:, 0, 0, 0] = 0.1                                                 # out of the attack's reach
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1, 0, 0, 2])                   # 5, 6 and 9 are wrong as they stand
    threat = Threat(LINF, 0.02, 0.01, 4, ZERO)
    found = one(judged, x, y, threat, "rank", run=Beside(reference), reference="standard", store=tmp_path, batch_size=3)
    assert found.metrics["m"] == 3.0 and found.n["m"] == 5 and found.details["m"]["counts"] == [0, 0, 5, 0] and found.units == {"m": "rank"}
    every = one(judged, x, y, threat, "rank", run=Beside(reference), reference="standard", over="all")
    assert every.details["m"]["counts"] == [5, 0, 5, 0] and every.metrics["m"] == 2.0, "5 and 6 are surest of their wrong answer where it is dark"
    other = one(judged, x, y, threat, "rank", run=Beside(Table([1.0, 2.0, 3.0, 4.0], [0.0] * 4), "b"), reference="standard", store=tmp_path)
    assert other.metrics["m"] == 2.0, "the reference's weights are part of the key of what is stored"
    with pytest.raises(ComposerError, match="asks for the run"):
        one(judged, x, y, threat, "rank", reference="standard")


def test_ranks_of_a_table():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2], [5.0, 5.0, 1.0, 0.0]])
    assert [ranks(logits, torch.full((2,), k)).tolist() for k in range(4)] == [[4, 1], [1, 1], [2, 3], [3, 4]]
    found = distribution(torch.tensor([1.0, 3.0, 3.0, math.nan]), torch.zeros(4), 5, [])
    assert found.details["counts"] == [1, 0, 2, 0, 0] and found.details["counted"] == 3 and sum(found.details["share"]) == pytest.approx(1)


# -- the landscape -----------------------------------------------------------------------------------------------------------------


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.mark.parametrize("directions", ["whole", "filter"])
def test_the_landscape_is_the_loss_at_moved_weights(still, directions):
    model, g = net(), torch.Generator().manual_seed(1)
    x, y = torch.rand((30, 1, 3, 3), generator=g), torch.randint(3, (30,), generator=g)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = one(model, x, y, still, "landscape", at="clean", grid=5, reach=0.8, directions=directions, batch_size=11)
    details = found.details["m"]
    own = dict(model.named_parameters())
    u, v = (direction({k: w.detach() for k, w in own.items()}, Draws(3, "evaluate/landscape"), axis, directions, 1.0) for axis in (0, 1))
    assert details["axis"] == pytest.approx([-0.8, -0.4, 0.0, 0.4, 0.8])
    for j, b in enumerate(details["axis"]):
        for i, a in enumerate(details["axis"]):
            other = net().double()
            with torch.no_grad():
                for name, w in other.named_parameters():
                    w.add_(a * u[name].double() + b * v[name].double())
                want = nn.functional.cross_entropy(other(x.double()), y)
            assert details["loss"][j][i] == pytest.approx(float(want), rel=1e-4), (i, j)
    flat = [value for row in details["loss"] for value in row]
    assert found.metrics["m"] == pytest.approx(np.mean(flat) - details["centre"], abs=1e-6) and details["centre"] == details["loss"][2][2]
    assert (details["lowest"], details["highest"]) == (min(flat), max(flat))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())


def test_directions_are_normalised_as_they_say():
    own = {k: w.detach() for k, w in net().named_parameters()}
    draws = Draws(0, "p")
    whole, longer = direction(own, draws, 0, "whole", 1.0), direction(own, draws, 0, "whole", 2.5)
    assert sum(float(d.square().sum()) for d in whole.values()) == pytest.approx(1.0) and torch.allclose(2.5 * whole["1.weight"], longer["1.weight"])
    rows = direction(own, draws, 0, "filter", 1.0)
    assert torch.allclose(rows["1.weight"].norm(dim=1), own["1.weight"].norm(dim=1)) and not rows["1.bias"].any() and not rows["2.weight"].any()
    other = direction(own, draws, 1, "whole", 1.0)
    cosine = sum(float((whole[k] * other[k]).sum()) for k in own)
    assert abs(cosine) < 0.5 and not torch.equal(whole["1.weight"], other["1.weight"])
    again = direction({k: w + 1 for k, w in own.items()}, draws, 0, "whole", 1.0)
    assert torch.equal(again["4.weight"], whole["4.weight"]), "networks of one architecture share their directions"


def test_the_landscape_of_attacked_images_lies_higher(trained, digits, threat):
    x, y = (t[:50] for t in digits["test"])
    clean, adv = (one(trained, x, y, threat, "landscape", at=at, grid=3).details["m"] for at in ("clean", "adv"))
    assert adv["centre"] > clean["centre"] and clean["weights_norm"] > 1
    with pytest.raises(ComposerError, match="moves the weights"):
        one(lambda images: trained(images), x, y, threat, "landscape", grid=3)


# -- all of them ---------------------------------------------------------------------------------------------------------------------


def test_the_batch_size_changes_nothing_and_the_model_is_left_as_it_was(trained, digits, threat):
    x, y = (t[:40] for t in digits["test"])
    specs = [MeasureSpec(use, use, options) for use, options in (
        ("curve", {"radii": (0.1, 0.2)}), ("per_class", {}), ("taylor_margin", {"at": "adv"}), ("fab_margin", {"search": 5}), ("calibration", {"at": "adv"}),
        ("landscape", {"grid": 3}))]
    one_, other = (evaluate(trained, x, y, specs, threat=threat, seed=0, batch_size=b) for b in (40, 7))
    for name in one_.flags:
        torch.testing.assert_close(one_.flags[name], other.flags[name], rtol=2e-3, atol=2e-4, equal_nan=True)
    assert not trained.training and all(p.requires_grad and p.grad is None for p in trained.parameters())
    assert one_.trust["ok"] == other.trust["ok"] and set(one_.units) == set(one_.metrics)


def test_a_diagnostic_of_a_split_asks_the_run(trained, digits, threat):
    x, y = (t[:20] for t in digits["test"])
    run = SimpleNamespace(key="k", images=lambda split, n: (x[:5], y[:5]))
    for use in ("taylor_margin", "fab_margin", "calibration", "landscape"):
        options = {"grid": 3} if use == "landscape" else {"search": 3} if use == "fab_margin" else {}
        found = evaluate(trained, x, y, [MeasureSpec("m", use, {"split": "train", **options})], threat=threat, seed=0, run=run)
        assert len(found.flags["m"]) == 5


@pytest.mark.parametrize("sets,said", [
    ({"evaluate.c": "{ use = 'curve', attack = 'clean' }"}, "'clean' is no attack"),
    ({"evaluate.c": "{ use = 'curve', attack = { use = 'pgd', eps = 0.1 } }"}, "its radius is the measure's"),
    ({"evaluate.c": "{ use = 'curve', attack = { use = 'pgd', stepz = 3 } }"}, "no option 'stepz'"),
    ({"evaluate.c": "{ use = 'per_class', attack = 'effective_margin' }"}, "is no attack"),
    ({"evaluate.l": "{ use = 'landscape', grid = 4 }"}, "must stand on the grid"),
    ({"evaluate.f": "{ use = 'fab_margin', distance = 'l1' }"}, "linf and l2"),
    ({"evaluate.f": "{ use = 'fab_margin' }", "threat.norm": "l1"}, "linf and l2"),
    ({"evaluate.r": "{ use = 'rank' }"}, "reference"),
    ({"select.attack": "{ use = 'curve' }"}, "no accuracy")])
def test_what_cannot_be_is_told_where_the_recipe_is_read(sets, said):
    from composer.recipe.load import load

    with pytest.raises(ComposerError) as caught:
        load("at", setting="digits", sets=[f"{k}={v}" for k, v in sets.items()])
    assert said in caught.value.text()


def test_words_of_eps_reach_the_ladder_and_the_attack():
    from composer.evaluate.options import resolve_options
    from composer.recipe.load import load

    recipe = load("at", setting="digits", sets=["evaluate.c={ use = 'curve', attack = { use = 'mim', steps = 3, step = 'eps/2' }, radii = ['eps/2', '60/255', 0.4] }"])
    spec = next(m for m in recipe.evaluate.measures if m.name == "c")
    options = resolve_options(spec, recipe.threat)
    assert settled(options["radii"], options["eps"]) == [0.1, pytest.approx(60 / 255), 0.4]
    assert options["attack"].options["step"] == pytest.approx(0.1) and options["attack"].options["steps"] == 3


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(digits, threat):
    x, threat = digits["test"][0][:60], replace(threat, eps=0.005, step=0.002)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    y = model(x).argmax(1)
    specs = [MeasureSpec(use, use, options) for use, options in (
        ("curve", {"radii": (0.005, 0.02)}), ("per_class", {}), ("taylor_margin", {"at": "adv"}), ("fab_margin", {"search": 5}), ("calibration", {"at": "adv"}),
        ("landscape", {"grid": 3}), ("rank", {"reference": "standard", "over": "all"}))]
    run = Beside(net_of(model))
    here = evaluate(model, x, y, specs, threat=threat, seed=0, run=run)
    run.other = run.other.cuda()
    there = evaluate(model.cuda(), x.cuda(), y.cuda(), specs, threat=threat, seed=0, run=run)
    for name in here.metrics:
        assert there.flags[name].device.type == "cpu" and there.metrics[name] == pytest.approx(here.metrics[name], rel=0.05, abs=0.02), name


def net_of(model: nn.Module) -> nn.Module:
    """Another network of the same shape."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.01 * torch.ones_like(p))
    return other
