"""The inner maxima of a step: what climbs, and the objective it climbs, as the plan lays them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer.engine.net import Net
from composer.engine.streams import Streams
from composer.inner.ascent import Ascent
from composer.plan.types import InnerPlan, Pass, Program, Slot
from composer.plan.world import prefix_of
from composer.registry import Registry

Env = dict[str, Any]
Op = Callable[[Env], None]


class Climbs:
    """The half of the executor that runs inner maxima; the other half (`step.Executor`) runs passes and calls."""

    net: Net
    streams: Streams
    registry: Registry
    step: int
    _head: bool
    _op: Callable[..., Op]
    _options: Callable[..., Callable[[Env, Any], dict[str, Any]]]
    _value: Callable[..., Any]
    _weigh: Callable[[Any, Tensor], Tensor]

    def _inner_op(self, inner: InnerPlan) -> Op:
        net = self._net_of(inner)
        preamble = [self._op(s, writes=inner.writes and isinstance(s, Pass), net=net) for s in inner.preamble.steps]
        body = [self._op(s, writes=inner.writes and isinstance(s, Pass), net=net) for s in inner.body.steps]
        fn, options = self._maximiser(inner), self._options(inner.options)

        def run(env: Env) -> None:
            base = dict(env)
            for op in preamble:
                op(base)
            self._write(inner.preamble, base, inner)
            eps = self._value(inner.eps, base)
            draws = {name: self._draw(draw, env["x"], self._value(draw.count, base)) for name, draw in inner.draws}
            if inner.over_weights:
                self.net.freeze(False)
                start: Any = self.net.parameters
            else:
                start = env["x"]
            made = fn(start, self._climb(inner, body, base), eps, draws, *(base[a.slot] for a in inner.args), **options(base, eps))
            if inner.over_weights:
                self.net.freeze(True)
            for key, slot in inner.makes:
                value = made[key]
                env[slot] = value if inner.over_weights else value.detach()
            if isinstance(inner.eps, Slot):
                env[inner.eps.name] = eps

        return run

    def _net_of(self, inner: InnerPlan) -> Any:
        """What runs the inner's passes; other backends prepare a network of their own."""
        return self.net

    def _maximiser(self, inner: InnerPlan) -> Callable[..., dict[str, Any]]:
        return self.registry.get("inner", inner.use).fn

    def _draw(self, draw: Any, like: Tensor, count: Any) -> list[Tensor]:
        many = int(count) if not isinstance(count, str) else 1
        path = draw.path
        found = (self.streams.draw(draw.kind, path if many == 1 else f"{path}/{k}", self.step, like) for k in range(many))
        return [self.net.layout(noise.to(like.dtype)) for noise in found]

    def _climb(self, inner: InnerPlan, body: list[Op], base: Env) -> Callable[..., Ascent]:
        def climb(*, point: Any, grad: bool = True, **others: Tensor) -> Ascent:
            if inner.over_weights:
                points = {"point": point}
            else:
                points = {name: p.detach().requires_grad_(grad) for name, p in {"point": point, **others}.items()}
            ascent, statistics = self._ascend(inner, body, base, points, grad)
            self._write(inner.body, statistics, inner)
            return ascent

        return climb

    def _ascend(self, inner: InnerPlan, body: list[Op], base: Env, points: dict[str, Any], grad: bool) -> tuple[Ascent, Env]:
        """One look at the objective: the ascent, and the batch statistics of its passes, not yet written."""
        env = dict(base)
        if inner.over_weights:
            env["weights"] = points["point"]
            if self._head:
                env.update(self.net.head_roots(points["point"]))
        else:
            env[inner.id] = points["point"]
            env.update({name: leaf for name, leaf in points.items() if name != "point"})
        with torch.set_grad_enabled(grad):
            for op in body:
                op(env)
            objective = env[inner.body.surface] if inner.body.surface else self._objective(inner, env)
        grads = self._gradients(objective, points) if grad else {}
        seen = {name: env[slot].detach() for name, slot in self._shown(inner).items()}
        return Ascent(objective.detach(), grads, seen), {slot: value for slot, value in env.items() if slot.startswith("stats/")}

    def _shown(self, inner: InnerPlan) -> dict[str, str]:
        """The logits that an inner may look at: their name for it, and in the plan."""
        outs = {q: out for p in reversed(inner.body.passes) for q, out in zip(p.points, p.outs)}
        return {"logits" if q == inner.id else f"{prefix_of(q)}_logits": out for q, out in outs.items()}

    def _objective(self, inner: InnerPlan, env: Env) -> Tensor:
        """[N] for images: a sum over the batch has each image's own gradient. Over weights: the outer loss itself."""
        total: Any = None
        for term in inner.body.terms:
            value = env[term.loss]
            if term.gain:
                gain = env[term.gain]
                value = (gain.detach() if term.detach_gain else gain) * value
            value = self._weigh(term.weight, value.mean() if inner.over_weights else value)
            total = value if total is None else total + value
        return total

    def _gradients(self, objective: Tensor, leaves: dict[str, Any]) -> dict[str, Any]:
        if isinstance(leaves["point"], dict):
            weights = leaves["point"]
            found = torch.autograd.grad(objective, list(weights.values()), allow_unused=True)
            return {"point": {k: torch.zeros_like(w) if g is None else g for (k, w), g in zip(weights.items(), found)}}
        found = torch.autograd.grad(objective.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found))

    def _write(self, program: Program, env: Env, inner: InnerPlan) -> None:
        """Train-mode attack passes write as they come; no tape is left that could see it."""
        if inner.writes and self.net.stats is not None:
            for p in program.passes:
                if p.batch:
                    self.net.stats.write(env["stats/" + p.outs[0]])
