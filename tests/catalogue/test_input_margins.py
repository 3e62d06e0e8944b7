"""Margins in input space: on linear models, where distances are known, and on smooth networks, against scipy's minimisation and finite differences."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from composer import losses, views
from composer._testing.inners import climb_of
from composer.errors import ComposerError
from composer.inner.ascent import Ascent
from composer.inner.balls import l2, linf
from composer.inner.fab import fab
from composer.inner.hyperplanes import step_onto
from composer.inner.starts import uniform
from composer.registry import REGISTRY
from composer.testing import tensors

ORDER = {"linf": math.inf, "l2": 2.0}
BALLS = {"linf": linf, "l2": l2}


@pytest.fixture
def scene():
    """Ten classes, sixteen images well inside [0,1], half of them correct."""
    t = tensors(n=16, dtype=torch.float64)
    x = t["x"].clone().requires_grad_()
    return t["model"], x, t["y"], t["model"](x)


def test_the_first_order_distance_of_probabilities():
    """On a linear model of two classes with margin m = w·x + b, tanh(m/2) over its slope is sinh(m) / ||w||; on ten, finite differences."""
    generator = torch.Generator().manual_seed(3)
    w, b = torch.randn(5, 2, generator=generator, dtype=torch.float64), torch.randn(2, generator=generator, dtype=torch.float64)
    x, y = torch.rand(7, 5, generator=generator, dtype=torch.float64).requires_grad_(), torch.tensor([0, 1, 0, 1, 0, 0, 1])
    sign = 1.0 - 2.0 * y
    m = sign * ((x @ w + b)[:, 0] - (x @ w + b)[:, 1]).detach()
    for norm, dual in (("linf", 1), ("l2", 2), ("l1", math.inf)):
        want = torch.sinh(m) / torch.linalg.vector_norm(w[:, 0] - w[:, 1], ord=dual)
        np.testing.assert_allclose(views.margin_taylor(x @ w + b, y, x, norm=norm, over="probabilities", floor=1e-300).detach(), want, rtol=1e-9)


def test_probabilities_look_at_the_same_classes(scene):
    model, x, y, logits = scene
    assert torch.equal(views.margin_taylor(logits, y, x, over="probabilities").sign(), views.margin_taylor(logits, y, x).sign())
    p, step = model(x).softmax(1), 1e-6
    rival = p.scatter(1, y[:, None], -1).argmax(1, keepdim=True)

    def gap(at):
        q = model(at).softmax(1)
        return (q.gather(1, y[:, None]) - q.gather(1, rival)).squeeze(1)

    flat = x.detach().flatten(1)
    slope = torch.stack([(gap((flat + step * e).view_as(x)) - gap((flat - step * e).view_as(x))) / (2 * step) for e in torch.eye(flat.shape[1], dtype=x.dtype)], 1)
    np.testing.assert_allclose(views.margin_taylor(logits, y, x, over="probabilities").detach(), (gap(x) / (slope.abs().sum(1) + 1e-8)).detach(), rtol=1e-6)


# -- losses ------------------------------------------------------------------------------------------------------------------------

R = torch.tensor([-2.0, -0.05, 0.0, 0.03, 16 / 255, 0.07, 3.0], dtype=torch.float64)


def test_hinge():
    want = [max(0.0, 16 / 255 - r) for r in R.tolist()]
    np.testing.assert_allclose(losses.margin_hinge(R, gamma=16 / 255), want, rtol=1e-9)
    clipped = losses.margin_hinge(R, gamma=0.1, clip=2.0)
    np.testing.assert_allclose(clipped, [max(0.0, 0.1 - max(r, 0.1 * (1 - 2))) for r in R.tolist()], rtol=1e-9)
    assert clipped.max() == pytest.approx(0.2)
    # the authors' code: max(0, gamma - max(d, gamma (1 - alpha))) - gamma, so ours is theirs plus the constant
    np.testing.assert_allclose(clipped - 0.1, np.maximum(0, 0.1 - np.maximum(R.numpy(), -0.1)) - 0.1, atol=1e-12)


def test_exponential_and_its_slope():
    r = R.clone().requires_grad_()
    value = losses.margin_exp(r, alpha=3.0, gamma=16 / 255)
    want = [math.exp(-3 * v) / 3 if v < 16 / 255 else 0.0 for v in R.tolist()]
    np.testing.assert_allclose(value.detach(), want, rtol=1e-9)
    assert value[4] == 0, "at gamma itself the loss is off: strict <"
    (slope,) = torch.autograd.grad(value.sum(), r)
    np.testing.assert_allclose(slope, [-math.exp(-3 * v) if v < 16 / 255 else 0.0 for v in R.tolist()], rtol=1e-9)      # DyART's -h'


def test_exponential_is_finite_far_on_the_wrong_side():
    r = torch.tensor([-1e8, -1e4, 1e4], requires_grad=True)
    value = losses.margin_exp(r, alpha=8.0)
    assert value.isfinite().all() and torch.autograd.grad(value.sum(), r)[0].isfinite().all()


# -- Taylor ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_taylor_is_exact_on_a_linear_model(norm, scene):
    model, x, y, logits = scene
    every = views.margin_taylor(logits, y, x, norm=norm, classes="all")
    torch.testing.assert_close(every.detach(), model.margin(x, y, norm), rtol=1e-7, atol=1e-12)
    top = views.margin_taylor(logits, y, x, norm=norm)
    assert (top >= every - 1e-12).all() and (top > every + 1e-6).any(), "the strongest rival is not always the nearest"
    w, order = model.head.weight.detach(), {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    for n in range(len(y)):
        z = logits[n].detach().numpy()
        k = max((c for c in range(10) if c != y[n]), key=lambda c: z[c])
        size = np.linalg.norm((w[y[n]] - w[k]).numpy(), ord=order)
        assert top[n].item() == pytest.approx((z[y[n]] - z[k]) / (size + 1e-8), rel=1e-9)


class Smooth(torch.nn.Module):
    """A small network without kinks, in float64."""

    def __init__(self, inputs: int, classes: int = 3, seed: int = 0):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64))
        self.a, self.b, self.c = draw(8, inputs), draw(8), draw(classes, 8)

    def forward(self, x):
        return torch.tanh((x.flatten(1) - 0.5) @ (2 * self.a.T) + self.b) @ self.c.T


def gradient(value, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))])


def differences(fn, model, h=1e-6):
    """Central differences of a number with respect to every weight."""
    found = []
    with torch.no_grad():
        for p in model.parameters():
            flat = p.view(-1)
            for j in range(len(flat)):
                keep = flat[j].item()
                ends = []
                for side in (h, -h):
                    flat[j] = keep + side
                    ends.append(fn())
                flat[j] = keep
                found.append((ends[0] - ends[1]) / (2 * h))
    return torch.tensor(found, dtype=torch.float64)


@torch.enable_grad()
def taylor(model, x, y, constant=None):
    """The Taylor margin of one image written out: numerator, and the constant denominator where one is given."""
    x = x.clone().requires_grad_()
    z = model(x)[0]
    k = int(z.detach().clone().scatter(0, y, -math.inf).argmax())
    gap = z[y[0]] - z[k]
    size = torch.autograd.grad(gap, x)[0].abs().sum() + 1e-8
    return (gap.detach() / (size if constant is None else constant)).item(), size.item()


@pytest.mark.parametrize("grad", ["numerator", "full"])
def test_taylors_parameter_gradient(grad):
    model, x, y = Smooth(4), torch.rand(1, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64), torch.tensor([1])
    leaf = x.clone().requires_grad_()
    value = views.margin_taylor(model(leaf), y, leaf, grad=grad)
    ours = gradient(value.sum(), model)
    _, size = taylor(model, x, y)
    want = differences(lambda: taylor(model, x, y, size if grad == "numerator" else None)[0], model)
    torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-8)


# -- the soft margin ---------------------------------------------------------------------------------------------------------------

def test_the_soft_boundary_lies_inside_and_comes_to_the_exact_one(scene):
    """On a linear model the distance to the soft boundary grows to the distance to the exact one as beta grows."""
    model, x, y, _ = scene
    exact = model.margin(x, y)
    right = exact > 0
    before = torch.zeros_like(exact[right])
    for beta in (2.0, 5.0, 20.0, 100.0):
        made = search(model, x.detach(), y, partial(views.margin_soft, beta=beta), steps=40)
        found = made["found"][right] > 0
        r = made["radius"][right]
        assert (r[found] < exact[right][found] * 1.02).all() and (r[found] >= before[found] - 0.02 * exact[right][found]).all()
        before = r
    np.testing.assert_allclose(before, exact[right], rtol=0.02)


# -- hyperplanes -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_is_the_nearest_point_of_the_plane_in_the_box(norm):
    g = torch.Generator().manual_seed(0)
    t, w = torch.rand(8, 6, generator=g, dtype=torch.float64), torch.randn(8, 6, generator=g, dtype=torch.float64)
    t[0, :3], w[1, 2] = torch.tensor([0.0, 1.0, 0.0]), 0.0
    reach = torch.where(w > 0, w * t, -w * (1 - t)).sum(1)          # the most that can be taken off within the box
    value = reach * torch.linspace(0.1, 0.95, 8, dtype=torch.float64)
    value[5:] = -(torch.where(w < 0, -w * t, w * (1 - t)).sum(1) * 0.6)[5:]
    d = step_onto(t, w, value, norm)
    assert ((t + d >= -1e-12) & (t + d <= 1 + 1e-12)).all()
    torch.testing.assert_close(value + (w * d).sum(1), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    for n in range(8):
        wn, tn, c = w[n].numpy(), t[n].numpy(), -value[n].item()
        if norm == "linf":      # min r: |d_j| <= r, w·d = c, -t <= d <= 1-t
            eye, one = np.eye(6), np.ones((6, 1))
            best = linprog([0] * 6 + [1], A_ub=np.block([[eye, -one], [-eye, -one]]), b_ub=np.zeros(12), A_eq=[[*wn, 0]], b_eq=[c],
                           bounds=[*((-a, 1 - a) for a in tn), (0, None)]).fun
            assert d[n].abs().max().item() == pytest.approx(best, rel=1e-9)
        else:
            best = minimize(lambda v: v @ v, d[n].numpy() * 0.9, jac=lambda v: 2 * v, method="SLSQP", bounds=[(-a, 1 - a) for a in tn],
                            constraints={"type": "eq", "fun": lambda v, wn=wn, c=c: wn @ v - c, "jac": lambda v, wn=wn: wn}, options={"ftol": 1e-15})
            assert d[n].square().sum().item() == pytest.approx(best.fun, rel=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_goes_as_far_as_it_can_where_the_plane_is_out_of_reach(norm):
    t, w = torch.tensor([[0.25, 0.5]]), torch.tensor([[1.0, -2.0]])
    torch.testing.assert_close(t + step_onto(t, w, torch.tensor([100.0]), norm), torch.tensor([[0.0, 1.0]]))
    nowhere = step_onto(t, torch.zeros(1, 2), torch.tensor([1.0]), norm)
    assert (nowhere == 0).all()
    tiny = step_onto(t, w * 1e-20, torch.tensor([0.1 * 1e-20]), norm)
    torch.testing.assert_close(tiny, step_onto(t, w, torch.tensor([0.1]), norm))


# -- FAB ---------------------------------------------------------------------------------------------------------------------------

def search(model, x, y, surface=views.margin_logit, norm="linf", start=None, eps=8 / 255, **options):
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return fab(x, climb_of(model, y, surface), eps, {"start": [noise]}, norm=BALLS[norm], start=start, **options)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("start", "steps"), [(None, 20), (uniform, 60)])
def test_fab_is_within_two_percent_on_a_linear_model(norm, start, steps, scene):
    """From the image itself in the usual twenty steps; from noise several times as far as the nearest boundaries it takes more."""
    model, x, y, logits = scene
    x, exact = x.detach(), model.margin(x, y, norm)
    made = search(model, x, y, norm=norm, start=start, steps=steps)
    right = logits.argmax(1) == y
    assert torch.equal(made["found"] > 0, right), "wrong images are not searched"
    far = made["radius"][right] / exact[right]
    assert (far > 1).all() and (far < 1.02).all()
    phi = views.margin_logit(model(made["point"]), y)
    assert (phi[right] < 0).all() and (phi[right] > -0.05 * logits.detach().abs().max()).all()
    torch.testing.assert_close(made["radius"], torch.linalg.vector_norm((made["point"] - x).flatten(1), ord=ORDER[norm], dim=1))
    assert torch.equal(made["point"][~right], x[~right]) and (made["radius"][~right] == 0).all()
    k = model(made["point"]).detach().scatter(1, y[:, None], -math.inf).argmax(1)
    w = model.head.weight.detach()
    dual = torch.linalg.vector_norm(w[y] - w[k], ord=1 if norm == "linf" else 2, dim=1)
    torch.testing.assert_close(made["dual"][right], dual[right])


def test_fab_stays_in_the_pixel_range(scene):
    """Images at the ends of the range: the boundary is further than the unbounded distance, and is found."""
    model, x, y, _ = scene
    x = x.detach().round()
    y = model(x).argmax(1)
    made = search(model, x, y, steps=40)
    assert ((made["point"] >= 0) & (made["point"] <= 1)).all() and made["found"].all()
    assert (made["radius"] > model.margin(x, y)).all()
    w, z = model.head.weight.detach(), model(x).detach()
    for n in range(4):          # the nearest over all rivals, each by a linear programme
        sizes = []
        for k in set(range(10)) - {int(y[n])}:
            v = (w[y[n]] - w[k]).numpy()
            d = len(v)
            one, eye = np.ones((d, 1)), np.eye(d)
            flat = x[n].flatten().numpy()
            made_by = linprog([0] * d + [1], A_ub=np.block([[eye, -one], [-eye, -one]]), b_ub=np.zeros(2 * d), A_eq=[[*v, 0]],
                              b_eq=[-(z[n, y[n]] - z[n, k]).item()], bounds=[*((-a, 1 - a) for a in flat), (0, None)])
            sizes += [made_by.fun] if made_by.status == 0 else []
        assert made["radius"][n].item() == pytest.approx(min(sizes), rel=0.02)


def test_the_filter_keeps_what_dyart_keeps(scene):
    """Written out again from its three lines; on a linear model everything found has the sign of a nearest point."""
    model, x, y, _ = scene
    x = x.detach()
    for scale in (1.0, 300.0):
        with torch.no_grad():
            model.head.weight.mul_(scale)
            model.head.bias.mul_(scale)
        made = search(model, x, y)
        point = made["point"].clone().requires_grad_()
        phi = views.margin_logit(model(point), y)
        (slope,) = torch.autograd.grad(phi.sum(), point)
        for n in range(len(y)):
            delta, g, r = (point[n] - x[n]).flatten().detach(), slope[n].flatten(), made["radius"][n]
            large = delta.abs() > 0.8 * r
            agree = (delta * g < -1e-7)[large].sum().item() / max(1, large.sum().item())
            want = bool(made["found"][n]) and phi[n].item() > -0.3 and agree > 0.9
            assert bool(made["keep"][n]) == want
        assert torch.equal(search(model, x, y, filter=False)["keep"], made["found"])
        if scale == 1.0:
            assert made["keep"].sum() > 0
        else:
            assert made["keep"].sum() < made["found"].sum(), "logits this steep end too far past the boundary"


def test_fab_on_a_flat_surface_finds_nothing():
    x = torch.rand(3, 1, 2, 2)
    flat = lambda *, point, grad=True: Ascent(torch.ones(3), {"point": torch.zeros_like(point)}, {})
    made = fab(x, flat, 0.1, {}, norm=linf)
    assert torch.equal(made["point"], x) and not made["found"].any() and not made["keep"].any()
    assert all(v.isfinite().all() for v in made.values())


def test_fab_says_which_norms_it_knows():
    class l7:
        pass

    with pytest.raises(ComposerError, match="'l7'"):
        fab(torch.rand(1, 1, 2, 2), None, 0.1, {}, norm=l7)


def test_fab_costs_what_it_declares():
    cost = REGISTRY.get("inner", "fab").flags["cost"]
    for start in (None, uniform):
        t = tensors(n=4, dtype=torch.float64)
        seen = {True: 0, False: 0}
        plain = climb_of(t["model"], t["y"], views.margin_logit)

        def climb(*, point, grad=True, plain=plain, seen=seen):
            seen[grad] += 1
            return plain(point=point, grad=grad)

        fab(t["x"], climb, 0.1, {"start": [torch.rand_like(t["x"])]}, norm=linf, start=start, steps=7)
        assert (seen[True], seen[False]) == cost({"steps": 7, "start": start})


# -- the gradient of a found distance ----------------------------------------------------------------------------------------------

def true_margin(model, x, y, beta, near):
    """The exact linf distance of one image to the zero of the soft margin, by sequential quadratic programming from a point near it."""
    d = x.numel()

    @torch.enable_grad()
    def phi(v):
        u = torch.tensor(v[:d], dtype=torch.float64).requires_grad_()
        m = views.margin_soft(model(x + u.view_as(x)), y, beta=beta).sum()
        return m.item(), torch.autograd.grad(m, u)[0].numpy()

    eye, one = np.eye(d), np.ones((d, 1))
    box = np.block([[-eye, one], [eye, one]])
    found = minimize(lambda v: v[-1], np.append(near, np.abs(near).max()), jac=lambda v: np.append(np.zeros(d), 1.0), method="SLSQP",
                     constraints=[{"type": "eq", "fun": lambda v: phi(v)[0], "jac": lambda v: np.append(phi(v)[1], 0.0)},
                                  {"type": "ineq", "fun": lambda v: box @ v, "jac": lambda v: box}], options={"ftol": 1e-15, "maxiter": 200})
    assert abs(phi(found.x)[0]) < 1e-9
    return found.x


def one_image():
    model = Smooth(3)
    x = 0.35 + 0.3 * torch.rand(1, 1, 1, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return model, x, model(x).argmax(1)


def test_closed_form_is_the_derivative_of_the_true_margin():
    """DyART's gradient with respect to every weight against finite differences of the distance itself."""
    model, x, y = one_image()
    beta = 5.0
    soft = partial(views.margin_soft, beta=beta)
    made = search(model, x, y, soft, steps=60)
    assert made["found"].item() == 1
    near = (made["point"] - x).flatten().numpy()
    best = true_margin(model, x, y, beta, near)
    assert made["radius"].item() == pytest.approx(best[-1], rel=0.02)
    want = differences(lambda: true_margin(model, x, y, beta, near)[-1], model, h=1e-5)

    point = (x + torch.tensor(best[:-1], dtype=torch.float64).view_as(x)).requires_grad_()
    phi = soft(model(point), y)
    dual = torch.autograd.grad(phi.sum(), point, retain_graph=True)[0].abs().sum().view(1)
    m = views.margin_at(phi, torch.tensor([best[-1]], dtype=torch.float64), dual, grad="closed_form")
    assert m.item() == pytest.approx(best[-1])
    ours = gradient(m.sum(), model)
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-6 * want.abs().max().item())

    found = views.margin_at(soft(model(made["point"]), y), made["radius"], made["dual"], grad="closed_form")     # at FAB's own point
    cosine = torch.nn.functional.cosine_similarity(gradient(found.sum(), model), want, dim=0)
    assert cosine > 0.999


def test_dyarts_weights():
    """h(R) behind the closed form has DyART's gradient: -h'(R) / dual times that of -phi."""
    phi = torch.tensor([-0.01, -0.02, -0.03], dtype=torch.float64, requires_grad=True)
    radius, dual = torch.tensor([0.02, 0.05, 0.2], dtype=torch.float64), torch.tensor([3.0, 7.0, 2.0], dtype=torch.float64)
    loss = losses.margin_exp(views.margin_at(phi, radius, dual, grad="closed_form"), alpha=3.0, gamma=16 / 255)
    (got,) = torch.autograd.grad(loss.sum(), phi)
    np.testing.assert_allclose(got, [-math.exp(-0.06) / 3, -math.exp(-0.15) / 7, 0.0], rtol=1e-12)


def test_numerator_is_the_gradient_of_phi_over_the_slope_that_the_distance_implies():
    model, x, y = one_image()
    made = search(model, x, y)
    phi = views.margin_logit(model(x), y)
    m = views.margin_at(phi, made["radius"], made["dual"], grad="numerator")
    assert m.item() == made["radius"].item()
    ours, slope = gradient(m.sum(), model), phi.item() / made["radius"].item()
    want = differences(lambda: (views.margin_logit(model(x), y) / slope).item(), model)
    torch.testing.assert_close(ours, want, rtol=1e-6, atol=1e-8)
    none = views.margin_at(phi.detach(), made["radius"], made["dual"], grad="none")
    assert torch.equal(none, made["radius"]) and not none.requires_grad


def test_numerator_equals_taylor_on_a_linear_model(scene):
    """Where the found distance is the exact one, both estimators are one, value and gradient."""
    model, x, y, logits = scene
    right = logits.argmax(1) == y
    phi = views.margin_logit(logits, y)
    first = views.margin_taylor(logits, y, x)[right]
    found = views.margin_at(phi, first_all := views.margin_taylor(logits, y, x).detach(), first_all, grad="numerator")[right]
    torch.testing.assert_close(found, first)
    a, b = (torch.autograd.grad(v.sum(), model.head.weight, retain_graph=True)[0] for v in (found, first))
    torch.testing.assert_close(a, b)


def test_rows_without_a_boundary_point_have_a_finite_gradient():
    phi = torch.tensor([0.0, -3.0, 2.0], requires_grad=True)
    for grad in ("numerator", "closed_form"):
        (g,) = torch.autograd.grad(views.margin_at(phi, torch.zeros(3), torch.zeros(3), grad=grad).sum(), phi)
        assert g.isfinite().all()
