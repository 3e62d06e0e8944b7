"""The Recipe: what was meant, checked and immutable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from composer.errors import ComposerError, Errors, suggest
from composer.recipe.edit import Edit, Editor, read_edit
from composer.recipe.keys import known
from composer.recipe.layers import Stack
from composer.recipe.merge import Origins
from composer.recipe.paths import Dotted, clone, inside, show
from composer.recipe.phases import Phase, read_phases
from composer.recipe.problems import Unread
from composer.recipe.schema import Reader
from composer.recipe.types import Evaluate, Method, ModelSpec, OptimSpec, Segment, Select, Threat, Trace, Train, Use


@dataclass(frozen=True, eq=False)
class Recipe:
    """A method on a setting. Edits give new recipes; nothing changes in place.

    tables   the merged tables as TOML would say them, after all layers but the phases
    full     the same with every default written out (threat's values stay with the threat)
    """

    name: str
    about: str
    paper: str
    setting: str
    method: Method
    threat: Threat
    train: Train
    data: Use
    augment: tuple[Use, ...]
    model: ModelSpec
    optim: OptimSpec
    select: Select
    trace: Trace
    evaluate: Evaluate
    phases: tuple[Phase, ...]
    toggle: dict[str, Any]
    search: dict[str, dict[str, Any]]
    analysis: dict[str, Any]
    expect: dict[str, Any]
    requires: tuple[str, ...]
    version: Any
    tables: dict[str, Any]
    full: dict[str, Any]
    history: Origins
    stack: Stack
    off: tuple[str, ...] = ()                       # toggles that are off
    edits: tuple[Edit, ...] = ()                    # further edits, in order
    unread: Unread = field(default_factory=Unread)  # what mistakes left out, while they are being collected; else nothing
    wrong: tuple[ComposerError, ...] = ()           # those mistakes
    _cache: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def origins(self) -> dict[Dotted, list[tuple[str, Any]]]:
        """Path -> everything said about it, (place, value), the last won."""
        return self.history.said

    def where(self, path: str | Dotted) -> str:
        """file:line of what stands at the path, or of the nearest table around it. An item of a list is named by its number."""
        from composer.recipe.paths import split

        return self.history.where(split(path) if isinstance(path, str) else path)

    def without(self, *toggles: str) -> Recipe:
        """The recipe with these toggles off, all at once. Errors: unknown names, two that set one path differently, what no longer checks."""
        return self._again(tuple(dict.fromkeys((*self.off, *toggles))), self.edits)

    def edit(self, *, set: dict[str, Any] | None = None, drop: Iterable[str] = (), put: dict[str, Any] | None = None,
             name: str = "edit", where: str = "") -> Recipe:
        """The recipe with one more edit, as a study's cell makes it. Errors: as without."""
        errors: list[ComposerError] = []
        made = read_edit(name, {"set": set or {}, "drop": list(drop), "put": put or {}}, where or name, lambda _: where or name, errors)
        if errors:
            raise Errors(errors)
        return self._again(self.off, (*self.edits, made))

    def _again(self, off: tuple[str, ...], edits: tuple[Edit, ...]) -> Recipe:
        recipe, errors = realise(self.stack, off, edits)
        if errors:
            raise Errors(errors)
        return recipe

    def segments(self) -> tuple[Segment, ...]:
        """The stretches of epochs with one plan each, in order. Errors: phases that contradict each other or do not check."""
        found, errors = self.stretches()
        if errors:
            raise Errors(errors)
        return found

    def stretches(self) -> tuple[tuple[Segment, ...], list[ComposerError]]:
        """As segments, with everything that is wrong with the phases given back."""
        if "segments" not in self._cache:
            from composer.recipe.segments import segments

            self._cache["segments"] = segments(self)
        return self._cache["segments"]

    def canonical(self) -> dict[str, Any]:
        """What was meant, as a stable plain dict: no seed, no inert keys, every default written."""
        from composer.recipe.identity import canonical

        return canonical(self.full)

    @cached_property
    def experiment_id(self) -> str:
        from composer.recipe.identity import digest

        return digest(self.canonical())

    def filled(self) -> str:
        """TOML text with all defaults written back; reading it gives the same experiment id."""
        from composer.recipe.identity import filled

        return filled(self)

    def why(self, path: str) -> list[dict[str, Any]]:
        """Who set a value: [{path, where, value, wins}], eldest first, for the path and all below it."""
        from composer.recipe.identity import why

        return why(self, path)


def toggle_edit(stack: Stack, name: str, errors: list[ComposerError]) -> Edit:
    """The edit of one toggle. Errors: ComposerError for an unknown name."""
    toggles = stack.tables.get("toggle", {})
    if name not in toggles:
        raise ComposerError(f"there is no toggle '{name}'", where=f"recipe {stack.name}", fix=suggest(name, toggles, "toggles"))
    if name not in stack.toggles:
        found: list[ComposerError] = []
        edit = read_edit(f"toggle.{name}", toggles[name], toggle_place(stack, name, ()), lambda path: toggle_place(stack, name, path), found)
        errors += found
        if found:
            return edit
        stack.toggles[name] = edit
    return stack.toggles[name]


def toggle_place(stack: Stack, name: str, path: Dotted) -> str:
    return f"{stack.origins.where(('toggle', name, *path))}  toggle.{name}"


def realise(stack: Stack, off: tuple[str, ...] = (), edits: tuple[Edit, ...] = ()) -> tuple[Recipe, list[ComposerError]]:
    """The stack with toggles off and edits applied, and everything that is wrong with it; sound only where nothing is."""
    errors: list[ComposerError] = []
    toggles = []
    for name in off:
        try:
            toggles.append(toggle_edit(stack, name, errors))
        except ComposerError as error:
            errors.append(error)
    for edit in (*toggles, *edits):
        errors += _commanded(stack, edit)
    changed = {path[0] for edit in (*toggles, *edits) for path in edit.paths()}      # tables that no edit touches are shared
    tables, origins = {key: clone(table) if key in changed else table for key, table in stack.tables.items()}, stack.origins.copy()
    editor = Editor(tables, stack.tables, origins, known, errors, stack.start_evaluate, lost=stack.lost)
    editor.apply(toggles)
    for edit in edits:
        editor.apply([edit])
    recipe, found = build(stack, tables, origins, off, edits, whole=True)
    return recipe, errors + found


def _commanded(stack: Stack, edit: Edit) -> list[ComposerError]:
    found = []
    for path, (_, where) in {**edit.set, **edit.put}.items():
        if any(inside(path, c) or inside(c, path) for c in stack.commanded):
            found.append(ComposerError(f"{show(path)} is set by the command line and by {edit.name}", where=where,
                                       fix="leave it to one of them"))
    return found


def build(stack: Stack, tables: dict[str, Any], origins: Origins, off: tuple[str, ...] = (),
          edits: tuple[Edit, ...] = (), *, whole: bool = False) -> tuple[Recipe, list[ComposerError]]:
    """Tables to a Recipe, and what is wrong with them. `whole`: a whole run, not one phase of it."""
    protocols = stack.protocols.table if stack.protocols else {}
    reader = Reader(tables, origins, protocols=protocols, base=stack.tables, commanded=stack.commanded, lost=stack.lost).read()
    phases = read_phases(reader)
    if whole:
        reader.judged(stack.own and not (off or edits) and not any(path[0] == "evaluate" for path in stack.commanded))
    about, paper = (tables[key] if isinstance(tables.get(key), str) else "" for key in ("about", "paper"))
    errors = list(reader.problems.found.values())
    made = Recipe(name=stack.name, about=about, paper=paper, setting=stack.setting, phases=phases, toggle=reader.table("toggle"),
                  version=tables.get("version"), tables=tables, full=reader.full, history=origins, stack=stack, off=off, edits=edits,
                  unread=reader.problems.unread, wrong=tuple(errors), **reader.pieces)
    return made, errors
