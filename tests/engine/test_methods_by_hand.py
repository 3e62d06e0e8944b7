"""Methods of other papers: the engine's whole steps against plain PyTorch loops written here from the papers and their codes' order of passes,
in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composer.bench.modes import frozen_statistics
from composer.bench.nets import batch, net
from composer.bench.subject import DECAY, EPS, MOMENTUM, STEP, Subject, load_like_plain

N, LR, STEPS = 8, 0.01, 3


def data() -> tuple[Tensor, Tensor]:
    x, y = batch("cnn8", N)
    return x.double(), y


def engine(recipe: str, *, segment: int = -1, sets: tuple[str, ...] = ()) -> Subject:
    return Subject(load_like_plain(recipe, steps=STEPS, lr=LR, sets=sets), net("cnn8").double(), *data(), segment=segment)


class Plain:
    """A network, its optimiser and the engine's noise."""

    def __init__(self, subject: Subject, *others: nn.Module):
        self.model, (self.x, self.y), self.subject = net("cnn8").double().train(), data(), subject
        parameters = [*self.model.parameters(), *(p for other in others for p in other.parameters())]
        self.optimizer = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)

    def noise(self, kind: str, step: int, path: str = "start") -> Tensor:
        return self.subject.session.streams.draw(kind, f"inner.x_adv.{path}", step, self.x).double()

    def uniform(self, step: int, radius: float = EPS) -> Tensor:
        return (self.x + radius * (2 * self.noise("uniform", step) - 1)).clamp(0, 1)

    def climb(self, point: Tensor, objective: Any, *, radius: Any = EPS, step: Any = STEP, steps: int = STEPS) -> Tensor:
        for _ in range(steps):
            point = point.detach().requires_grad_()
            (grad,) = torch.autograd.grad(objective(self.model(point)), point)
            point = torch.minimum(torch.maximum(point.detach() + step * grad.sign(), self.x - radius), self.x + radius).clamp(0, 1)
        return point.detach()

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def ce(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z, y, reduction="none")


def kl(z_adv: Tensor, z: Tensor) -> Tensor:
    return (z.softmax(1) * (z.log_softmax(1) - z_adv.log_softmax(1))).sum(1)


def margin(z: Tensor, y: Tensor) -> Tensor:
    p = z.softmax(1)
    return p.gather(1, y[:, None])[:, 0] - p.scatter(1, y[:, None], -1).amax(1)


def gairat(plain: Plain, k: int) -> None:
    plain.model.eval()
    kappa = torch.zeros(N, dtype=torch.float64)

    def counted(z: Tensor) -> Tensor:
        kappa.add_(z.argmax(1) == plain.y)
        return ce(z, plain.y).sum()

    x_adv = plain.climb(plain.uniform(k), counted)
    plain.model.train()
    h = STEPS // 2
    weight = (torch.tanh(-1 + 5 * (h - kappa) / h) + 1) / 2
    plain.update((weight * N / weight.sum() * ce(plain.model(x_adv), plain.y)).mean())


def wat(plain: Plain, k: int) -> None:
    """The attack in train mode, its running statistics written at every pass."""
    weighted = lambda z: (-0.5 * margin(z, plain.y)).exp() * ce(z, plain.y)
    x_adv = plain.climb(plain.uniform(k), lambda z: weighted(z).sum())
    plain.update(weighted(plain.model(x_adv)).mean())


def fast_at(plain: Plain, k: int) -> None:
    x_adv = plain.climb(plain.uniform(k), lambda z: ce(z, plain.y).sum(), step=1.25 * EPS, steps=1)
    plain.update(ce(plain.model(x_adv), plain.y).mean())


def mwpb(plain: Plain, k: int, alpha: float, loss: Any) -> None:
    plain.model.eval()
    with torch.no_grad():
        radius = EPS * (alpha * margin(plain.model(plain.x), plain.y)).exp()[:, None, None, None]
    x_adv = plain.climb(plain.x + 0.001 * plain.noise("gaussian", k), lambda z: ce(z, plain.y).sum(), radius=radius, step=radius / 4)
    plain.model.train()
    plain.update(loss(x_adv))


def mwpb_at(plain: Plain, k: int) -> None:
    mwpb(plain, k, 0.58, lambda x_adv: ce(plain.model(x_adv), plain.y).mean())


def mwpb_mart(plain: Plain, k: int) -> None:
    def loss(x_adv: Tensor) -> Tensor:
        z, z_adv = plain.model(plain.x), plain.model(x_adv)
        p, q = z.softmax(1), z_adv.softmax(1)
        rival = q.scatter(1, plain.y[:, None], -1).amax(1)
        boosted = ce(z_adv, plain.y) - (1.0001 - rival + 1e-12).log()
        return boosted.mean() + 5 * ((1.0000001 - p.gather(1, plain.y[:, None])[:, 0]) * kl(z_adv, z)).mean()

    mwpb(plain, k, 0.55, loss)


def at_nmse(plain: Plain, k: int) -> None:
    plain.model.eval()
    x_adv = plain.climb(plain.uniform(k), lambda z: ce(z, plain.y).sum())
    plain.model.train()
    z, z_adv = plain.model(plain.x), plain.model(x_adv)
    miss = 1.0000001 - z.softmax(1).gather(1, plain.y[:, None])[:, 0]
    plain.update((ce(z_adv, plain.y) + 5 * miss * (2 - 2 * F.cosine_similarity(z, z_adv))).mean())


def st_at(plain: Plain, k: int) -> None:
    """Three points at every step; statistics frozen in the attack and for the collaborative images, then clean, then adversarial."""
    model, x, y = plain.model, plain.x, plain.y
    adv, col = (x + 0.001 * plain.noise("gaussian", k, f"noise/{n}") for n in (0, 1))

    def ends(*values: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
        stacked, rows = torch.stack(values), torch.arange(N)
        return stacked[sure.argmin(0), rows], stacked[sure.argmax(0), rows]

    def sureness(*logits: Tensor) -> Tensor:
        return torch.stack([z.softmax(1)[torch.arange(N), y] for z in logits]).detach()

    def apart(a: Tensor, b: Tensor) -> Tensor:
        one = F.kl_div(a.log_softmax(1), b.detach().softmax(1), reduction="batchmean")
        return (one + F.kl_div(b.log_softmax(1), a.detach().softmax(1), reduction="batchmean")) / 2

    with frozen_statistics(model):
        for _ in range(STEPS):
            points = [p.detach().requires_grad_() for p in (x, col, adv)]
            logits = [model(p) for p in points]
            sure = sureness(*logits)
            grads = torch.autograd.grad(apart(*ends(*logits, sure=sure)), points)
            moved = [p + STEP * g.sign() for p, g in zip(ends(*(p.detach() for p in points), sure=sure), ends(*grads, sure=sure))]
            adv, col = (torch.minimum(torch.maximum(p, x - EPS), x + EPS).clamp(0, 1) for p in moved)
        z_col = model(col)
    z, z_adv = model(x), model(adv)
    plain.update(ce(z, y).mean() + 6 * apart(*ends(z, z_col, z_adv, sure=sureness(z, z_col, z_adv))))


METHODS = {"gairat": gairat, "wat": wat, "fast_at": fast_at, "mwpb_at": mwpb_at, "mwpb_mart": mwpb_mart, "at_nmse": at_nmse, "st_at": st_at}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = state(ours), state(theirs)
    assert set(a) == set(b)
    for name, value in b.items():
        torch.testing.assert_close(a[name], value, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("recipe", METHODS)
def test_two_whole_steps_equal_a_plain_loop(recipe):
    """Weights, momentum's effect and running statistics after two updates."""
    subject = engine(recipe)
    plain = Plain(subject)
    for k in range(2):
        subject()
        METHODS[recipe](plain, k)
    same(subject.model, plain.model)
    assert not torch.equal(state(subject.model)["0.weight"], state(net("cnn8").double())["0.weight"])


# -- a teacher that learns along -----------------------------------------------------------------------------------------------------


def lbgat(plain: Plain, teacher: nn.Module, k: int, *, beta: float = 6.0, attached: bool = True) -> None:
    plain.model.eval()
    with torch.no_grad():
        target = plain.model(plain.x)
    x_adv = plain.climb(plain.x + 0.001 * plain.noise("gaussian", k), lambda z: kl(z, target).sum())
    plain.model.train()
    z_adv, z, shown = plain.model(x_adv), plain.model(plain.x) if beta else None, teacher(plain.x)
    loss = F.mse_loss(z_adv, shown if attached else shown.detach()) + F.cross_entropy(shown, plain.y)
    plain.update(loss + beta * kl(z_adv, z).mean() if beta else loss)


def plain_teacher(subject: Subject) -> nn.Module:
    """A copy of the teacher with batch norms of PyTorch's own."""
    made = copy.deepcopy(subject.parts["teacher"].network())
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = nn.BatchNorm2d
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                setattr(module, name, getattr(module, name).detach().clone())
    return made.train()


@pytest.mark.parametrize(("sets", "drops", "options"), [((), (), {}), ((), ("terms.kl",), {"beta": 0.0}),
                                                        (("terms.mse.detach=['b']",), (), {"attached": False})])
def test_lbgat_steps_equal_a_plain_loop(sets, drops, options):
    """Both networks, their statistics and the momentum of both, after three updates; with the toggles' variants."""
    recipe = load_like_plain("lbgat", steps=STEPS, lr=LR, sets=sets)
    subject = Subject(recipe.edit(drop=list(drops)) if drops else recipe, net("cnn8").double(), *data())
    teacher = plain_teacher(subject)
    before = state(teacher)
    plain = Plain(subject, teacher)
    for k in range(3):
        subject()
        lbgat(plain, teacher, k, **options)
    same(subject.model, plain.model)
    same(subject.parts["teacher"].network(), teacher)
    assert all(not torch.equal(before[name], value) for name, value in state(teacher).items() if "normalise" not in name)
