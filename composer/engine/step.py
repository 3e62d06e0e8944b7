"""A plan, made runnable: one training step as a straight line of calls. The eager backend; the truth that others are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer.engine.net import Net
from composer.engine.streams import Streams
from composer.inner.ascent import Ascent
from composer.options import Ref
from composer.plan.types import Call, Dial, InnerPlan, Pass, Pixel, Plan, Program, Read, Slot, Step, Summand
from composer.registry import REGISTRY, Registry

Env = dict[str, Any]
Op = Callable[[Env], None]


class Numbers:
    """The dials' tensors: written before a step, read inside it."""

    def __init__(self, dials: tuple[Dial, ...], device: torch.device, dtype: torch.dtype = torch.float32):
        self.tensors = {d.path: torch.zeros((), device=device, dtype=dtype) for d in dials}
        self._held: dict[str, float] = {}

    def set(self, path: str, value: float) -> None:
        if self._held.get(path) != value:
            self.tensors[path].fill_(value)
            self._held[path] = value

    def __getitem__(self, path: str) -> Tensor:
        return self.tensors[path]


class Executor:
    """Runs the programs of one plan on one net."""

    def __init__(self, plan: Plan, net: Net, parts: dict[str, Any], streams: Streams, *, threat_eps: float = 0.0, registry: Registry = REGISTRY):
        self.plan, self.net, self.parts, self.streams, self.registry = plan, net, parts, streams, registry
        self.numbers = Numbers(plan.dials, net.device, net.dtype)
        self.threat_eps = threat_eps
        self.step = 0
        self._updates = set(plan.updates)
        self._prelude = [self._op(s, writes=False) for s in plan.prelude.steps]
        self._outer = [self._op(s, writes=isinstance(s, Pass) and s.outs[0] in self._updates) for s in plan.outer.steps]
        self._inner = [self._inner_op(i) for i in plan.inner]
        self.names = tuple(t.id for t in plan.outer.terms)

    # -- a step --------------------------------------------------------------------------------------------------------------------

    def forward(self, roots: Env, step: int) -> tuple[Tensor, Tensor, Env]:
        """Inner maxima, then the outer program: total loss, the terms' means [T] (detached), and every tensor by name."""
        self.step = step
        env: Env = dict(roots)
        env["@threat.eps"] = self.threat_eps
        with torch.no_grad():
            for op in self._prelude:
                op(env)
        self.net.freeze(True)
        try:
            for inner in self._inner:
                inner(env)
        finally:
            self.net.freeze(False)
        for op in self._outer:
            op(env)
        means = [self._mean(t, env) for t in self.plan.outer.terms]
        total = sum((self._weigh(t.weight, mean) for t, mean in zip(self.plan.outer.terms, means)), start=0.0)
        return total, torch.stack([m.detach() for m in means]), env  # type: ignore[return-value]

    def write_statistics(self, env: Env) -> None:
        """After the backward: running statistics of the outer passes, in the recipe's order."""
        if self.net.stats is not None:
            for slot in self.plan.updates:
                self.net.stats.write(env["stats/" + slot])

    def after(self, env: Env) -> None:
        """Forwards at the updated weights that only write running statistics."""
        if self.net.stats is None:
            return
        for point in self.plan.after:
            scratch = self.net.stats.scratch()
            with torch.no_grad():
                self.net(env[point], batch=True, scratch=scratch, name=f"after/{point}", step=self.step)
            self.net.stats.write(scratch)

    def moments(self, when: str, env: Env) -> None:
        with torch.no_grad():
            for moment in self.plan.moments:
                if moment.when != when:
                    continue
                part = self.parts[moment.part]
                self._tune(moment.part)
                args = [self._detached(env[a.slot]) for a in moment.args]
                more = {"point": moment.point} if moment.point else {"epoch": env["epoch"]} if when == "epoch_end" else {}
                getattr(part, when)(*args, **more)

    def _detached(self, value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    def _tune(self, part: str) -> None:
        """A part's scheduled options, as they stand now."""
        plan = next(p for p in self.plan.parts if p.id == part)
        for name, value in plan.options.items():
            if isinstance(value, Dial):
                setattr(self.parts[part], name, self.numbers[value.path])

    # -- pieces --------------------------------------------------------------------------------------------------------------------

    def _mean(self, term: Summand, env: Env) -> Tensor:
        loss = env[term.loss]
        if term.gain:
            gain = env[term.gain]
            loss = (gain.detach() if term.detach_gain else gain) * loss
        return loss.mean()

    def _weigh(self, weight: Any, value: Tensor) -> Tensor:
        if isinstance(weight, Dial):
            return self.numbers[weight.path] * value
        return value if weight == 1.0 else weight * value

    def _value(self, value: Any, env: Env, eps: Any = None) -> Any:
        if isinstance(value, Dial):
            return self.numbers[value.path]
        if isinstance(value, Slot):
            return env[value.name]
        if isinstance(value, Pixel):
            return eps if value.factor == 1.0 else eps * value.factor
        return value

    def _options(self, options: dict[str, Any]) -> Callable[[Env, Any], dict[str, Any]]:
        """The options of a call: constants are bound once, dials and slots at each call."""
        fixed = {k: self._bound(v) for k, v in options.items() if not isinstance(v, (Dial, Slot, Pixel))}
        moving = {k: v for k, v in options.items() if isinstance(v, (Dial, Slot, Pixel))}
        if not moving:
            return lambda env, eps: fixed
        return lambda env, eps: {**fixed, **{k: self._value(v, env, eps) for k, v in moving.items()}}

    def _bound(self, value: Any) -> Any:
        """A nested table as a callable with its options in place: a start, a ball."""
        if not isinstance(value, Ref):
            return value
        fn, options = self.registry.get(value.kind, value.use).fn, self._options(value.options)
        if not value.options:
            return fn
        return lambda *args, **more: fn(*args, **options({}, None), **more)

    def _op(self, step: Step, *, writes: bool) -> Op:
        op = {Pass: self._pass, Call: self._call, Read: self._read}[type(step)](step, writes)  # type: ignore[operator]
        if step.grad:
            return op

        def without_tape(env: Env) -> None:
            with torch.no_grad():
                op(env)

        return without_tape

    def _pass(self, p: Pass, writes: bool) -> Op:
        net, points, name = self.net, p.points, p.outs[0]
        leaf = f"{points[0]}@leaf" if p.leaf else ""
        mode = name.partition("@")[2]
        leaf = f"{leaf}@{mode}" if leaf and mode in ("eval", "batch") else leaf

        def run(env: Env) -> None:
            if leaf:
                env.setdefault(leaf, env[points[0]].detach().requires_grad_(True) if not env[points[0]].requires_grad else env[points[0]])
            x = env[leaf] if leaf else env[points[0]] if len(points) == 1 else torch.cat([env[q] for q in points])
            scratch = net.stats.scratch() if writes and p.batch and net.stats is not None else None
            logits, features = net(x, batch=p.batch, scratch=scratch, rows=env[p.rows] if p.rows else None, features=bool(p.features),
                                   weights=env.get("weights"), name=name, step=self.step)
            if scratch is not None:
                env["stats/" + name] = scratch
            sizes = [env[q].shape[0] for q in points]
            env.update(zip(p.outs, logits.split(sizes) if len(points) > 1 else (logits,)))
            if features is not None:
                env.update(zip(p.features, features.split(sizes) if len(points) > 1 else (features,)))

        return run

    def _call(self, call: Call, writes: bool) -> Op:
        fn, options, out = self.registry.get(call.kind, call.use).fn, self._options(call.options), call.out
        args, normalise = [(a.slot, a.detach) for a in call.args], call.normalise

        def run(env: Env) -> None:
            values = [env[slot].detach() if detach else env[slot] for slot, detach in args]
            result = fn(*values, **options(env, None))
            env[out] = result / result.mean() if normalise else result

        return run

    def _read(self, read: Read, writes: bool) -> Op:
        part, point = self.parts[read.part], {"point": read.point} if read.point else {}
        args, outs = [(a.slot, a.detach) for a in read.args], read.outs

        def run(env: Env) -> None:
            self._tune(read.part)
            made = part.read(*(env[slot].detach() if detach else env[slot] for slot, detach in args), **point)
            for name, slot in outs:
                env[slot] = made[name]

        return run

    # -- inner maxima --------------------------------------------------------------------------------------------------------------

    def _inner_op(self, inner: InnerPlan) -> Op:
        preamble = [self._op(s, writes=inner.writes and isinstance(s, Pass)) for s in inner.preamble.steps]
        body = [self._op(s, writes=inner.writes and isinstance(s, Pass)) for s in inner.body.steps]
        fn, options = self.registry.get("inner", inner.use).fn, self._options(inner.options)

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

    def _draw(self, draw: Any, like: Tensor, count: Any) -> list[Tensor]:
        many = int(count) if not isinstance(count, str) else 1
        path = draw.path
        found = (self.streams.draw(draw.kind, path if many == 1 else f"{path}/{k}", self.step, like) for k in range(many))
        return [self.net.layout(noise.to(like.dtype)) for noise in found]

    def _climb(self, inner: InnerPlan, body: list[Op], base: Env) -> Callable[..., Ascent]:
        own = inner.id
        logits = f"{own.removeprefix('x_')}_logits"

        def climb(*, point: Any, grad: bool = True, **others: Tensor) -> Ascent:
            env = dict(base)
            if inner.over_weights:
                leaves = {"point": point}
                env["weights"] = point
            else:
                leaves = {name: p.detach().requires_grad_(grad) for name, p in {"point": point, **others}.items()}
                env[own] = leaves["point"]
                env.update({name: leaf for name, leaf in leaves.items() if name != "point"})
            with torch.set_grad_enabled(grad):
                for op in body:
                    op(env)
                objective = env[inner.body.surface] if inner.body.surface else self._objective(inner, env)
            grads = self._gradients(objective, leaves) if grad else {}
            self._write(inner.body, env, inner)
            tensors = {"logits": env[logits].detach()} if logits in env else {}
            return Ascent(objective.detach(), grads, tensors)

        return climb

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
        found = torch.autograd.grad(objective.sum(), list(leaves.values()))
        return dict(zip(leaves, found))

    def _write(self, program: Program, env: Env, inner: InnerPlan) -> None:
        """Train-mode attack passes write as they come; no tape is left that could see it."""
        if inner.writes and self.net.stats is not None:
            for p in program.passes:
                if p.batch:
                    self.net.stats.write(env["stats/" + p.outs[0]])
