"""Terms, views, parts, gains and measures: components by id, with a point, a mode, and needs that may be rebound."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from composer.errors import suggest
from composer.recipe import fixed
from composer.recipe.paths import Dotted, show
from composer.recipe.remember import remembered
from composer.recipe.types import MeasureSpec, Term, Use
from composer.recipe.uses import Components, fixed_table, rebindable
from composer.recipe.write import quote
from composer.registry import Primitive

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")                  # what becomes part of a tensor's name
ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
PRINTED = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_@/.:+-]*")
TABLES = {"loss": "term", "view": "view", "part": "part", "gain": "gain", "radius": "radius"}      # kind -> its own keys in fixed.FIELDS
Build = Callable[[str, dict[str, Any], Dotted], Any]


def each(uses: Components, table: Any, path: Dotted, build: Build, pattern: re.Pattern[str]) -> tuple[Any, ...]:
    """A table of components by id, in order of declaration; those that cannot be read are told and left out."""
    found = []
    for key, value in table.items() if isinstance(table, dict) else ():
        here = (*path, key)
        if not isinstance(value, dict):
            uses.problems.add(here, f"{key} = {quote(value)}", why="a table is needed", fix=f"write {key} = {{}}, or {key} = {{ option = value }}")
            uses.problems.unread.pieces.add(here)
            continue
        if not pattern.fullmatch(key):
            why = "names are letters, digits and _, and no digit first" if pattern is NAME else "names are letters, digits, _ and -"
            uses.problems.add(here, f"'{key}' cannot be a name here", why=why)
        else:
            piece = build(key, value, here)
            found += [] if piece is None else [piece]
    return tuple(found)


def keep_use(uses: Components, path: Dotted, primitive: Primitive, options: dict[str, Any]) -> None:
    uses.keep((*path, "use"), primitive.name)
    for key, value in options.items():
        uses.keep((*path, key), value)


def piece(uses: Components, kind: str, id: str, given: dict[str, Any], path: Dotted) -> Any:
    """One component as a Use (a loss as a Term); None where nobody knows what it uses."""
    return remembered(uses, kind, given, path, lambda: _piece(uses, kind, id, given, path))


def _piece(uses: Components, kind: str, id: str, given: dict[str, Any], path: Dotted) -> Any:
    own = fixed.names(TABLES[kind]) if kind in TABLES else []
    primitive = uses.primitive((kind,), given.get("use", id), path, _why_no_use(uses, given, path))
    table = fixed_table(uses, TABLES[kind], {k: v for k, v in given.items() if k in own}, path) if own else {}
    point(uses, table.get("at"), path)
    weighed = gain(uses, given.get("gain"), (*path, "gain")) if kind == "loss" else None
    if primitive is None:
        uses.problems.unread.names += [((*path, "gain"), weighed)] if isinstance(weighed, str) else []
        return None
    rebind = rebinds(uses, primitive, given, path)
    rest = {k: v for k, v in given.items() if k != "use" and k not in own and k not in rebindable_names(primitive)}
    options = uses.options(primitive, rest, path, (*own, "use"))
    keep_use(uses, path, primitive, options)
    for key, value in {**rebind, **{k: v for k, v in table.items() if k != "gain"}}.items():
        uses.keep((*path, key), value)
    shared: dict[str, Any] = {"kind": kind, "id": id, "use": primitive.name, "options": uses.settle(primitive, options), "rebind": rebind,
                              "at": table.get("at"), "bn": table.get("bn"), "normalise": table.get("normalise", False)}
    if kind != "loss":
        return Use(**shared)
    return Term(**shared, weight=table["weight"], gain=weighed, detach=detach(uses, table["detach"], primitive, path))


def _why_no_use(uses: Components, given: dict[str, Any], path: Dotted) -> str:
    return "" if "use" in given or len(path) < 2 else f"the table {show(path)} has no use, so its own name is taken for one"


@cache
def rebindable_names(primitive: Primitive) -> list[str]:
    """Needs that are no options as well."""
    return [n for n in rebindable(primitive) if primitive.option(n) is None]


def rebinds(uses: Components, primitive: Primitive, given: dict[str, Any], path: Dotted) -> dict[str, Any]:
    """Needs that are given another tensor; one that is no name is told and left out."""
    found = {}
    for need in rebindable_names(primitive):
        value = given.get(need)
        if need in given and (not isinstance(value, str) or not NAME.fullmatch(value)):
            uses.problems.add((*path, need), f"{need} = {quote(value)}", why=f"'{need}' is a need: it is given a tensor by name",
                              fix=f'write {need} = "adv_logits", or another name of a tensor')
        elif need in given:
            found[need] = value
    return found


def point(uses: Components, at: str | None, path: Dotted) -> None:
    if at is not None and (at == "x" or at.startswith("x_") or not NAME.fullmatch(at)):
        name = "clean" if at == "x" else at.removeprefix("x_")
        uses.problems.add((*path, "at"), f"at = {quote(at)}", why="a point is named without its x_; the natural images are clean",
                          fix=f'write at = "{name}"')


def gain(uses: Components, given: Any, path: Dotted) -> Use | str | None:
    """A gain with options, a gain by its bare name, or the name of any [N] tensor."""
    if given is None:
        return None
    if isinstance(given, str) and not uses.registry.has("gain", given):
        if not NAME.fullmatch(given):
            uses.problems.add(path, f"gain = {quote(given)}", why="a gain, or the name of an [N] tensor, is needed")
            return None
        uses.keep(path, given)
        return given
    table = {"use": given} if isinstance(given, str) else given
    if not isinstance(table, dict) or "use" not in table:
        uses.problems.add(path, f"gain = {quote(given)}", why="a gain, or the name of an [N] tensor, is needed",
                          fix=f"write the name of a tensor, or {{ use = … }} of {', '.join(uses.registry.names('gain')) or 'none registered'}")
        return None
    return piece(uses, "gain", "gain", table, path)


def detach(uses: Components, names: tuple[str, ...], primitive: Primitive, path: Dotted) -> tuple[str, ...]:
    known = [*rebindable(primitive), "gain"]
    for number, name in enumerate(names):
        if name not in known and not uses.guessed(path):
            uses.problems.add((*path, "detach"), f"detach names '{name}'", why=f"loss '{primitive.name}' has no such need",
                              fix=suggest(name, known, "needs"), item=number)
    return tuple(names)


def measures(uses: Components, name: str, table: dict[str, Any]) -> tuple[MeasureSpec, ...]:
    """The measures of [evaluate] or [trace], by printed name; other keys are the table's own."""
    found = {}
    for key, value in table.items():
        if key in fixed.names(name):
            continue
        if isinstance(value, dict):
            found[key] = value
        else:
            uses.problems.add((name, key), f"[{name}] has no key '{key}'",
                              fix=f"{suggest(key, fixed.names(name), 'keys')}\na measure is a table: {key} = {{ use = \"pgd\", steps = 20 }}")
    return each(uses, found, (name,), lambda key, given, path: measure(uses, key, given, path), PRINTED)


def measure(uses: Components, name: str, given: dict[str, Any], path: Dotted) -> MeasureSpec | None:
    return remembered(uses, "measure", given, path, lambda: _measure(uses, name, given, path))


def _measure(uses: Components, name: str, given: dict[str, Any], path: Dotted) -> MeasureSpec | None:
    primitive = uses.primitive(("measure",), given.get("use", name), path, _why_no_use(uses, given, path))
    table = fixed_table(uses, "measure", {k: v for k, v in given.items() if k == "n"}, path)
    if primitive is None:
        return None
    options = uses.options(primitive, {k: v for k, v in given.items() if k not in ("use", "n")}, path, ("n", "use"))
    keep_use(uses, path, primitive, options)
    uses.keep((*path, "n"), table["n"])
    return MeasureSpec(name, primitive.name, options, table["n"])
