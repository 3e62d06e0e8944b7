"""A small writer of TOML: tables of tables, one header a table, short ones inline."""

from __future__ import annotations

import math
from typing import Any

from composer.recipe.paths import Dotted, key_text, show, string_text

INLINE = 100      # widest table written inside a line


def value_text(value: Any) -> str:
    """One value on one line. Errors: TypeError for what TOML cannot say (None, objects)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
        return repr(value)
    if isinstance(value, str):
        return string_text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key_text(key)} = {value_text(item)}" for key, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"TOML has no way to say {value!r}")


def quote(value: Any) -> str:
    """A value as the user would have written it, for messages."""
    try:
        return value_text(value)
    except TypeError:
        return repr(value)


def toml_text(table: dict[str, Any]) -> str:
    """The whole document. None means: left out."""
    lines: list[str] = []
    _table(table, (), lines)
    return "\n".join(lines).strip() + "\n"


def _table(table: dict[str, Any], path: Dotted, lines: list[str]) -> None:
    rows = {key: value for key, value in table.items() if value is not None and not _own_header(value, path)}
    if path and (rows or not table):
        lines += ["", f"[{show(path)}]"]
    lines += [f"{key_text(key)} = {value_text(value)}" for key, value in rows.items()]
    for key, value in table.items():
        if value is not None and key not in rows:
            _table(value, (*path, key), lines)


def _own_header(value: Any, path: Dotted) -> bool:
    if not isinstance(value, dict):
        return False
    return not path or (path[0] in ("inner", "phase", "on", "for") and len(path) == 1) or len(value_text(value)) > INLINE
