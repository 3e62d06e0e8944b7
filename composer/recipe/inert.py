"""`[expect]` and `[analysis]`: nothing is trained by them, but a misspelt name in them would compare or test nothing."""

from __future__ import annotations

import math
from typing import Any

from composer.errors import suggest
from composer.recipe import fixed
from composer.recipe.problems import Problems, closest
from composer.recipe.uses import Components, fixed_table
from composer.recipe.write import quote

FIX = "write {0} = 0.60, or {0} = {{ value = 0.60, within = 0.02 }}"


def read_expect(problems: Problems, table: dict[str, Any]) -> dict[str, Any]:
    """Measure -> number, or { value, within }. Accuracies are fractions. Strings (prose, hardware) may stand beside and mean nothing."""
    for name, entry in table.items():
        why = "" if isinstance(entry, str) else _wrong(entry)
        if why:
            problems.add(("expect", name), f"{name} = {quote(entry)}", why=why, fix=FIX.format(name))
    return table


def _wrong(entry: Any) -> str:
    if not isinstance(entry, dict):
        return "" if _number(entry) else "a number is needed"
    strange = sorted(set(entry) - {"value", "within"})
    if strange:
        return f"'{strange[0]}' is not known here"
    if not _number(entry.get("value")):
        return "value is a number"
    return "" if _number(entry.get("within", 0)) and entry.get("within", 0) >= 0 else "within is a number >= 0"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def read_analysis(uses: Components, table: dict[str, Any]) -> dict[str, Any]:
    """Typed where the key is known; keys of others pass, unless they are nearly a known one."""
    known = fixed.names("analysis")
    fixed_table(uses, "analysis", {key: value for key, value in table.items() if key in known or closest(key, known)}, ("analysis",))
    thresholds = table.get("thresholds", {})
    for name, value in thresholds.items() if isinstance(thresholds, dict) else ():
        if not _number(value):
            uses.problems.add(("analysis", "thresholds", name), f"{name} = {quote(value)}", why="a threshold is a number",
                              fix=f"write thresholds = {{ {name} = 0.25 }}")
    return table


def check_measured(problems: Problems, pieces: dict[str, Any]) -> None:
    """What [expect] and [analysis] name is measured."""
    names = [m.name for m in pieces["evaluate"].measures]
    primary = pieces["analysis"].get("primary")
    named = [("expect", name) for name, entry in pieces["expect"].items() if not isinstance(entry, str)]
    for path, name in [*((path, path[1]) for path in named), *([(("analysis", "primary"), primary)] if isinstance(primary, str) else [])]:
        if name not in names:
            what = f"primary = {quote(name)}" if path[0] == "analysis" else f"{name} is expected"
            problems.add(path, what, why="it is not among the measures of [evaluate]", fix=suggest(name, names, "measures"))
