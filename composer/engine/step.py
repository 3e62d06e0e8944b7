"""A plan, made runnable: one training step as a straight line of calls. The eager backend; the truth that others are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer.engine.climb import Climbs, Env, Op
from composer.engine.net import Net
from composer.engine.streams import Streams
from composer.options import Ref
from composer.plan.types import Call, Dial, Pass, Pixel, Plan, Read, Slot, Step, Summand
from composer.registry import REGISTRY, Registry


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


class Executor(Climbs):
    """Runs the programs of one plan on one net."""

    def __init__(self, plan: Plan, net: Net, parts: dict[str, Any], streams: Streams, *, threat_eps: float = 0.0, registry: Registry = REGISTRY):
        self.plan, self.net, self.parts, self.streams, self.registry = plan, net, parts, streams, registry
        self.numbers = Numbers(plan.dials, net.device, net.dtype)
        self.threat_eps = threat_eps
        self.step = 0
        self._updates = set(plan.updates)
        self._prelude = [self._op(s, writes=False) for s in plan.prelude.steps]
        self._outer = [self._op(s, writes=isinstance(s, Pass) and s.outs[0] in self._updates) for s in plan.outer.steps]
        self._inner = [self._inner_op(i) if i.over_weights else net.attack(self._inner_op(i)) for i in plan.inner]
        self.names = tuple(t.id for t in plan.outer.terms)
        self._later = {"weights", "epoch", *plan.after, *(a.slot for m in plan.moments for a in m.args)}
        self._head = bool(plan.takes & {"head_weight", "head_scale"})

    # -- a step --------------------------------------------------------------------------------------------------------------------

    def forward(self, roots: Env, step: int) -> tuple[Tensor, Tensor, Env]:
        """Inner maxima, then the outer program: total loss, the terms' means [T] (detached), and every tensor by name."""
        return self.minimise(self.attack(roots, step))

    def attack(self, roots: Env, step: int) -> Env:
        """What stands before the outer program: constants, the prelude, the inner maxima."""
        self.step = step
        env: Env = dict(roots)
        env["@threat.eps"] = self.threat_eps
        if self._head:
            env.update(self.net.head_roots())
        with torch.no_grad():
            for op in self._prelude:
                op(env)
        self.net.freeze(True)
        try:
            for inner in self._inner:
                inner(env)
        finally:
            self.net.freeze(False)
        return env

    def minimise(self, env: Env) -> tuple[Tensor, Tensor, Env]:
        """The outer program, on the tape."""
        if self._head and "weights" in env:
            env.update(self.net.head_roots(env["weights"]))
        for op in self._outer:
            op(env)
        means = [self._mean(t, env) for t in self.plan.outer.terms]
        total = sum((self._weigh(t.weight, mean) for t, mean in zip(self.plan.outer.terms, means)), start=0.0)
        return total, torch.stack([m.detach() for m in means]), env  # type: ignore[return-value]

    def forget(self, env: Env, also: frozenset[str]) -> None:
        """Before the backward: let go of tensors that nothing reads from here on. What the tape needs, the tape holds."""
        for slot in env.keys() - self._later - also:
            if not slot.startswith("stats/"):
                del env[slot]

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

    def _op(self, step: Step, *, writes: bool, net: Any = None) -> Op:
        op = self._pass(step, writes, net or self.net) if isinstance(step, Pass) else {Call: self._call, Read: self._read}[type(step)](step)  # type: ignore[operator]
        if step.tape:
            return self._taped(op, step)
        if step.grad:
            return op

        def without_tape(env: Env) -> None:
            with torch.no_grad():
                op(env)

        return without_tape

    def _taped(self, op: Op, step: Step) -> Op:
        """A call that differentiates needs the tape of what it differentiates, even where the sum's gradient goes nowhere near."""
        cut = step.writes_to if isinstance(step, Call) and step.second_order and not step.grad else ()

        def with_tape(env: Env) -> None:
            with torch.enable_grad():
                op(env)
            env.update({slot: env[slot].detach() for slot in cut})

        return with_tape

    def _pass(self, p: Pass, writes: bool, net: Any) -> Op:
        points, name = p.points, p.outs[0]
        leaves = dict(p.leaves)
        sources = [leaves.get(q, q) for q in points]
        twice = bool(p.leaves)

        def run(env: Env) -> None:
            for point, leaf in p.leaves:        # a point that climbs is its own leaf; else a copy, so that nothing runs back into the attack
                env[leaf] = env[point] if env[point].requires_grad else env[point].detach().requires_grad_(True)
            x = env[sources[0]] if len(points) == 1 else torch.cat([env[q] for q in sources])
            scratch = net.stats.scratch() if writes and p.batch and net.stats is not None else None
            logits, features = net(x, batch=p.batch, scratch=scratch, rows=env[p.rows] if p.rows else None, features=bool(p.features),
                                   weights=env.get("weights"), name=name, step=self.step, twice=twice)
            if scratch is not None:
                env["stats/" + name] = scratch
            for names, made in ((p.outs, logits), (p.features, features)):
                if len(points) == 1 and names:
                    env[names[0]] = made
                elif names and made is not None:
                    env.update(zip(names, made.split([env[q].shape[0] for q in points])))

        return run

    def _call(self, call: Call) -> Op:
        fn, options, out = self.registry.get(call.kind, call.use).fn, self._options(call.options), call.out
        args, normalise = [(a.slot, a.detach) for a in call.args], call.normalise

        def run(env: Env) -> None:
            values = [env[slot].detach() if detach else env[slot] for slot, detach in args]
            result = fn(*values, **options(env, None))
            env[out] = _mean_one(result) if normalise else result

        return run

    def _read(self, read: Read) -> Op:
        part, point = self.parts[read.part], {"point": read.point} if read.point else {}
        args, outs = [(a.slot, a.detach) for a in read.args], read.outs

        def run(env: Env) -> None:
            self._tune(read.part)
            made = part.read(*(env[slot].detach() if detach else env[slot] for slot, detach in args), **point)
            for name, slot in outs:
                env[slot] = made[name]

        return run


def _mean_one(gain: Tensor) -> Tensor:
    """A gain divided by its mean; where all of it is zero (no example counts), it stays zero."""
    mean = gain.mean()
    return gain / torch.where(mean == 0, torch.ones_like(mean), mean)
