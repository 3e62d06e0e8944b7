"""The plans of a whole recipe: one for every stretch of epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.errors import ComposerError, Errors
from composer.plan.remember import compiled, marked
from composer.plan.types import Plan
from composer.recipe.paths import get, show, split
from composer.recipe.problems import told_at
from composer.recipe.types import Segment
from composer.registry import REGISTRY, Registry


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
        plan, wrong = compiled(segment.recipe, share=share, where=place(segment.recipe), elsewhere=points, train=values)
        found.append((segment, plan))
        for error in [*wrong, *unruly(segment, plan)]:
            seen.setdefault((error.where, error.what), []).append((segment, error))
    errors = [_during(recipe, [s for s, _ in each], each[0][1]) for each in seen.values()]
    return _awake(found, recipe), errors or unjudged(recipe, found)


def unruly(segment: Segment, plan: Plan, registry: Registry = REGISTRY) -> list[ComposerError]:
    """Schedules that give no number at the first or last epoch of their run, and those that follow themselves."""
    values = {**{d.path: d.ref for d in plan.dials}, **{k: v for k, v in scheduled(segment.recipe).items() if hasattr(v, "use")}}
    errors = []
    for path, value in values.items():
        try:
            for epoch in (1, max(1, segment.epochs)):
                _value_at(value, epoch, max(1, segment.epochs), values, (path,), registry)
        except (ComposerError, ArithmeticError) as error:
            told = error if isinstance(error, ComposerError) else ComposerError(f"the schedule '{value.use}' gives no number", why=str(error))
            errors.append(ComposerError(told.what, where=place(segment.recipe)(path), why=told.why, fix=told.fix))
    return errors


def _value_at(value: Any, epoch: int, epochs: int, values: dict[str, Any], path: tuple[str, ...], registry: Registry) -> None:
    primitive = registry.get(value.kind, value.use)
    facts = {"epoch": epoch, "step": epoch - 1, "progress": (epoch - 1) / epochs, "epochs": epochs, "ratio": 1.0}
    if any(n.name == "ratio" for n in primitive.needs):
        followed = value.options["path"]
        if followed in path:
            raise ComposerError(f"the schedule follows itself: {' -> '.join([*path, followed])}", fix="follow another path")
        if followed in values:
            _value_at(values[followed], epoch, epochs, values, (*path, followed), registry)
    primitive.fn(*(facts[n.name] for n in primitive.needs), **value.options)


def unjudged(recipe: Any, found: list[tuple[Segment, Plan]], registry: Registry = REGISTRY) -> list[ComposerError]:
    """Weights to be judged that no part offers in some stretch where they are."""
    select, last = recipe.select, found[-1][0]
    selects = select.held_out > 0 and select.attack is not None
    begin = last.first if select.from_ == "last_phase" else int(select.from_)
    errors = []
    for path, which, first in (("select.weights", select.weights, 1 if selects or recipe.trace.every else last.last + 1),
                               ("evaluate.weights", recipe.evaluate.weights, begin if selects else last.last)):
        for segment, plan in found:
            offering = sorted(part.id for part in plan.parts if hasattr(registry.get("part", part.use).fn, "weights"))
            if segment.last >= first and which not in ("live", *offering):
                errors.append(ComposerError(f'{path} = "{which}"', where=place(recipe)(path),
                                            why=f"no part of that name offers weights in epochs {segment.first}-{segment.last}", fix=f"one of {', '.join(['live', *offering])}"))
                break
    return errors


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
    """A part is needed unless neither this stretch nor a later one reads it, and nothing is judged at its weights."""
    read = {recipe.select.weights, recipe.evaluate.weights}
    done = []
    for segment, plan in reversed(found):
        read |= {part.id for part in plan.parts if part.active}
        done.append((segment, marked(plan, read)))
    return done[::-1]


def title(segment: Segment) -> str:
    """The heading of a stretch in a printed plan."""
    phases = f" ({', '.join(segment.phases)})" if segment.phases else ""
    return f"epochs {segment.first}-{segment.last}{phases}{', optimiser afresh' if segment.fresh else ''}"
