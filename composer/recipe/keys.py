"""Which keys a table may have: what an edit may name although nobody has written it (an option left at its default)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composer.options import Option
from composer.recipe import fixed
from composer.recipe.merge import implied_use
from composer.recipe.paths import MISSING, Dotted, get
from composer.recipe.problems import closest
from composer.recipe.uses import rebindable
from composer.registry import REGISTRY, Primitive, Registry

ROOTS = ("data", "augment", "model", "optim", "train", "threat", "select", "trace", "evaluate", "inner", "outer", "terms", "views", "parts",
         "phase", "toggle", "search", "analysis", "expect", "about", "paper", "version", "requires")
BY_ID = ("inner", "terms", "views", "parts", "augment", "phase", "toggle")


@dataclass(frozen=True)
class Holder:
    """A table's fixed keys and the primitive whose options it takes besides. `sure`: nothing else can stand there."""

    table: str = ""
    primitive: Primitive | None = None
    more: tuple[str, ...] = ()
    sure: bool = True

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
    """True where the path could be written: its table is there (or has defaults) and has such a key.

    A table whose primitive nobody knows may have any key, except one that is nearly a key it has.
    """
    if len(path) == 1:
        return path[0] in fixed.FIELDS and path[0] in ROOTS
    holder = table_at(tables, path[:-1], registry)
    return holder is not None and (path[-1] in holder.keys or not holder.sure and closest(path[-1], holder.keys) is None)


def is_table(path: Dotted) -> bool:
    """True where nothing but a table can stand; what stands there instead has been told."""
    tables = len(path) == 1 and path[0] in ROOTS[:-4] or len(path) == 2 and path[0] in BY_ID
    return tables or path[:1] == ("inner",) and len(path) in (3, 4) and path[2] == "terms"


def in_no_table(tables: dict[str, Any], path: Dotted) -> bool:
    """True below something that should be a table and is none: that has been told."""
    above = [path[:end] for end in range(1, len(path))]
    return any(is_table(each) and not isinstance(get(tables, each, {}), dict) for each in above)


def table_at(tables: dict[str, Any], path: Dotted, registry: Registry) -> Holder | None:
    """What kind of table stands at the path; None where none may."""
    value = get(tables, path)
    match path:
        case ("train" | "threat" | "outer" | "select" | "trace" | "evaluate" | "analysis",):
            return Holder(path[0], sure=path[0] != "analysis")
        case ("data" | "model" | "optim",):
            primitive, sure = _used(registry, (path[0],), value, None)
            return Holder(path[0] if path[0] in fixed.FIELDS else "", primitive, sure=sure)
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
    return _nested(tables, path, registry, value) if len(path) >= 2 else None


def _nested(tables: dict[str, Any], path: Dotted, registry: Registry, value: Any) -> Holder | None:
    """The table of an option that takes one."""
    parent = table_at(tables, path[:-1], registry)
    option = parent and parent.option(path[-1])
    if parent and not option and not parent.sure:
        return Holder(sure=False)
    if not option or not option.accepts:
        return None
    default = option.default if isinstance(option.default, str) and not option.threat else None
    primitive, sure = _used(registry, option.accepts, value, "linear" if option.accepts == ("head",) else default)
    return Holder("measure" if option.accepts == ("measure",) else "", primitive, sure=sure) if primitive or not sure else None


def _component(registry: Registry, table: str, kinds: tuple[str, ...], value: Any, path: Dotted, more: tuple[str, ...] = ()) -> Holder | None:
    if value is MISSING or not isinstance(value, (dict, str)):
        return None
    primitive, sure = _used(registry, kinds, value, implied_use(path))
    return Holder(table, primitive, more, sure or kinds == ("phase",) and "use" not in value)


def _used(registry: Registry, kinds: tuple[str, ...], value: Any, default: str | None) -> tuple[Primitive | None, bool]:
    """The primitive a table uses, or the one its writer meant; False where it is not known which."""
    use = value if isinstance(value, str) else value.get("use", default) if isinstance(value, dict) else default
    if not isinstance(use, str):
        return None, not isinstance(value, dict)
    meant = use if any(registry.has(kind, use) for kind in kinds) else closest(use, [n for k in kinds for n in registry.names(k)])
    for kind in kinds if meant else ():
        if registry.has(kind, meant):
            return registry.get(kind, meant), meant == use
    return None, False
