"""Edits: `set` replaces, `drop` removes, `put` adds. Toggles, phases, cells and per-setting values are all edits."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from composer.errors import ComposerError
from composer.recipe import merge as layer
from composer.recipe.keys import in_no_table, table_at
from composer.recipe.merge import Origins, Place
from composer.recipe.paths import MISSING, Dotted, get, inside, leaves, show, split
from composer.recipe.problems import closest
from composer.recipe.write import quote
from composer.registry import REGISTRY

Known = Callable[[dict[str, Any], Dotted], bool]       # is the path one that could be written here (an option left at its default)?
Said = tuple[Any, str]                                 # value, place


@dataclass(frozen=True)
class Edit:
    """What one toggle, phase, cell or [on] table changes; every path remembers where it was written."""

    name: str
    where: str
    set: dict[Dotted, Said] = field(default_factory=dict)
    drop: dict[Dotted, str] = field(default_factory=dict)
    put: dict[Dotted, Said] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.set or self.drop or self.put)

    def over(self, base: Edit) -> Edit:
        """Both edits as one; this one wins where they set the same path."""
        return Edit(self.name, self.where, {**base.set, **self.set}, {**base.drop, **self.drop}, {**base.put, **self.put})

    def paths(self) -> dict[Dotted, str]:
        return {**{p: w for p, (_, w) in self.set.items()}, **self.drop, **{p: w for p, (_, w) in self.put.items()}}


def read_edit(name: str, table: Any, where: str, place: Place, errors: list[ComposerError]) -> Edit:
    """An edit from `{ set = {…}, drop = […], put = {…} }`. `place` gets the path below that table."""
    edit = Edit(name, where)
    if not isinstance(table, dict):
        errors.append(ComposerError(f"{name} = {quote(table)}", where=where, why="an edit is a table",
                                    fix='write { set = { "path" = value }, drop = ["path"] }'))
        return edit
    for key in sorted(set(table) - {"set", "drop", "put"}):
        errors.append(ComposerError(f"'{key}' is no part of an edit", where=place((key,)), fix="an edit has set, drop and put"))
    for kind in ("set", "put"):
        entries = table.get(kind, {})
        if not isinstance(entries, dict):
            errors.append(ComposerError(f"{kind} = {quote(entries)}", where=place((kind,)), why="a table of paths and values is needed",
                                        fix=f'write {kind} = {{ "terms.kl.weight" = 6.0 }}'))
            continue
        for text, value in entries.items():
            _take(getattr(edit, kind), text, value, place((kind, text)), errors)
    _take_drops(edit.drop, table.get("drop", []), place, errors)
    return edit


def _take_drops(into: dict[Dotted, str], drops: Any, place: Place, errors: list[ComposerError]) -> None:
    """A list of paths; each is told at its own line."""
    if not isinstance(drops, list):
        errors.append(ComposerError(f"drop = {quote(drops)}", where=place(("drop",)), why="a list of paths is needed", fix='write drop = ["terms.kl"]'))
        return
    for number, text in enumerate(drops):
        where = place(("drop", str(number)))
        if not isinstance(text, str):
            errors.append(ComposerError(f"drop = {quote(drops)}", where=where, why=f"{quote(text)} is no path", fix='write drop = ["terms.kl"]'))
            continue
        path = _path(text, where, errors)
        if path:
            into[path] = where


def _take(into: dict[Dotted, Said], text: str, value: Any, where: str, errors: list[ComposerError]) -> None:
    """`set = { "a.b" = 1 }` and `set = { a.b = 1 }` mean the same; a table under a quoted path is a value."""
    if "." not in text and isinstance(value, dict) and value:
        for path, item in leaves(value, (text,)):
            into[path] = (item, where)
        return
    path = _path(text, where, errors)
    if path:
        into[path] = (value, where)


def _path(text: str, where: str, errors: list[ComposerError]) -> Dotted | None:
    try:
        return split(text)
    except ValueError as error:
        errors.append(ComposerError(str(error), where=where))
        return None


class Editor:
    """Applies the edits of one layer, all at once, to `tables` (changed in place). `base` is what paths must exist in.

    Where a table must stand and something else does, that has been told, and edits inside it are passed over. `lost`: a parent is missing,
    and no path is accused of not being there.
    """

    def __init__(self, tables: dict[str, Any], base: dict[str, Any], origins: Origins, known: Known, errors: list[ComposerError],
                 start_evaluate: Callable[[dict[str, Any], str, Origins, str], None] | None = None, *, lost: bool = False):
        self.tables, self.base, self.origins, self.known, self.errors = tables, base, origins, known, errors
        self.start_evaluate, self.lost = start_evaluate, lost

    def apply(self, edits: Iterable[Edit]) -> None:
        edits = [e for e in edits if not e.empty]
        for first, second, path in conflicts(edits):
            self.fail(second.set[path][1], show(path), f"{second.name} sets it to {quote(second.set[path][0])}, "
                      f"{first.name} to {quote(first.set[path][0])}", fix="let one of them set it")
        drops = {path: (place, edit) for edit in edits for path, place in edit.drop.items()}
        before = [path for edit in edits for path in edit.set]
        for edit in edits:
            for path, (value, place) in sorted(edit.set.items(), key=lambda item: len(item[0])):
                if not any(inside(path, gone) for gone in drops):
                    self.set(path, value, place, before)
        for path, (place, edit) in drops.items():
            self.drop(path, place, edit, [gone for gone, (_, by) in drops.items() if gone != path])
        for edit in edits:
            for path, (value, place) in edit.put.items():
                self.put(path, value, place, [gone for gone, (_, by) in drops.items() if by is not edit])

    def fail(self, place: str, what: str, why: str, fix: str = "") -> None:
        self.errors.append(ComposerError(what, where=place, why=why, fix=fix))

    def absent(self, place: str, what: str, tables: dict[str, Any], path: Dotted, why: str = "there is no such path in the recipe") -> None:
        if not self.lost:
            self.fail(place, what, why, near(tables, path))

    def exists(self, tables: dict[str, Any], path: Dotted) -> bool:
        return get(tables, path) is not MISSING or self.known(tables, path)

    def set(self, path: Dotted, value: Any, place: str, before: list[Dotted]) -> None:
        if in_no_table(self.tables, path):
            return None
        if not self.exists(self.tables, path):
            if self.exists(self.base, path) and not any(len(p) < len(path) and inside(path, p) for p in before):
                return                                     # inside what an earlier layer dropped: void
            return self.absent(place, f"set {show(path)} = {quote(value)}", self.tables, path)
        if path == ("evaluate", "use") and self.start_evaluate:
            return self.start_evaluate(self.tables, value, self.origins, place)
        holder = get(self.tables, path[:-1])
        if isinstance(holder, str):                        # start = "gaussian": its options are there all the same
            layer.write(self.tables, path[:-1], {"use": holder}, self.origins, lambda _: place)
        layer.write(self.tables, path, value, self.origins, lambda _: place)

    def drop(self, path: Dotted, place: str, edit: Edit, others: list[Dotted]) -> None:
        if get(self.tables, path) is not MISSING:
            layer.drop(self.tables, path, self.origins, place)
        elif get(self.base, path) is MISSING and not in_no_table(self.tables, path) and not any(inside(path, gone) for gone in others):
            self.absent(place, f"drop {show(path)}", self.base, path)

    def put(self, path: Dotted, value: Any, place: str, gone: list[Dotted]) -> None:
        if in_no_table(self.tables, path) or any(inside(path, g) for g in gone):
            return None
        if get(self.tables, path) is not MISSING:
            return self.fail(place, f"put {show(path)}", f"the recipe has it already ({self.origins.where(path)})", "use set to change it")
        parent = get(self.tables, path[:-1])
        if parent is MISSING and len(path) > 2 and get(self.base, path[:-1]) is not MISSING:
            return None                                    # inside what an earlier layer dropped: void
        if parent is MISSING and len(path) > 2 and not (len(path) == 4 and path[2] == "terms" and get(self.tables, path[:2]) is not MISSING):
            return self.absent(place, f"put {show(path)}", self.tables, path[:-1], f"there is no table {show(path[:-1])} to put it into")
        if parent is not MISSING and not isinstance(parent, dict):
            return self.fail(place, f"put {show(path)}", f"{show(path[:-1])} is {quote(parent)}, no table")
        layer.write(self.tables, path, value, self.origins, lambda _: place)


def conflicts(edits: list[Edit]) -> list[tuple[Edit, Edit, Dotted]]:
    """Pairs of edits that set one path to different values."""
    found, seen = [], {}
    for edit in edits:
        for path, (value, _) in edit.set.items():
            if path in seen and seen[path].set[path][0] != value:
                found.append((seen[path], edit, path))
            seen.setdefault(path, edit)
    return found


def near(tables: dict[str, Any], path: Dotted) -> str:
    """A fix for a path that is not there: the closest ones that are, or what the nearest table holds."""
    holder = table_at(tables, path[:-1], REGISTRY) if len(path) > 1 else None
    here = [show(p[:end]) for p, _ in leaves(tables) for end in range(1, len(p) + 1) if p[0] not in ("search", "toggle")]
    here += [show((*path[:-1], key)) for key in (holder.keys if holder else ())]
    close = difflib.get_close_matches(show(path), sorted(set(here)), n=3, cutoff=0.75)
    alike = holder and closest(path[-1], holder.keys)
    if alike:
        close = [show((*path[:-1], alike))]
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    if holder and holder.primitive:
        return f"{show(path[:-1])} takes {', '.join(sorted(holder.keys))}"
    for end in range(len(path) - 1, -1, -1):
        held = get(tables, path[:end])
        if isinstance(held, dict):
            keys = ", ".join(sorted(held)) or "nothing"
            return f"{show(path[:end]) if end else 'the recipe'} holds {keys}"
    return ""
