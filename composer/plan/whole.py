"""The plans of a whole recipe: one for every stretch of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from composer.errors import ComposerError, Errors
from composer.plan.compile import look_at_method
from composer.plan.types import Plan
from composer.recipe.paths import get, show, split
from composer.recipe.problems import told_at
from composer.recipe.types import Segment


def place(recipe: Any) -> Callable[[str], str]:
    """path -> where the user wrote it, for errors. An item of a list is named by its number: `outer.updates.1` is told as outer.updates[1]."""

    def where(path: str) -> str:
        origin = recipe.where(path) or recipe.history.home
        parts = split(path)
        if parts[-1].isdigit() and isinstance(get(recipe.tables, parts[:-1]), list):
            path = f"{show(parts[:-1])}[{parts[-1]}]"
        return f"{origin}  {path}" if origin and path not in origin else origin or path

    return where


def scheduled(recipe: Any) -> dict[str, Any]:
    """Numbers that a schedule may move and that stand outside the method: the learning rate, the optimiser's options."""
    return {"train.lr": recipe.train.lr, **{f"optim.{k}": v for k, v in recipe.optim.options.items()}}


def plans_of(recipe: Any, *, share: bool = True) -> list[tuple[Segment, Plan]]:
    """Every stretch of a recipe with its plan. Errors: what the method lacks, located."""
    recipe.segments()                                        # raises what is wrong with the phases themselves
    found, errors = look_at(recipe, share=share)
    if errors:
        raise Errors(errors)
    return found


def look_at(recipe: Any, *, share: bool = True) -> tuple[list[tuple[Segment, Plan]], list[ComposerError]]:
    """As plans_of, for a recipe that may have mistakes: what is wrong in any stretch is given back, each once."""
    segments, _ = recipe.stretches()
    written = recipe.stack.tables.get("inner", {})           # before toggles: what they drop is passed over, not unknown
    points = tuple(dict.fromkeys([*(i.id for s in segments for i in s.recipe.method.inner), *(written if isinstance(written, dict) else ())]))
    found = []
    seen: dict[tuple[str, str], list[tuple[Segment, ComposerError]]] = {}
    for segment in segments:
        values = {k: v for k, v in scheduled(segment.recipe).items() if hasattr(v, "use")}
        plan, wrong = look_at_method(segment.recipe.method, share=share, where=place(segment.recipe), elsewhere=points, train=values,
                                     unread=segment.recipe.unread)
        found.append((segment, plan))
        for error in wrong:
            seen.setdefault((error.where, error.what), []).append((segment, error))
    return _awake(found, recipe), [_during(recipe, [s for s, _ in each], each[0][1]) for each in seen.values()]


def _during(recipe: Any, stretches: list[Segment], error: ComposerError) -> ComposerError:
    """An error of some stretches alone is told at the phase that brings it about, or with its epochs."""
    others = [s for s in recipe.stretches()[0] if not any(s is each for each in stretches)]
    if not others:
        return error
    common = [name for name in stretches[0].phases if all(name in s.phases for s in stretches)]
    name = next((each for each in common if not any(each in s.phases for s in others)), common[-1] if common else "")
    if not name:
        return ComposerError(error.what, where=error.where, why=f"{error.why}\nin {title(stretches[0])}".strip(), fix=error.fix)
    return told_at(error, f"{recipe.where(('phase', name))}  {show(('phase', name))}")


def _awake(found: list[tuple[Segment, Plan]], recipe: Any) -> list[tuple[Segment, Plan]]:
    """A part is passive only where neither this stretch nor a later one reads it, and nothing is judged at its weights."""
    read = {recipe.select.weights, recipe.evaluate.weights}
    marked = []
    for segment, plan in reversed(found):
        read |= {part.id for part in plan.parts if part.active}
        marked.append((segment, replace(plan, parts=tuple(replace(part, active=part.id in read) for part in plan.parts))))
    return marked[::-1]


def title(segment: Segment) -> str:
    """The heading of a stretch in a printed plan."""
    phases = f" ({', '.join(segment.phases)})" if segment.phases else ""
    return f"epochs {segment.first}-{segment.last}{phases}{', optimiser afresh' if segment.fresh else ''}"
