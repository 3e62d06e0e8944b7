"""What an experiment is: its canonical form, its digest, the filled-in text, and who said what."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from composer.errors import ComposerError
from composer.options import pixel_word
from composer.recipe.edit import near
from composer.recipe.keys import table_at
from composer.recipe.merge import CONTAINERS, REMOVED, said_below
from composer.recipe.paths import MISSING, Dotted, assign, clone, get, leaves, show, split
from composer.recipe.write import toml_text
from composer.registry import REGISTRY

BY_ID = {(name,) for name in (*CONTAINERS, "phase")}
ORDERED = ("inner", "parts", "augment")       # tables whose order of declaration means something


def canonical(full: dict[str, Any]) -> dict[str, Any]:
    """Sorted, without None and without the mere name of the protocol; ordered tables carry their order."""
    tables = {key: _stable(value) for key, value in sorted(full.items())}
    tables.get("evaluate", {}).pop("use", None)
    for name in ORDERED:
        if tables.get(name):
            tables[name] = {key: tables[name][key] for key in full[name]}
    return {key: value for key, value in tables.items() if value != {} or key in ("terms",)}


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(item) for key, item in sorted(value.items()) if item is not None}
    if isinstance(value, (list, tuple)):
        return [_stable(item) for item in value]
    return value


def digest(tables: dict[str, Any]) -> str:
    """16 bytes of BLAKE2 over the canonical form, in hex."""
    ordered = {**tables, "": {name: list(tables.get(name, {})) for name in ORDERED}}
    text = json.dumps(ordered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def filled(recipe: Any) -> str:
    head = {"about": recipe.about or None, "paper": recipe.paper or None, "setting": recipe.setting, "version": recipe.version,
            "requires": list(recipe.requires) or None, "drop": _setting_drops(recipe) or None}
    tail = {"toggle": recipe.toggle, "search": recipe.search, "analysis": recipe.analysis, "expect": recipe.expect}
    full = clone(recipe.full)
    for path in _as_written(recipe):
        assign(full, path, clone(get(recipe.tables, path)))
    tables = {key: value for key, value in {**full, **tail}.items() if value or key == "terms"}
    return toml_text({**head, **tables})


def _as_written(recipe: Any) -> list[Dotted]:
    """Tables that a toggle or phase swaps, or puts a key into, stay as written: defaults of the old primitive would stand in the way."""
    from composer.recipe.recipe import toggle_edit

    edits = [p.edit for p in recipe.phases] + [toggle_edit(recipe.stack, name, []) for name in recipe.toggle]
    paths = [path[:-1] for edit in edits for path in edit.set if path[-1] == "use"] + [path[:-1] for edit in edits for path in edit.put]
    return [p for p in dict.fromkeys(paths) if isinstance(get(recipe.tables, p), dict) and not (p[-1] in ("terms", "inner") or p in BY_ID)]


def _setting_drops(recipe: Any) -> list[str]:
    """What the setting would bring back into the filled text although the recipe has lost it."""
    gone: list[str] = []
    for path, _ in leaves(recipe.stack.beneath):
        for end in range(1, len(path) + 1):
            if get(recipe.full, path[:end]) is MISSING and get(recipe.tables, path[:end]) is MISSING:
                gone.append(show(path[:end]))
                break
    return list(dict.fromkeys(gone))


def why(recipe: Any, text: str) -> list[dict[str, Any]]:
    """Everything said about a path and below it, eldest first; a default is told with the place that declares it."""
    try:
        path = split(text)
    except ValueError as error:
        raise ComposerError(str(error)) from None
    rows = [_row(each, where, value, value is not REMOVED and number == len(said) - 1)
            for each, said in said_below(recipe.history, path).items() for number, (where, value) in enumerate(said)]
    if rows:
        return rows + _referred(recipe, rows)
    value = get(recipe.full, path)
    if value is MISSING:
        above = [path[:end] for end in range(len(path) - 1, 0, -1) if path[:end] in recipe.origins]
        if above:
            return why(recipe, show(above[0]))
        fallback = _threat_value(recipe, path)
        if fallback:
            return fallback
        raise ComposerError(show(path), why="there is no such path in the recipe", fix=near(recipe.full, path))
    holder = table_at(recipe.tables, path[:-1], REGISTRY)
    origin = holder.primitive.origin if holder and holder.primitive and holder.primitive.option(path[-1]) else "composer"
    return [_row(path, f"default of {origin}", value, True)]


def _referred(recipe: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the threat says, where a value is a word of it: "threat", "threat/2"."""
    named = []
    for row in rows:
        word = pixel_word(row["value"]) if row["wins"] and isinstance(row["value"], str) else None
        if word and word.of == "threat":
            named.append("threat.step" if split(row["path"])[-1] == "step" else "threat.eps")
    return [each for path in dict.fromkeys(named) for each in why(recipe, path)]


def _threat_value(recipe: Any, path: Dotted) -> list[dict[str, Any]]:
    """An inner's option that nobody wrote and [threat] supplies."""
    holder = table_at(recipe.tables, path[:-1], REGISTRY)
    option = holder.option(path[-1]) if holder else None
    return why(recipe, f"threat.{path[-1]}") if option and option.threat else []


def _row(path: Dotted, where: str, value: Any, wins: bool) -> dict[str, Any]:
    return {"path": show(path), "where": where, "value": None if value is REMOVED else value, "removed": value is REMOVED, "wins": wins}
