"""What a cell is, so that two cells that would be one run are found before anything runs. No torch.

Equal are cells with the same plans over the same epochs, the same data, network, optimiser and threat, and the same judging. A part that nothing
reads, and a view that nothing needs, are no difference; neither is a seed, a note or a space of search.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import Any

from composer.plan.types import Plan, Program
from composer.plan.whole import plans_of
from composer.recipe.identity import canonical
from composer.recipe.recipe import Recipe
from composer.recipe.remember import keep
from composer.registry import REGISTRY

BESIDE = ("train", "threat", "data", "augment", "model", "optim")        # what reaches a stretch of epochs beside its plan
JUDGED = ("select", "trace", "evaluate")
SCALARS = frozenset({str, int, float, bool, type(None)})


def content(recipe: Recipe) -> str:
    """A digest that equal cells share. Errors: Errors with everything the recipe's phases and plans lack."""
    said: list[Any] = [[table_text(recipe, name) for name in JUDGED]]
    for s, plan in plans_of(recipe):
        said += [(s.first, s.last, s.clock, s.epochs, s.fresh), plan_text(plan), [table_text(s.recipe, name) for name in BESIDE]]
    return hashlib.blake2b(repr(said).encode(), digest_size=16).hexdigest()


def table_text(recipe: Recipe, name: str) -> str:
    """A table in its canonical form. Recipes that agree on it hold the same object, so it is written once."""
    table = recipe.full.get(name)
    return _once(table, lambda: repr(canonical({name: table}).get(name))) if table else ""


def plan_text(plan: Plan) -> tuple[Any, ...]:
    """The plan without parts that nothing reads, its programs as texts and its dials with their schedules."""
    idle = {part.id for part in plan.parts if not part.needed}
    awake = {"parts": tuple(p for p in plan.parts if p.id not in idle), "moments": tuple(m for m in plan.moments if m.part not in idle),
             "dials": tuple(d for d in plan.dials if not any(d.path.startswith(f"parts.{id}.") for id in idle))}
    return tuple(flat(awake.get(name, getattr(plan, name))) for name in _fields(Plan))


def flat(value: Any) -> Any:
    """Nested tuples with the same text for equal values, whatever the order in which a table was written."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is tuple or kind is list:
        return tuple([item if type(item) in SCALARS else flat(item) for item in value])
    if kind is dict:
        return tuple(sorted([(str(key), item if type(item) in SCALARS else flat(item)) for key, item in value.items()]))
    if kind is Program:                                    # plans that differ in weights share their steps
        steps = value.steps and _once(value.steps, lambda: repr([flat(step) for step in value.steps]))
        return (steps, *[flat(getattr(value, name)) for name in _fields(Program) if name != "steps"])
    if hasattr(kind, "__dataclass_fields__"):
        return (kind.__name__, *[item if type(item) in SCALARS else flat(item) for item in _read(kind)(value)])
    return repr(value)


@cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(kind.__dataclass_fields__)              # type: ignore[attr-defined]


@cache
def _read(kind: type) -> Any:
    names = _fields(kind)
    return attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),)


def _once(holder: Any, write: Any) -> str:
    """A text that hangs on one object; the memory keeps the object, so that nothing else gets its id."""
    key = ("text", id(holder))
    held = REGISTRY.memory.get(key)
    if held and held[1] is holder:
        return held[0]
    text = write()
    keep(REGISTRY, key, (text, holder))
    return text


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without the collector of cycles: it would walk through thousands of recipes again and again, and finds nothing in them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
