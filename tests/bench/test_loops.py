"""The plain loops: their passes, that pruning changes nothing but the passes, and their losses against the papers' formulas in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from composer.bench import pruned, reference
from composer.bench.counter import Passes, count
from composer.bench.modes import first_and_third, second, twice
from composer.bench.nets import batch, net
from composer.bench.pruned.mart_ours import zero_average

REFERENCE = {"madry_eval": Passes(11, 11, 1, 1), "trades": Passes(23, 13, 3, 3), "mart": Passes(12, 12, 2, 2), "rice_at": Passes(13, 11, 11, 13),
             "trades_awp": Passes(26, 16, 6, 3), "at_awp": Passes(14, 12, 12, 13)}
PRUNED = {"standard": Passes(1, 1, 1, 1), "at": Passes(11, 11, 1, 1), "trades": Passes(13, 12, 2, 2), "mart": Passes(12, 12, 2, 2),
          "rice_at": Passes(12, 11, 1, 12), "trades_awp": Passes(15, 14, 4, 2), "at_awp": Passes(13, 12, 2, 13), "mart_ours": Passes(12, 12, 2, 2)}
UNITS = {"madry_eval": 23, "trades": 39, "mart": 26, "rice_at": 35, "trades_awp": 48, "at_awp": 38}
PRUNED_UNITS = {"standard": 3, "at": 23, "trades": 27, "mart": 26, "rice_at": 24, "trades_awp": 33, "at_awp": 27, "mart_ours": 26}
PAIRS = {"madry_eval": "at", "trades": "trades", "mart": "mart", "rice_at": "rice_at", "trades_awp": "trades_awp", "at_awp": "at_awp"}


def start(kind: str, x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    draw = torch.rand if kind == "uniform" else torch.randn
    return draw(x.shape, generator=generator, dtype=x.dtype)


def run(library, name: str, steps: int = 3, n: int = 8, updates: int = 1, dtype=torch.float64, weight: float = 1.0, **options):
    """Some updates of one method from a fixed state -> (network, optimiser, last loss, state of the method)."""
    model = net("cnn8").to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    x, y = batch("cnn8", n)
    x = x.to(dtype)
    noise = weight * start(library.START[name], x)
    if library is reference and name in reference.WITH_PROXY:
        options["proxy"] = copy.deepcopy(model)
    if name == "mart_ours":
        options["average"] = {key: value.to(dtype) for key, value in zero_average(n, 10).items()}
    if name != "standard":
        options["steps"] = steps
    losses = [library.STEPS[name](model, optimizer, x, y, noise, **options) for _ in range(updates)]
    return model, losses, options


@pytest.mark.parametrize(("library", "name", "passes", "units"), [
    *((reference, name, REFERENCE[name], UNITS[name]) for name in REFERENCE), *((pruned, name, PRUNED[name], PRUNED_UNITS[name]) for name in PRUNED)],
    ids=[*(f"reference-{name}" for name in REFERENCE), *(f"pruned-{name}" for name in PRUNED)])
def test_passes_of_a_step_with_ten_attack_steps(library, name, passes, units):
    model = net("cnn8")
    x, y = batch("cnn8", 4)
    noise = start(library.START[name], x)
    options = {"proxy": copy.deepcopy(model)} if library is reference and name in reference.WITH_PROXY else {}
    if name == "mart_ours":
        options["average"] = zero_average(4, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = count(model, lambda: library.STEPS[name](model, optimizer, x, y, noise, **options))
    assert (made, made.units) == (passes, units)


def test_every_loop_is_counted():
    assert set(REFERENCE) == set(reference.STEPS) and set(PRUNED) == set(pruned.STEPS)


@pytest.mark.parametrize("name", PAIRS)
def test_pruning_changes_no_number(name):
    """Two updates from one state in float64: weights, running statistics and counts of batches agree, so do the losses."""
    shared = {"eps": 8 / 255, "step_size": 2 / 255}
    full, full_losses, _ = run(reference, name, updates=2, **shared)
    lean, lean_losses, _ = run(pruned, PAIRS[name], updates=2, **shared)
    assert [float(a) for a in full_losses] == pytest.approx([float(b) for b in lean_losses], rel=1e-9)
    for key, value in full.state_dict().items():
        torch.testing.assert_close(lean.state_dict()[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
    assert not torch.equal(full.state_dict()["0.weight"], net("cnn8").double().state_dict()["0.weight"])


@pytest.mark.parametrize("m", [0.1, 0.3, 1.0])
def test_momentum_that_stands_for_left_out_writes(m):
    def write(r, s, momentum):
        return (1 - momentum) * r + momentum * s

    r, a, b = 0.7, -1.3, 2.9
    assert write(r, a, twice(m)) == pytest.approx(write(write(r, a, m), a, m))
    assert write(write(r, a, first_and_third(m)), b, second(m)) == pytest.approx(write(write(write(r, a, m), b, m), a, m))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def logits_at(noise_scale: float, n: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Train-mode logits of x and of x + 0.001 noise clamped, from the state that `run` starts in."""
    model = net("cnn8").double()
    x, y = batch("cnn8", n)
    x = x.double()
    x_adv = (x + 0.001 * noise_scale * start("gaussian", x)).clamp(0, 1)
    return model(x).detach().numpy(), model(x_adv).detach().numpy(), y.numpy()


def test_trades_loss_is_the_papers():
    clean, adv, y = logits_at(200.0)
    p, q = softmax(clean), softmax(adv)
    expected = -np.log(p[np.arange(8), y]).mean() + 6.0 * (p * np.log(p / q)).sum(1).mean()
    for library in (reference, pruned):
        assert float(run(library, "trades", steps=0, weight=200.0)[1][0]) == pytest.approx(expected, rel=1e-10)


def boosted_ce(adv: np.ndarray, y: np.ndarray) -> np.ndarray:
    q = softmax(adv)
    rows = np.arange(len(y))
    wrong = q.copy()
    wrong[rows, y] = -1
    return -np.log(q[rows, y]) - np.log(1.0001 - wrong.max(1) + 1e-12)


def test_mart_loss_is_the_papers():
    clean, adv, y = logits_at(200.0)
    p, q = softmax(clean), softmax(adv)
    kl = (p * (np.log(p) - np.log(q + 1e-12))).sum(1)
    expected = (boosted_ce(adv, y) + 5.0 * kl * (1.0000001 - p[np.arange(8), y])).mean()
    for library in (reference, pruned):
        assert float(run(library, "mart", steps=0, weight=200.0)[1][0]) == pytest.approx(expected, rel=1e-10)


def mart_ours_loss(clean, adv, y, averages, alpha):
    rows = np.arange(len(y))
    p, q = softmax(clean), softmax(adv)
    short = np.maximum(0, 0.9 - adv[rows, y][:, None] + adv) ** 2
    short[rows, y] = 0
    kl = (p * np.log(p / q)).sum(1) * (1.0000001 - p[rows, y])
    d = (0.2 * averages[1] + 0.8 * adv) - (0.2 * averages[0] + 0.8 * clean)
    huber = np.where(np.abs(d) <= alpha * math.pi / 2, alpha**2 * (1 - np.cos(d / alpha)), alpha * np.abs(d) + (1 - math.pi / 2) * alpha**2)
    return (boosted_ce(adv, y) + short.sum(1) + 5.0 * kl).mean() + 86.0 * huber.mean()


@pytest.mark.parametrize("alpha", [5.345, 0.05])
def test_mart_ours_loss_is_the_papers(alpha):
    """alpha = 0.05 puts differences on both sides of the knot."""
    clean, adv, y = logits_at(200.0)
    zero = np.zeros_like(clean)
    _, losses, options = run(pruned, "mart_ours", steps=0, weight=200.0, alpha=alpha)
    assert float(losses[0]) == pytest.approx(mart_ours_loss(clean, adv, y, (zero, zero), alpha), rel=1e-9)
    np.testing.assert_allclose(options["average"]["clean"].numpy(), 0.8 * clean, rtol=1e-12)
    np.testing.assert_allclose(options["average"]["adv"].numpy(), 0.8 * adv, rtol=1e-12)


def test_mart_ours_averages_recur():
    """With a learning rate of zero the second step reads 0.2 times the first's average; its value follows from the first state alone."""
    model = net("cnn8").double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x, y = batch("cnn8", 8)
    average = {key: value.double() for key, value in zero_average(8, 10).items()}
    noise = 200.0 * start("gaussian", x.double())
    losses = [float(pruned.STEPS["mart_ours"](model, optimizer, x.double(), y, noise, average=average, steps=0)) for _ in range(2)]
    clean, adv, labels = logits_at(200.0)
    assert losses[1] == pytest.approx(mart_ours_loss(clean, adv, labels, (0.8 * clean, 0.8 * adv), 5.345), rel=1e-9)
    np.testing.assert_allclose(average["adv"].numpy(), 0.2 * 0.8 * adv + 0.8 * adv, rtol=1e-9)


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in (reference, pruned) for name in library.STEPS if name != "standard"],
                         ids=lambda v: v if isinstance(v, str) else v.__name__.split(".")[-1])
def test_attacks_stay_in_the_box_and_climb(library, name):
    """The point the network is trained on lies in [0,1] and on the box around x, higher up than a random corner of the box."""
    model = net("cnn8")
    x, y = batch("cnn8", 8)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    options = {"proxy": net("cnn8")} if library is reference and name in reference.WITH_PROXY else {}
    if name == "mart_ours":
        options["average"] = zero_average(8, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" not in key and "tracked" not in key}
    library.STEPS[name](model, optimizer, x, y, start(library.START[name], x), eps=0.05, step_size=0.0125, **options)
    adversarial = [p for p in seen if not torch.equal(p, x)]
    last = adversarial[-1]
    assert float(last.min()) >= 0 and float(last.max()) <= 1 and 0.049 <= float((last - x).abs().max()) <= 0.05 + 1e-6
    after = model.state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-6)      # no learning: AWP has put the weights back
    fresh = net("cnn8").train(name in ("rice_at", "at_awp"))
    random = (x + 0.05 * start("gaussian", x).sign()).clamp(0, 1)
    with torch.no_grad():
        here, climbed, level = (rises(name, fresh, x, point, y) for point in (x, last, random))
    assert climbed - here > 2 * abs(level - here)


def rises(name: str, model: torch.nn.Module, x: torch.Tensor, point: torch.Tensor, y: torch.Tensor) -> float:
    """What the attack of a method climbs."""
    logits = model(point)
    if name in ("trades", "trades_awp"):
        return float(F.kl_div(F.log_softmax(logits, 1), F.softmax(model(x), 1), reduction="batchmean"))
    return float(F.cross_entropy(logits, y))
