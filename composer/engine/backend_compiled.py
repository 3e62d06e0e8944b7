"""The executor of the backends `folded` and `compiled`: attacks on the prepared network, programs as compiled graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer.engine.backend_lower import compiled
from composer.engine.backend_program import Program, Refused
from composer.engine.climb import Env, Op
from composer.engine.step import Executor
from composer.engine.trained import networks
from composer.inner.ascent import Ascent
from composer.models.packed import PackedNet
from composer.plan.types import Call, InnerPlan, Pass, Plan
from composer.plan.types import Program as Steps

Say = Callable[[str], None]


class FoldedExecutor(Executor):
    """Attacks in eval mode and of first order run on the packed network, all else as the eager executor has it."""

    _instead = "it climbs the network as it is"

    def __init__(self, plan: Plan, net: Any, *rest: Any, say: Say = lambda text: None, **more: Any):
        self.say, self._told = say, set[str]()
        self._prepared: dict[bool, _Prepared] = {}
        super().__init__(plan, net, *rest, **more)

    def tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(text)

    def attack(self, roots: Env, step: int) -> Env:
        for net in self._prepared.values():
            net.packed.refresh()
        return super().attack(roots, step)

    def _net_of(self, inner: InnerPlan) -> Any:
        reason = unpackable(inner, self.net)
        if not reason:
            if True not in self._prepared:
                self._prepared[True] = _Prepared(self.net)
            prepared = self._prepared[True]
            if prepared.packed.layers:
                self.tell(f"attack on the packed network: {prepared.packed.note}")
                return prepared
            del self._prepared[True]
            reason = prepared.packed.note
        if self.net.device.type == "cpu":
            self.tell(f"{inner.id} is not folded, {reason}: {self._instead}")
        return self.net


class _Prepared:
    """The packed network, called as the engine calls its own."""

    def __init__(self, net: Any):
        self.net, self.packed = net, PackedNet(net.model)
        self.stats = net.stats

    def __call__(self, x: Tensor, *, batch: bool = False, scratch: Any = None, rows: Any = None, features: bool = False, weights: Any = None,
                 name: str = "", step: int = 0, twice: bool = False) -> tuple[Tensor, Tensor | None]:
        logits, embedded = self.packed(self.net.layout(x))
        return logits, embedded if features else None


def unpackable(inner: InnerPlan, net: Any) -> str:
    """Why an attack cannot climb the packed network, or ''."""
    steps = (*inner.preamble.steps, *inner.body.steps)
    if inner.over_weights:
        return "it moves the weights"
    if net.precision not in ("fp32", "tf32"):
        return f"precision {net.precision}"
    if net.device.type != "cpu":
        return "the network is not on a CPU"
    if any(isinstance(s, Pass) and s.batch for s in steps):
        return "its passes are in train mode"
    if second_order(steps):
        return "it is differentiated twice"
    return ""


def second_order(steps: tuple[Any, ...]) -> bool:
    return any(isinstance(s, Call) and s.second_order or isinstance(s, Pass) and bool(s.leaves) or getattr(s, "tape", False) for s in steps)


class CompiledExecutor(FoldedExecutor):
    """As `folded`; the outer program with its backward, and attacks that cannot be packed, are compiled graphs.

    tail   rows of the epoch's smaller last batch: it comes once an epoch and is not worth a compilation; it runs as `folded` does
    keep   tensors of a step that are asked for after it, beside those the plan's moments take
    """

    _instead = "its ascent is compiled"

    def __init__(self, plan: Plan, net: Any, parts: dict[str, Any], *rest: Any, tail: int = 0, keep: frozenset[str] = frozenset(), lower: Any = None,
                 **more: Any):
        self.tail, self.keep, self.lower = tail, keep, lower or compiled
        self._outer_program: Program | None = None
        self._looks: dict[Any, Program] = {}
        self._shape: dict[Any, Any] = {}
        super().__init__(plan, net, parts, *rest, **more)
        self._others = [p for network in networks(parts).values() for p in network.parameters()]
        self._climbs_compiled = {i.id for i in plan.inner if self._compiles(i)}
        self._outer_compiled = self._allows("the outer program", plan.outer)

    # -- what is compiled ----------------------------------------------------------------------------------------------------------

    def _compiles(self, inner: InnerPlan) -> bool:
        packed = not unpackable(inner, self.net) and self._prepared
        return not packed and bool(inner.climbs or inner.forwards) and self._allows(f"the ascent of {inner.id}", inner.body)

    def _allows(self, what: str, program: Steps) -> bool:
        if self.net.stochastic and any(p.batch for p in program.passes):
            self.tell(f"{what} is not compiled: the network draws in its forward")
            return False
        return True

    def _refuse(self, what: str, refusal: Refused) -> None:
        self.tell(f"{what} is not compiled, it runs eagerly: {refusal}")

    # -- the outer program ---------------------------------------------------------------------------------------------------------

    def minimise(self, env: Env) -> tuple[Tensor, Tensor, Env]:
        if not self._outer_compiled or len(env["x"]) == self.tail:
            return super().minimise(env)
        names, tensors, rest = flatten(env)
        if taped := [key for key, name in names if name is None and env[key].requires_grad and key not in ("head_weight", "head_scale")]:
            self._outer_compiled = False
            self._refuse("the outer program", Refused(f"gradient is to go on through {taped[0]}"))
            return super().minimise(env)
        if self._outer_program is None:
            self._outer_program = Program(lambda *args: self._minimised(names, rest, args), self.lower)
        try:
            found = self._outer_program(tensors)
        except Refused as refusal:
            self._outer_compiled = False
            self._refuse("the outer program", refusal)
            return super().minimise(env)
        slots, reached = self._shape["outer"]
        total, means, *more = found
        env.update(zip(slots, more))
        grads = iter(more[len(slots):])
        parameters = [p for p in (*self.net.parameters.values(), *self._others) if p.requires_grad]
        return Ready.apply(total, [next(grads) if k in reached else None for k in range(len(parameters))], *parameters), means, env

    def _minimised(self, names: list[Any], rest: Env, args: tuple[Tensor, ...]) -> list[Tensor]:
        """Loss, means, what is asked for later, and the gradients of all parameters, as one function of tensors."""
        env = unflatten(names, rest, args)
        if self._head and "weights" not in env:
            env.update(self.net.head_roots())                  # the live weight again: gradient goes there
        leaves = {name: w.requires_grad_(True) for name, w in env.get("weights", {}).items()}
        before = set(env)
        total, means, env = super().minimise(env)
        own = {name: leaves.get(name, p) for name, p in self.net.parameters.items()}
        wanted = [p for p in (*own.values(), *self._others) if p.requires_grad]
        grads = torch.autograd.grad(total, wanted, allow_unused=True)
        asked = self._later | self.keep
        kept = {k: v for k, v in env.items() if isinstance(v, Tensor) and k not in before and (k in asked or k.startswith("stats/"))}
        reached = [k for k, g in enumerate(grads) if g is not None]
        self._shape["outer"] = (list(kept), frozenset(reached))
        return [total.detach(), means, *(v.detach() for v in kept.values()), *(grads[k] for k in reached)]

    # -- a look at an objective ----------------------------------------------------------------------------------------------------

    def _ascend(self, inner: InnerPlan, body: list[Op], base: Env, points: dict[str, Any], grad: bool) -> tuple[Ascent, Env]:
        if inner.id not in self._climbs_compiled or len(base["x"]) == self.tail:
            return super()._ascend(inner, body, base, points, grad)
        names, tensors, rest = flatten({**base, "@points": points["point"], **{f"@points/{k}": v for k, v in points.items() if k != "point"}})
        key = (inner.id, grad, tuple(points))
        if key not in self._looks:
            self._looks[key] = Program(lambda *args: self._look(key, inner, body, names, rest, args), self.lower)
        try:
            found = iter(self._looks[key](tensors))
        except Refused as refusal:
            self._climbs_compiled.discard(inner.id)
            self._refuse(f"the ascent of {inner.id}", refusal)
            return super()._ascend(inner, body, base, points, grad)
        objective, (gradients, seen, statistics) = next(found), self._shape[key]
        made = {name: (next(found) if slots is None else {slot: next(found) for slot in slots}) for name, slots in gradients.items()}
        return Ascent(objective, made, {name: next(found) for name in seen}), {slot: next(found) for slot in statistics}

    def _look(self, key: Any, inner: InnerPlan, body: list[Op], names: list[Any], rest: Env, args: tuple[Tensor, ...]) -> list[Tensor]:
        """Objective, gradients, logits and batch statistics, as one function of tensors."""
        _, grad, order = key
        env = unflatten(names, rest, args)
        points = {name: env.pop("@points" if name == "point" else f"@points/{name}") for name in order}
        for leaf in (leaf for p in points.values() for leaf in (p.values() if isinstance(p, dict) else [p])):
            leaf.requires_grad_(grad)
        ascent, statistics = super()._ascend(inner, body, env, points, grad)
        statistics = {k: v for k, v in statistics.items() if k not in env}
        flat = [(name, list(g) if isinstance(g, dict) else None) for name, g in ascent.grads.items()]
        self._shape[key] = dict(flat), list(ascent.tensors), list(statistics)
        gradients = [t for g in ascent.grads.values() for t in (g.values() if isinstance(g, dict) else [g])]
        return [ascent.objective, *gradients, *ascent.tensors.values(), *statistics.values()]


class Ready(torch.autograd.Function):
    """A loss whose parameter gradients are known: its backward hands them out, once; autograd copies those that others hold too.

    On a CPU, where a look costs nothing, they are not multiplied by one: that would cost what compiling saves.
    """

    @staticmethod
    def forward(ctx: Any, total: Tensor, grads: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.grads = grads
        return total.clone()

    @staticmethod
    def backward(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grads, ctx.grads = ctx.grads, None
        if by.device.type == "cpu" and by.dtype in (torch.float32, torch.float64) and by.numpy() == 1.0:
            return None, None, *grads
        held = [g for g in grads if g is not None]
        scaled = iter(torch._foreach_mul(held, by)) if held else iter(())
        return None, None, *(None if g is None else next(scaled) for g in grads)


def flatten(env: Env) -> tuple[list[Any], list[Tensor], Env]:
    """(where each tensor stood, the tensors cut from any tape, everything else) of an environment; dictionaries of tensors are opened."""
    names, tensors, rest = [], [], {}
    for key, value in env.items():
        if isinstance(value, Tensor):
            names.append((key, None))
            tensors.append(value)
        elif isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values()):
            names += [(key, name) for name in value]
            tensors += value.values()
        else:
            rest[key] = value
    return names, tensors, rest


def unflatten(names: list[Any], rest: Env, tensors: tuple[Tensor, ...]) -> Env:
    env: Env = dict(rest)
    for (key, name), tensor in zip(names, tensors, strict=True):
        tensor = tensor.detach()
        if name is None:
            env[key] = tensor
        else:
            env.setdefault(key, {})[name] = tensor
    return env
