"""Which keys a table may have: what an edit may name although nobody has written it (an option left at its default)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composer.options import Option
from composer.recipe import fixed
from composer.recipe.merge import implied_use
from composer.recipe.paths import MISSING, Dotted, get
from composer.recipe.uses import rebindable
from composer.registry import REGISTRY, Primitive, Registry

ROOTS = ("data", "augment", "model", "optim", "train", "threat", "select", "trace", "evaluate", "inner", "outer", "terms", "views", "parts",
         "phase", "toggle", "search", "analysis", "expect", "about", "paper", "version", "requires")


@dataclass(frozen=True)
class Holder:
    """A table's fixed keys and the primitive whose options it takes besides."""

    table: str = ""
    primitive: Primitive | None = None
    more: tuple[str, ...] = ()

    @property
    def keys(self) -> set[str]:
        found = set(self.more) | (set(fixed.names(self.table)) if self.table else set())
        if self.primitive:
            found |= {"use", *(o.name for o in self.primitive.options), *rebindable(self.primitive)}
        return found

    def option(self, key: str) -> Option | None:
        own = fixed.option(self.table, key) if self.table else None
        return own or (self.primitive.option(key) if self.primitive else None)


def known(tables: dict[str, Any], path: Dotted, registry: Registry = REGISTRY) -> bool:
    """True where the path could be written: its table is there (or has defaults) and has such a key."""
    if len(path) == 1:
        return path[0] in fixed.FIELDS and path[0] in ROOTS
    holder = table_at(tables, path[:-1], registry)
    return holder is not None and path[-1] in holder.keys


def table_at(tables: dict[str, Any], path: Dotted, registry: Registry) -> Holder | None:
    """What kind of table stands at the path; None where none may."""
    value = get(tables, path)
    match path:
        case ("train" | "threat" | "outer" | "select" | "trace" | "evaluate",):
            return Holder(path[0])
        case ("data" | "model" | "optim",):
            return Holder(path[0] if path[0] in fixed.FIELDS else "", _used(registry, (path[0],), value, None))
        case ("terms", _) | ("inner", _, "terms", _):
            return _component(registry, "term", ("loss",), value, path)
        case ("views", _) | ("inner", _, "surface"):
            return _component(registry, "view", ("view",), value, path)
        case ("parts", _):
            return _component(registry, "part", ("part",), value, path)
        case ("augment", _):
            return _component(registry, "", ("augment",), value, path)
        case ("inner", _):
            return _component(registry, "inner", ("inner",), value, path, ("eps", "terms", "surface"))
        case ("inner", _, "eps"):
            return _component(registry, "radius", ("radius", "schedule"), value, path)
        case ("terms", _, "gain") | ("inner", _, "terms", _, "gain"):
            return _component(registry, "gain", ("gain",), value, path)
        case ("evaluate" | "trace", _):
            return _component(registry, "measure", ("measure",), value, path)
        case ("phase", _):
            return _component(registry, "phase", ("phase",), value, path, ("use", "set", "drop", "put"))
    if len(path) < 2:
        return None
    parent = table_at(tables, path[:-1], registry)
    option = parent and parent.option(path[-1])
    if not option or not option.accepts:
        return None
    default = option.default if isinstance(option.default, str) and not option.threat else None
    primitive = _used(registry, option.accepts, value, "linear" if option.accepts == ("head",) else default)
    return Holder("measure" if option.accepts == ("measure",) else "", primitive) if primitive else None


def _component(registry: Registry, table: str, kinds: tuple[str, ...], value: Any, path: Dotted, more: tuple[str, ...] = ()) -> Holder | None:
    if value is MISSING or not isinstance(value, (dict, str)):
        return None
    return Holder(table, _used(registry, kinds, value, implied_use(path)), more)


def _used(registry: Registry, kinds: tuple[str, ...], value: Any, default: str | None) -> Primitive | None:
    use = value if isinstance(value, str) else value.get("use", default) if isinstance(value, dict) else default
    return next((registry.get(kind, use) for kind in kinds if isinstance(use, str) and registry.has(kind, use)), None)
