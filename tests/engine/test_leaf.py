"""Calls that differentiate w.r.t. the image: which pass they read, what their gradient reaches, and what it does not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from composer.bench.nets import batch, net
from composer.bench.subject import Subject, load_like_plain
from composer.engine.net import Net
from composer.engine.step import Executor
from composer.engine.streams import Streams
from composer.plan.compile import compile_method
from composer.plan.cost import plan_cost
from composer.plan.types import Pass
from composer.recipe.types import Inner, Method, Outer, Term, Use
from composer.registry import REGISTRY

N = 6


def data() -> tuple[Tensor, Tensor]:
    x, y = batch("cnn8", N)
    return x.double(), y


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def engine(recipe: str, *sets: str) -> tuple[Subject, SimpleNamespace]:
    """One step of a recipe in float64: its tensors by name, the gradients the optimiser was given, the loss's terms."""
    subject = Subject(load_like_plain(recipe, steps=3, lr=0.01, sets=sets), net("cnn8").double(), *data(), segment=-1)
    subject.model[1].running_mean.fill_(0.2)
    subject.model[4].running_var.fill_(1.7)
    seen = SimpleNamespace()
    forward, step = subject.trainer.executor.forward, subject.optimizer.step

    def watched(*args):
        total, means, env = forward(*args)
        seen.total, seen.means, seen.env = float(total.detach()), dict(zip(subject.trainer.executor.names, means.tolist())), dict(env)      # the step lets go of most of it
        return total, means, env

    def stepped():
        seen.grads = {k: p.grad.clone() for k, p in subject.model.named_parameters()}
        step()

    subject.trainer.executor.forward, subject.optimizer.step = watched, stepped
    subject()
    return subject, seen


def plain() -> nn.Module:
    """Its running statistics stand still: were a train-mode forward to write them, PyTorch's double backward through an earlier eval-mode one
    would read the new ones and be wrong. The engine writes them after the backward.
    """
    model = net("cnn8").double()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0
    model[1].running_mean.fill_(0.2)
    model[4].running_var.fill_(1.7)
    return model


def slope(model: nn.Module, x: Tensor, scalar, mode: str) -> tuple[Tensor, Tensor]:
    """|d scalar / dx|^2 per image by plain autograd, with its graph, and the logits."""
    at = x.clone().requires_grad_()
    z = model.train(mode == "train")(at)
    (g,) = torch.autograd.grad(scalar(z), at, create_graph=True)
    return g.flatten(1).square().sum(1), z


def equal_gradients(model: nn.Module, total: Tensor, seen: SimpleNamespace) -> None:
    assert seen.total == pytest.approx(float(total.detach()), rel=1e-9)
    for (name, p), g in zip(model.named_parameters(), torch.autograd.grad(total, list(model.parameters()))):
        close(seen.grads[name], g)


def tempered(z: Tensor, t: float) -> Tensor:
    return ((z / t).softmax(1).detach() * z).sum()


def ce(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y)


@pytest.mark.parametrize("scale", ["code", "paper"])
def test_emr_beside_a_train_pass(scale: str) -> None:
    """The eval pass sees the statistics of the step's start, and its double backward reaches the parameters; the train pass is as without it."""
    _, seen = engine("approx_emr_at", f"terms.emr.scale={scale}", "terms.emr.t=2.0", "terms.emr.weight=0.3")
    x_adv, y = seen.env["x_adv"].contiguous(), data()[1]
    assert not x_adv.requires_grad and seen.env["x_adv@leaf@eval"].requires_grad
    assert seen.env["x_adv@leaf@eval"].grad_fn is None, "a leaf of its own: nothing runs back into the attack"
    model = plain()
    squared, _ = slope(model, x_adv, lambda z: tempered(z, 2.0), "eval")
    penalty = squared.mean() / (N if scale == "code" else 1)
    assert seen.means["emr"] == pytest.approx(float(penalty.detach()), rel=1e-9)
    total = 0.3 * penalty
    equal_gradients(model, ce(model.train()(x_adv), y) + total, seen)


def test_exact_emr() -> None:
    _, seen = engine("emr_standard", "terms.emr.weight=0.2")
    (x, y), model = data(), plain()
    squares = sum(slope(model, x, lambda z, j=j: z[:, j].sum(), "eval")[0] for j in range(10))
    equal_gradients(model, ce(model.train()(x), y) + 0.2 * squares.mean(), seen)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_igr_with_a_pass_of_its_own_and_in_the_train_pass(bn: str) -> None:
    """In train mode it reads the very forward that the cross entropy reads; statistics are written once."""
    subject, seen = engine("igr_trades", f"terms.igr.bn={bn}", "terms.igr.weight=0.5", "terms.kl.weight=0.0")
    passes = [s for s in subject.plan.outer.steps if isinstance(s, Pass)]
    assert len(passes) == (3 if bn == "eval" else 2)
    (x, y), model = data(), plain()
    squared, z = slope(model, x, lambda z: nn.functional.cross_entropy(z, y, reduction="sum"), bn)
    if bn == "eval":
        z = model.train()(x)
    equal_gradients(model, ce(z, y) + 0.5 * squared.mean(), seen)
    close(seen.env["clean_logits"].detach(), z.detach())


def method(terms: tuple[Term, ...], inner: tuple[Inner, ...] = (), **more) -> Method:
    return Method(inner, more.pop("outer", Outer()), terms, more.pop("views", ()), ())


def loss(id: str, use: str, **more) -> Term:
    options = more.pop("options", {})
    model = REGISTRY.get("loss", use).Options(**options)
    return Term("loss", id, use, {n: getattr(model, n) for n in type(model).model_fields}, **more)


def run(made: Method, model: nn.Module, share: bool = True, eps: float = 0.1):
    plan = compile_method(made, share=share)
    executor = Executor(plan, Net(model, torch.device("cpu")), {}, Streams(0), threat_eps=eps)
    x, y = data()
    total, _, env = executor.forward({"x": x, "y": y, "model": model}, 0)
    return plan, total, env


def attack(**more) -> Inner:
    from composer.options import Ref

    start, norm = Ref("start", "uniform", {"clamp": True}), Ref("ball", "linf", {})
    options = {"step": 0.05, "steps": 2, "start": start, "norm": norm, "restarts": more.pop("restarts", 1)}
    return Inner("x_adv", "pgd", options, more.pop("eps", 0.1), "eval", more.pop("terms", (loss("ce", "ce"),)))


def test_a_joint_forward_makes_each_point_a_leaf_of_its_own() -> None:
    terms = (loss("ce", "ce", at="clean"), loss("emr", "approx_emr", at="adv"), loss("again", "approx_emr", at="clean", options={"t": 3.0}))
    plan, total, env = run(method(terms, (attack(),), outer=Outer(joint=("x", "x_adv"))), plain())
    assert len(plan.outer.passes) == 1 and dict(plan.outer.passes[0].leaves) == {"x": "x@leaf", "x_adv": "x_adv@leaf"}
    model = plain().train()
    both = [env[p].contiguous().clone().requires_grad_() for p in ("x", "x_adv")]
    clean, adv = model(torch.cat(both)).split(N)
    (g,) = torch.autograd.grad(tempered(adv, 1.0), both[1], create_graph=True)
    (h,) = torch.autograd.grad(tempered(clean, 3.0), both[0], create_graph=True)
    want = ce(clean, data()[1]) + g.square().sum() / N + h.square().sum() / N
    assert float(total.detach()) == pytest.approx(float(want.detach()), rel=1e-9)
    assert plan_cost(plan).double == 4, "each of two over a batch twice as large"


def test_a_model_whose_passes_are_not_shared() -> None:
    """Each reader has its own forward, and a call that differentiates reads logits and image of the same."""
    views = (Use("view", "m", "effective_margin", {"grad": "full"}, at="clean", bn="eval"),)
    terms = (loss("ce", "ce", at="clean"), loss("emr", "approx_emr", at="clean", bn="eval"), loss("igr", "margin_hinge", rebind={"margin": "m"}))
    plan, total, _ = run(method(terms, views=views), plain(), share=False)
    assert len(plan.outer.passes) == 3 and sum(len(p.leaves) for p in plan.outer.passes) == 2
    shared = run(method(terms, views=views), plain())
    assert len(shared[0].outer.passes) == 2
    close(total.detach(), shared[1].detach())


def test_a_gain_that_differentiates_takes_its_tape_where_the_sum_asks_for_none() -> None:
    """The effective margin as a weight that is cut off: a first-order call; the loss's gradient is that of a constant weight."""
    terms = (loss("ce", "ce", at="clean", gain="m", detach=("gain",)),)
    model = plain()
    plan, total, env = run(method(terms, views=(Use("view", "m", "effective_margin", {"grad": "full"}, at="clean", bn="eval"),)), model)
    eval_pass = next(p for p in plan.outer.passes if not p.batch)
    assert (eval_pass.grad, eval_pass.tape, env["m"].requires_grad) == (False, True, False)
    cost = plan_cost(plan).at(10)
    assert (cost.forward, cost.dgrad, cost.wgrad, cost.double) == (2, 11, 1, 0)
    got = torch.autograd.grad(total, list(model.parameters()))
    weight = env["m"].clone()
    other = plain().train()
    want = (weight * nn.functional.cross_entropy(other(data()[0]), data()[1], reduction="none")).mean()
    for a, b in zip(got, torch.autograd.grad(want, list(other.parameters()))):
        close(a, b)


def test_inside_an_attack_the_gradient_of_the_slope_reaches_the_point() -> None:
    """Climbing a slope penalty: the objective's gradient w.r.t. the point is of second order; restarts ask for the objective alone."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Softplus(), nn.Linear(20, 10)).double()
    inner = attack(terms=(loss("emr", "approx_emr", options={"t": 2.0}),), restarts=2)
    plan, _, env = run(method((loss("ce", "ce"),), (inner,)), model)
    assert plan.inner[0].body.passes[0].leaves == (("x_adv", "x_adv@leaf"),)
    before, after = (slope(model, env[p].contiguous(), lambda z: tempered(z, 2.0), "eval")[0].detach() for p in ("x", "x_adv"))
    assert (after > before).all() and float((env["x_adv"] - env["x"]).abs().max()) <= 0.1 + 1e-12
    assert not env["x_adv"].requires_grad


def test_a_margin_weighted_loss_inside_the_attacks_preamble() -> None:
    """A view of the natural image that differentiates, read by the attack as a weight: hoisted, with a tape of its own."""
    views = (Use("view", "m", "effective_margin", {"grad": "full"}, at="clean", bn="eval"),)
    plan, _, env = run(method((loss("ce", "ce"),), (attack(terms=(loss("ce", "ce", gain="m"),)),), views=views), plain())
    assert [p.tape for p in plan.inner[0].preamble.passes] == [True]
    assert plan_cost(plan).at(10).dgrad == 10 + 2 + 1 and not env["x_adv"].requires_grad
