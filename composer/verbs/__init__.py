"""The verbs that need no torch, as functions: check, diff, list, schema, why. The command line prints what they return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composer.errors import ComposerError, suggest
from composer.options import plain
from composer.recipe import paths as dotted  # a bare `show` would be hidden by the module of this room
from composer.recipe.load import catalogue, examine, load
from composer.recipe.paths import MISSING, Dotted, get, leaves
from composer.recipe.recipe import Recipe
from composer.registry import KINDS, REGISTRY, Primitive

if TYPE_CHECKING:
    from composer.recipe.studies import Bases


@dataclass(frozen=True)
class Checked:
    """What `check` found in one recipe, or in one study: then `rows`, `runs` (a seed), `seeds` and `same`, the cells that are one experiment."""

    recipe: str
    setting: str = ""
    experiment_id: str = ""
    segments: tuple[dict[str, Any], ...] = ()
    errors: tuple[ComposerError, ...] = field(default=())
    study: dict[str, Any] | None = None

    @property
    def ok(self) -> bool:
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        if self.study is not None:
            return {"study": self.recipe, "ok": self.ok, **self.study, "errors": [error_dict(e) for e in self.errors]}
        return {"recipe": self.recipe, "setting": self.setting, "ok": self.ok, "experiment_id": self.experiment_id, "segments": list(self.segments),
                "errors": [error_dict(e) for e in self.errors]}


def error_dict(error: ComposerError) -> dict[str, str]:
    return {"where": error.where, "what": error.what, "why": error.why, "fix": error.fix}


def check(recipes: Iterable[str | Path], *, setting: str | None = None, sets: Sequence[str] = (), drops: Sequence[str] = (),
          root: Path | None = None, plans: bool = True) -> list[Checked]:
    """Every recipe or study with everything that is wrong with it. `plans`: also what only a compiled plan shows."""
    from composer.recipe.studies import Bases, find_study

    if plans:
        from composer.verbs.checking import look
    found = []
    bases: Bases | None = None                             # what studies have in common is read once
    for each in recipes:
        if find_study(each, root):
            bases = bases or Bases(root, look if plans else None)
            found.append(_checked_study(each, bases, [*(["--setting"] if setting else []), *(["--set"] if sets else []), *(["--drop"] if drops else [])]))
            continue
        recipe, errors = examine(each, setting=setting, sets=sets, drops=drops, root=root, look=look if plans else None)
        if recipe is None:
            found.append(Checked(str(each), setting or "", errors=tuple(errors)))
            continue
        stretches = tuple({"first": s.first, "last": s.last, "phases": list(s.phases)} for s in recipe.segments())
        found.append(Checked(str(each), recipe.setting, recipe.experiment_id, stretches))
    return found


def _checked_study(name: str | Path, bases: Bases, options: list[str]) -> Checked:
    from composer.recipe.studies import examine_study

    study, errors = examine_study(name, bases=bases)
    errors = [*errors, *(ComposerError(f"{option} does not go with a study", where=option, why="its rows say what they run on and what they change",
                                       fix=f"leave it, or write it into {name}") for option in options)]
    if study is None:
        return Checked(str(name), errors=tuple(errors), study={})
    said = {"kind": study.kind, "table": study.table, "seeds": list(study.seeds), "rows": len(study.rows),
            "runs": sum(1 for _ in study.runs()) + sum(row.size for row in study.rows if row.kind == "sweep"), "same": [list(n) for n in study.same()]}
    return Checked(str(name), errors=tuple(errors), study=said)


def shipped_recipes() -> list[str]:
    from composer.recipe.find import recipe_names, shipped

    return recipe_names(shipped())


def shipped_studies() -> list[str]:
    from composer.recipe.find import shipped
    from composer.recipe.studies import study_names

    return [f"studies/{name}" for name in study_names(shipped())]


def diff(a: str | Path | Recipe, b: str | Path | Recipe, **options: Any) -> list[dict[str, Any]]:
    """What differs between two recipes: [{path, a, b, where_a, where_b}]; a value that one lacks is absent there.

    options   as for load: setting, sets, drops, toggles, root
    """
    left, right = (r if isinstance(r, Recipe) else load(r, **options) for r in (a, b))
    tables = left.canonical(), right.canonical()
    paths = dict.fromkeys(_shared(path, tables) for table in tables for path, _ in leaves(table))
    rows = []
    for path in paths:
        values = [get(table, path) for table in tables]
        if values[0] == values[1]:
            continue
        row: dict[str, Any] = {"path": dotted.show(path)}
        for key, value, recipe in zip("ab", values, (left, right), strict=True):
            if value is not MISSING:
                row |= {key: value, f"where_{key}": _told(recipe, path)}
        rows.append(row)
    return rows


def _shared(path: Dotted, tables: Sequence[dict[str, Any]]) -> Dotted:
    """The path, or the first table around it that one of the two lacks."""
    return next((path[:end] for end in range(1, len(path)) if any(not isinstance(get(t, path[:end]), dict) for t in tables)), path)


def _told(recipe: Recipe, path: Dotted) -> str:
    """Where the value was written; a default says so."""
    said = path in recipe.origins or isinstance(get(recipe.tables, path), dict)
    return recipe.where(path) if said else f"default ({recipe.where(path)})"


def why(recipe: str | Path | Recipe, path: str, **options: Any) -> list[dict[str, Any]]:
    """Who set a value, eldest first: [{path, where, value, removed, wins}]. The last layer's word is marked `wins`."""
    found = recipe if isinstance(recipe, Recipe) else load(recipe, **options)
    return found.why(path)


def list_primitives(kind: str | None = None) -> list[dict[str, Any]]:
    """The catalogue, of one kind or whole."""
    catalogue()
    if kind is not None and kind not in KINDS:
        raise ComposerError(f"there is no kind '{kind}'", fix=suggest(kind, KINDS, "kinds"))
    return [describe(p) for p in REGISTRY.all(kind)]


def describe(p: Primitive) -> dict[str, Any]:
    """A primitive's card as plain values."""
    return {"kind": p.kind, "name": p.name, "summary": p.card.summary, "formula": p.card.formula, "paper": p.card.paper,
            "needs": [{"name": n.name, "shape": n.shape.dims if n.shape else "", "text": n.shape.text if n.shape else ""} for n in p.needs],
            "options": [{"name": o.name, "type": o.type_text, "required": o.required and not o.threat,
                         "default": "threat" if o.threat else None if o.required else plain(o.default)} for o in p.options],
            "origin": p.origin}


def schema(*, study: bool = False) -> dict[str, Any]:
    """JSON Schema (draft 7) of a recipe or of a study, for editors; with the primitives that are loaded now."""
    from composer.recipe.jsonschema import json_schema
    from composer.recipe.study_schema import study_schema

    catalogue()
    if not study:
        return json_schema(REGISTRY)
    from composer.recipe.studies import Bases

    return study_schema(Bases().tables)
