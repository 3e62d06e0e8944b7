"""Reading a study's file: its rows, each checked through the edits of recipes, all mistakes collected."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from composer.errors import ComposerError, suggest
from composer.recipe.edit import Edit, read_edit
from composer.recipe.find import setting_names
from composer.recipe.inert import read_analysis
from composer.recipe.paths import Dotted
from composer.recipe.problems import Problems, told_at
from composer.recipe.recipe import Recipe
from composer.recipe.source import Doc
from composer.recipe.studies import Bases, Row, Study, place_of
from composer.recipe.study_command import chief, yielding
from composer.recipe.study_printed import find_printed
from composer.recipe.study_sweeps import count, read_grid, read_rungs, read_select
from composer.recipe.terms import ID
from composer.recipe.uses import Components
from composer.recipe.write import quote
from composer.registry import REGISTRY

EDIT = ("set", "drop", "put")
HEAD = ("about", "kind", "table", "recipe", "setting", "settings", "seeds", "groups", "analysis", *EDIT, "cells")
CELL = ("about", "kind", "recipe", "setting", "settings", "printed", *EDIT)
KINDS: dict[str, tuple[str, ...]] = {"cell": (), "sweep": ("grid", "rungs", "keep", "select"), "external": ("checkpoint", "model", "normalisation"),
                                     "printed": ()}
NEEDED = {"sweep": ("grid", "select"), "external": ("checkpoint", "model", "normalisation")}


class _Places:
    """What Problems asks of origins, answered from the study's own lines."""

    home = ""

    def __init__(self, doc: Doc):
        self.doc = doc

    def where(self, path: Any) -> str:
        return self.doc.place(path)


class Reading:
    """One study's file, read to the end whatever is wrong."""

    def __init__(self, doc: Doc, bases: Bases):
        self.doc, self.bases, self.table = doc, bases, doc.table
        self.errors: list[ComposerError] = []
        self.printed: dict[str, Any] | None = None
        self.said, self.notes = bases.said, list[str]()

    def fail(self, path: tuple[str, ...], what: str, why: str = "", fix: str = "") -> None:
        self.errors.append(ComposerError(what, where=place_of(self.doc, path), why=why, fix=fix))

    def read(self) -> Study:
        self.keys((), self.table, HEAD)
        kind = self.text((), self.table, "kind", ("train", "bench")) or "train"
        self.printed = self.printed_table()
        self.groups = self.read_groups()
        common = yielding(self.edit((), self.table, "the study"), self.said, "the study", self.notes)
        cells = self.table.get("cells")
        if not isinstance(cells, dict) or not cells:
            self.fail(("cells",), "a study has no rows" if not cells else f"cells = {quote(cells)}", fix="write [cells.<row>]")
            cells = {}
        rows = [row for id, cell in cells.items() for row in self.rows(id, cell, common)]
        self.check_groups(rows)
        return Study(name=self.doc.path.stem, about=self.text((), self.table, "about") or "", kind=kind, table=self.text((), self.table, "table") or "",
                     seeds=self.said.seeds or self.seeds(), analysis=self.analysis(rows), rows=tuple(rows), file=self.doc.path, command=self.said,
                     notes=tuple(dict.fromkeys(self.notes)))    # type: ignore[arg-type]

    # -- the head ------------------------------------------------------------------------------------------------------------------

    def keys(self, path: tuple[str, ...], table: dict[str, Any], legal: tuple[str, ...]) -> None:
        for key in table:
            if key not in legal:
                near = difflib.get_close_matches(key, legal, n=1)
                self.fail((*path, key), f"'{key}' is not known here", fix=f"did you mean '{near[0]}'?" if near else f"known: {', '.join(legal)}")

    def text(self, path: tuple[str, ...], table: dict[str, Any], key: str, choices: tuple[str, ...] = ()) -> str | None:
        value = table.get(key)
        if value is None or isinstance(value, str) and value and (not choices or value in choices):
            return value
        self.fail((*path, key), f"{key} = {quote(value)}", why=f"one of {', '.join(choices)}" if choices else "a text in quotes is needed")
        return None

    def printed_table(self) -> dict[str, Any] | None:
        name = self.text((), self.table, "table")
        if name and name not in self.bases.tables:
            self.fail(("table",), f"there is no printed table '{name}'", fix=suggest(name, self.bases.tables, "tables"))
        return self.bases.tables.get(name) if name else None

    def read_groups(self) -> dict[str, str]:
        groups = self.table.get("groups", {})
        known = {row.get("group") for row in self.printed["rows"]} if self.printed else None
        if not isinstance(groups, dict):
            self.fail(("groups",), f"groups = {quote(groups)}", why="a table is needed", fix='write "<setting>" = "<group of the printed table>"')
            return {}
        for key, value in groups.items():
            if not isinstance(value, str) or known is not None and value not in known:
                self.fail(("groups", key), f"{quote(key)} = {quote(value)}", why="the printed table has no such group",
                          fix=suggest(str(value), [g for g in known or () if g], "groups"))
        return groups

    def check_groups(self, rows: list[Row]) -> None:
        if self.said.setting:
            return                                         # groups of settings that it does not stand on now
        used = {name for row in rows for name in (row.setting, *row.select)}
        for key in self.groups:
            if used and key not in used:
                self.fail(("groups", key), f"{quote(key)} names a group", why="no row stands on that setting, and no sweep selects by it",
                          fix=suggest(key, used, "settings and selectors"))

    def seeds(self) -> tuple[int, ...]:
        value = self.table.get("seeds", 1)
        if count(value) and value > 0:
            return tuple(range(value))
        if isinstance(value, list) and value and all(map(count, value)) and len(set(value)) == len(value):
            return tuple(value)
        self.fail(("seeds",), f"seeds = {quote(value)}", why="how many, or a list of different seeds", fix="write seeds = 5 or seeds = [0, 1, 7]")
        return (0,)

    def analysis(self, rows: list[Row]) -> dict[str, Any]:
        table = self.table.get("analysis", {})
        if not isinstance(table, dict):
            self.fail(("analysis",), f"analysis = {quote(table)}", why="a table is needed")
            return {}
        problems = Problems(_Places(self.doc))                       # type: ignore[arg-type]
        read_analysis(Components(REGISTRY, problems), table)
        self.errors += problems.found.values()
        primary = table.get("primary")
        for row in rows if isinstance(primary, str) else ():
            names = [m.name for m in row.recipe.evaluate.measures] if row.recipe else []
            if row.recipe and primary not in names and self.said:
                stands = chief(row.recipe.evaluate.measures)
                table = {key: value for key, value in {**table, "primary": stands}.items() if value != ""}
                self.notes.append(f"{primary} is not measured here: " + (f"the primary measure is {stands}" if stands else "no measure is primary"))
                break
            if row.recipe and primary not in names:
                self.fail(("analysis", "primary"), f"primary = {quote(primary)}", why=f"row {row.name} does not measure it",
                          fix=suggest(primary, names, "measures"))
                break
        return table

    # -- rows ----------------------------------------------------------------------------------------------------------------------

    def rows(self, id: str, cell: Any, common: Edit) -> list[Row]:
        path = ("cells", id)
        if not ID.fullmatch(id):
            self.fail(path, f"'{id}' cannot be a row's id", why="ids are letters, digits, _ and -", fix=f'write printed = "{id}"')
        if not isinstance(cell, dict):
            self.fail(path, f"{id} = {quote(cell)}", why="a row is a table")
            return []
        kind = self.text(path, cell, "kind", tuple(KINDS)) or "cell"
        self.keys(path, cell, (*CELL, *KINDS[kind]))
        missing = [key for key in NEEDED.get(kind, ()) if key not in cell]
        if missing:
            self.fail(path, f"{id} has no {' and no '.join(missing)}", why=f"a row of kind {kind} needs {', '.join(NEEDED[kind])}")
            return []
        edit = self.edit(path, cell, f"cells.{id}")
        edits = tuple(e for e in (common, edit, self.model(path, cell) if kind == "external" else None) if e and not e.empty)
        own = self.settings(path, cell)
        settings = [self.said.setting] if self.said.setting else own
        away = settings[0] not in own if settings else False
        if away and not self.moved(id, kind, own):
            return []
        found = [self.row(path, cell, kind, setting, edits, len(settings) > 1, away) for setting in settings]
        if cell.get("printed") is not False and self.printed and found and not away and not any(row.printed for row in found):
            self.fail(path, f"no row of {self.printed['id']} is printed for {id}", fix="write printed = false, or the printed row's name")
        return found

    def moved(self, id: str, kind: str, own: list[str]) -> bool:
        """A row on a setting that its study does not have it on; False where nothing of it is left there."""
        if self.printed:
            self.notes.append(f"on {self.said.setting} no printed number of table {self.printed['id']} stands beside a row: it is of another setting")
        if len(own) > 1:
            self.notes.append(f"rows on {', '.join(own)} are one on {self.said.setting}")
        if kind == "printed":
            self.notes.append(f"{id} is in print only, on another setting: it is left out")
        return kind != "printed"

    def settings(self, path: tuple[str, ...], cell: dict[str, Any]) -> list[str]:
        """The row's own setting or settings, else the study's; "" is the recipe's own."""
        for table, at in ((cell, path), (self.table, ())):
            if "setting" in table and "settings" in table:
                self.fail((*at, "settings"), "both setting and settings are given", fix="leave one of them")
            if "settings" in table:
                found = table["settings"]
                if isinstance(found, list) and found and all(isinstance(s, str) and s for s in found) and len(set(found)) == len(found):
                    return found
                self.fail((*at, "settings"), f"settings = {quote(found)}", why="a list of different settings is needed")
                return []
            if "setting" in table:
                name = self.text(at, table, "setting")
                return [name] if name else []
        return [""]

    def edit(self, path: tuple[str, ...], table: dict[str, Any], name: str) -> Edit:
        def place(below: Dotted) -> str:
            return f"{self.doc.place((*path, *below))}  {name}"

        return read_edit(name, {key: table[key] for key in EDIT if key in table}, place(()), place, self.errors)

    def model(self, path: tuple[str, ...], cell: dict[str, Any]) -> Edit | None:
        """An external model stands in the place of the setting's, normalisation included."""
        place = place_of(self.doc, (*path, "model"))
        self.text(path, cell, "checkpoint")
        model, normal = cell["model"], cell["normalisation"]
        table = {"use": model} if isinstance(model, str) else model
        if not isinstance(table, dict) or "use" not in table:
            self.fail((*path, "model"), f"model = {quote(model)}", why="a model's name or table is needed", fix='write { use = "wrn", … }')
            return None
        if normal != "none" and not (isinstance(normal, dict) and set(normal) == {"mean", "std"}):
            self.fail((*path, "normalisation"), f"normalisation = {quote(normal)}", why="how the checkpoint was trained must be said",
                      fix='write "none" or { mean = […], std = […] }')
            return None
        whole = {**table, **(normal if isinstance(normal, dict) else {})}
        return Edit(f"cells.{path[1]}", place, set={("model",): (whole, f"{self.doc.place((*path, 'model'))}  cells.{path[1]}")})

    def row(self, path: tuple[str, ...], cell: dict[str, Any], kind: str, setting: str, edits: tuple[Edit, ...], several: bool,
            away: bool) -> Row:
        id = path[1]
        group = self.groups.get(setting, "")
        absent = self.absent(cell, away) if kind == "external" else ""
        recipe = None if kind == "printed" or kind == "external" and away else self.recipe(path, cell, setting, edits)
        if recipe is None and setting not in ("", *setting_names(self.bases.root)) and kind == "printed":
            self.fail(path, f"there is no setting '{setting}'", fix=suggest(setting, setting_names(self.bases.root), "settings"))
        grid, select = (read_grid(self, path, cell, recipe), read_select(self, path, cell, recipe)) if kind == "sweep" else ({}, ())
        rungs, keep = read_rungs(self, path, cell, recipe, grid) if kind == "sweep" else ((), None)
        said = False if away else cell.get("printed", id)
        printed = find_printed(self, path, said, group, {s: self.groups.get(s, "") for s in select})
        checkpoint = cell.get("checkpoint", "")
        return Row(name=f"{id}@{group or setting.replace('/', '-')}" if several else id, id=id, kind=kind, setting=setting, group=group,    # type: ignore[arg-type]
                   where=place_of(self.doc, path), about=self.text(path, cell, "about") or "", recipe=recipe, printed=printed, edits=edits, grid=grid,
                   rungs=rungs, keep=keep, select=select, checkpoint=checkpoint if isinstance(checkpoint, str) else "",
                   absent=absent)

    def absent(self, cell: dict[str, Any], away: bool) -> str:
        """Why an external row cannot be judged: its file lies neither below the working folder nor beside the study."""
        file = cell.get("checkpoint")
        if away:
            return f"not available: {file} was not trained on {self.said.setting}"
        found = isinstance(file, str) and any((root / file).is_file() for root in (Path(), self.doc.path.parent))
        return "" if found else f"not available: there is no file {file}"

    def recipe(self, path: tuple[str, ...], cell: dict[str, Any], setting: str, edits: tuple[Edit, ...]) -> Recipe | None:
        """The row's recipe with the study's edit and its own. What is wrong with the recipe itself is told where that stands, once."""
        at = (*path, "recipe") if "recipe" in cell else ("recipe",)
        name = self.text(path, cell, "recipe") if "recipe" in cell else self.text((), self.table, "recipe")
        if name is None:
            if "recipe" not in cell and "recipe" not in self.table:
                self.fail(path, f"{path[1]} has no recipe", fix='write recipe = "…" in the row or at the top of the study')
            return None
        base = self.bases.get(name, setting)
        chosen = (*path, "setting" if "setting" in cell else "settings") if {"setting", "settings"} & set(cell) else \
            ("setting" if "setting" in self.table else "settings",)
        for error in base.errors:
            here = place_of(self.doc, at) if not error.where else place_of(self.doc, chosen) if error.where == "--setting" and not self.said.setting else error.where
            self.errors.append(ComposerError(error.what, where=here, why=error.why, fix=error.fix))
        if base.recipe is None or not edits:
            return base.recipe
        recipe, found = self.bases.edited(base.recipe, edits)
        old = {(e.where, e.what) for e in base.errors}
        self.errors += [told_at(e, f"{self.doc.place(path)}  cells.{path[1]}") for e in found if (e.where, e.what) not in old]
        return recipe
