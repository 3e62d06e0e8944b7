"""The door: a recipe's name or file in, a checked Recipe out, or every error at once."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, Errors
from composer.recipe.edit import Edit, Editor
from composer.recipe.keys import known
from composer.recipe.layers import METHOD, Stack, assemble
from composer.recipe.paths import inside
from composer.recipe.recipe import Recipe, build, realise, toggle_edit
from composer.recipe.terms import ID
from composer.registry import REGISTRY


def load(path_or_name: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (),
         toggles: Sequence[str] = (), root: Path | None = None) -> Recipe:
    """A checked recipe.

    setting  what it runs on; default the recipe's own, else digits
    sets     "path=value" of the command line; drops: paths; toggles: names of toggles that are off
    root     folder of the shipped recipes, settings and protocols; default the installed one
    Errors: Errors with everything wrong with the recipe, its toggles and phases; ComposerError where a file is missing or no TOML.
    """
    recipe, errors = examine(path_or_name, setting=setting, sets=sets, drops=drops, root=root)
    if errors or recipe is None:
        raise Errors(errors)
    return recipe.without(*toggles) if toggles else recipe


def examine(path_or_name: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (),
            root: Path | None = None) -> tuple[Recipe | None, list[ComposerError]]:
    """As load, but errors are given back."""
    catalogue()
    errors: list[ComposerError] = []
    try:
        stack = assemble(path_or_name, setting=setting, sets=sets, drops=drops, root=root, known=known, errors=errors)
    except ComposerError as error:
        return None, sorted_errors([*errors, *error.all])
    recipe, found = realise(stack)
    errors += found
    if recipe is not None:
        errors += _segments(recipe)
    keys = {(e.what, e.why) for e in errors}
    for label, more in _alternatives(stack, recipe, errors):
        errors += [_at(e, label) for e in more if (e.what, e.why) not in keys]
    return (None if errors else recipe), sorted_errors(errors)


def _segments(recipe: Recipe) -> list[ComposerError]:
    """What is wrong with the phases of a recipe."""
    try:
        recipe.segments()
    except ComposerError as error:
        return error.all
    return []


def catalogue() -> None:
    """All primitives registered: the own catalogue, entry points, plugins."""
    if REGISTRY.frozen:
        return                                             # whoever opened the doors first said what comes in
    from composer.plugins import load_all

    load_all()


def _alternatives(stack: Stack, recipe: Recipe | None, errors: list[ComposerError]) -> Iterable[tuple[str, list[ComposerError]]]:
    """What each toggle alone, and each [on] table of another setting, would do to the recipe."""
    toggles = stack.tables.get("toggle", {})
    for name in toggles if isinstance(toggles, dict) else ():
        where = f"{stack.origins.where(('toggle', name))}  toggle.{name}"
        if not ID.fullmatch(name):
            errors.append(ComposerError(f"'{name}' cannot be a toggle's name", where=where, why="names are letters, digits, _ and -"))
            continue
        found: list[ComposerError] = []
        edit = toggle_edit(stack, name, found)
        if edit.empty and not found:
            found.append(ComposerError(f"toggle '{name}' changes nothing", where=where, fix='give it set = { … } or drop = [ … ]'))
        if found:
            errors += found
            continue
        if any(inside(p, c) or inside(c, p) for p in edit.paths() for c in stack.commanded):
            continue                                       # the command line went first; the toggle is checked where it is used
        off, more = _off(stack, edit)
        if not more and off is not None and recipe is not None and off.canonical() == recipe.canonical():
            more = [ComposerError(f"toggle '{name}' changes nothing here", where=where, why="with it off the recipe means the same (a dead toggle)",
                                  fix="let it change something, or drop it")]
        if not more and off is not None and recipe is not None:
            more = _segments(off)
        yield where, more
    for edit in stack.others:
        yield edit.where, _elsewhere(stack, edit)


def _off(stack: Stack, edit: Edit) -> tuple[Recipe | None, list[ComposerError]]:
    errors: list[ComposerError] = []
    tables, origins = copy.deepcopy(stack.tables), stack.origins.copy()
    Editor(tables, stack.tables, origins, known, errors, stack.start_evaluate).apply([edit])
    recipe, found = build(stack, tables, origins, whole=True)
    return recipe, errors + found


def _elsewhere(stack: Stack, edit: Edit) -> list[ComposerError]:
    """An [on] table of a setting that is not in use: its paths into the method are checked, those into settings cannot be."""
    mine = Edit(edit.name, edit.where, {p: v for p, v in edit.set.items() if p[0] in METHOD}, {p: w for p, w in edit.drop.items() if p[0] in METHOD},
                {p: v for p, v in edit.put.items() if p[0] in METHOD})
    return _off(stack, mine)[1] if not mine.empty else []


def _at(error: ComposerError, label: str) -> ComposerError:
    """An error that only an edit brings about, told at the edit's line."""
    file, _, name = label.partition("  ")
    if error.where.startswith(file.rpartition(":")[0]) and error.where.endswith(name):
        return error
    path = error.where.partition("  ")[2]
    return ComposerError(error.what, where=label, why="\n".join(filter(None, [f"it leaves {path} wrong" if path else "", error.why])), fix=error.fix)


def sorted_errors(errors: Iterable[ComposerError]) -> list[ComposerError]:
    """By file and line, command line first; each once."""
    unique = {error.text(): error for error in errors}
    return sorted(unique.values(), key=_place)


def _place(error: ComposerError) -> tuple[Any, ...]:
    found = re.match(r"(.*?):(\d+)(?:\s|$)", error.where)
    return (1, found[1], int(found[2])) if found else (0, error.where, 0)
