"""A plan's programs for several members at once: rows [S·N, …] stand member by member, and what is not a row is done member by member.

Losses, views, balls and inner maxima treat rows alone (the catalogue's contract tests hold them to it), so they run once for all members. What looks
across a batch (a mean, a coupled term, a normalised gain), what reads a head's weights and what has memory gets each member's rows by themselves;
so does a call whose options are each member's own (`pack_plans.Each`). An inner maximum takes such numbers as one for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from composer.engine.climb import Env, Op
from composer.engine.pack_net import PackedNet
from composer.engine.pack_plans import Each, differing, own, own_options, stretches
from composer.engine.pack_state import PackedPart, PackedStreams
from composer.engine.step import Executor, _mean_one
from composer.engine.streams import Streams
from composer.errors import ComposerError
from composer.inner.ascent import Ascent
from composer.plan.needs import has
from composer.plan.types import Call, Dial, InnerPlan, Pass, Plan, Slot, Summand
from composer.registry import REGISTRY

HEAD, THREAT = ("head_weight", "head_scale"), "@threat.eps"


class PackedExecutor(Executor):
    """Runs the programs of one plan on several networks. `forward` gives totals [S], and the terms' means [T,S].

    plan            with numbers of each member's own, by slot (`pack_plans.merged`)
    parts, streams  by member
    threats         the recipes' threat.eps, by slot
    """

    net: PackedNet

    def __init__(self, plan: Plan, net: PackedNet, parts: Sequence[dict[str, Any]], streams: Sequence[Streams], *, threats: Sequence[float]):
        self.count = net.seats.width
        self._fixed: dict[Any, Tensor] = {}                     # constants on the device
        packed = {id: PackedPart([each[id] for each in parts], net.seats) for id in parts[0]}
        eps: Any = threats[0] if len(set(threats)) == 1 else Each(tuple(threats))
        super().__init__(plan, net, packed, PackedStreams(net.seats.spread(streams)), threat_eps=eps)  # type: ignore[arg-type]

    def _own_means(self, loss: Tensor) -> Tensor:
        """[S·N] -> [S]"""
        return loss.view(self.count, -1).mean(1)

    def _mean(self, term: Summand, env: Env) -> Tensor:
        return self._own_means(self._gained(term, env))

    def _gained(self, term: Summand, env: Env) -> Tensor:
        loss = env[term.loss]
        if not term.gain:
            return loss
        gain = env[term.gain]
        return (gain.detach() if term.detach_gain else gain) * loss

    def _objective(self, inner: InnerPlan, env: Env) -> Tensor:
        if not inner.over_weights:
            return super()._objective(inner, env)
        return sum((self._weigh(t.weight, self._mean(t, env)).sum() for t in inner.body.terms), start=torch.zeros((), device=self.net.device))

    # -- numbers of each member's own ----------------------------------------------------------------------------------------------

    def _numbers_of(self, each: Each) -> Tensor:
        """[S]"""
        if any(isinstance(v, Dial) for v in each.values):
            return torch.stack([self._on_device(self._value(v, {})) for v in each.values])
        return self._on_device(each.values)

    def _on_device(self, value: Any) -> Tensor:
        """A constant as a tensor, made once: each time it is made, the host waits for the device."""
        if isinstance(value, Tensor):
            return value.to(self.net.dtype)
        if value not in self._fixed:
            self._fixed[value] = torch.tensor(value, dtype=self.net.dtype, device=self.net.device)
        return self._fixed[value]

    def _weigh(self, weight: Any, value: Tensor) -> Tensor:
        """value [S], or the rows of an ascent [S·N]"""
        if not isinstance(weight, Each):
            return super()._weigh(weight, value)
        return (self._numbers_of(weight).unsqueeze(1) * value.view(self.count, -1)).view_as(value)

    def _value(self, value: Any, env: Env, eps: Any = None) -> Any:
        """One number for every row, [S·N], where each member has its own."""
        if not isinstance(value, Each):
            return super()._value(value, env, eps)
        n = len(env["x"]) // self.count
        if all(isinstance(v, (int, float, Dial)) for v in value.values):
            return self._numbers_of(value).repeat_interleave(n)
        made = []
        for m, (one, radius) in enumerate(zip(value.values, self._apart("", eps), strict=True)):
            found = super()._value(one, env, radius)
            mine = self._apart("", found)[m] if isinstance(one, Slot) else found
            made.append(self._on_device(mine).expand(n))
        return torch.cat(made)

    def _options(self, options: dict[str, Any]) -> Callable[[Env, Any], dict[str, Any]]:
        """As those of a run; what is each member's own comes as one number for every row."""
        names = differing(options)
        given = super()._options({k: v for k, v in options.items() if k not in names})
        if not names:
            return given
        return lambda env, eps: {**given(env, eps), **{k: self._value(options[k], env, eps) for k in names}}

    def _tune(self, part: str) -> None:
        """A part's schedules; a member's own are set in its part alone."""
        super()._tune(part)
        for name, each in next(p for p in self.plan.parts if p.id == part).options.items():
            if isinstance(each, Each):
                self.parts[part].tune(name, {slot: self.numbers[v.path] for slot, v in enumerate(each.values) if isinstance(v, Dial)})

    # -- calls that look across rows -----------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> Op:
        slots = {a.slot for a in call.args}
        apart = THREAT in slots and isinstance(self.threat_eps, Each)
        if apart or call.normalise or couples(call) or slots & set(HEAD):
            return self._one_by_one(call)
        return self._cell_by_cell(call) if differing(call.options) else super()._call(call)

    def _cell_by_cell(self, call: Call) -> Op:
        """A call that treats rows alone, once for members side by side that have the same options."""
        fn, out, spans = self.registry.get(call.kind, call.use).fn, call.out, stretches(call.options, self.count)
        options = [self._options(own_options(call.options, first)) for first, _ in spans]
        args = [(a.slot, a.detach) for a in call.args]

        def run(env: Env) -> None:
            n = len(env["x"]) // self.count
            sizes = [n * (stop - first) for first, stop in spans]

            def cut(value: Any) -> Sequence[Any]:
                return value.split(sizes) if isinstance(value, Tensor) and value.ndim else [value] * len(sizes)

            given = zip(*(cut(self._detached(env[slot]) if detach else env[slot]) for slot, detach in args), strict=True)
            made = []
            for k, (mine, each) in enumerate(zip(given, options, strict=True)):
                made.append(fn(*mine, **{name: cut(v)[k] for name, v in each(env, None).items()}))
            env[out] = torch.cat(made)

        return run

    def _one_by_one(self, call: Call) -> Op:
        """The call on each member's rows; the results one behind the other."""
        fn, out, normalise = self.registry.get(call.kind, call.use).fn, call.out, call.normalise
        options = self._options_of(call.options)
        args = [(a.slot, a.detach) for a in call.args]

        def run(env: Env) -> None:
            given = [self._apart(slot, self._detached(env[slot]) if detach else env[slot]) for slot, detach in args]
            made = [fn(*mine, **more) for mine, more in zip(zip(*given, strict=True), options(env), strict=True)]
            env[out] = torch.cat([_mean_one(each) for each in made] if normalise else made)

        return run

    def _apart(self, slot: str, value: Any) -> Sequence[Any]:
        """A need's value for each member: head_weight [S,K,D], rows [S·N, …], numbers that are one for all, or each member's own."""
        if isinstance(value, Each):
            return value.values
        if not isinstance(value, Tensor) or not value.ndim or slot == "head_scale":
            return [value] * self.count
        return value.unbind(0) if slot == "head_weight" else value.chunk(self.count)

    def _options_of(self, options: dict[str, Any]) -> Callable[[Env], list[dict[str, Any]]]:
        """The options of a call for each member."""
        if differing(options):
            made = [self._options(own_options(options, m)) for m in range(self.count)]
            return lambda env: [self._rows_of(m, each(env, None)) for m, each in enumerate(made)]
        one = self._options(options)

        def same(env: Env) -> list[dict[str, Any]]:
            given = one(env, None)
            return [self._rows_of(m, given) for m in range(self.count)]

        return same

    def _rows_of(self, m: int, options: dict[str, Any]) -> dict[str, Any]:
        return {k: v.chunk(self.count)[m] if isinstance(v, Tensor) and v.ndim else v for k, v in options.items()}

    # -- passes over several points ------------------------------------------------------------------------------------------------

    def _pass(self, p: Pass, writes: bool, net: Any) -> Op:
        """Points that are joined in one forward lie side by side within each member."""
        if len(p.points) == 1:
            return super()._pass(p, writes, net)
        name, leaves = p.outs[0], dict(p.leaves)
        sources = [leaves.get(q, q) for q in p.points]

        def run(env: Env) -> None:
            for point, leaf in p.leaves:
                env[leaf] = env[point] if env[point].requires_grad else env[point].detach().requires_grad_(True)
            x = torch.cat([env[q].unflatten(0, (self.count, -1)) for q in sources], 1).flatten(0, 1)
            scratch = net.stats.scratch() if writes and p.batch and net.stats is not None else None
            made = net(net.layout(x), batch=p.batch, scratch=scratch, rows=env[p.rows] if p.rows else None, features=bool(p.features),
                       weights=env.get("weights"), name=name, step=self.step, twice=bool(p.leaves))
            if scratch is not None:
                env["stats/" + name] = scratch
            for names, rows in zip((p.outs, p.features), made):
                if names and rows is not None:
                    pieces = rows.unflatten(0, (self.count, -1)).chunk(len(names), 1)
                    env.update((slot, piece.flatten(0, 1)) for slot, piece in zip(names, pieces))

        return run

    # -- inner maxima over the weights ---------------------------------------------------------------------------------------------

    def _inner_op(self, inner: InnerPlan) -> Op:
        options = {k: v for k, v in inner.options.items() if not (inner.over_weights and isinstance(v, Each))}       # `_maximiser` hands these out
        return super()._inner_op(replace(inner, options=options))

    def _maximiser(self, inner: InnerPlan) -> Callable[..., dict[str, Any]]:
        fn = super()._maximiser(inner)
        if not inner.over_weights:
            return fn
        options = next(i.options for i in self.plan.inner if i.id == inner.id)
        return self._over_weights(fn, [self._options({k: own(options[k], m) for k in differing(options)}) for m in range(self.count)])

    def _over_weights(self, fn: Callable[..., dict[str, Any]], more: Sequence[Callable[..., dict[str, Any]]]) -> Callable[..., dict[str, Any]]:
        """The primitive once a member, on one common look at the objective at the live weights. `more`: each member's own options."""

        def each(weights: dict[str, Tensor], climb: Any, eps: Any, draws: Any, *args: Any, **options: Any) -> dict[str, Any]:
            mine = [dict(zip(weights, values)) for values in zip(*(w.unbind(0) for w in weights.values()), strict=True)]
            seen: list[Ascent] = []

            def look(m: int) -> Callable[..., Ascent]:
                def at(*, point: dict[str, Tensor], grad: bool = True) -> Ascent:
                    if any(point[name] is not w for name, w in mine[m].items()):
                        raise ComposerError("a packed run looks at the objective at the live weights only", fix="--pack off")
                    if not seen:
                        seen.append(climb(point=weights, grad=grad))
                    return Ascent(seen[0].objective, {"point": {k: g[m] for k, g in seen[0].grads["point"].items()}}, {})

                return at

            made = [fn(w, look(m), eps, draws, *args, **options, **more[m]({}, None))["point"] for m, w in enumerate(mine)]
            return {"point": {name: torch.stack([each[name] for each in made]) for name in weights}}

        return each


def couples(call: Call) -> bool:
    """Its rows depend on each other, in some member."""
    flag, each = REGISTRY.get(call.kind, call.use).flags.get("couples"), next((v for v in call.options.values() if isinstance(v, Each)), None)
    return any(has(flag, own_options(call.options, m)) for m in range(len(each.values) if each else 1))
