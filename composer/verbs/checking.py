"""Everything that is wrong with a recipe, in one answer: what the reader sees, and what only its plans show. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.errors import ComposerError
from composer.plan.types import Plan
from composer.plan.whole import look_at
from composer.recipe.load import load
from composer.recipe.recipe import Recipe

BESIDE = ("train", "threat", "data", "augment", "model", "optim")      # what reaches a run of a stretch beside its plan
JUDGED = ("select", "trace", "evaluate")


def look(recipe: Recipe) -> tuple[Any, list[ComposerError]]:
    """What the recipe means for a run (equal values: the same run), and what its plans show to be wrong."""
    found, errors = look_at(recipe)
    if errors:
        return None, errors
    whole = recipe.canonical()
    stretches = [((s.first, s.last, s.clock, s.epochs, s.fresh), awake(plan), _tables(s.recipe.canonical(), BESIDE)) for s, plan in found]
    return (stretches, _tables(whole, JUDGED)), []


def _tables(canonical: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: canonical.get(name) for name in names}


def awake(plan: Plan) -> Plan:
    """The plan without parts that nothing reads."""
    idle = {part.id for part in plan.parts if not part.needed}
    return replace(plan, parts=tuple(p for p in plan.parts if p.id not in idle), moments=tuple(m for m in plan.moments if m.part not in idle),
                   dials=tuple(d for d in plan.dials if not any(d.path.startswith(f"parts.{id}.") for id in idle)))


def load_whole(recipe: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = ()) -> Recipe:
    """A recipe that reads and compiles, with each of its toggles. Errors: Errors with everything that is wrong, each once."""
    return load(recipe, setting=setting, sets=sets, drops=drops, look=look)


def wrong_with(recipe: Recipe) -> list[ComposerError]:
    """What a sound recipe's plans lack, and those with one more toggle off: dropping a part whose view is needed shows in the plan alone."""
    errors = look(recipe)[1]
    if errors:
        return errors
    for name in recipe.toggle:
        if name in recipe.off:
            continue
        try:
            found = look(recipe.without(name))[1]
        except ComposerError as error:
            found = error.all
        place = f"{recipe.where(('toggle', name))}  toggle.{name}"
        errors += [ComposerError(e.what, where=place, why="\n".join(filter(None, [e.where and f"seen at {e.where}", e.why])), fix=e.fix) for e in found]
    return errors
