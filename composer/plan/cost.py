"""What a step costs in passes of the model, known on paper."""

from __future__ import annotations

import math

from composer.plan.types import Call, Cost, InnerPlan, Plan, Program
from composer.registry import REGISTRY, Registry


def program_cost(program: Program, *, weights: bool) -> Cost:
    """One run of a program. `weights`: its backward reaches the parameters (the outer program), else the images only."""
    total = Cost()
    for p in program.passes:
        joined = len(p.points)
        total += Cost(forward=joined)
        if p.grad:
            total += Cost(dgrad=joined, wgrad=joined if weights else 0)
    for step in program.steps:
        if isinstance(step, Call) and step.second_order:
            total += call_cost(step, program, weights=weights)
    return total


def call_cost(call: Call, program: Program, *, weights: bool) -> Cost:
    """The gradients that a call takes by itself, and their double backwards.

    A double backward multiplies by the network's weights as a forward does, and towards the parameters takes a weight gradient. It also hands a
    gradient to the pass itself (zeros, in a piecewise linear network in eval mode, and PyTorch runs it nevertheless): that is the pass's `grad`.
    """
    joined = max((len(p.points) for p in program.passes if set(p.writes_to) & {a.slot for a in call.args}), default=1)
    first, second = call.backward[0], call.backward[1] if call.grad else 0
    found = Cost()
    for many, one in ((first, Cost(dgrad=joined)), (second, Cost(forward=joined, wgrad=joined if weights else 0, double=joined))):
        found += Cost(each=(one.forward, one.dgrad, one.wgrad, one.double)) if many == "classes" else one * int(many)
    return found


def inner_cost(inner: InnerPlan) -> Cost:
    climbs = inner.climbs if isinstance(inner.climbs, int) else 1
    variable = () if isinstance(inner.climbs, int) else (inner.id,)
    body = program_cost(inner.body, weights=inner.over_weights)
    forward_only = Cost(forward=sum(len(p.points) for p in inner.body.passes)) * inner.forwards
    return program_cost(inner.preamble, weights=False) + body * climbs + forward_only + Cost(variable=variable)


def plan_cost(plan: Plan) -> Cost:
    total = program_cost(plan.prelude, weights=False)
    for inner in plan.inner:
        total += inner_cost(inner)
    return total + program_cost(plan.outer, weights=True) + Cost(forward=len(plan.after))


def epoch_forwards(plan: Plan, *, epoch: float = math.inf, batches: float = math.inf, registry: Registry = REGISTRY) -> dict[str, float]:
    """Forwards that parts make at the end of an epoch of so many batches, by the part's id; inf: every training batch, however many there are."""
    found = {}
    for part in plan.parts:
        count = registry.get("part", part.use).flags.get("epoch_forwards")
        many = count(part.options, epoch=epoch, batches=batches) if count else 0
        if many:
            found[part.id] = many
    return found
