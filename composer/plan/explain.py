"""The plan as text: what a reviewer reads to know a method. Golden files of it are tests."""

from __future__ import annotations

import math
from typing import Any

from composer.options import Ref
from composer.plan.cost import epoch_forwards, inner_cost, plan_cost, program_cost
from composer.plan.types import Call, Cost, Dial, InnerPlan, Pass, Pixel, Plan, Program, Read, Slot, Step, Summand


def number(value: Any) -> str:
    if isinstance(value, Dial):
        return f"dial({value.path})"
    if isinstance(value, Slot):
        return value.name
    if isinstance(value, Pixel):
        return f"{value.factor:g}*{value.of}" if value.factor >= 1 else f"{value.of}/{1 / value.factor:g}"
    if isinstance(value, Ref):
        inside = options(value.options)
        return f"{value.use}({inside})" if inside else value.use
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(number(v) for v in value) + "]"
    return str(value)


def options(values: dict[str, Any]) -> str:
    return ", ".join(f"{k}={number(v)}" for k, v in values.items() if v is not None and v != [] and v != ())


def step_line(step: Step, bn: str) -> str:
    if isinstance(step, Pass):
        mode = "eval" if not step.batch else "train" if bn != "train_frozen" else "train_frozen"
        notes = [mode] + ([_leaves(step)] if step.leaves else []) + ([f"rows {step.rows}"] if step.rows else [])
        notes += [] if step.grad else ["no gradient"]
        seen = "[" + "; ".join(step.points) + "]" if len(step.points) > 1 else step.points[0]
        return f"{', '.join(step.writes_to)} = model({seen})  [{', '.join(notes)}]"
    args = ", ".join(("detach " if a.detach else "") + (a.slot if isinstance(step, Read) or a.need == a.slot or a.slot.endswith("_" + a.need) else f"{a.need}={a.slot}")
                     for a in step.args)
    if isinstance(step, Read):
        return f"{', '.join(step.writes_to)} = {step.part}.read({args})"
    given = options(step.options)
    line = f"{step.out} = {step.use}({args}{'; ' if given and args else ''}{given})"
    notes = (["mean 1"] if step.normalise else []) + ([_order(step)] if step.second_order else []) + ([] if step.grad else ["no gradient"])
    return line + (f"  [{', '.join(notes)}]" if notes else "")


def _leaves(step: Pass) -> str:
    return "input differentiable" if len(step.points) == 1 else f"{', '.join(point for point, _ in step.leaves)} differentiable"


def _order(call: Call) -> str:
    """How many gradients a call takes by itself, and whether they are differentiated in turn."""
    first, second = call.backward
    if second and call.grad:
        return {1: "second order", "classes": "second order, a gradient a class"}.get(second, f"second order, {second} gradients")
    return {1: "takes an input gradient", "classes": "takes an input gradient a class"}.get(first, f"takes {first} input gradients")


def sum_line(terms: tuple[Summand, ...]) -> str:
    parts = []
    for t in terms:
        gain = f"{'detach ' if t.detach_gain else ''}{t.gain} * " if t.gain else ""
        parts.append(f"{number(t.weight)} * mean({gain}{t.loss})")
    return " + ".join(parts)


def cost_line(cost: Cost) -> str:
    each = sum(cost.each[:3])
    more = f" + {each} units a class" if each else ""
    more += f" (with {cost.double} double backward)" if cost.double else ""
    some = f" (number of steps of {', '.join(cost.variable)} is scheduled)" if cost.variable else ""
    return f"{cost.units} units = {cost.forward} forward + {cost.dgrad} input gradient + {cost.wgrad} weight gradient{more}{some}"


def inner_lines(inner: InnerPlan, plan: Plan) -> list[str]:
    lines = [f"inner {inner.id} = {inner.use}({options({'eps': inner.eps, **inner.options})})  [bn {inner.bn}]"]
    if inner.args:
        lines.append("  reads       " + ", ".join(a.slot for a in inner.args))
    for label, program in (("once", inner.preamble), (f"each of {inner.climbs or inner.forwards}", inner.body)):
        for k, step in enumerate(program.steps):
            lines.append(f"  {label if k == 0 else '':<12}{step_line(step, inner.bn)}")
    climbs = f"surface {inner.body.surface}" if inner.body.surface else sum_line(inner.body.terms)
    lines.append(f"  {'descends' if inner.body.surface else 'climbs':<12}{climbs}")
    more = [slot for key, slot in inner.makes[1:]]
    if more:
        lines.append(f"  makes       {', '.join(more)}")
    if inner.writes and any(p.batch for p in (*inner.preamble.passes, *inner.body.passes)):
        lines.append("  writes      running statistics, at every pass")
    lines.append(f"  costs       {cost_line(inner_cost(inner))}")
    return lines


def explain(plan: Plan, title: str = "") -> str:
    """The whole plan, with its cost."""
    lines = [title] if title else []
    if plan.draws:
        lines += ["draws"] + [f"  {d.path}{'' if d.count == 1 else f' x {d.count}'}  {d.kind}" for d in plan.draws]
    if plan.dials:
        lines += ["dials"] + [f"  {d.path} = {number(d.ref)}" for d in plan.dials]
    if plan.prelude.steps:
        lines += ["prelude"] + [f"  {step_line(s, 'eval')}" for s in plan.prelude.steps]
    for inner in plan.inner:
        lines += inner_lines(inner, plan)
    overlay = "  [at the perturbed weights]" if any(i.over_weights for i in plan.inner) else ""
    lines += [f"outer{overlay}"] + [f"  {step_line(s, 'train')}" for s in plan.outer.steps]
    lines += [f"  costs     {cost_line(program_cost(plan.outer, weights=True))}", f"loss      {sum_line(plan.outer.terms)}"]
    if plan.updates:
        lines.append(f"writes    running statistics of {', then '.join(plan.updates)}")
    if plan.after:
        lines.append(f"after     model({'), model('.join(plan.after)}) at the updated weights, running statistics written")
    for m in plan.moments:
        args = ", ".join(a.slot for a in m.args)
        lines.append(f"moment    {m.when}: {m.part}({args}){f' at {m.point}' if m.point else ''}")
    idle = [p.id for p in plan.parts if not (p.active or p.needed)]
    if idle:
        lines.append(f"passive   {', '.join(idle)} (nothing here reads it)")
    if plan.coupled:
        lines.append(f"couples the rows of a batch: {', '.join(plan.coupled)}")
    lines.append(f"step      {cost_line(plan_cost(plan))}")
    lines += [f"epoch end {id}: {'every training batch' if many == math.inf else f'{many} training batches'} forward" for id, many in epoch_forwards(plan).items()]
    return "\n".join(lines)


def as_plain(value: Any) -> Any:
    """The plan as nested plain data, for hashing: equal plans give equal data."""
    if isinstance(value, (list, tuple)):
        return [as_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: as_plain(v) for k, v in sorted(value.items())}
    if hasattr(value, "__dataclass_fields__"):
        return {"_": type(value).__name__, **{f: as_plain(getattr(value, f)) for f in value.__dataclass_fields__}}
    return value


__all__ = ["Call", "Program", "as_plain", "cost_line", "explain"]
