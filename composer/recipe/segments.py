"""Phases and `begin`s as stretches of epochs with one plan each."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from composer.errors import ComposerError
from composer.options import whole_epochs
from composer.recipe import merge as layer
from composer.recipe.edit import Edit, Editor
from composer.recipe.keys import known
from composer.recipe.layers import past
from composer.recipe.merge import Origins
from composer.recipe.paths import Dotted, clone, show
from composer.recipe.phases import Phase
from composer.recipe.problems import told_at
from composer.recipe.types import Segment

LAYERS = ("phase", "toggle", "search")       # a stretch has none


def segments(recipe: Any) -> tuple[tuple[Segment, ...], list[ComposerError]]:
    """Stretches in order, 1-based, inclusive, counted over added phases too; neighbours that mean the same are one.

    An added phase with `then = "fresh"` has a clock of its own: schedules run in it as at the run's start, and start again after it.
    Without, the schedules run once over all epochs. The errors: every phase that does not check or contradicts another, each once.
    """
    epochs, begins = recipe.train.epochs, _begins(recipe)
    added = [p for p in recipe.phases if p.add and p.sound]
    normal = [p for p in recipe.phases if not p.add and p.sound and p.start < p.stop]
    errors: list[ComposerError] = []
    found: list[Segment] = []
    made: dict[Any, Any] = {}

    def stretch(active: list[Phase], gone: list[Dotted]) -> Any:
        key = (tuple(p.name for p in active), tuple(gone))
        if key not in made:
            made[key] = _apply(recipe, active, gone, errors)
        return made[key]

    total = epochs + sum(p.stop for p in added if not p.fresh)
    before, clock = 0, 0
    for phase in added:
        length = max(epochs, phase.stop) if phase.fresh else total
        found.append(Segment(before + 1, before + phase.stop, stretch([phase], [path for path, _ in begins]), (phase.name,), clock, length))
        before += phase.stop
        if phase.fresh:
            clock = before
    length = epochs if clock == before else total
    for first, last in _borders(epochs, normal, begins):
        active = [p for p in normal if p.start <= first and last <= p.stop]
        gone = [path for path, begin in begins if begin > first]
        names = tuple(p.name for p in active)
        found.append(Segment(before + first + 1, before + last, stretch(active, gone), names, clock, length))
    for phase in recipe.phases:
        if not phase.sound:
            stretch([phase], [])                               # what it changes is checked, and is no stretch
    found = _fresh_after(found, added)
    return tuple(_joined(found)), list({error.text(): error for error in errors}.values())


def _fresh_after(found: list[Segment], added: list[Phase]) -> list[Segment]:
    """The stretch behind an added phase with `then = "fresh"` starts the optimiser anew."""
    return [replace(s, fresh=s.fresh or (0 < n <= len(added) and added[n - 1].fresh)) for n, s in enumerate(found)]


def _borders(epochs: int, phases: list[Phase], begins: list[tuple[Dotted, int]]) -> list[tuple[int, int]]:
    cuts = {0, epochs} | {c for p in phases for c in (p.start, p.stop)} | {begin for _, begin in begins}
    ordered = sorted(c for c in cuts if 0 <= c <= epochs)
    return list(pairwise(ordered))


def _begins(recipe: Any) -> list[tuple[Dotted, int]]:
    """(path, epochs completed before it starts) of every component, gain and inner with `begin`."""
    return [(path[:-1], whole_epochs(value, recipe.train.epochs)) for path, value in _begin_keys(recipe.full) if value is not None]


def _begin_keys(tables: dict[str, Any]) -> list[tuple[Dotted, Any]]:
    found: list[tuple[Dotted, Any]] = []

    def search(table: dict[str, Any], path: Dotted) -> None:
        for key, value in table.items() if isinstance(table, dict) else ():
            if isinstance(value, dict):
                search(value, (*path, key))
            elif key == "begin":
                found.append(((*path, key), value))

    for root in ("inner", "terms", "views", "parts"):
        search(tables.get(root, {}), (root,))
    return found


def _apply(recipe: Any, active: list[Phase], gone: list[Dotted], errors: list[ComposerError]) -> Any:
    """The recipe of one stretch: phases' edits and late components' absence, all at once."""
    from composer.recipe.recipe import build

    if not (active or gone or "phase" in recipe.tables or _begin_keys(recipe.tables)):
        tables = {key: value for key, value in recipe.tables.items() if key not in LAYERS}
        return replace(recipe, tables=tables, toggle={}, search={}, _cache={})
    tables, origins = clone(recipe.tables), recipe.history.copy()
    base = past(recipe.stack.origins)                      # with what the command line has dropped or swapped: edits of it are void
    layer.merge(base, recipe.tables, Origins(), lambda _: "")
    late = Edit("begin", "", drop={path: recipe.where((*path, "begin")) for path in gone})
    Editor(tables, base, origins, known, errors, recipe.stack.start_evaluate, lost=recipe.stack.lost).apply([late, *(p.edit for p in active)])
    for name in LAYERS:
        tables.pop(name, None)
    for path, _ in _begin_keys(tables):
        holder = tables
        for key in path[:-1]:
            holder = holder[key]
        del holder["begin"]
    made, found = build(recipe.stack, tables, origins, recipe.off, recipe.edits)
    told = {(e.where, e.what) for e in recipe.wrong}
    if active:
        label = f"{recipe.where(('phase', active[-1].name))}  {show(('phase', active[-1].name))}"
        found = [e if (e.where, e.what) in told else told_at(e, label) for e in found]
    errors += found
    return made


def _joined(found: list[Segment]) -> list[Segment]:
    """Neighbours whose recipes are equal become one stretch."""
    joined: list[Segment] = []
    for each in found:
        last = joined[-1] if joined else None
        if last and not each.fresh and (last.clock, last.epochs) == (each.clock, each.epochs) and last.recipe.canonical() == each.recipe.canonical():
            joined[-1] = replace(last, last=each.last, phases=tuple(p for p in last.phases if p in each.phases))
        else:
            joined.append(each)
    return joined
