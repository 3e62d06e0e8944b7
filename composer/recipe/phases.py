"""Phases as written: intervals of epochs, each with an edit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from composer.errors import ComposerError
from composer.options import whole_epochs
from composer.recipe import fixed
from composer.recipe.edit import Edit, read_edit
from composer.recipe.paths import Dotted, show
from composer.recipe.schema import Reader
from composer.recipe.terms import ID, each
from composer.recipe.uses import fixed_table
from composer.recipe.write import quote
from composer.registry import Primitive

WHOLE_RUN = ("data", "model", "select", "trace", "evaluate", "phase", "toggle", "search", "analysis", "expect")     # no phase changes these
OWN = ("use", "set", "drop", "put")


@dataclass(frozen=True)
class Phase:
    """Epochs in which an edit holds. `start` and `stop` count epochs completed; an added phase lies before the run's epochs.

    A phase with a mistake is not `sound`: its edit is still checked, alone.
    """

    name: str
    start: int
    stop: int
    edit: Edit
    add: bool = False
    fresh: bool = False
    sound: bool = True


def read_phases(reader: Reader) -> tuple[Phase, ...]:
    """The phases of a recipe; problems go to the reader's."""
    epochs = reader.pieces["train"].epochs
    return each(reader.uses, reader.table("phase"), ("phase",), lambda name, given, path: _phase(reader, name, given, path, epochs), ID)


def _phase(reader: Reader, name: str, given: dict[str, Any], path: Dotted, epochs: int) -> Phase:
    uses, before = reader.uses, len(reader.problems)
    own = {key: value for key, value in given.items() if key in fixed.names("phase")}
    table = fixed_table(uses, "phase", own, path)
    rest = {key: value for key, value in given.items() if key not in own and key not in OWN}
    primitive = uses.primitive(("phase",), given["use"], path) if "use" in given else None
    options = uses.options(primitive, rest, path, (*fixed.names("phase"), *OWN[1:])) if primitive else {}
    for key in rest if "use" not in given else ():
        uses.unknown(path, key, "", (), (*OWN, *fixed.names("phase")))
    edit = _edit(reader, name, given, path, primitive, options)
    if len(reader.problems) == before:
        _interval(reader.problems, path, table, edit.empty and not primitive)
    for key, value in {**({"use": primitive.name} if primitive else {}), **options, **table, **{k: given[k] for k in OWN[1:] if k in given}}.items():
        uses.keep((*path, key), value)
    sound = len(reader.problems) == before
    if table["add"]:
        return Phase(name, 0, whole_epochs(table["epochs"] or 1, epochs), edit, True, table["then"] == "fresh", sound)
    start = whole_epochs(table["from"], epochs)
    stop = epochs if table["until"] is None else min(epochs, whole_epochs(table["until"], epochs))
    return Phase(name, start, stop, edit, sound=sound)


def _interval(problems: Any, path: Dotted, table: dict[str, Any], empty: bool) -> None:
    if table["add"]:
        if table["epochs"] is None:
            problems.add(path, f"phase '{path[1]}' is added, but not how long it is", fix='add epochs = 25, or epochs = "25/200"')
        for key in ("from", "until"):
            if table[key]:
                problems.add((*path, key), f"{key} = {quote(table[key])}", why="an added phase lies before the run's epochs", fix="drop the key")
    else:
        for key in ("epochs", "then"):
            if table[key] is not None:
                problems.add((*path, key), f"{key} = {quote(table[key])}", why="only an added phase has it",
                             fix="write add = true, or from and until")
        start, stop = table["from"], table["until"]
        if stop is not None and isinstance(start, str) == isinstance(stop, str) and whole_epochs(start, 10**6) >= whole_epochs(stop, 10**6):
            problems.add((*path, "until"), f"from = {quote(start)}, until = {quote(stop)}", why="the phase ends before it starts")
    if empty:
        problems.add(path, f"phase '{path[1]}' changes nothing", fix="give it use, or set, drop, put")


def _edit(reader: Reader, name: str, given: dict[str, Any], path: Dotted, primitive: Primitive | None, options: dict[str, Any]) -> Edit:
    """What it changes, without what it may not change."""
    where = reader.problems.origins.where
    errors: list[ComposerError] = []
    label = f"{show(path)} (use {primitive.name})" if primitive else show(path)
    own = {key: given[key] for key in OWN[1:] if key in given}
    edit = read_edit(label, own, f"{where(path)}  {show(path)}", lambda p: f"{where((*path, *p))}  {show(path)}", errors)
    if primitive and not reader.uses.guessed(path):
        method = reader.pieces.get("method")
        facts = {"terms": tuple(reader.table("terms")), "inner": tuple(reader.table("inner")), "soft": bool(method and method.soft)}
        needs = [n.name for n in primitive.needs]
        strange = [n for n in needs if n not in facts]
        if strange:
            reader.problems.add((*path, "use"), f"phase '{primitive.name}' asks for '{strange[0]}'", why="a phase may ask for terms, inner and soft")
        else:
            place = f"{where((*path, 'use'))}  {show(path)}"
            edit = edit.over(read_edit(label, primitive.fn(*(facts[n] for n in needs), **options), place, lambda _: place, errors))
    for changed, place in edit.paths().items():
        if changed[0] in WHOLE_RUN or changed == ("train", "epochs"):
            errors.append(ComposerError(show(changed), where=place, why="a phase cannot change it: it holds for the whole run"))
            for part in (edit.set, edit.drop, edit.put):
                part.pop(changed, None)  # type: ignore[attr-defined]
    for error in errors:
        reader.problems.found.setdefault(((*path, error.what), error.where), error)
    return edit
