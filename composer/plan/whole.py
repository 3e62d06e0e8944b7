"""The plans of a whole recipe: one for every stretch of epochs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from composer.plan.compile import compile_method
from composer.plan.types import Plan
from composer.recipe.types import Segment


def place(recipe: Any) -> Callable[[str], str]:
    """path -> where the user wrote it, for errors."""

    def where(path: str) -> str:
        origin = recipe.where(path)
        return f"{origin}  {path}" if origin and path not in origin else origin or path

    return where


def scheduled(recipe: Any) -> dict[str, Any]:
    """Numbers that a schedule may move and that stand outside the method: the learning rate, the optimiser's options."""
    return {"train.lr": recipe.train.lr, **{f"optim.{k}": v for k, v in recipe.optim.options.items()}}


def plans_of(recipe: Any, *, share: bool = True) -> list[tuple[Segment, Plan]]:
    """Every stretch of a recipe with its plan. Errors: what the method lacks, located."""
    segments = recipe.segments()
    written = recipe.stack.tables.get("inner", {})           # before toggles: what they drop is passed over, not unknown
    points = tuple(dict.fromkeys([*(i.id for s in segments for i in s.recipe.method.inner), *written]))
    found = []
    for segment in segments:
        values = {k: v for k, v in scheduled(segment.recipe).items() if hasattr(v, "use")}
        plan = compile_method(segment.recipe.method, share=share, where=place(recipe), elsewhere=points, train=values)
        found.append((segment, plan))
    return _awake(found, recipe)


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
