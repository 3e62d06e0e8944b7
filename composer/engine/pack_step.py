"""A plan's programs for several members at once: rows [S·N, …] stand member by member, and what is not a row is done member by member.

Losses, views, balls and inner maxima treat rows alone (the catalogue's contract tests hold them to it), so they run once for all members. What looks
across a batch (a mean, a coupled term, a normalised gain), what reads a head's weights and what has memory gets each member's rows by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from composer.engine.climb import Env, Op
from composer.engine.meter import Meter
from composer.engine.pack_net import PackedNet, Seats
from composer.engine.step import Executor, _mean_one
from composer.engine.streams import Streams
from composer.errors import ComposerError
from composer.inner.ascent import Ascent
from composer.plan.needs import has
from composer.plan.types import Call, InnerPlan, Pass, Plan, Summand
from composer.registry import REGISTRY

HEAD = ("head_weight", "head_scale")


class PackedStreams:
    """Every member's own draws, one behind the other."""

    def __init__(self, members: Sequence[Streams]):
        self.members = list(members)

    def draw(self, kind: str, path: str, step: int | str, like: Tensor) -> Tensor:
        parts = like.chunk(len(self.members))
        return torch.cat([streams.draw(kind, path, step, part) for streams, part in zip(self.members, parts, strict=True)])


class PackedPart:
    """The members' parts under one name; each is given its own rows. In a free slot stands what the first member's part says."""

    def __init__(self, members: Sequence[Any], seats: Seats):
        self.__dict__.update(members=list(members), seats=seats)

    def __setattr__(self, name: str, value: Any) -> None:
        for member in self.members:
            setattr(member, name, value)

    def read(self, *values: Any, **more: Any) -> dict[str, Tensor]:
        made = [part.read(*own, **more) for part, own in zip(self.members, self._apart(values), strict=True)]
        free = [{name: value.detach() for name, value in made[0].items()}] * self.seats.width      # its gradient must not reach the first member
        by_slot = {**dict(enumerate(free)), **dict(zip(self.seats.taken, made, strict=True))}
        return {name: torch.cat([each[name] for each in by_slot.values()]) for name in made[0]}

    def after_step(self, *values: Any, **more: Any) -> None:
        for part, own in zip(self.members, self._apart(values), strict=True):
            part.after_step(*own, **more)

    def _apart(self, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if not values:
            return [()] * len(self.members)
        by_slot = list(zip(*(value.chunk(self.seats.width) for value in values), strict=True))
        return [by_slot[slot] for slot in self.seats.taken]


class PackedExecutor(Executor):
    """Runs the programs of one plan on several networks. `forward` gives totals [S], and the terms' means [T,S]. `parts`, `streams`: by member."""

    net: PackedNet

    def __init__(self, plan: Plan, net: PackedNet, parts: Sequence[dict[str, Any]], streams: Sequence[Streams], *, threat_eps: float = 0.0):
        self.count = net.seats.width
        packed = {id: PackedPart([each[id] for each in parts], net.seats) for id in parts[0]}
        super().__init__(plan, net, packed, PackedStreams(net.seats.spread(streams)), threat_eps=threat_eps)  # type: ignore[arg-type]

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

    # -- calls that look across rows -----------------------------------------------------------------------------------------------

    def _call(self, call: Call) -> Op:
        slots = [a.slot for a in call.args]
        if couples(call) or set(slots) & set(HEAD):
            return self._one_by_one(call)
        op = super()._call(call)
        return op if not call.normalise else self._one_by_one(call)

    def _one_by_one(self, call: Call) -> Op:
        """The call on each member's rows; the results one behind the other."""
        fn, options, out, normalise = self.registry.get(call.kind, call.use).fn, self._options(call.options), call.out, call.normalise
        args = [(a.slot, a.detach) for a in call.args]

        def run(env: Env) -> None:
            given = [self._apart(slot, env[slot].detach() if detach else env[slot]) for slot, detach in args]
            made = [fn(*own, **more) for own, more in zip(zip(*given, strict=True), self._options_apart(options(env, None)), strict=True)]
            env[out] = torch.cat([_mean_one(each) for each in made] if normalise else made)

        return run

    def _apart(self, slot: str, value: Any) -> Sequence[Any]:
        """A need's value for each member: head_weight [S,K,D], head_scale [] and rows [S·N, …]."""
        if slot == "head_scale":
            return [value] * self.count
        return value.unbind(0) if slot == "head_weight" else value.chunk(self.count)

    def _options_apart(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        rows = {k: v.chunk(self.count) for k, v in options.items() if isinstance(v, Tensor) and v.ndim}
        return [{**options, **{k: v[m] for k, v in rows.items()}} for m in range(self.count)] if rows else [options] * self.count

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

    def _maximiser(self, inner: InnerPlan) -> Callable[..., dict[str, Any]]:
        fn = super()._maximiser(inner)
        return self._over_weights(fn) if inner.over_weights else fn

    def _over_weights(self, fn: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        """The primitive once a member, on one common look at the objective at the live weights."""

        def each(weights: dict[str, Tensor], climb: Any, eps: Any, draws: Any, *args: Any, **options: Any) -> dict[str, Any]:
            own = [dict(zip(weights, values)) for values in zip(*(w.unbind(0) for w in weights.values()), strict=True)]
            seen: list[Ascent] = []

            def look(m: int) -> Callable[..., Ascent]:
                def at(*, point: dict[str, Tensor], grad: bool = True) -> Ascent:
                    if any(point[name] is not w for name, w in own[m].items()):
                        raise ComposerError("a packed run looks at the objective at the live weights only", fix="--pack off")
                    if not seen:
                        seen.append(climb(point=weights, grad=grad))
                    return Ascent(seen[0].objective, {"point": {k: g[m] for k, g in seen[0].grads["point"].items()}}, {})

                return at

            made = [fn(w, look(m), eps, draws, *args, **options)["point"] for m, w in enumerate(own)]
            return {"point": {name: torch.stack([each[name] for each in made]) for name in weights}}

        return each


def couples(call: Call) -> bool:
    """Its rows depend on each other."""
    return has(REGISTRY.get(call.kind, call.use).flags.get("couples"), call.options)


class PackedMeter:
    """The members' meters, filled together; theirs are rows of the sums here."""

    def __init__(self, members: Sequence[Meter], seats: Seats):
        self.points, self.radii, self.reads = members[0].points, members[0].radii, members[0].reads
        self.width = seats.width
        for name in ("sums", "count", "low", "high"):
            held = torch.stack(seats.spread([getattr(m, name) for m in members]))
            setattr(self, f"_{name}", held)
            for slot, member in zip(seats.taken, members, strict=True):
                setattr(member, name, held[slot])

    def add(self, means: Tensor, env: dict[str, Any], y: Tensor) -> None:
        """means [T,S], y [S·N]"""
        n = len(y) // self.width
        with torch.no_grad():
            found = [means.double().T]
            if self.points:
                found.append(torch.stack([(env[out].argmax(1) == y).double().view(self.width, n).mean(1) for _, out in self.points], 1))
            if self.radii:
                radii = torch.stack([env[slot] for _, slot in self.radii]).view(len(self.radii), self.width, n)
                found.append(radii.double().mean(2).T)
                self._low.copy_(torch.minimum(self._low, radii.amin(2).T))      # type: ignore[attr-defined]
                self._high.copy_(torch.maximum(self._high, radii.amax(2).T))    # type: ignore[attr-defined]
            self._sums.add_(torch.cat(found, 1), alpha=n)                       # type: ignore[attr-defined]
            self._count.add_(n)                                                 # type: ignore[attr-defined]
