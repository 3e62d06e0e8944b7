"""`[search]`: the space a sweep draws from. Paths as in edits; a range or a list of choices each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from composer.recipe.edit import near
from composer.recipe.keys import in_no_table, known
from composer.recipe.layers import past
from composer.recipe.paths import MISSING, Dotted, get, split, touched
from composer.recipe.problems import Problems
from composer.recipe.write import quote
from composer.registry import Registry

RANGE = {"low", "high", "log", "step"}
FIX = "write { low = 1.0, high = 100.0, log = true }, { low, high, step }, or { choices = [ … ] }"


def check_search(table: dict[str, Any], tables: dict[str, Any], problems: Problems, registry: Registry,
                 spared: Collection[Dotted] = ()) -> dict[str, dict[str, Any]]:
    """Path -> the space of one value, as written. Problems: paths that are not there, ranges that are none.

    spared   paths the command line wrote: what it dropped or swapped is no typing error
    """
    found = {}
    for text, space in table.items():
        here = ("search", text)
        if isinstance(space, dict) and not set(space) & {*RANGE, "choices"} and "." not in text:
            problems.add(here, f"{text} is a table of tables", why="a path with dots stands in quotes",
                         fix=f'write "{text}.…" = {{ low = …, high = … }}')
            continue
        try:
            path = split(text)
        except ValueError as error:
            problems.add(here, str(error))
            continue
        there = get(tables, path) is not MISSING or known(tables, path, registry)
        if not (there or in_no_table(tables, path) or problems.unread.lost or touched(path, spared) or _was_there(problems, path, registry)):
            problems.add(here, f'"{text}"', why="there is no such path in the recipe", fix=near(tables, path))
        why = _wrong(space)
        if why:
            problems.add(here, f'"{text}" = {quote(space)}', why=why, fix=FIX)
        elif there:
            found[text] = dict(space)
    return found


def _was_there(problems: Problems, path: Dotted, registry: Registry) -> bool:
    """An earlier layer had it, and another one dropped or swapped it: there is nothing to draw, and nothing wrong."""
    before = past(problems.origins)
    return get(before, path) is not MISSING or known(before, path, registry)


def _wrong(space: Any) -> str:
    if not isinstance(space, dict):
        return "a range or a list of choices is needed"
    if "choices" in space:
        fits = set(space) == {"choices"} and isinstance(space["choices"], list) and space["choices"]
        return "" if fits else "choices is a list that is not empty, and stands alone"
    extra = sorted(set(space) - RANGE)
    if extra or not {"low", "high"} <= set(space):
        return f"unknown key {extra[0]}" if extra else "low and high are needed"
    numbers = [space[k] for k in ("low", "high", "step") if k in space]
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers):
        return "low, high and step are numbers"
    if not isinstance(space.get("log", False), bool):
        return "log is true or false"
    if not space["low"] < space["high"]:
        return "low must be below high"
    if space.get("log") and space["low"] <= 0:
        return "a logarithmic range starts above 0"
    if space.get("log") and "step" in space:
        return "a logarithmic range has no step"
    return "" if space.get("step", 1) > 0 else "step must be above 0"
