"""Laying tables over each other, and remembering who said what."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from composer.recipe.paths import MISSING, Dotted, assign, clone, get, inside, leaves, remove
from composer.registry import KINDS, REGISTRY

REMOVED: Any = type("Removed", (), {"__repr__": lambda self: "removed", "__reduce__": lambda self: "REMOVED"})()      # pickles as itself
Place = Callable[[Dotted], str]
CONTAINERS = ("terms", "views", "parts", "augment", "evaluate", "trace")     # their tables' `use` defaults to the key


class Origins:
    """For every path, all (place, value) that were said about it, in order: the last one won."""

    def __init__(self) -> None:
        self.said: dict[Dotted, list[tuple[str, Any]]] = {}
        self.tables: dict[Dotted, str] = {}
        self.home = ""                                     # the recipe's own file, for what nobody has written

    def copy(self) -> Origins:
        new = Origins()
        new.said = {path: list(said) for path, said in self.said.items()}
        new.tables, new.home = dict(self.tables), self.home
        return new

    def note(self, path: Dotted, place: str, value: Any) -> None:
        self.said.setdefault(path, []).append((place, value))

    def where(self, path: Dotted) -> str:
        """Where the path, or the nearest table around it, was last said."""
        for end in range(len(path), 0, -1):
            said = self.said.get(path[:end])
            if said and said[-1][1] is not REMOVED:
                return said[-1][0]
            if path[:end] in self.tables:
                return self.tables[path[:end]]
        return ""

    def erase(self, path: Dotted, place: str, spare: Collection[Dotted] = ()) -> None:
        """Everything at and below a path has been replaced or dropped; `spare` is said anew."""
        depth = len(path)
        for each, said in self.said.items():
            if each[:depth] == path and each not in spare and said[-1][1] is not REMOVED:
                said.append((place, REMOVED))
        for each in [p for p in self.tables if p[:depth] == path]:
            del self.tables[each]


def implied_use(path: Dotted) -> str | None:
    """The primitive a component's table uses where it does not say: its own key; a head is linear."""
    if len(path) == 2 and path[0] in CONTAINERS or len(path) == 4 and path[0] == "inner" and path[2] == "terms":
        return path[-1]
    return "linear" if path == ("model", "head") else None


def swaps(held: dict[str, Any], over: dict[str, Any], path: Dotted) -> bool:
    """True where `over` uses another primitive than what it is laid over: the old options mean nothing to it.

    A name that nobody has registered is a mistake, most likely in the name alone: the table below stays.
    """
    if "use" not in over:
        return False
    before, use = held.get("use", implied_use(path)), over["use"]
    if path == ("evaluate",):
        return bool(use != before)
    return use != before and before is not None and isinstance(use, str) and any(REGISTRY.has(kind, use) for kind in KINDS)


def write(tables: dict[str, Any], path: Dotted, value: Any, origins: Origins, place: Place) -> None:
    """Replace whatever stands at the path."""
    if get(tables, path) is not MISSING:
        origins.erase(path, place(path), {each for each, item in leaves(value, path) if item != {}})
    assign(tables, path, clone(value))
    for end in range(1, len(path)):
        origins.tables.setdefault(path[:end], place(path[:end]))
    note(path, value, origins, place)


def note(path: Dotted, value: Any, origins: Origins, place: Place) -> None:
    if isinstance(value, dict):
        origins.tables[path] = place(path)
        for key, item in value.items():
            note((*path, key), item, origins, place)
    else:
        origins.note(path, place(path), clone(value))
        for number in range(len(value)) if isinstance(value, list) else ():
            origins.tables[(*path, str(number))] = place((*path, str(number)))


def merge(tables: dict[str, Any], over: dict[str, Any], origins: Origins, place: Place, path: Dotted = ()) -> None:
    """Lay `over` on `tables` at `path`: tables merge, a table that uses another primitive replaces the whole one below, all else replaces."""
    for key, value in over.items():
        here = (*path, key)
        held = get(tables, here)
        if isinstance(value, dict) and isinstance(held, dict) and not swaps(held, value, here):
            origins.tables[here] = place(here)
            merge(tables, value, origins, place, here)
        else:
            write(tables, here, value, origins, place)


def drop(tables: dict[str, Any], path: Dotted, origins: Origins, place: str) -> None:
    remove(tables, path)
    origins.erase(path, place)


def said_below(origins: Origins, path: Dotted) -> dict[Dotted, list[tuple[str, Any]]]:
    return {each: said for each, said in origins.said.items() if inside(each, path)}
