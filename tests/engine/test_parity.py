"""The engine's real step against plain PyTorch in float64: hand-pruned and faithful loops, then formulas written here from the papers.

In float64 the signs of the attack's steps agree, so whole training steps can be compared to 1e-9.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from composer.bench import pruned, reference
from composer.bench.nets import batch, net
from composer.bench.pruned.mart_ours import zero_average
from composer.bench.subject import DECAY, EPS, MOMENTUM, STEP, Subject, load_like_plain

N, LR = 8, 0.01
LOOPS = {"standard": "standard", "at": "at", "at_rice": "rice_at", "trades": "trades", "mart": "mart", "mart_ours": "mart_ours"}
FAITHFUL = {"at": "madry_eval", "at_rice": "rice_at", "trades": "trades", "mart": "mart"}
ADVERSARIAL_PASS = {"at": -1, "at_rice": -2, "trades": -1, "mart": -1, "mart_ours": -1}       # which of a loop's forwards sees x_adv
CASES = [*((pruned, recipe, loop) for recipe, loop in LOOPS.items()), *((reference, recipe, loop) for recipe, loop in FAITHFUL.items())]


def close(a: Any, b: Any, what: str = "", tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m: f"{what}: {m}")


def data() -> tuple[Tensor, Tensor]:
    x, y = batch("cnn8", N)
    return x.double(), y


def engine(recipe: str, *, segment: int = -1, steps: int = 3, lr: float = LR, sets: tuple[str, ...] = ()) -> Subject:
    """The engine's step in float64, parts' memories included."""
    subject = Subject(load_like_plain(recipe, steps=steps, lr=lr, sets=sets), net("cnn8").double(), *data(), segment=segment)
    for part in subject.parts.values():
        for held in (v for v in vars(part).values() if isinstance(v, dict)):
            held.update({k: v.double() for k, v in held.items() if v.is_floating_point()})
    return subject


def watch(subject: Subject) -> dict[str, list[Any]]:
    """What each step of the engine made: its loss, every tensor by name, and the parameters' gradients that the optimiser was given."""
    seen: dict[str, list[Any]] = {"loss": [], "env": [], "grads": []}
    forward, step = subject.trainer.executor.forward, subject.optimizer.step

    def forward_watched(*args: Any) -> Any:
        total, means, env = forward(*args)
        seen["loss"].append(float(total.detach()))
        seen["env"].append({**env, "means": means})
        return total, means, env

    def step_watched() -> None:
        seen["grads"].append({k: p.grad.clone() for k, p in subject.model.named_parameters()})
        step()

    subject.trainer.executor.forward, subject.optimizer.step = forward_watched, step_watched
    return seen


def noise_of(subject: Subject, kind: str, step: int) -> Tensor:
    return subject.session.streams.draw(kind, "inner.x_adv.start", step, subject.batch.x).double()


def by_hand(library: Any, loop: str, subject: Subject, updates: int, steps: int = 3) -> tuple[nn.Module, dict[str, list[Any]]]:
    """The same updates by a plain loop on the same noise."""
    model, (x, y) = net("cnn8").double(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    options: dict[str, Any] = {} if loop == "standard" else {"eps": EPS, "step_size": STEP, "steps": steps}
    if loop == "mart_ours":
        options["average"] = {k: v.double() for k, v in zero_average(N, 10).items()}
    seen: dict[str, list[Any]] = {"loss": [], "inputs": [], "grads": []}
    model.register_forward_pre_hook(lambda module, args: seen["inputs"][-1].append(args[0].detach().clone()))
    for k in range(updates):
        seen["inputs"].append([])
        seen["loss"].append(float(library.STEPS[loop](model, optimizer, x, y, noise_of(subject, library.START[loop], k), **options)))
        seen["grads"].append({name: p.grad.clone() for name, p in model.named_parameters()})
    return model, seen


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize(("library", "recipe", "loop"), CASES, ids=[f"{library.__name__.split('.')[-1]}-{recipe}" for library, recipe, _ in CASES])
def test_whole_steps_equal_plain_loops(library, recipe, loop, updates):
    subject = engine(recipe)
    made = watch(subject)
    for _ in range(updates):
        subject()
    model, seen = by_hand(library, loop, subject, updates)
    for k in range(updates):
        if recipe in ADVERSARIAL_PASS:
            close(made["env"][k]["x_adv"].contiguous(), seen["inputs"][k][ADVERSARIAL_PASS[recipe] - (library is reference and recipe == "trades")],
                  f"x_adv of step {k}")
        close(made["loss"][k], seen["loss"][k], f"loss of step {k}")
        for name, grad in seen["grads"][k].items():
            close(made["grads"][k][name], grad, f"gradient of {name}, step {k}")
    ours, theirs = subject.model.state_dict(), model.state_dict()
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        close(ours[name], value, name)
    assert not torch.equal(ours["0.weight"], net("cnn8").double().state_dict()["0.weight"]), "nothing was learnt"


# -- methods without a plain loop: losses and gradients at the engine's x_adv, by formulas written here --------------------------------------------


def softmax(z: Tensor) -> Tensor:
    e = (z - z.detach().max(1, keepdim=True).values).exp()
    return e / e.sum(1, keepdim=True)


def of_label(scores: Tensor, y: Tensor) -> Tensor:
    return scores[torch.arange(len(y)), y]


def rivals(scores: Tensor, y: Tensor) -> Tensor:
    """[N, K-1]: all entries but the label's."""
    return torch.stack([torch.cat([row[:k], row[k + 1:]]) for row, k in zip(scores, y.tolist())])


def ce(z: Tensor, y: Tensor) -> Tensor:
    return -of_label(softmax(z), y).log().mean()


def bce(z: Tensor, y: Tensor) -> Tensor:
    p = softmax(z)
    return ce(z, y) - (1.0001 - rivals(p, y).max(1).values + 1e-12).log().mean()


def kl(clean: Tensor, adv: Tensor) -> Tensor:
    p, q = softmax(clean), softmax(adv)
    return (p * (p / q).log()).sum(1)


def hinge(z: Tensor, y: Tensor) -> Tensor:
    return (0.9 - of_label(z, y)[:, None] + rivals(z, y)).clamp(min=0).square().sum(1).mean()


def huber(clean: Tensor, adv: Tensor, held: dict[str, Tensor], alpha: float = 5.345) -> Tensor:
    d = (0.2 * held["adv"] + 0.8 * adv) - (0.2 * held["clean"] + 0.8 * clean)
    near, far = alpha**2 * (1 - (d / alpha).cos()), alpha * d.abs() + (1 - math.pi / 2) * alpha**2
    return torch.where(d.abs() <= alpha * math.pi / 2, near, far).mean()


def unit(z: Tensor) -> Tensor:
    return z / z.square().sum(1, keepdim=True).sqrt()


def lma_terms(clean: Tensor, adv: Tensor, y: Tensor, held: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"margin": hinge(adv, y), "align": huber(clean, adv, held)}


FORMULAS: dict[str, tuple[dict[str, float], Any]] = {
    "at_ours": ({"ce": 1, "margin": 1, "align": 86}, lambda c, a, y, held: {"ce": ce(a, y), **lma_terms(c, a, y, held)}),
    "lma_at": ({"boosted_ce": 1, "margin": 1, "align": 86}, lambda c, a, y, held: {"boosted_ce": bce(a, y), **lma_terms(c, a, y, held)}),
    "trades_ours": ({"ce": 1, "kl": 6, "margin": 1, "align": 86},
                    lambda c, a, y, held: {"ce": ce(c, y), "kl": kl(c, a).mean(), **lma_terms(c, a, y, held)}),
    "mwpb_trades": ({"ce": 1, "kl": 6}, lambda c, a, y, held: {"ce": ce(c, y), "kl": kl(c, a).mean()}),
    "piat_nmse": ({"ce": 1, "nmse": 5}, lambda c, a, y, held: {
        "ce": ce(a, y), "nmse": ((1.0000001 - of_label(softmax(c), y)) * (2 - 2 * (unit(a) * unit(c)).sum(1))).mean()}),
    "alp": ({"ce_clean": 0.5, "ce_adv": 0.5, "mse": 0.5}, lambda c, a, y, held: {
        "ce_clean": ce(c, y), "ce_adv": ce(a, y), "mse": (c - a).square().mean()}),
}


def hold(subject: Subject) -> dict[str, Tensor]:
    """Averages far from zero in the logit EMA, where the recipe has one: what the parts would remember."""
    generator = torch.Generator().manual_seed(3)
    if "ema" not in subject.parts:
        return {}
    held = {k: torch.randn(N, 10, generator=generator, dtype=torch.float64) for k in ("clean", "adv")}
    subject.parts["ema"].load_state_dict(held)
    return held


@pytest.mark.parametrize("recipe", FORMULAS)
def test_losses_and_gradients_equal_formulas(recipe):
    subject = engine(recipe)
    held = hold(subject)
    made = watch(subject)
    subject()
    env, (x, y) = made["env"][0], data()
    model = net("cnn8").double().train()
    x_adv = env["x_adv"].contiguous()
    assert 0 < float((x_adv - x).abs().max()) and torch.equal(x_adv, x_adv.clamp(0, 1))
    clean, adv = model(torch.cat([x, x_adv])).split(N) if recipe == "alp" else (model(x), model(x_adv))
    weights, formula = FORMULAS[recipe]
    terms = formula(clean, adv, y, held)
    total = sum(weights[name] * value for name, value in terms.items())
    assert set(terms) == set(subject.trainer.executor.names)
    for name, mean in zip(subject.trainer.executor.names, env["means"]):
        close(float(mean), float(terms[name].detach()), name)
    close(made["loss"][0], float(total.detach()), "loss")
    total.backward()
    for name, p in model.named_parameters():
        close(made["grads"][0][name], p.grad, f"gradient of {name}")
    if held:
        after = subject.parts["ema"].state_dict()
        close(after["clean"], 0.2 * held["clean"] + 0.8 * clean.detach(), "average of clean logits")
        close(after["adv"], 0.2 * held["adv"] + 0.8 * adv.detach(), "average of adversarial logits")


def climb_by_hand(model: nn.Module, x: Tensor, point: Tensor, radius: Any, step: Any, steps: int, objective: Any) -> Tensor:
    """Projected sign ascent, one image at a time in the box of its own radius."""
    for _ in range(steps):
        point = point.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(objective(model(point)), point)
        point = torch.minimum(torch.maximum(point.detach() + step * grad.sign(), x - radius), x + radius).clamp(0, 1)
    return point.detach()


def test_lma_attack_climbs_cross_entropy_and_margin():
    subject = engine("trades_ours")
    made = watch(subject)
    subject()
    model, (x, y) = net("cnn8").double().eval(), data()
    start = x + 0.001 * noise_of(subject, "gaussian", 0)
    found = climb_by_hand(model, x, start, EPS, STEP, 3, lambda z: ce(z, y) + hinge(z, y))
    close(made["env"][0]["x_adv"].contiguous(), found)


@pytest.mark.parametrize("segment", [0, 1])
def test_mwpb_radius_and_attack(segment):
    """Until 80/110 the plain TRADES attack at half the radius; then eps exp(0.42 PM(x)), PM from the clean eval-mode prediction."""
    subject = engine("mwpb_trades", segment=segment)
    made = watch(subject)
    subject()
    model, (x, y) = net("cnn8").double().eval(), data()
    with torch.no_grad():
        p = softmax(model(x))
    ahead = of_label(p, y) - rivals(p, y).max(1).values
    radius = torch.full((N,), EPS / 2, dtype=torch.float64) if segment == 0 else EPS * (0.42 * ahead).exp()
    if segment == 1:
        close(made["env"][0]["adv_eps"], radius, "radius")
        assert float(radius.max() - radius.min()) > 1e-4
    r = radius[:, None, None, None]
    start = x + 0.001 * noise_of(subject, "gaussian", 0)
    found = climb_by_hand(model, x, start, r, r / 4, 3, lambda z: (p * (p.log() - softmax(z).log())).sum())
    close(made["env"][0]["x_adv"].contiguous(), found, "x_adv")


def test_piat_burns_in_on_clean_images():
    subject = engine("piat_nmse", segment=0)
    made = watch(subject)
    subject()
    model, (x, y) = net("cnn8").double().train(), data()
    loss = ce(model(x), y)
    loss.backward()
    close(made["loss"][0], float(loss.detach()))
    for name, p in model.named_parameters():
        close(made["grads"][0][name], p.grad, name)


@pytest.mark.parametrize("change", [("terms.kl.weight=7.0",), ("inner.x_adv.eps=0.02",), ("inner.x_adv.steps=4",), ("outer.updates=['x']",)])
def test_a_changed_method_is_seen(change):
    """The comparison can fail: each of these moves weights or running statistics by a hundred tolerances at least."""
    base, other = engine("trades"), engine("trades", sets=change)
    for subject in (base, other):
        subject()
    ours, theirs = base.model.state_dict(), other.model.state_dict()
    assert max(float((ours[name].double() - value.double()).abs().max()) for name, value in theirs.items()) > 1e-7
