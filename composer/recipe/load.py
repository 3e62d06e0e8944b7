"""The door: a recipe's name or file in, a checked Recipe out, or every error at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, Errors
from composer.recipe.edit import Edit, Editor
from composer.recipe.keys import known
from composer.recipe.layers import METHOD, Stack, assemble, past
from composer.recipe.paths import Dotted, clone, split, touched
from composer.recipe.problems import told_at
from composer.recipe.recipe import Recipe, build, realise, toggle_edit
from composer.recipe.source import label
from composer.recipe.terms import ID
from composer.registry import REGISTRY

Look = Callable[[Recipe], tuple[Any, list[ComposerError]]]      # what a recipe means for a run, and what only a plan shows to be wrong


def load(path_or_name: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (),
         toggles: Sequence[str] = (), root: Path | None = None, look: Look | None = None) -> Recipe:
    """A checked recipe.

    setting  what it runs on; default the recipe's own, else digits
    sets     "path=value" of the command line; drops: paths; toggles: names of toggles that are off
    root     folder of the shipped recipes, settings and protocols; default the installed one
    look     compiles it and its toggles on the way, so that what only a plan shows is told in the same answer
    Errors: Errors with everything wrong with the recipe, its toggles and phases; ComposerError where a file is missing or no TOML.
    """
    recipe, errors = examine(path_or_name, setting=setting, sets=sets, drops=drops, root=root, look=look)
    if errors or recipe is None:
        raise Errors(errors)
    return recipe.without(*toggles) if toggles else recipe


def examine(path_or_name: str | Path, *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (),
            root: Path | None = None, look: Look | None = None) -> tuple[Recipe | None, list[ComposerError]]:
    """As load, but errors are given back: every independent mistake once, none that only follows from another."""
    catalogue()
    errors: list[ComposerError] = []
    asked: dict[str, Any] = {"sets": sets, "drops": drops, "root": root, "known": known}
    try:
        stack = assemble(path_or_name, setting=setting, errors=errors, **asked)
    except ComposerError as error:
        return None, sorted_errors([*errors, *error.all])
    recipe, found = realise(stack)
    base = survey(recipe, look)
    errors += [*found, *base.errors]
    told = {what_is(e) for e in errors}
    alternatives = list(_toggles(stack, base, errors, look))
    for name, edit in stack.others.items():
        more: list[ComposerError] = []
        with suppress(ComposerError):                      # a setting that cannot be read is told where it is used
            other = assemble(path_or_name, setting=name, errors=more, **asked)
            alternatives.append((edit.where, _elsewhere(stack, other, edit, more, look)))
    for where, more in alternatives:
        errors += [told_at(e, where) for e in more if what_is(e) not in told]
    return (None if errors else recipe), sorted_errors(errors)


@dataclass(frozen=True)
class Survey:
    """A recipe with its phases, seen as a whole."""

    recipe: Recipe
    meaning: Any
    errors: list[ComposerError]


def survey(recipe: Recipe, look: Look | None) -> Survey:
    """What it means (its canonical form, or what `look` makes of it), and what is wrong with its phases and plans."""
    _, errors = recipe.stretches()
    meaning, more = look(recipe) if look else (recipe.canonical(), [])
    return Survey(recipe, meaning, [*errors, *more])


def try_toggles(stack: Stack, base: Survey, look: Look | None) -> list[ComposerError]:
    """What is wrong with each toggle alone, on a setting where the recipe (`base`) is sound otherwise, told at the toggle's line."""
    errors: list[ComposerError] = []
    found = [(where, more) for where, more in _toggles(stack, base, errors, look)]
    return [*errors, *(told_at(e, where) for where, more in found for e in more)]


def what_is(error: ComposerError) -> tuple[str, str]:
    """The same mistake of the same line, in whichever variant of the recipe it was found."""
    return error.where, error.what


def catalogue() -> None:
    """All primitives registered: the own catalogue, entry points, plugins."""
    if REGISTRY.frozen:
        return                                             # whoever opened the doors first said what comes in
    from composer.plugins import load_all

    load_all()


def _toggles(stack: Stack, base: Survey, errors: list[ComposerError], look: Look | None) -> Iterable[tuple[str, list[ComposerError]]]:
    """What each toggle alone would do to the recipe. What is wrong with the toggle itself goes to `errors`."""
    wrong = list(errors)
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
        errors += found
        if edit.empty or any(touched(p, stack.commanded) for p in edit.paths()):
            continue                                       # the command line went first; the toggle is checked where it is used
        off, more = _off(stack, edit)
        seen = survey(off, look)
        more = [*more, *seen.errors]
        new = [e for e in more if not any(what_is(e) == what_is(o) for o in errors)]
        cut = bool(stack.commanded)                        # a run cut short from outside may leave a toggle nothing to do: no mistake of the recipe
        if not (new or found or stack.lost or cut) and _dead(base, seen, edit, wrong):
            more = [ComposerError(f"toggle '{name}' changes nothing here", where=where, why="with it off the run is the same (a dead toggle)",
                                  fix="let it change something, or drop it")]
        yield where, more


def _dead(base: Survey, off: Survey, edit: Edit, wrong: list[ComposerError]) -> bool:
    """The toggle changes no plan, and nothing else that reaches a run. Where the recipe has mistakes, only what was written can be compared."""
    if not wrong:
        return bool(base.meaning == off.meaning)
    about = [_path(e) for e in wrong]
    return not any(touched(path, about) for path in edit.paths()) and base.recipe.canonical() == off.recipe.canonical()


def _path(error: ComposerError) -> Dotted:
    """The path that an error is about."""
    try:
        return split(re.sub(r"\[\d+\]$", "", error.where.rpartition("  ")[2]))
    except ValueError:
        return ("",)


def _off(stack: Stack, edit: Edit, base: dict[str, Any] | None = None) -> tuple[Recipe, list[ComposerError]]:
    errors: list[ComposerError] = []
    tables, origins = clone(stack.tables), stack.origins.copy()
    Editor(tables, stack.tables if base is None else base, origins, known, errors, stack.start_evaluate, lost=stack.lost).apply([edit])
    recipe, found = build(stack, tables, origins, whole=True, edits=(edit,))
    return recipe, errors + found


def _elsewhere(stack: Stack, other: Stack, edit: Edit, errors: list[ComposerError], look: Look | None) -> list[ComposerError]:
    """An [on] table of a setting that is not in use: the recipe (`other`) is read on that setting."""
    if edit.name.removeprefix("on.") not in other.settings:      # there is no such setting: what it changes in the method can be checked
        mine = Edit(edit.name, edit.where, {p: v for p, v in edit.set.items() if p[0] in METHOD},
                    {p: w for p, w in edit.drop.items() if p[0] in METHOD}, {p: v for p, v in edit.put.items() if p[0] in METHOD})
        return [] if mine.empty or any(touched(p, stack.commanded) for p in mine.paths()) else _off(stack, mine)[1]
    again = Edit(edit.name, edit.where, set=edit.set)      # over what a paper's [for] has put in its place: it is checked all the same
    recipe, found = _off(other, again, past(other.origins))
    foreign = {label(file) for file in other.files} - {label(file) for file in stack.recipes}
    errors = [*errors, *found, *survey(recipe, look).errors]
    return [e for e in errors if not e.where.startswith("--") and e.where.partition(":")[0] not in foreign]


def sorted_errors(errors: Iterable[ComposerError]) -> list[ComposerError]:
    """By file and line, command line first; each once."""
    unique = {error.text(): error for error in errors}
    return sorted(unique.values(), key=_place)


def _place(error: ComposerError) -> tuple[Any, ...]:
    found = re.match(r"(.*?):(\d+)(?:\s|$)", error.where)
    return (1, found[1], int(found[2])) if found else (0, error.where, 0)
