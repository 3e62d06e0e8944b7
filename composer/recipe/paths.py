"""Dotted paths into nested tables: `terms.kl.weight`, `evaluate."pgd-20".n`."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection
from typing import Any

Dotted = tuple[str, ...]
SEGMENT = re.compile(r"""\s*(?:("(?:[^"\\]|\\.)*"|'[^']*')|([^."']+?))\s*(\.|$)""")
PLAIN = re.compile(r"[A-Za-z0-9_-]+")
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing", "__reduce__": lambda self: "MISSING"})()      # pickles as itself


def split(text: str) -> Dotted:
    """Errors: ValueError for a path with an empty segment or an open quote."""
    found, at = [], 0
    while True:
        match = SEGMENT.match(text, at)
        name = match and (_unquoted(match[1], text) if match[1] else match[2].strip())
        if not match or not name:
            raise ValueError(f"'{text}' is not a path; write names joined by dots, as in terms.kl.weight")
        found.append(name)
        at = match.end()
        if match[3] == "":
            return tuple(found)


def _unquoted(quoted: str, text: str) -> str:
    try:
        return tomllib.loads(f"name = {quoted}")["name"]
    except tomllib.TOMLDecodeError:
        raise ValueError(f"'{text}' is not a path: {quoted} is no string") from None


def show(path: Dotted) -> str:
    """The path as TOML writes a dotted key."""
    return ".".join(map(key_text, path))


def key_text(key: str) -> str:
    return key if PLAIN.fullmatch(key) else string_text(key)


def string_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def get(table: Any, path: Dotted, default: Any = MISSING) -> Any:
    for key in path:
        if not isinstance(table, dict) or key not in table:
            return default
        table = table[key]
    return table


def assign(table: dict[str, Any], path: Dotted, value: Any) -> None:
    """Write a value, making the tables around it."""
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value


def clone(value: Any) -> Any:
    """A copy of tables and lists; what stands in them never changes."""
    if type(value) is dict:
        return {key: clone(item) if type(item) in (dict, list) else item for key, item in value.items()}
    return [clone(item) for item in value] if type(value) is list else value


def remove(table: dict[str, Any], path: Dotted) -> None:
    del get(table, path[:-1])[path[-1]]


def leaves(value: Any, path: Dotted = ()) -> list[tuple[Dotted, Any]]:
    """All values that are no table, and empty tables, with their paths."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    return [(path, value)]


def inside(path: Dotted, of: Dotted) -> bool:
    return path[:len(of)] == of


def touched(path: Dotted, by: Collection[Dotted]) -> bool:
    """True where one of `by` is the path, something in it or around it, or the primitive it is an option of."""
    return any(inside(path, each) or inside(each, path) or each[-1] == "use" and inside(path, each[:-1]) for each in by)
