"""A method that has been compiled is not compiled again: cells of a grid that differ elsewhere share its plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from composer.errors import ComposerError
from composer.options import Ref
from composer.plan.compile import look_at_method
from composer.plan.types import Dial, Plan
from composer.recipe.remember import keep
from composer.registry import REGISTRY


def compiled(recipe: Any, *, share: bool, where: Callable[[str], str], elsewhere: tuple[str, ...],
             train: dict[str, Any]) -> tuple[Plan, list[ComposerError]]:
    """As look_at_method for the recipe of one stretch. Only a plan without errors is remembered.

    The key names pieces by identity: equal ones that were read from the same text are one object (`recipe.remember`), and the memory keeps
    them alive. The schedules outside the method stand in no program, and are laid beside its plan.
    """
    method = recipe.method
    pieces = [tuple(map(id, group)) for group in (method.inner, method.terms, method.views, method.parts)]
    key = ("plan", *pieces, id(method.outer), method.soft, share, elsewhere)
    held = REGISTRY.memory.get(key)
    if held:
        return _beside(held[0], train), []
    plan, wrong = look_at_method(method, share=share, where=where, elsewhere=elsewhere, unread=recipe.unread)
    if not wrong and not recipe.wrong and not recipe.unread:
        keep(REGISTRY, key, (plan, method))
    return _beside(plan, train), wrong


def _beside(plan: Plan, train: dict[str, Any]) -> Plan:
    """The plan with the dials of the learning rate and the optimiser before its own."""
    dials = [dial for path, value in train.items() for dial in _dials(path, value)]
    if not dials:
        return plan
    key = ("dials", id(plan), tuple(train), tuple(id(value) for value in train.values()))
    held = REGISTRY.memory.get(key)
    if held and held[1] is plan:
        return held[0]
    made = replace(plan, dials=(*dials, *plan.dials))
    keep(REGISTRY, key, (made, plan, tuple(train.values())))
    return made


def _dials(path: str, value: Any) -> list[Dial]:
    if not isinstance(value, Ref):
        return []
    if value.kind == "schedule":
        return [Dial(path, value)]
    return [dial for name, item in value.options.items() for dial in _dials(f"{path}.{name}", item)]


def marked(plan: Plan, read: set[str]) -> Plan:
    """The plan with the parts in `read` marked as needed; one object for the same plan and parts."""
    if not plan.parts:
        return plan
    key = ("marked", id(plan), tuple(part.id in read for part in plan.parts))
    held = REGISTRY.memory.get(key)
    if held and held[1] is plan:
        return held[0]
    made = replace(plan, parts=tuple(replace(part, needed=part.id in read) for part in plan.parts))
    keep(REGISTRY, key, (made, plan))
    return made
