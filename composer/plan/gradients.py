"""What an inner maximum asks for, and which calls of a program carry a gradient."""

from __future__ import annotations

from dataclasses import replace

from composer.plan.types import Call, Program, Step, Value
from composer.plan.world import prefix_of
from composer.registry import Primitive


def climbs_of(primitive: Primitive, options: dict[str, Value]) -> tuple[int | str, int]:
    """How many gradients an inner asks for, and how many forwards without one: its `cost` flag, or else steps and restarts."""
    cost = primitive.flags.get("cost")
    if cost is not None:
        return cost(options) if callable(cost) else cost
    steps, restarts = options.get("steps", 1), options.get("restarts", 1)
    if not isinstance(steps, int) or not isinstance(restarts, int):
        return "steps", 0
    return steps * restarts, restarts if restarts > 1 else 0


def unseen(primitive: Primitive, body: Program, own: str) -> list[str]:
    """The logits that an inner looks at while it climbs (its `sees`) and that no pass of its body makes."""
    made = {"logits" if point == own else f"{prefix_of(point)}_logits" for p in body.passes for point in p.points}
    return [name for name in primitive.flags.get("sees", ()) if name not in made]


def grads(program: Program, moving: set[str] | None) -> Program:
    """Mark what carries a gradient: reached from the terms through edges that are not cut, and (inside an inner) touched by what climbs.
    And what needs a tape though it carries none: what a call differentiates by itself.
    """
    wanted: set[str] = set()
    taped: set[str] = set()
    for term in program.terms:
        wanted.add(term.loss)
        if term.gain and not term.detach_gain:
            wanted.add(term.gain)
    if program.surface:
        wanted.add(program.surface)
    steps: list[Step] = []
    for step in reversed(program.steps):
        grad = bool(wanted & set(step.writes_to)) and (moving is None or bool(moving & set(step.writes_to)))
        tape = bool(taped & set(step.writes_to)) or (isinstance(step, Call) and step.second_order)
        if grad:
            wanted.update(a.slot for a in step.args if not a.detach)
        if tape:
            taped.update(a.slot for a in step.args if not a.detach)
        steps.append(step if (step.grad, step.tape) == (grad, tape) else replace(step, grad=grad, tape=tape))
    return replace(program, steps=tuple(reversed(steps)))
