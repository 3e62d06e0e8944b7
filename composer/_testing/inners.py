"""Contracts of inner maxima, starts and balls, tried on a linear model, where the best attack is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from composer._testing.functions import close
from composer._testing.linear import Linear
from composer._testing.report import need
from composer._testing.static import Static
from composer._testing.tensors import EPS, tensors
from composer._testing.values import need_of, options_of
from composer.inner.ascent import Ascent
from composer.registry import REGISTRY, Primitive

N = 8
NORMS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
FIXED = ("x", "climb", "eps", "draws")


def climb_of(model: Linear, y: Tensor, objective: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Ascent]:
    """The climb of one objective (logits, y) -> [N] on a model, summed over all points it is given."""
    def climb(*, point: Tensor, grad: bool = True, **points: Tensor) -> Ascent:
        leaves = {name: value.detach().requires_grad_(grad) for name, value in {"point": point, **points}.items()}
        logits = {name: model(value) for name, value in leaves.items()}
        value = torch.stack([objective(each, y) for each in logits.values()]).sum(0)
        grads = dict(zip(leaves, torch.autograd.grad(value.sum(), list(leaves.values())))) if grad else {}
        names = {"point": "logits", "x": "clean_logits"}
        return Ascent(value.detach(), grads, {names.get(k, f"{k.removeprefix('x_')}_logits"): z.detach() for k, z in logits.items()})
    return climb


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Positive where correct, zero on the boundary."""
    own = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
    return logits.gather(1, y[:, None])[:, 0] - logits.masked_fill(own, float("-inf")).amax(1)


class Scene:
    """Two classes, images away from 0 and 1, and everything an inner maximum is given."""

    def __init__(self, primitive: Primitive, options: dict[str, Any], given: dict[str, Any], norm: str = "linf"):
        self.primitive, self.norm, self.given = primitive, norm, given
        self.t = tensors(N, 2, 0, torch.float64)
        ball = REGISTRY.get("ball", norm).fn
        self.options = options | {o.name: ball for o in primitive.options if o.accepts == ("ball",)}
        self.surface = bool(primitive.flags.get("surface"))
        self.eps: Any = 2.0 if self.surface else EPS * (1.0 if norm == "linf" else 10.0)
        if "step" in self.options:
            self.options["step"] = self.eps if self.options.get("steps") is None else self.eps / 4
        if "steps" in self.options:
            self.options["steps"] = 40          # on a sphere the direction converges geometrically, by 4/5 a step
        self.draws = self._draws()

    def _draws(self) -> dict[str, list[Tensor]]:
        generator = torch.Generator().manual_seed(5)
        wanted = {"start": ("uniform", self.options.get("restarts", 1)), **self.primitive.flags.get("draws", {})}
        count = {name: of if isinstance(of, int) else int(self.options[of]) for name, (_, of) in wanted.items()}
        return {name: [self._noise(kind, generator) for _ in range(count[name])] for name, (kind, _) in wanted.items()}

    def _noise(self, kind: str, generator: torch.Generator) -> Tensor:
        shape = (N, 4) if kind == "rows" else self.t["x"].shape
        make = torch.randn if kind == "gaussian" else torch.rand
        return make(shape, generator=generator, dtype=torch.float64)

    def run(self, index: Tensor | None = None, eps: Any = None, **options: Any) -> dict[str, Tensor]:
        pick = (lambda v: v) if index is None else (lambda v: v[index])
        x, y = pick(self.t["x"]), pick(self.t["y"])
        objective = margin if self.surface else cross_entropy
        rest = [self.given.get(n.name, pick(value) if isinstance(value := need_of(n, self.t), Tensor) and value.shape[:1] == (N,) else value)
                for n in self.primitive.needs if n.name not in FIXED]
        draws = {name: [pick(v) for v in values] for name, values in self.draws.items()}
        climb = climb_of(self.t["model"], y, objective)
        return self.primitive.fn(x, climb, self.eps if eps is None else eps, draws, *rest, **(self.options | options))

    def length(self, change: Tensor) -> Tensor:
        return torch.linalg.vector_norm(change.flatten(1), ord=NORMS[self.norm], dim=1)


def form(scene: Scene) -> None:
    made = scene.run()
    need(isinstance(made, dict) and "point" in made, 'it must return a dict with the key "point"')
    missing = [name for name in scene.primitive.flags.get("makes", ()) if name not in made]
    need(not missing, f"it declares makes = {missing} and does not return them")
    point = made["point"]
    need(point.shape == scene.t["x"].shape, f"its point has shape {list(point.shape)}, the images {list(scene.t['x'].shape)}")
    need(not any(v.requires_grad for v in made.values() if isinstance(v, Tensor)), "what it returns must not carry a graph")


def inside(scene: Scene) -> None:
    point = scene.run()["point"]
    need(bool(((point >= 0) & (point <= 1)).all()), "its point leaves [0,1]")
    if not scene.surface:
        far = scene.length(point - scene.t["x"]).max().item()
        need(far <= scene.eps * (1 + 1e-9) + 1e-12, f"its point is {far:.6g} away, the radius is {scene.eps:.6g}")


def optimum(scene: Scene) -> None:
    """The loss it reaches is that of the best point, which a linear model of two classes has in closed form; a search for the boundary
    ends on it, at most a quarter further than the nearest point of it."""
    made, model, x, y = scene.run(), scene.t["model"], scene.t["x"], scene.t["y"]
    distance = model.margin(x, y, scene.norm)
    if scene.surface:
        right = distance > 0
        moved = scene.length(made["point"] - x)
        need(bool((moved[right] >= distance[right] * (1 - 1e-3)).all()), "a boundary point lies nearer than the boundary is")
        need(bool((moved[right] <= distance[right] * 1.25 + 1e-6).all()), "the boundary it finds is more than 1.25 times as far as the nearest")
        return
    reached = -margin(model(made["point"]), y).detach()
    weight = model.head.weight
    slope = torch.linalg.vector_norm((weight[0] - weight[1]).detach(), ord={"linf": 1.0, "l2": 2.0, "l1": float("inf")}[scene.norm])
    best = (scene.eps - distance) * slope
    start = -margin(model(x), y).detach()
    gained = ((reached - start) / (best - start)).min().item()
    need(gained >= 0.99, f"on a linear model it gains {gained:.3f} of what the best point of the ball gains")


def pure(scene: Scene) -> None:
    x, before = scene.t["x"], scene.t["x"].clone()
    random = torch.get_rng_state()
    first, second = scene.run()["point"], scene.run()["point"]
    need(torch.equal(x, before), "it writes into the images")
    need(torch.equal(random, torch.get_rng_state()), "it draws random numbers of its own; declare them: draws = {name: (kind, count)}")
    need(torch.equal(first, second), "a second call with the same draws gives another point")


def static(scene: Scene) -> None:
    with Static():
        scene.run()


def permutes(scene: Scene) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    need(close(scene.run(order)["point"], scene.run()["point"][order], 1e-7), "permuting the batch does not permute the points")


def radii(scene: Scene) -> None:
    """A float, a 0-dim tensor and [N] equal radii give the same point."""
    plain = scene.run()["point"]
    for eps in (torch.tensor(scene.eps, dtype=torch.float64), torch.full((N,), scene.eps, dtype=torch.float64)):
        need(close(scene.run(eps=eps)["point"], plain, 1e-7), f"eps as a tensor {list(eps.shape)} changes the point")


def over_weights(primitive: Primitive, options: dict[str, Any]) -> dict[str, Callable[[], None]]:
    """Contracts of an ascent over the weights, on a linear model's."""
    t = tensors(N, 2, 0, torch.float64)
    model = t["model"]
    live = dict(model.named_parameters())

    def climb(*, point: dict[str, Tensor], grad: bool = True) -> Ascent:
        value = cross_entropy(torch.func.functional_call(model, point, (t["x"],)), t["y"]).mean()
        grads = {"point": dict(zip(point, torch.autograd.grad(value, list(point.values()))))} if grad else {}
        return Ascent(value.detach(), grads, {})

    def run(**changed: Any) -> dict[str, Tensor]:
        return primitive.fn(live, climb, None, {}, **(options | changed))["point"]

    def form() -> None:
        made = run()
        need(made.keys() == live.keys(), f"its point names {sorted(made)}, the weights are {sorted(live)}")
        need(all(made[k].shape == w.shape for k, w in live.items()), "a weight changes its shape")
        need(bool(climb(point=made).objective > climb(point=live).objective), "the loss at its point is no higher than at the weights")

    def leaves() -> None:
        before = {k: w.detach().clone() for k, w in live.items()}
        first, second = run(), run()
        need(all(torch.equal(w, before[k]) for k, w in live.items()), "it writes into the live weights")
        need(all(torch.equal(first[k], second[k]) for k in live), "a second call gives another point")

    def attached() -> None:
        made = run()
        found = torch.autograd.grad(sum(v.sum() for v in made.values()), list(live.values()))
        need(all(torch.equal(g, torch.ones_like(g)) for g in found), "the outer gradient must reach the live weights unchanged (d point / d weight = 1)")

    def static() -> None:
        with Static():
            run()

    def neutral() -> None:
        for option, value in primitive.flags["neutral"].items():
            made = run(**{option: value})
            need(all(torch.equal(made[k], w) for k, w in live.items()), f"{option} = {value} is declared neutral, yet the weights move")

    found = {"form": form, "pure": leaves, "attached": attached, "static": static}
    return found | ({"neutral": neutral} if primitive.flags.get("neutral") else {})


def inner_checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    options = options_of(primitive, given)
    if primitive.flags.get("over") == "weights":
        return over_weights(primitive, options)
    scene = partial(Scene, primitive, options, needs)
    every = {"form": form, "pure": pure, "inside": inside, "permutation": permutes, "radius": radii, "static": static}
    found: dict[str, Callable[[], None]] = {name: (lambda check=check: check(scene())) for name, check in every.items()}
    if primitive.flags.get("optimum", True):
        norms = ("linf", "l2") if any(o.accepts == ("ball",) for o in primitive.options) else ("linf",)
        found |= {f"optimum {norm}": (lambda norm=norm: optimum(scene(norm))) for norm in norms}
    return found


def start_checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    t = tensors(N, 2, 0, torch.float64)
    options = options_of(primitive, given)
    noise = next((need_of(n, t) for n in primitive.needs if n.name == "noise" and n.shape), None)

    def call(x: Tensor, u: Tensor | None) -> Tensor:
        return primitive.fn(x, REGISTRY.get("ball", "linf").fn(x, EPS), u, **options)

    def shape() -> None:
        point = call(t["x"], noise)
        need(point.shape == t["x"].shape and bool(torch.isfinite(point).all()), "the start must be finite images of the same shape")
        need(torch.equal(point, call(t["x"], noise)), "a second call with the same noise gives another start")

    def permutes() -> None:
        order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
        moved = call(t["x"][order], None if noise is None else noise[order])
        need(close(moved, call(t["x"], noise)[order]), "permuting the batch does not permute the starts")

    return {"shape": shape, "permutation": permutes}


def ball_checks(primitive: Primitive, given: dict[str, Any], needs: dict[str, Any]) -> dict[str, Callable[[], None]]:
    t = tensors(N, 2, 0, torch.float64)
    x, noise = t["x"], torch.rand(t["x"].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    far = x + (noise - 0.5) * 4

    def projects() -> None:
        for eps in (0.05, torch.tensor(0.05, dtype=torch.float64), torch.linspace(0.01, 0.3, N, dtype=torch.float64)):
            ball = primitive.fn(x, eps)
            once = ball.project(far)
            need(close(ball.project(once), once, 1e-9), "projecting twice differs from projecting once")
            need(bool(((once >= 0) & (once <= 1)).all()), "a projected point leaves [0,1]")
            if primitive.name in NORMS:
                length = torch.linalg.vector_norm((once - x).flatten(1), ord=NORMS[primitive.name], dim=1)
                need(bool((length <= torch.as_tensor(eps) * (1 + 1e-9)).all()), "a projected point lies outside the ball")
        need(close(primitive.fn(x, 0.05).project(x), x), "the centre is moved")
        need(close(primitive.fn(x, 0.0).project(far), x), "a ball of radius 0 must hold nothing but its centre")

    def draws() -> None:
        point = primitive.fn(x, 0.05).draw(noise)
        need(point.shape == x.shape and bool(torch.isfinite(point).all()), "draw must give finite images of the same shape")
        need(close(primitive.fn(x, 0.05).project(point), point), "a drawn point lies outside the ball")       # x is 0.1 and more from 0 and 1
        ends = (torch.zeros_like(noise), torch.full_like(noise, 1 - 2**-24))
        need(all(bool(torch.isfinite(primitive.fn(x, 0.05).draw(end)).all()) for end in ends), "draw is not finite at noise 0 or nearly 1")

    def steepest() -> None:
        gradient = noise - 0.5
        direction = primitive.fn(x, 0.05).steepest(gradient)
        need(bool(((direction * gradient).flatten(1).sum(1) > 0).all()), "the direction does not ascend")
        need(close(primitive.fn(x, 0.05).steepest(gradient * 1e-9), direction, 1e-5), "the direction depends on the gradient's size")
        need(bool((primitive.fn(x, 0.05).steepest(torch.zeros_like(x)) == 0).all()), "a zero gradient has no direction: give zero")

    return {"projection": projects, "draw": draws, "steepest": steepest}
